//! What is asked of a model while it trains (`Trainer`): another learning rate, neighbours, views,
//! a walk, similarities, a probe. None of it moves the training.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aavae::data::{self, DataError, DataOptions, Dataset, Kind, Loader, Splits, Subset};
use aavae::device::{Host, Session};
use aavae::eval::pictures::Picture;
use aavae::eval::probe::ProbeConfig;
use aavae::method::Method;
use aavae::run::checkpoint::{Checkpoint, TensorData};
use aavae::run::settings::RunConfig;
use aavae::train::schedule::Timetable;
use aavae::train::trainer::{Trainer, gallery};

const BATCH: usize = 4;
const SIDE: u32 = 32;

fn config(method: Method) -> RunConfig {
    RunConfig {
        method,
        width: 8,
        latent_dim: 8,
        batch_size: BATCH,
        epochs: 2,
        warmup_epochs: 0,
        learning_rate: 1e-3,
        importance_samples: Some(0),
        ..RunConfig::default()
    }
}

/// So few held-out images that the training images are looked at.
fn splits(held_out: usize) -> Splits {
    let options = DataOptions {
        shapes_len: (24, 1),
        n_val: Some(held_out),
        ..DataOptions::new(Kind::Shapes)
    };
    data::open(&options).expect("drawn images")
}

fn trainer<'a>(config: &'a RunConfig, splits: &'a Splits) -> Trainer<'a> {
    let timetable = Timetable::new(config, splits.train.len()).expect("a batch fits");
    let session = Session::from(Host::<f32>::new());
    let mut trainer = Trainer::new(config, timetable, splits, session).expect("plans");
    trainer.initialise(None).expect("weights");
    trainer
}

/// Takes some steps; the learning rate of the last.
fn train(
    trainer: &mut Trainer<'_>,
    config: &RunConfig,
    splits: &Splits,
    steps: std::ops::Range<u64>,
) -> f32 {
    let order = Timetable::new(config, splits.train.len()).expect("a batch fits").order;
    let mut batches = Loader::new(&splits.train, order, steps.clone()).expect("batches");
    let mut rate = 0.0;
    for _ in steps {
        rate = trainer.step(&mut batches).expect("a step").expect("more").uniform.learning_rate;
    }
    rate
}

fn checkpoint(trainer: &mut Trainer<'_>, steps: u64) -> Checkpoint {
    let (layout, params) = trainer.tensors();
    let meta = trainer.meta(steps, "data").expect("settings");
    let tensors = trainer.snapshot(steps).expect("weights").tensors(&layout, &params);
    Checkpoint { tensors, meta }
}

fn bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    Checkpoint { tensors: checkpoint.tensors.clone(), meta: [].into() }.to_bytes()
}

/// The images of a picture in a row, without the lines between them.
fn images(picture: &Picture) -> Vec<Vec<u8>> {
    let all = image::load_from_memory(&picture.bytes).expect("a PNG").to_rgb8();
    assert_eq!(all.dimensions(), (picture.width, SIDE));
    let tile = |x| image::imageops::crop_imm(&all, x, 0, SIDE, SIDE).to_image().into_raw();
    (0..picture.width).step_by(SIDE as usize + 2).map(tile).collect()
}

/// Steps after a change have the new rate; a checkpoint carries it, and who goes on from there
/// takes the same steps to the bit.
#[test]
fn the_learning_rate_changes_while_it_trains() {
    let (config, splits) = (config(Method::Aavae), splits(2));
    let mut straight = trainer(&config, &splits);
    assert_eq!(train(&mut straight, &config, &splits, 0..2), 1e-3);
    straight.set_learning_rate(5e-3).expect("a rate");
    let says = straight.set_learning_rate(-1.0).expect_err("no rate").to_string();
    assert!(says.contains("--learning-rate -1"), "{says}");
    assert_eq!(train(&mut straight, &config, &splits, 2..3), 5e-3);
    let middle = checkpoint(&mut straight, 3);
    train(&mut straight, &config, &splits, 3..5);

    let carried: RunConfig = toml::from_str(&middle.meta["config"]).expect("settings");
    assert_eq!(carried, RunConfig { learning_rate: 5e-3, ..config.clone() });
    let mut resumed = trainer(&carried, &splits);
    resumed.restore(&middle, vec![]).expect("a state");
    train(&mut resumed, &carried, &splits, 3..5);
    let [straight, resumed] = [&mut straight, &mut resumed].map(|t| bytes(&checkpoint(t, 5)));
    assert_eq!(straight, resumed);

    let mut slow = trainer(&config, &splits);
    train(&mut slow, &config, &splits, 0..5);
    assert_ne!(bytes(&checkpoint(&mut slow, 5)), straight, "the rate counts");
}

