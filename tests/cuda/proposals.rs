//! What the real cuDNN proposes for every product of the networks, without a GPU: it takes a
//! description of one, and a stand-in for the driver (`driver.cpp`).
//!
//! Runs where cuDNN is (a gigabyte, so the suite does not fetch it): [`PACKAGES`] names a folder
//! that `pip install --target FOLDER --no-deps nvidia-cudnn-cu13==9.28.1.4 'nvidia-cublas<14'
//! 'nvidia-cuda-nvrtc<14'` has filled. The table that it compares is `cudnn.txt`, written anew with
//! `UPDATE_GOLDENS=1`.

use std::path::Path;
use std::process::{Command, ExitCode};

use aavae::device::cuda::{self, FOLDERS, Proposal, proposals};
use aavae::method::{Training, training};
use aavae::model::Depth;
use aavae::ops::{Conv2d, Conv2dInputGrad, Epilogue, Op, Target, Variant};
use aavae::plan::{Options, lower};
use aavae::run::settings::RunConfig;
use aavae::shader::cuda::target;
use aavae::tensor::Half;
use aavae::tune::{Product, products};
use libtest_mimic::Failed;

use crate::support::check;

/// A folder of Python packages.
pub(crate) const PACKAGES: &str = "AAVAE_TEST_CUDNN";
/// Set in the process that asks: the libraries are found by it alone.
const ASKS: &str = "AAVAE_TEST_PROPOSALS";
/// An H100 SXM in cuDNN's words: CUDA's own properties of it.
const H100: &str = include_str!("h100.json");
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda/cudnn.txt");

/// The products of a step at the paper's sizes as the device `cuda` plans it with a library.
fn planned(depth: Depth, half: Option<Half>) -> Vec<Product> {
    let config =
        RunConfig { encoder: depth, decoder: depth, batch_size: 256, ..RunConfig::default() };
    let model = training(&config.model([0.5; 3], [0.25; 3]), Training::default());
    let target = Target { library: true, half, ..target([9, 0]) };
    let mut all = products([&lower("train", &model.graph, Options::new(target))]);
    // Of weights that are no halves a library is not asked.
    all.retain(|p| p.op.variants(&p.io, &target).iter().any(is_library));
    all
}

fn is_library(variant: &Variant) -> bool {
    matches!(variant, Variant::Library { .. })
}

/// A row of the table: the product, its epilogue, how many engines compute it as we do, how many of
/// these are compiled on the device, and the first ones with their memory.
fn row(product: &Product, said: &[Proposal]) -> String {
    let compiled = said.iter().filter(|p| p.workspace.is_none()).count();
    let first = said.iter().take(4).map(|p| match p.workspace {
        Some(bytes) => format!("{} ({bytes} B)", p.engine),
        None => format!("{} (compiled)", p.engine),
    });
    let first = first.collect::<Vec<_>>().join(", ");
    let epilogue = match &product.op {
        Op::Conv2d(Conv2d { epilogue, .. }) => *epilogue,
        Op::Conv2dInputGrad(Conv2dInputGrad { epilogue, .. }) => *epilogue,
        _ => Epilogue::default(),
    };
    let Epilogue { bias, add, relu, mask, .. } = epilogue;
    let tail = [(bias, "+bias"), (add, "+add"), (relu, "+relu"), (mask, "+mask")];
    let tail: String = tail.iter().filter(|t| t.0).map(|t| t.1).collect();
    format!("{}{tail}: {} engines, {compiled} compiled; {first}", product.key, said.len())
}

/// The process that asks, if this is one: prints the table.
pub(crate) fn worker() -> Option<ExitCode> {
    std::env::var_os(ASKS)?;
    let ask = || -> Result<(), String> {
        let version = cuda::report().products.ok_or("no cuDNN is found")?[0].clone();
        println!("cuDNN {version} of an H100");
        for (name, depth) in [("ResNet-18", Depth::Resnet18), ("ResNet-50", Depth::Resnet50)] {
            for half in [None, Some(Half::F16), Some(Half::Bf16)] {
                let precision = half.map_or("f32".to_owned(), |h| format!("{h:?}").to_lowercase());
                println!("\n{name} {precision}");
                for product in planned(depth, half) {
                    let said = proposals(&product.op, &product.io, H100)
                        .map_err(|e| format!("{}: {e}", product.key))?;
                    println!("{}", row(&product, &said));
                }
            }
        }
        // A result that is a pixel too high is refused by the library itself.
        let mut wrong = planned(Depth::Resnet18, None).swap_remove(0);
        wrong.io.outputs[0].shape.h += 1;
        match proposals(&wrong.op, &wrong.io, H100) {
            Err(e) if e.to_string().contains("CUDNN_STATUS_BAD_PARAM") => Ok(()),
            other => Err(format!("a wrong shape: {other:?}")),
        }
    };
    Some(match ask() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    })
}

/// Every product of a ResNet-18 and a ResNet-50 has proposals on an H100, in every precision.
pub(crate) fn every_product(driver: &Path) -> Result<(), Failed> {
    let packages = std::env::var_os(PACKAGES).ok_or("no folder")?;
    let parts = ["nvidia/cudnn/lib", "nvidia/cu13/lib"].map(|p| Path::new(&packages).join(p));
    let folders = [driver.to_owned()].into_iter().chain(parts);
    let out = Command::new(std::env::current_exe()?)
        .env(FOLDERS, std::env::join_paths(folders)?)
        .env(ASKS, "1")
        .output()?;
    check(out.status.success(), || String::from_utf8_lossy(&out.stderr).into_owned())?;
    let table = String::from_utf8(out.stdout)?;
    // 86 of a ResNet-18 and 155 of a ResNet-50, in three precisions.
    let rows = table.lines().filter(|l| l.contains(" engines, ")).count();
    check(rows == 3 * (83 + 149), || format!("{rows} products"))?;
    let without: Vec<_> = table.lines().filter(|l| l.contains(": 0 engines")).collect();
    check(without.is_empty(), || format!("nothing is proposed for\n{}", without.join("\n")))?;
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(TABLE, &table)?;
        return Err("cudnn.txt is written: look at it, and run again without the variable".into());
    }
    let kept = std::fs::read_to_string(TABLE)?;
    // Another version proposes other engines.
    let same = kept.lines().next() != table.lines().next() || kept == table;
    check(same, || format!("cuDNN proposes something else than {TABLE} says:\n{table}"))
}
