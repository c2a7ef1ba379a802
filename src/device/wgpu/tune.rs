//! Which GEMM variant a device runs best: measured once on a convolution of the networks' kind, checked against the portable kernel
//! on this very device, and remembered per adapter and driver.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::AdapterInfo;
use crate::device::{Data, DeviceError, Session};
use crate::ir::Graph;
use crate::ops::{Conv2d, Emit, Gemm, StepUniforms, Target};
use crate::plan::{Options, lower};
use crate::rng::{Philox, Stream};
use crate::tensor::{Shape, TensorType};

/// Bump when a GEMM kernel changes, so that remembered choices are measured again.
const VERSION: u32 = 1;
/// A measured choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Choice {
    version: u32,
    gemm: Gemm,
    tile_gflops: f64,
    broadcast_gflops: Option<f64>,
}

/// Sets the device's target and says why.
///
/// # Errors
/// If the driver fails.
pub(crate) fn choose(session: &mut Session, info: &AdapterInfo) -> Result<String, DeviceError> {
    let key = format!("{} | {}", info.name, info.driver);
    let path = cache();
    let mut known: BTreeMap<String, Choice> =
        path.as_ref().and_then(|p| std::fs::read(p).ok()).and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let (choice, how) = match known.get(&key).filter(|c| c.version == VERSION) {
        Some(choice) => (*choice, "remembered"),
        None => {
            let choice = measure(session, info)?;
            known.insert(key, choice);
            // A cache that cannot be written costs a second at the next start, nothing else.
            if let Some((p, text)) = path.zip(serde_json::to_vec_pretty(&known).ok()) {
                let folder = p.parent().map_or(Ok(()), std::fs::create_dir_all);
                folder.and_then(|()| std::fs::write(&p, text)).ok();
            }
            (choice, "measured")
        }
    };
    session.set_target(Target { gemm: choice.gemm, ..session.target() });
    let broadcast = choice.broadcast_gflops.map_or("not possible here".into(), |g| format!("{g:.1} GFLOP/s"));
    Ok(format!("{:?} GEMM ({how}: tile {:.1} GFLOP/s, broadcast {broadcast})", choice.gemm, choice.tile_gflops))
}

fn cache() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "aavae").map(|d| d.cache_dir().join("gemm.json"))
}

fn measure(session: &mut Session, info: &AdapterInfo) -> Result<Choice, DeviceError> {
    let (tile, want) = time(session, Gemm::Tile)?;
    let mut choice = Choice { version: VERSION, gemm: Gemm::Tile, tile_gflops: tile, broadcast_gflops: None };
    // The broadcast kernels are written for one subgroup size; a device that may choose another per pipeline keeps the tiles.
    if let Some([smallest, largest]) = info.subgroup
        && smallest == largest
    {
        let gemm = Gemm::Broadcast { subgroup: smallest };
        let (speed, got) = time(session, gemm)?;
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let right = got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-4 * largest);
        if right {
            choice.broadcast_gflops = Some(speed);
            if speed > tile {
                choice.gemm = gemm;
            }
        }
    }
    Ok(choice)
}

/// GFLOP/s of a 3x3 convolution, 32 to 32 channels at 16x16, and its result.
fn time(session: &mut Session, gemm: Gemm) -> Result<(f64, Vec<f32>), DeviceError> {
    let (x, w) = (Shape::new(16, 16, 16, 32), Shape::new(32, 3, 3, 32));
    let mut g = Graph::default();
    let inputs = [g.input("x", TensorType::f32(x)), g.input("w", TensorType::f32(w))];
    g.label("tune");
    let y = g.emit1(Conv2d::new(1, 1).into(), &inputs);
    g.output("y", y);
    session.allocate(&g.layout);
    let id = session.load(lower("tune", &g, Options { target: Target { gemm, ..session.target() }, alias: true }))?;
    let rng = Philox::new(0, Stream::Test);
    for (i, shape) in [x, w].into_iter().enumerate() {
        let data: Vec<f32> = (0..shape.len()).map(|e| rng.uniforms(0, i as u32, e as u32)[0] - 0.5).collect();
        session.upload(id, i, Data::F32(&data))?;
    }
    session.run(id, &StepUniforms::default())?;
    let got = session.read(id, 0)?;
    let timing = session.time_op(id, 0)?;
    let rate = session.plan(id).steps[0].flops as f64 / timing.seconds / 1e9;
    session.reset();
    Ok((rate, got))
}