#[test]
fn looking_moves_nothing() {
    for method in [Method::Aavae, Method::Ae, Method::Simclr] {
        let (config, splits) = (config(method), splits(6));
        let mut trainer = trainer(&config, &splits);
        train(&mut trainer, &config, &splits, 0..2);
        let before = bytes(&checkpoint(&mut trainer, 2));
        let (gallery, count) = gallery(&config, &splits, 5).expect("images");
        assert_eq!((count, images(&gallery).len()), (5, 5));

        let views = images(&trainer.views_of(1, 0, 7).expect("views"));
        assert_eq!(views.len(), 8);
        assert_eq!(views[0], images(&gallery)[1], "the original comes first");
        assert_ne!(views[1], views[2], "each is drawn on its own");
        let again = images(&trainer.views_of(1, 0, 7).expect("views"));
        assert_eq!(views, again);
        let redrawn = images(&trainer.views_of(1, 1, 7).expect("views"));
        assert!(views[1..].iter().all(|view| !redrawn.contains(view)), "{method:?}");
        assert!(trainer.views_of(6, 0, 7).is_err(), "there are six");

        let kinds = trainer.similarities(3).expect("similarities");
        let rows = BATCH * 3 * method.views();
        for kind in &kinds {
            assert_eq!(kind.matrix.len(), rows * rows, "{method:?} {}", kind.of);
            // A sampled latent is noise before it is trained.
            assert!(kind.of != "h" || kind.gap() > 0.0, "{method:?}: {kind:?}");
        }

        let config = ProbeConfig { epochs: 2, seed: 0 };
        let (session, mut epochs) = (Session::from(Host::<f32>::new()), 0);
        let found = trainer.probe(session, config, 2, |epoch, _| epochs = epoch).expect("a probe");
        assert!((0.0..=1.0).contains(&found.test) && epochs == 2, "{found:?}");
        assert_eq!(bytes(&checkpoint(&mut trainer, 2)), before, "{method:?}");
    }
}

/// Where training images are looked at, each is its own nearest neighbour.
#[test]
fn an_image_is_nearest_to_itself() {
    let (config, splits) = (config(Method::Vae), splits(2));
    let mut trainer = trainer(&config, &splits);
    let shown = images(&gallery(&config, &splits, 16).expect("images").0);
    for image in [0, 7, 13] {
        let (near, picture) = trainer.neighbours(image, 3, 20, 0).expect("neighbours");
        assert_eq!((near.len(), near[0].row), (3, image));
        assert!((near[0].similarity - 1.0).abs() < 1e-5, "{near:?}");
        assert_eq!(images(&picture)[0], shown[image]);
    }
    let (few, _) = trainer.neighbours(15, 9, 8, 0).expect("neighbours");
    assert!(few.len() == 8 && few.iter().all(|near| near.row < 8), "{few:?}");
}

