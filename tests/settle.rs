//! A run that starts with compact kernels and takes those for one shape where they are right and
//! faster: on a device whose results and times are a test's (`support/faulty.rs`), and with the
//! real kernels on every adapter.

mod support;

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use aavae::data::{self, DataOptions, Kind, Loader, Splits};
use aavae::device::{Compiled, Session};
use aavae::method::Method;
use aavae::ops::{Choices, Target, Variant};
use aavae::run::checkpoint::Checkpoint;
use aavae::run::settings::RunConfig;
use aavae::run::trained::model_config;
use aavae::train::plans;
use aavae::train::schedule::Timetable;
use aavae::train::trainer::Trainer;
use aavae::tune::{Kernels, Outlook, Product, SEARCH, Search, products};
use libtest_mimic::{Arguments, Failed, Trial};
use support::faulty::{Faulty, Temper};
use support::{Device, check, on_devices};

/// Steps that are taken between two slices, until there are no more.
const STEPS: u64 = 6;

fn config(method: Method) -> RunConfig {
    RunConfig {
        method,
        log_every: 1,
        width: 8,
        latent_dim: 8,
        batch_size: 4,
        epochs: 2,
        warmup_epochs: 0,
        learning_rate: 1e-3,
        importance_samples: Some(0),
        ..RunConfig::default()
    }
}

fn splits() -> Result<Splits, Failed> {
    let options =
        DataOptions { shapes_len: (26, 1), n_val: Some(2), ..DataOptions::new(Kind::Shapes) };
    Ok(data::open(&options)?)
}

/// A run, and the data that it sees.
struct Run<'a> {
    trainer: Trainer<'a>,
    config: &'a RunConfig,
    splits: &'a Splits,
    steps: u64,
}

impl<'a> Run<'a> {
    /// A run where compiling is slow, with the kernels that it is given.
    fn start(
        config: &'a RunConfig,
        splits: &'a Splits,
        mut session: Session,
        choices: &Choices,
    ) -> Result<Self, Failed> {
        session.set_target(Target { compact: true, ..session.target() });
        let model = model_config(config, splits);
        let refused = plans::trust(&mut session, config, &model, splits.val.len(), choices)?;
        check(refused.is_empty(), || format!("refused {refused:?}"))?;
        let timetable = Timetable::new(config, splits.train.len())?;
        let mut trainer = Trainer::new(config, timetable, splits, session)?;
        trainer.initialise(None)?;
        Ok(Self { trainer, config, splits, steps: 0 })
    }

    /// Takes steps; the loss of each.
    fn train(&mut self, steps: Range<u64>) -> Result<Vec<f32>, Failed> {
        let order = Timetable::new(self.config, self.splits.train.len())?.order;
        let mut batches = Loader::new(&self.splits.train, order, steps.clone())?;
        let mut losses = Vec::new();
        for number in steps {
            let step = self.trainer.step(&mut batches)?.ok_or("more batches")?;
            check(step.number == number + 1, || format!("step {} of {number}", step.number))?;
            self.steps = step.number;
            let asked = self.trainer.ask(&step)?;
            let record = self.trainer.answer(asked)?;
            losses.push(record.get("loss").ok_or_else(|| format!("{record:?}"))?);
        }
        Ok(losses)
    }

    fn checkpoint(&mut self) -> Result<Checkpoint, Failed> {
        let (layout, params) = self.trainer.tensors();
        let meta = self.trainer.meta(self.steps, "data")?;
        let tensors = self.trainer.snapshot(self.steps)?.tensors(&layout, &params);
        Ok(Checkpoint { tensors, meta })
    }

    /// Weights and moments as a file.
    fn state(&mut self) -> Result<Vec<u8>, Failed> {
        let tensors = self.checkpoint()?.tensors;
        Ok(Checkpoint { tensors, meta: [].into() }.to_bytes())
    }

    /// Searches for other kernels, with steps between; the losses of these, and what was found.
    fn settle(&mut self, kernels: Kernels) -> Result<(Vec<f32>, Outlook), Failed> {
        let before = self.trainer.seek(kernels, None);
        check(matches!(before, Outlook::Trying { tried: 0, .. }), || format!("{before:?}"))?;
        let (mut losses, mut state) = (Vec::new(), self.state()?);
        for slice in 0.. {
            if slice % 8 == 0 && self.steps < STEPS {
                losses.extend(self.train(self.steps..self.steps + 1)?);
                state = self.state()?;
            }
            match self.trainer.settle()? {
                None | Some(Outlook::Trying { .. }) => {}
                Some(found) => {
                    check(self.state()? == state, || "the exchange moves the state".into())?;
                    check(self.trainer.settle()?.is_none(), || "it does not end".into())?;
                    return Ok((losses, found));
                }
            }
        }
        unreachable!("without an end")
    }
}

/// The products of a run's steps, and of each the kernel for its shape and the compact one.
fn offered(run: &Run<'_>) -> Vec<(Product, [Variant; 2])> {
    let target = run.trainer.session().target();
    let both = |p: Product| {
        let variants = [p.op.variants(&p.io, &target)[0], p.op.preferred(&p.io, &target)];
        (p, variants)
    };
    products([run.trainer.plan()]).into_iter().map(both).collect()
}

