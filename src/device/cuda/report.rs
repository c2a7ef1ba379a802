//! What there is of CUDA on a machine.

use serde::Serialize;

use super::driver::{Description, Failed};
use super::{error, libraries};
use crate::device::DeviceError;

/// A GPU, described.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuInfo {
    /// Name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, e.g. `9.0`.
    pub capability: String,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Number of multiprocessors.
    pub processors: i32,
}

/// What there is of CUDA on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Installation {
    /// GPUs by index.
    pub gpus: Vec<GpuInfo>,
    /// Version of CUDA that the driver supports, and its library.
    pub driver: Option<[String; 2]>,
    /// Version of the run-time compiler, and its library.
    pub compiler: Option<[String; 2]>,
    /// Version of cuDNN, which computes products where it is asked for ([`super::CUDNN`]), and its
    /// library.
    pub products: Option<[String; 2]>,
    /// Version of cuBLASLt, which comes with it and computes products of matrices, and its library.
    pub matrices: Option<[String; 2]>,
    /// What is missing, and what to do about it.
    pub missing: Option<[String; 2]>,
    /// What is missing and not needed, and what to do about it.
    pub optional: Option<[String; 2]>,
}

/// Looks for GPUs and libraries.
pub fn report() -> Installation {
    let mut report = Installation::default();
    if let Err(e) = look(&mut report) {
        report.missing = Some([e.to_string(), e.hint().unwrap_or_default().into()]);
    }
    report
}

fn look(report: &mut Installation) -> Result<(), DeviceError> {
    let driver = libraries::driver()?;
    let [major, minor] = libraries::version(driver.version);
    report.driver = Some([format!("{major}.{minor}"), driver.path.display().to_string()]);
    let failed = |e: Failed| error("cuda", "", e);
    for index in 0..driver.count().map_err(failed)? {
        let Description { name, memory, capability: [major, minor], processors, .. } =
            driver.device(index).map_err(failed)?;
        let capability = format!("{major}.{minor}");
        report.gpus.push(GpuInfo { name, capability, memory_bytes: memory, processors });
    }
    let (nvrtc, path) = libraries::compiler(&driver)?;
    let (major, minor) = nvrtc.version();
    report.compiler = Some([format!("{major}.{minor}"), path.display().to_string()]);
    match libraries::products(major) {
        Ok(library) => {
            report.products = Some(library.cudnn.describe());
            report.matrices = Some(library.blas.describe());
        }
        Err(why) => {
            let hint = format!(
                "it is not needed; with it and {}=1 a tuner compares its engines with our \
                 kernels: `{}`",
                libraries::CUDNN,
                libraries::install_products(major)
            );
            report.optional = Some([format!("no cuDNN: {why}"), hint]);
        }
    }
    Ok(())
}