/// A walk ends where walks from an image to itself stand still.
#[test]
fn a_walk_leads_from_one_image_to_the_other() {
    let (config, splits) = (config(Method::Aavae), splits(6));
    let mut trainer = trainer(&config, &splits);
    // At first a decoder is blind to its latent; larger weights see it.
    let mut seeing = checkpoint(&mut trainer, 0);
    for (name, tensor) in &mut seeing.tensors {
        if let TensorData::F32(values) = &mut tensor.data
            && name.starts_with("decoder.")
            && name.ends_with(".weight")
        {
            values.iter_mut().for_each(|w| *w *= 2.2);
        }
    }
    trainer.initialise(Some(&seeing)).expect("weights");
    let mut walk = |from, to| images(&trainer.walk(from, to).expect("a walk"));
    let (there, first, last) = (walk(0, 3), walk(0, 0), walk(3, 3));
    assert_eq!(there.len(), BATCH + 2, "the images stand at the ends");
    assert!(first[1..=BATCH].iter().all(|frame| *frame == first[1]), "it stands still");
    assert!(there[1] == first[1] && there[BATCH] == last[1], "the ends of the way");
    assert!(there[0] == first[0] && there[BATCH + 1] == last[0], "the images themselves");
    let apart = there[1].iter().zip(&there[BATCH]).filter(|(a, b)| a != b).count();
    assert!(apart > 1000, "{apart} of {} bytes differ", there[1].len());
    assert!(trainer.walk(0, 6).is_err(), "there are six");
    let contrastive = self::config(Method::Simclr);
    assert!(self::trainer(&contrastive, &splits).walk(0, 1).is_err(), "it has no decoder");
}

/// Images on a disk that answers until it hangs, and then when it is let go.
struct Disk {
    of: Arc<dyn Dataset>,
    hangs: Arc<AtomicBool>,
}

impl Dataset for Disk {
    fn name(&self) -> &str {
        self.of.name()
    }
    fn len(&self) -> usize {
        self.of.len()
    }
    fn image_size(&self) -> usize {
        self.of.image_size()
    }
    fn classes(&self) -> &[OsString] {
        self.of.classes()
    }
    fn label(&self, index: usize) -> u32 {
        self.of.label(index)
    }
    fn read(&self, index: usize, image: &mut [u8]) -> Result<(), DataError> {
        // A wait that nobody ends fails a test, in place of holding it up.
        let patience = Instant::now() + Duration::from_secs(20);
        while self.hangs.load(Ordering::SeqCst) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.of.read(index, image)
    }
    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        self.of.mean_std()
    }
}

/// Whatever is measured or drawn after a step, a disk that does not answer holds nobody up who asks
/// for the end; and nothing is wrong once it answers.
#[test]
fn no_wait_for_held_out_images_outlasts_a_stop() {
    let hangs = Arc::new(AtomicBool::new(false));
    let mut splits = splits(4);
    let on_disk = |subset: &mut Subset| {
        let of = Arc::clone(&subset.dataset);
        subset.dataset = Arc::new(Disk { of, hangs: hangs.clone() });
    };
    let Splits { train: seen, val, labelled_train, labelled_val, .. } = &mut splits;
    [seen, val, labelled_train, labelled_val].into_iter().for_each(on_disk);
    let config = RunConfig { importance_samples: Some(2), eval_every: 1, ..config(Method::Aavae) };
    let mut trainer = trainer(&config, &splits);
    let wanted = (
        trainer.validate(1, &|| false).expect("a loss"),
        trainer.evaluate(&|| false).expect("a likelihood"),
    );
    hangs.store(true, Ordering::SeqCst);
    type Wait = fn(&mut Trainer<'_>, &dyn Fn() -> bool) -> Result<(), aavae::run::RunError>;
    let waits: [(&str, Wait); 4] = [
        ("validate", |trainer, stop| trainer.validate(1, stop).map(drop)),
        ("evaluate", |trainer, stop| trainer.evaluate(stop).map(drop)),
        ("views", |trainer, stop| trainer.picture_views(stop).map(drop)),
        ("reconstructions", |trainer, stop| trainer.picture_reconstructions(stop).map(drop)),
    ];
    for (name, wait) in waits {
        let began = Instant::now();
        let stopped = wait(&mut trainer, &|| began.elapsed() > Duration::from_millis(200));
        let stopped = stopped.expect_err(name).to_string();
        assert!(stopped.contains("reading images was stopped"), "{name}: {stopped}");
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
    }
    hangs.store(false, Ordering::SeqCst);
    let got = (
        trainer.validate(1, &|| false).expect("a loss"),
        trainer.evaluate(&|| false).expect("a likelihood"),
    );
    assert_eq!(got, wanted);
}
