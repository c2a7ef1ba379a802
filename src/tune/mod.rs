//! Which variant of a product a device runs fastest at a shape: every candidate is compared with
//! a trusted kernel on this very device, then timed. Choices are remembered per adapter, driver
//! and kernel text.
//!
//! A candidate that is wrong at one shape is refused there and nowhere else. What is remembered is
//! compared once more before it is used, so a file of another machine, or one that was edited,
//! costs time and never a wrong number. So is a default that is not the portable kernel, before
//! anything is measured, whatever time it takes: it is compiled for the run anyway, and the trusted
//! kernel is the compact one, which is compiled once for many shapes.
//!
//! Products go by rounds: what one of them needs is compiled together, on every core, and then
//! measured.
//!
//! A choice is made for a product, by the first of its forms: plans hold others, with another
//! epilogue. What the plans of a run take is compared in every form before it runs.

mod confirm;
mod memory;
mod search;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use web_time::Instant;

use crate::check::Pair;
use crate::device::{DeviceError, Session};
use crate::ir::Graph;
use crate::ops::{Choices, Io, Op, Variant, key};
use crate::plan::{Plan, lower};

pub use confirm::trust;
pub use memory::{Memory, Remembered};
pub use search::{Kernels, Outlook, SEARCH, Search};

/// What the first start spends at most.
pub const BUDGET: Duration = Duration::from_secs(10);
/// A candidate must be this much faster than what it replaces: less is noise.
const GAIN: f64 = 0.97;
/// Candidates of a round for each core: enough that all work to the end, and few enough that little
/// is compiled which there is no time to measure.
const PER_CORE: usize = 4;
/// Comparisons of a candidate before it is trusted; a race does not show every time.
const REPEATS: usize = 3;

/// A product that has several variants on a device.
#[derive(Clone, Debug)]
pub struct Product {
    /// [`key`] of it.
    pub key: String,
    /// The op, without its epilogue's choice of it.
    pub op: Op,
    /// Types of its inputs and outputs.
    pub io: Io,
    /// FLOPs of all its occurrences in a step.
    pub flops: u64,
}

/// The products of plans that have several variants, those with the most FLOPs first.
pub fn products<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Vec<Product> {
    let mut found: BTreeMap<String, Product> = BTreeMap::new();
    for plan in plans {
        for step in &plan.ops {
            let io = Io::from(&step.io);
            if step.op.variants(&io, &plan.target).len() < 2 {
                continue;
            }
            let key = key(&step.op, &io);
            let product = Product { key: key.clone(), op: step.op.clone(), io, flops: 0 };
            found.entry(key).or_insert(product).flops += step.flops;
        }
    }
    let mut products: Vec<Product> = found.into_values().collect();
    products.sort_by(|a, b| b.flops.cmp(&a.flops).then_with(|| a.key.cmp(&b.key)));
    products
}

impl Product {
    /// The variant that it has where nothing was measured.
    fn default(&self, session: &Session) -> Variant {
        self.op.preferred(&self.io, &session.target())
    }

    /// The variant that it takes with the choices of a session.
    fn taken(&self, session: &Session) -> Variant {
        session.choices().variant(&self.op, &self.io, &session.target())
    }

    /// The variant that others are compared with: the compact form of the portable kernel, whose
    /// shapes are data, so that one compiled kernel serves many products; the portable one where
    /// there is none.
    fn trusted(&self, session: &Session) -> Variant {
        let offered = self.op.variants(&self.io, &session.target());
        offered.iter().copied().find(Variant::is_compact).unwrap_or(offered[0])
    }
}

/// One candidate at one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The product, by its key.
    pub key: String,
    /// The candidate that was measured.
    pub variant: Variant,
    /// Seconds, where it was right.
    pub seconds: Option<f64>,
    /// FLOP/s, where it was right.
    pub flops_per_second: Option<f64>,
    /// Why it was refused.
    pub refused: Option<String>,
}

impl Trial {
    fn refused(product: &Product, variant: Variant, why: String) -> Self {
        let key = product.key.clone();
        Self { key, variant, seconds: None, flops_per_second: None, refused: Some(why) }
    }
}

/// What tuning has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tuning {
    /// Every candidate that was tried.
    pub trials: Vec<Trial>,
    /// Products with a choice.
    pub chosen: usize,
    /// Products whose choice was remembered and found right again.
    pub remembered: usize,
    /// Products that there was no time to measure.
    pub left: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refused = self.trials.iter().filter(|t| t.refused.is_some()).count();
        write!(
            f,
            "kernels: {} products tuned in {:.1} s ({} candidates tried, {refused} refused), {} \
             remembered",
            self.chosen - self.remembered,
            self.seconds,
            self.trials.len(),
            self.remembered,
        )?;
        if self.left > 0 {
            write!(f, ", {} left to the defaults until the next start", self.left)?;
        }
        Ok(())
    }
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort<'a> {
    /// Time for new measurements.
    pub budget: Duration,
    /// Try every candidate of every product, whatever is remembered (a sweep for a report).
    pub sweep: bool,
    /// Beside the default only candidates whose description contains this.
    pub candidates: &'a str,
}