fn chosen(run: &Run<'_>) -> Vec<(String, Variant)> {
    run.trainer.session().choices().iter().map(|(key, variant)| (key.clone(), *variant)).collect()
}

/// Where one shape's kernel is faster it is taken, where it is wrong it is refused; nothing of the
/// training is disturbed.
fn the_faster_are_taken() -> Result<(), Failed> {
    let (config, splits) = (config(Method::Aavae), splits()?);
    let temper = Temper::default();
    let session = || Session::from(Faulty::with_variants(temper.clone()));
    let none = Choices::default();
    let mut straight = Run::start(&config, &splits, session(), &none)?;
    let losses = straight.train(0..STEPS + 2)?;

    let mut run = Run::start(&config, &splits, session(), &none)?;
    let all = offered(&run);
    check(all.len() > 40 && all.iter().all(|(_, [_, compact])| compact.is_compact()), || {
        format!("{} products", all.len())
    })?;
    // Of all shapes that have the kernel of the first one, its is wrong.
    let ([fast, _], wrong) = (all[0].1, all[0].0.key.clone());
    temper.costs.borrow_mut().insert(fast, 0.5);
    temper.crooked.borrow_mut().push((fast, wrong.clone()));
    let held = run.trainer.session().allocated_bytes();
    let (mut here, found) = run.settle(Kernels::Auto)?;
    let wanted: Vec<&String> = all
        .iter()
        .filter(|(p, variants)| variants[0] == fast && p.key != wrong)
        .map(|(p, _)| &p.key)
        .collect();
    let taken = chosen(&run);
    check(taken.len() == wanted.len() && !taken.is_empty(), || format!("{taken:?}, {wanted:?}"))?;
    for (key, variant) in &taken {
        check(wanted.contains(&key) && *variant == fast, || format!("{variant} for {key}"))?;
    }
    let outlook = Outlook::Found { shaped: wanted.len(), refused: 1, of: all.len() };
    check(found == outlook, || format!("{found:?}, not {outlook:?}"))?;
    check(run.trainer.plan().ops.iter().filter(|op| op.variant == fast).count() > 0, || {
        "the plan is the one that it was".into()
    })?;
    let now = run.trainer.session().allocated_bytes();
    check(now.abs_diff(held) < held / 10, || format!("{held} bytes were held, {now} are"))?;

    // Here variants differ in what they are said to cost alone, so that every bit must be the same.
    check(here.len() as u64 == STEPS, || format!("{} steps meanwhile", here.len()))?;
    here.extend(run.train(STEPS..STEPS + 2)?);
    check(here == losses, || format!("{here:?}, not {losses:?}"))?;
    check(run.state()? == straight.state()?, || "other weights".into())
}

/// Where none is faster, or compact ones are asked for, everything stays; who has kernels of a run
/// that is resumed seeks none.
fn nothing_is_changed_without_a_reason() -> Result<(), Failed> {
    let (config, splits) = (config(Method::Simclr), splits()?);
    let temper = Temper::default();
    let session = || Session::from(Faulty::with_variants(temper.clone()));
    let mut run = Run::start(&config, &splits, session(), &Choices::default())?;
    check(run.trainer.seek(Kernels::Compact, None) == Outlook::Kept, || {
        "compact was asked for".into()
    })?;
    check(run.trainer.settle()?.is_none(), || "nothing is sought".into())?;
    let few = run.trainer.seek(Kernels::Auto, Some(3));
    check(few == Outlook::Trying { tried: 0, of: 3 }, || format!("{few:?}"))?;
    let found = run.settle(Kernels::Auto)?.1;
    check(matches!(found, Outlook::Found { shaped: 0, refused: 0, .. }), || format!("{found:?}"))?;
    check(chosen(&run).is_empty() && run.trainer.plan().ops.iter().any(is_compact), || {
        format!("{:?}", chosen(&run))
    })?;

    let (product, [shaped, _]) = offered(&run).swap_remove(0);
    let mut choices = Choices::default();
    choices.set(product.key, shaped);
    let mut resumed = Run::start(&config, &splits, session(), &choices)?;
    check(chosen(&resumed).len() == 1, || format!("{:?}", chosen(&resumed)))?;
    let outlook = resumed.trainer.seek(Kernels::Shaped, None);
    check(outlook == Outlook::Kept, || format!("{outlook:?}"))
}

fn is_compact(op: &aavae::plan::PlannedOp) -> bool {
    op.variant.is_compact()
}

