//! What `pretrain` trains: every method and objective, from a seed, a preset, given weights, a
//! folder of images.

use std::fs;

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{digest, folder, image_folder, metrics, png, pretrain, sh, trained};

#[test]
fn every_method_and_objective_trains() {
    let dir = folder();
    let cases = [
        ("ae", "--method ae --no-shuffle", 2, false),
        ("vae", "--method vae --kl-coeff 0.5 --learn-log-scale", 2, true),
        ("aaae", "--method aaae --target view", 3, false),
        ("aavae", "--method aavae --target view --log-scale -1 --decoder resnet34", 3, true),
    ];
    for (name, flags, rows, samples) in cases {
        let out = dir.path().join(name);
        let summary = pretrain(&out, &format!("{flags} --max-steps 2"));
        assert_eq!(summary["method"], name);
        assert!(summary["train"]["loss"].as_f64().is_some_and(f64::is_finite), "{summary}");
        assert_eq!(summary["train"]["kl"].is_number(), samples, "{summary}");
        // In file order nothing is held out.
        assert_eq!(summary["validation"].is_null(), flags.contains("--no-shuffle"), "{summary}");
        assert_eq!(
            png(&out.join("images/reconstruction-000002.png")).1,
            rows * 64 + (rows - 1) * 2
        );
        let tensors = Checkpoint::load(out.join("checkpoints/last.safetensors"))
            .expect("a checkpoint")
            .tensors;
        match (
            samples,
            tensors.iter().find(|(k, _)| k.ends_with("log_scale") && !k.starts_with("optim.")),
        ) {
            (false, None) => {}
            (true, Some((_, tensor))) => {
                let given = if name == "aavae" { -1.0 } else { 0.0 };
                assert_eq!(
                    tensor.data != TensorData::F32(vec![given]),
                    flags.contains("--learn"),
                    "{name}: {tensor:?}"
                );
            }
            (_, found) => panic!("{name}: {found:?}"),
        }
    }
}

/// The other methods' tests go through a decoder; SimCLR has none.
#[test]
fn simclr_trains_resumes_and_is_evaluated() {
    let dir = folder();
    let (straight, out) = (dir.path().join("straight"), dir.path().join("run"));
    let flags = "--method simclr --temperature 0.2 --log-every 2";
    let summary = pretrain(&straight, &format!("{flags} --max-steps 6"));
    for record in metrics(&straight) {
        assert!(
            (0.0..=1.0).contains(&record["contrastive_accuracy"].as_f64().expect("an accuracy")),
            "{record}"
        );
        assert!(record["loss"].is_number() && record["kl"].is_null(), "{record}");
    }
    assert!(metrics(&straight).iter().any(|r| r["split"] == "val"));
    pretrain(&out, &format!("{flags} --max-steps 3"));
    let resumed = sh(&format!(
        "pretrain --device cpu --no-eval --resume --max-steps 6 --out {}",
        out.display()
    ))
    .ok()
    .json();
    assert_eq!(digest(&resumed), digest(&summary));
    assert_eq!(metrics(&out), metrics(&straight));
    let config = fs::read_to_string(out.join("config.toml")).expect("a file");
    assert!(config.lines().any(|l| l == "temperature = 0.2"), "{config}");
    let other = pretrain(&dir.path().join("other"), "--method simclr --log-every 2 --max-steps 6");
    assert_ne!(digest(&other), digest(&summary), "the temperature counts");

    let tensors =
        Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint").tensors;
    assert!(
        tensors.contains_key("projection.projection_head.3.weight")
            && !tensors.keys().any(|k| k.contains("decoder"))
    );
    // The original and six views; no reconstruction.
    assert_eq!(png(&out.join("images/augmentation.png")), (16 * 64 + 15 * 2, 7 * 64 + 6 * 2));
    assert_eq!(fs::read_dir(out.join("images")).expect("a folder").count(), 1);
    let line = format!(
        "reconstruct {} --device cpu --out {}",
        out.display(),
        dir.path().join("x.png").display()
    );
    sh(&line).fails(1, &["a simclr model has no decoder"]).hints("aavae probe");
    let probe = sh(&format!("probe {} --device cpu --epochs 1 --json", out.display())).ok().json();
    assert!((0.0..=1.0).contains(&probe["accuracy"].as_f64().expect("an accuracy")), "{probe}");
    let plan = sh("plan --device cpu --method simclr --width 8 --batch-size 4").ok();
    assert!(plan.stdout.contains("loss:nt_xent") && !plan.stdout.contains("decoder"), "{plan:?}");
}