impl Effort<'_> {
    /// Every candidate, within a time, of what is not remembered.
    pub const fn within(budget: Duration) -> Self {
        Self { budget, sweep: false, candidates: "" }
    }
}

/// Chooses variants for the products of graphs on an empty session and sets them there, those alone
/// that are right in all forms that the graphs have. Remembers them.
///
/// # Errors
/// If the driver fails otherwise than by refusing a kernel.
pub fn tune(
    session: &mut Session,
    graphs: &[&Graph],
    memory: &mut Memory,
    effort: Effort<'_>,
) -> Result<Tuning, DeviceError> {
    let began = Instant::now();
    let plans: Vec<Plan> = graphs.iter().map(|g| lower("tune", g, session.options())).collect();
    let products = products(&plans);
    let mut report = tune_products(session, &products, memory, effort)?;
    let compared = products.into_iter().map(|p| (p.taken(session), p)).collect();
    let refused = confirm::confirm(session, graphs, compared)?;
    for trial in &refused {
        memory.forget(&session.device(), &trial.key);
    }
    memory.store();
    report.trials.extend(refused);
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Like [`tune`], of given products in the one form that is given of each.
///
/// # Errors
/// If the driver fails otherwise than by refusing a kernel.
pub fn tune_products(
    session: &mut Session,
    products: &[Product],
    memory: &mut Memory,
    effort: Effort<'_>,
) -> Result<Tuning, DeviceError> {
    if !session.capabilities().dispatches {
        return Ok(Tuning::default());
    }
    let began = Instant::now();
    let deadline = began + effort.budget;
    let device = session.device();
    let mut report = Tuning::default();
    let known = |p: &Product| memory.get(&device, &p.key).is_some() && !effort.sweep;
    let new: Vec<Product> = products.iter().filter(|p| !known(p)).cloned().collect();
    let mut choices = compare_defaults(session, &new, &mut report)?;
    let mut prepared = 0;
    for (i, product) in products.iter().enumerate() {
        let known = |p: &Product| memory.get(&device, &p.key).filter(|_| !effort.sweep);
        if i == prepared {
            let late = began.elapsed() >= effort.budget;
            prepared += prepare(session, &products[i..], |session, p| match known(p) {
                Some(known) => vec![known.variant],
                None if late => vec![],
                None => candidates(session, p, p.default(session), effort.candidates),
            })?;
        }
        if let Some(known) = known(product) {
            if is_right(session, product, known.variant)? {
                choices.set(product.key.clone(), known.variant);
                report.remembered += 1;
                report.chosen += 1;
                continue;
            }
            memory.forget(&device, &product.key);
        }
        if began.elapsed() >= effort.budget {
            report.left += 1;
            continue;
        }
        let default = choices.get(&product.key).unwrap_or_else(|| product.default(session));
        let candidates = candidates(session, product, default, effort.candidates);
        let (best, complete) = best(session, product, &candidates, deadline, &mut report.trials)?;
        choices.set(product.key.clone(), best.variant);
        report.chosen += 1;
        // Half a measurement is used but tried again at the next start.
        if complete {
            memory.set(&device, &product.key, best);
        } else {
            report.left += 1;
        }
    }
    session.reset();
    report.seconds = began.elapsed().as_secs_f64();
    session.set_choices(choices);
    memory.store();
    Ok(report)
}

/// Compares the defaults of products that have never been measured, where they are not the portable
/// kernel. Returns the portable kernel for those that are wrong.
fn compare_defaults(
    session: &mut Session,
    products: &[Product],
    report: &mut Tuning,
) -> Result<Choices, DeviceError> {
    let mut portable = Choices::default();
    let mut prepared = 0;
    for (i, product) in products.iter().enumerate() {
        let offered = product.op.variants(&product.io, &session.target());
        if i == prepared {
            prepared += prepare(session, &products[i..], |session, p| {
                let default = p.default(session);
                let portable = p.op.variants(&p.io, &session.target())[0];
                if default == portable { vec![] } else { vec![default] }
            })?;
        }
        let default = product.default(session);
        if default == offered[0] {
            continue;
        }
        if let Tried::Refused(why) = try_one(session, product, default)? {
            report.trials.push(Trial::refused(product, default, why));
            portable.set(product.key.clone(), offered[0]);
        }
    }
    Ok(portable)
}

/// Compiles what the next products are compared with, on every core; of how many products. What is
/// refused here is refused again, by itself, when it is tried.
fn prepare(
    session: &mut Session,
    products: &[Product],
    wanted: impl Fn(&Session, &Product) -> Vec<Variant>,
) -> Result<usize, DeviceError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut plans, mut count) = (Vec::new(), 0);
    for product in products {
        let offered = product.op.variants(&product.io, &session.target());
        let wanted = wanted(session, product).into_iter().filter(|v| offered.contains(v));
        let trusted = product.trusted(session);
        let plan = |v| Pair::plan(session, &product.op, &product.io, trusted, v);
        plans.extend(wanted.map(plan));
        count += 1;
        if plans.len() >= PER_CORE * cores {
            break;
        }
    }
    session.reset();
    match session.prepare(&plans) {
        Err(error @ DeviceError::Lost { .. }) => Err(error),
        Ok(()) | Err(_) => Ok(count),
    }
}

