//! Trains on a folder of your own images, then finds for each test image the training image that
//! looks most like it to the network.
//!
//! `cargo run --release --example own_images DIR OUT [DEVICE]`
//!
//! `DIR` holds `train/<class>/*` and `test/<class>/*`, JPEG or PNG of any size: they are resized to
//! squares. Classes are not used in training; the linear probe at its end is tested on them. `OUT`
//! is a run folder like those of `aavae pretrain`: `aavae watch`, `compare` and `export` take it.

use std::error::Error;
use std::path::Path;

use aavae::data::Subset;
use aavae::device::{self, DeviceSpec};
use aavae::eval::features::{Evaluator, Features};
use aavae::run::folder::RunFolder;
use aavae::run::settings::{DataKind, RunConfig};
use aavae::run::trained::{Trained, model_config, open_data};
use aavae::text;
use aavae::train::experiment::{self, Evaluate, ExperimentRequest, Present};
use aavae::train::interrupt::Interrupt;

/// What is trained: an AAVAE on images of 32 x 32. `aavae pretrain --help` explains every setting.
fn settings(dir: &Path) -> RunConfig {
    RunConfig {
        dataset: DataKind::Folder,
        data_dir: Some(dir.into()),
        image_size: 32,
        width: 16,
        batch_size: 64,
        epochs: 20,
        warmup_epochs: 1,
        learning_rate: 1e-3,
        probe_epochs: 20,
        ..RunConfig::default()
    }
}

/// Cosine similarity of two rows.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// For each test row: the most similar training row, and how similar it is.
fn nearest(train: &Features, test: &Features) -> Vec<(usize, f32)> {
    let similar = |row: &[f32]| {
        let all = train.data.chunks(train.dim).map(|other| cosine(row, other)).enumerate();
        all.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are training images")
    };
    test.data.chunks(test.dim).map(similar).collect()
}

/// Trains. Returns the probe's accuracy, and the share of test images that are most like a training
/// image of their class.
fn train(
    config: &RunConfig,
    out: &Path,
    device: &DeviceSpec,
) -> Result<(f64, f64), Box<dyn Error>> {
    config.validate()?;
    let interrupt = Interrupt::default();
    let folder = RunFolder::claim(out, "own_images")?;
    let request = ExperimentRequest {
        config,
        device: device.clone(),
        another_device: false,
        tune: true,
        folder: &folder,
        present: Present::Refuse,
        evaluate: Evaluate::End,
        interrupt: &interrupt,
    };
    let summary = experiment::run(&request, &mut |line| println!("{line}"))?;
    let accuracy = summary.measured.probe_accuracy().ok_or("the summary has no accuracy")?;

    let (trained, splits) = (Trained::open(out)?, open_data(config)?);
    let (session, _) = device::open(device)?;
    let model = model_config(config, &splits);
    let classes = splits.labelled_train.dataset.classes().len();
    let mut evaluator =
        Evaluator::new(session, model, config.protocol(), classes, Some(&trained), config.seed)?;
    let mut features = |subset: &Subset| evaluator.features(subset, |_| ());
    let (train, test) = (features(&splits.labelled_train)?, features(&splits.test)?);
    let nearest = nearest(&train, &test);
    let classes = splits.test.dataset.classes();
    for (i, (j, similarity)) in nearest.iter().enumerate().take(10) {
        let class = |label: u32| text::name(&classes[label as usize]);
        let (is, like) = (class(test.labels[i]), class(train.labels[*j]));
        println!("test image {i} ({is}) is most like training image {j} ({like}): {similarity:.3}");
    }
    let same = nearest
        .iter()
        .zip(&test.labels)
        .filter(|((j, _), label)| train.labels[*j] == **label)
        .count();
    Ok((accuracy, same as f64 / test.len() as f64))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, out, rest @ ..] = &arguments[..] else {
        return Err("usage: own_images DIR OUT [DEVICE]".into());
    };
    let device = rest.first().map_or("auto", String::as_str).parse()?;
    let (accuracy, same) = train(&settings(Path::new(dir)), Path::new(out), &device)?;
    println!("{:.1} % of the test images are most like one of their class", same * 100.0);
    println!("a linear classifier on the features is right about {:.1} %", accuracy * 100.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DeviceSpec, RunConfig, settings, train};

    /// Two classes that differ in colour: the nearest image is of the same class.
    #[test]
    fn it_tells_images_apart() {
        let dir = tempfile::tempdir().expect("a folder");
        let (data, out) = (dir.path().join("data"), dir.path().join("run"));
        for (split, count) in [("train", 40), ("test", 8)] {
            for (class, tint) in [("red", [200, 20]), ("blue", [20, 200])] {
                let folder = data.join(split).join(class);
                std::fs::create_dir_all(&folder).expect("a folder");
                for i in 0..count {
                    let pixel = |x: u32, y: u32| {
                        let shade = ((x * (3 + i) + y * 5) % 50) as u8;
                        image::Rgb([tint[0] + shade, shade, tint[1] + shade])
                    };
                    let file = folder.join(format!("{i}.png"));
                    image::RgbImage::from_fn(40, 30, pixel).save(file).expect("a PNG");
                }
            }
        }
        let config =
            RunConfig { width: 8, batch_size: 16, epochs: 3, probe_epochs: 5, ..settings(&data) };
        let (accuracy, same) = train(&config, &out, &DeviceSpec::Cpu).expect("a training");
        assert!(accuracy > 0.8 && same > 0.8, "probe {accuracy}, nearest {same}");
        assert!(out.join("summary.json").exists() && out.join("checkpoints").exists());
    }
}