#[test]
fn a_seed_and_a_configuration_give_the_same_weights() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let first = digest(&pretrain(&path("a"), "--max-steps 3 --seed 18446744073709551615"));
    assert_eq!(first, digest(&pretrain(&path("b"), "--max-steps 3 --seed 18446744073709551615")));
    assert_ne!(first, digest(&pretrain(&path("c"), "--max-steps 3 --seed 1")));
    let line = format!(
        "pretrain --config {}/config.toml --device cpu --no-eval --out {}",
        path("a").display(),
        path("d").display()
    );
    assert_eq!(first, digest(&sh(&line).ok().json()), "config.toml is the whole run");
    assert_eq!(
        fs::read(path("a/config.toml")).expect("a file"),
        fs::read(path("d/config.toml")).expect("a file")
    );
    assert_eq!(metrics(&path("a")), metrics(&path("d")));
    // A flag overrides the file, the file a preset's default.
    let line = format!(
        "pretrain --config {}/config.toml --seed 1 --device cpu --no-eval --out {}",
        path("a").display(),
        path("e").display()
    );
    assert_ne!(first, digest(&sh(&line).ok().json()));
}

#[test]
fn a_preset_is_where_flags_start() {
    let dir = folder();
    pretrain(dir.path(), "--preset quick --max-steps 1");
    let config = fs::read_to_string(dir.path().join("config.toml")).expect("a file");
    for line in ["batch_size = 16", "warmup_epochs = 1", "log_every = 20", "learning_rate = 0.001"]
    {
        assert!(config.lines().any(|l| l == line), "no `{line}` in {config}");
    }
}

/// The first step of the warm-up has learning rate 0: after it the weights are those that training
/// started from.
#[test]
fn a_run_starts_from_given_weights() {
    let dir = folder();
    let source = trained().join("checkpoints/last.safetensors");
    let own = Checkpoint::load(&source).expect("a checkpoint");
    // As PyTorch writes them: no metadata, no moments, no counters.
    let foreign = dir.path().join("foreign.safetensors");
    let kept: Vec<_> = own
        .tensors
        .iter()
        .filter(|(k, _)| !k.starts_with("optim.") && !k.ends_with("num_batches_tracked"))
        .collect();
    let bytes: Vec<Vec<u8>> = kept
        .iter()
        .map(|(_, t)| match &t.data {
            TensorData::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::I64(_) => unreachable!("weights are floats"),
        })
        .collect();
    let views = kept.iter().zip(&bytes).map(|((name, t), b)| {
        (
            name.as_str(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), b)
                .expect("a view"),
        )
    });
    safetensors::serialize_to_file(views, None, &foreign).expect("a file");
    for (name, from) in [("own", &source), ("foreign", &foreign)] {
        let out = dir.path().join(name);
        pretrain(&out, &format!("--max-steps 1 --seed 7 --init-from {}", from.display()));
        let got = Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint");
        let weights = |k: &str| k.ends_with("weight") || k.ends_with("bias");
        let mut compared = 0;
        for (key, tensor) in kept.iter().filter(|(k, _)| weights(k)) {
            assert_eq!(&got.tensors[*key], *tensor, "{name}: {key}");
            compared += 1;
        }
        assert!(compared > 60, "{compared}");
    }
}

#[test]
fn image_folders_train_and_embed_in_file_order() {
    let dir = folder();
    let (data, out, file) =
        (dir.path().join("data"), dir.path().join("run"), dir.path().join("f.safetensors"));
    image_folder(&data, 3, 12, 5);
    let flags = format!(
        "--device cpu --dataset folder --data-dir {} --width 8 --batch-size 8 --no-eval",
        data.display()
    );
    let summary =
        sh(&format!("pretrain {flags} --max-steps 3 --out {}", out.display())).ok().json();
    assert_eq!(summary["dataset"], "folder");
    let embed = |more: &str| {
        let value = sh(&format!(
            "embed {} --device cpu --json --out {} {more}",
            out.display(),
            file.display()
        ))
        .ok()
        .json();
        let tensors = Checkpoint::load(&file).expect("a file").tensors;
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["features", "labels"]);
        let (TensorData::F32(features), TensorData::I64(labels)) =
            (&tensors["features"].data, &tensors["labels"].data)
        else {
            panic!("features are f32, labels i64")
        };
        let rows = labels.len();
        assert_eq!(
            (&tensors["features"].shape, &tensors["labels"].shape),
            (&vec![rows, 64], &vec![rows])
        );
        assert_eq!((&value["images"], &value["features"]), (&rows.into(), &64.into()));
        (features.clone(), labels.clone())
    };
    // All 36 images in file order, although training permuted them and held some out.
    let (all, labels) = embed("--split train");
    assert_eq!(labels, (0..36).map(|i| i / 12).collect::<Vec<i64>>());
    let (test, labels) = embed("--split test");
    assert_eq!(labels, (0..15).map(|i| i / 5).collect::<Vec<i64>>());
    // Class 0's test images 0..5 are its training images 0..5, so their rows are equal: rows are
    // where files are.
    assert_eq!(test[..5 * 64], all[..5 * 64]);
    assert_eq!(test[5 * 64..10 * 64], all[12 * 64..17 * 64]);
    assert_ne!(all[..64], all[64..128]);
    // The batch that an image is in changes nothing but rounding.
    let (again, _) = embed("--split test --batch-size 3");
    assert!(test.iter().zip(&again).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs())));
    // A part: that many of the training images, still in file order.
    let (_, labels) = embed("--split train --limit-train 20");
    assert!(labels.len() == 20 && labels.is_sorted(), "{labels:?}");
}