/// Whether a remembered variant is offered here and agrees with the trusted kernel.
fn is_right(
    session: &mut Session,
    product: &Product,
    variant: Variant,
) -> Result<bool, DeviceError> {
    let offered = product.op.variants(&product.io, &session.target());
    if variant == offered[0] {
        return Ok(true);
    }
    if !offered.contains(&variant) {
        return Ok(false);
    }
    Ok(matches!(try_one(session, product, variant)?, Tried::Right(_)))
}

/// What became of a candidate.
enum Tried {
    Right(Pair),
    Refused(String),
}

/// Loads a candidate beside the trusted kernel and compares them. A kernel that the driver does not
/// take is refused like a wrong one. A lost device is an error, and so is a driver that does not
/// take the comparison without the candidate either, which says nothing about it: else a fault of
/// ours there would refuse every kernel, and a run would only be slow.
fn try_one(
    session: &mut Session,
    product: &Product,
    candidate: Variant,
) -> Result<Tried, DeviceError> {
    let trusted = product.trusted(session);
    let load = |session: &mut Session, candidate| {
        Pair::load(session, &product.op, &product.io, trusted, candidate)
    };
    let tried = load(session, candidate).and_then(|mut pair| {
        for _ in 0..REPEATS {
            if let Some(wrong) = pair.compare(session)? {
                return Ok(Tried::Refused(wrong));
            }
        }
        Ok(Tried::Right(pair))
    });
    match tried {
        Err(error @ DeviceError::Lost { .. }) => Err(error),
        Err(error) => {
            if matches!(error, DeviceError::Driver { .. }) {
                load(session, trusted)?;
            }
            Ok(Tried::Refused(error.to_string()))
        }
        Ok(tried) => Ok(tried),
    }
}

/// What is tried of a product, in this order: `default`, because what is left when time runs out
/// must not lose to it unmeasured, then the others whose description contains a text, those of a
/// library first, which are most often the fastest. A default of the device that was wrong, so that
/// it is not `default`, is not tried again.
fn candidates(session: &Session, product: &Product, default: Variant, text: &str) -> Vec<Variant> {
    let wrong = Some(product.default(session)).filter(|v| *v != default);
    let offered = product.op.variants(&product.io, &session.target());
    let others = offered.into_iter().filter(|v| *v != default && Some(*v) != wrong);
    let mut named: Vec<_> = others.filter(|v| v.to_string().contains(text)).collect();
    named.sort_by_key(|v| !matches!(v, Variant::Library { .. })); // stable
    [default].into_iter().chain(named).collect()
}

/// The fastest right one of candidates, the first where there is no time for another; whether every
/// candidate was tried.
fn best(
    session: &mut Session,
    product: &Product,
    candidates: &[Variant],
    deadline: Instant,
    trials: &mut Vec<Trial>,
) -> Result<(Remembered, bool), DeviceError> {
    let default = candidates[0];
    let portable = product.op.variants(&product.io, &session.target())[0];
    let mut best = Remembered { variant: default, seconds: f64::INFINITY };
    let mut complete = true;
    for &candidate in candidates {
        if Instant::now() >= deadline && candidate != default {
            complete = false;
            continue;
        }
        match try_one(session, product, candidate)? {
            Tried::Refused(why) => {
                if candidate == default {
                    best.variant = portable;
                }
                trials.push(Trial::refused(product, candidate, why));
            }
            Tried::Right(pair) => {
                let seconds = pair.seconds(session, true)?;
                if seconds < best.seconds * GAIN || best.seconds.is_infinite() {
                    best = Remembered { variant: candidate, seconds };
                }
                let flops = product.op.flops(&product.io) as f64;
                trials.push(Trial {
                    key: product.key.clone(),
                    variant: candidate,
                    seconds: Some(seconds),
                    flops_per_second: Some(flops / seconds),
                    refused: None,
                });
            }
        }
    }
    Ok((best, complete))
}