/// Pairs that there is no room for are refused; plans that cannot be loaded give way to those that
/// there were.
fn no_room_no_change() -> Result<(), Failed> {
    let (config, splits) = (config(Method::Simclr), splits()?);
    let temper = Temper::default();
    let session = || Session::from(Faulty::with_variants(temper.clone()));
    let none = Choices::default();
    let mut straight = Run::start(&config, &splits, session(), &none)?;
    let wanted = straight.train(0..STEPS + 1)?;
    let mut run = Run::start(&config, &splits, session(), &none)?;
    let held = run.trainer.session().allocated_bytes();
    temper.memory.set(Some(held));
    let (mut losses, found) = run.settle(Kernels::Shaped)?;
    let all = offered(&run);
    let outlook = Outlook::Found { shaped: 0, refused: all.len(), of: all.len() };
    check(found == outlook, || format!("{found:?}, not {outlook:?}"))?;

    temper.memory.set(None);
    temper.unloadable.set(Some(("train", all[0].1[0])));
    let found = run.settle(Kernels::Shaped)?.1;
    check(found == Outlook::NoRoom && chosen(&run).is_empty(), || format!("{found:?}"))?;
    let now = run.trainer.session().allocated_bytes();
    check(now == held, || format!("{held} bytes were held, {now} are"))?;
    losses.extend(run.train(STEPS..STEPS + 1)?);
    check(losses == wanted, || format!("{losses:?}, not {wanted:?}"))
}

/// Compiling is quick where a kernel takes no step long, and all of them little time.
fn what_is_slow() -> Result<(), Failed> {
    let (config, splits) = (config(Method::Ae), splits()?);
    let session = Session::from(Faulty::with_variants(Temper::default()));
    let run = Run::start(&config, &splits, session, &Choices::default())?;
    let search = |all| {
        let products = offered(&run).into_iter().map(|(product, _)| product).collect();
        Search::new(run.trainer.session(), products, all)
    };
    let [whole, one] = SEARCH;
    let outlook = |of: Duration, missing, all| {
        let compiled = Compiled { kernels: 61, time: of * 61 };
        search(all).outlook(compiled, missing)
    };
    let quick = one * 9 / 10;
    let most = (whole.as_secs_f64() / quick.as_secs_f64()) as usize;
    for (of, missing, slow) in
        [(quick, 80, false), (quick, most, false), (quick, most + 1, true), (one * 2, 1, true)]
    {
        let outlook = outlook(of, missing, false);
        check(
            matches!(outlook, Outlook::Slow { kernels, .. } if kernels == missing) == slow,
            || format!("{missing} kernels of {of:?}: {outlook:?}"),
        )?;
    }
    let forced = outlook(one * 20, 80, true);
    check(matches!(forced, Outlook::Trying { tried: 0, of } if of > 40), || format!("{forced:?}"))?;
    let says = outlook(one * 20, 84, false).to_string();
    check(says.contains("84 in all") && says.contains("1.00 s each"), || says)
}

/// With the real kernels: losses within rounding of those of a run that keeps its compact ones, and
/// a resumed run with the bits of the one that went on.
fn real_kernels(device: &Device) -> Result<(), Failed> {
    let (config, splits) = (config(Method::Simclr), splits()?);
    let none = Choices::default();
    let mut compact = Run::start(&config, &splits, device.open()?, &none)?;
    let wanted = compact.train(0..STEPS + 2)?;
    drop(compact);
    let mut run = Run::start(&config, &splits, device.open()?, &none)?;
    let compiled = run.trainer.session().compiled();
    check(compiled.kernels > 20 && !compiled.time.is_zero(), || format!("{compiled:?}"))?;
    let (mut losses, found) = run.settle(Kernels::Shaped)?;
    check(matches!(found, Outlook::Found { shaped, refused: 0, of } if shaped == of), || {
        format!("{found:?}")
    })?;
    check(!run.trainer.plan().ops.iter().any(is_compact), || run.trainer.plan().to_string())?;
    let middle = run.checkpoint()?;
    losses.extend(run.train(STEPS..STEPS + 2)?);
    for (here, there) in losses.iter().zip(&wanted) {
        check((here / there - 1.0).abs() < 1e-3, || format!("{losses:?}, not {wanted:?}"))?;
    }
    check(losses.len() == wanted.len(), || format!("{} losses", losses.len()))?;
    let (end, held) = (run.state()?, run.trainer.session().allocated_bytes());
    drop(run);

    let choices = Choices::from_json(&middle.meta["kernels"]);
    let mut resumed = Run::start(&config, &splits, device.open()?, &choices)?;
    check(!resumed.trainer.plan().ops.iter().any(is_compact), || "compact again".into())?;
    resumed.trainer.restore(&middle, vec![])?;
    let again = resumed.train(STEPS..STEPS + 2)?;
    check(again == losses[STEPS as usize..], || format!("{again:?}, not {losses:?}"))?;
    check(resumed.state()? == end, || "a resumed run has other bits".into())?;
    let fresh = resumed.trainer.session().allocated_bytes();
    check(fresh == held, || format!("{held} bytes after the exchange, {fresh} of a new run"))
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = vec![
        Trial::test("the faster kernels are taken, the wrong ones refused", the_faster_are_taken),
        Trial::test("nothing is changed without a reason", nothing_is_changed_without_a_reason),
        Trial::test("no room, no change", no_room_no_change),
        Trial::test("what is slow", what_is_slow),
    ];
    trials.extend(on_devices("real kernels", &[], real_kernels));
    libtest_mimic::run(&args, trials).exit_code()
}
