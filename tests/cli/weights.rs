//! Files whose weights no training makes: every command that reads them refuses them in one
//! sentence that names the tensor, the element and the value.

use std::path::{Path, PathBuf};

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{TINY, copy, folder, sh, trained};

/// A copy of a run, element `at` of one tensor replaced; its weights' file.
fn spoilt(to: &Path, tensor: &str, at: usize, value: f32) -> PathBuf {
    copy(trained(), to);
    let last = to.join("checkpoints/last.safetensors");
    let mut file = Checkpoint::load(&last).expect("a checkpoint");
    let Some(TensorData::F32(x)) = file.tensors.get_mut(tensor).map(|t| &mut t.data) else {
        panic!("no floats `{tensor}`")
    };
    x[at] = value;
    // Every checkpoint of the run, so that a resume finds no better one.
    for entry in std::fs::read_dir(to.join("checkpoints")).expect("checkpoints") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            file.save(&path).expect("a file");
        }
    }
    last
}

#[test]
fn weights_that_no_training_makes_are_refused_by_every_command() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let cases = [
        (
            "encoder.conv1.weight",
            10,
            f32::NAN,
            "`encoder.conv1.weight` holds NaN at [0, 1, 0, 1]; the numbers of a model are finite",
        ),
        (
            "encoder.layer1.0.conv1.weight",
            77,
            f32::NEG_INFINITY,
            "`encoder.layer1.0.conv1.weight` holds -inf at [1, 0, 1, 2]",
        ),
        (
            "encoder.layer2.0.bn1.running_var",
            3,
            -0.5,
            "`encoder.layer2.0.bn1.running_var` holds -0.5 at [3]; a variance is at least 0",
        ),
    ];
    for (i, (tensor, element, value, says)) in cases.into_iter().enumerate() {
        let run = dir.path().join(format!("run{i}"));
        let file = spoilt(&run, tensor, element, value);
        let (run, out) = (run.display(), at(&format!("out{i}")));
        let weights = file.display();
        let commands = [
            format!("probe {run} --device cpu"),
            format!("knn {run} --device cpu"),
            format!("embed {run} --device cpu --out {out}.safetensors"),
            format!("reconstruct {run} --device cpu --out {out}.png"),
            format!("export {run} --format folder --out {out}-export"),
            format!("import {weights} --out {out}-import"),
            format!(
                "pretrain {TINY} --no-eval --max-steps 6 --init-from {weights} --out {out}-init"
            ),
            format!("pretrain {TINY} --no-eval --max-steps 6 --log-every 2 --resume --out {run}"),
        ];
        for line in commands {
            let ran = sh(&line);
            if !ran.stderr.contains(says) {
                panic!("`{says}` is not said: {ran:?}");
            }
            ran.fails(1, &[says, "last.safetensors"]).hints("take an earlier checkpoint");
        }
    }
}

/// What an update divides by the root of is checked where a run goes on, and only there.
#[test]
fn negative_second_moments_are_refused_by_resume() {
    let dir = folder();
    let run = dir.path().join("run");
    let file = spoilt(&run, "optim.v.encoder.conv1.weight", 2, -1e-3);
    let line = format!(
        "pretrain {TINY} --no-eval --max-steps 6 --log-every 2 --resume --out {}",
        run.display()
    );
    sh(&line).fails(
        1,
        &[
            "`optim.v.encoder.conv1.weight` holds -0.001 at [0, 0, 0, 2]; a variance is at least 0",
            "last.safetensors",
        ],
    );
    let fresh = dir.path().join("fresh");
    sh(&format!(
        "pretrain {TINY} --no-eval --max-steps 1 --init-from {} --out {}",
        file.display(),
        fresh.display()
    ))
    .ok();
}
