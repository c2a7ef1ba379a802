//! Which device `--device` means, and why.

use super::wgpu::{Gpu, OpenOptions, adapters, tune};
use super::{DeviceError, Host, Session};

/// A parsed `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU if there is one, otherwise the processor.
    Auto,
    /// f32 on the processor.
    Cpu,
    /// f64 on the processor, naive (tests).
    Reference,
    /// A wgpu adapter: a real GPU, or the first whose name contains the text.
    Wgpu(Option<String>),
}

impl std::str::FromStr for Choice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            "wgpu" => Ok(Self::Wgpu(None)),
            _ => match text.strip_prefix("wgpu:") {
                Some(name) if !name.is_empty() => Ok(Self::Wgpu(Some(name.into()))),
                _ => Err(DeviceError::NotFound(format!("unknown device `{text}` (auto, cpu, wgpu, wgpu:NAME, reference)"))),
            },
        }
    }
}

/// What `auto` takes, and why.
pub fn auto() -> (Choice, String) {
    let found = adapters();
    match found.iter().find(|a| !a.software) {
        Some(gpu) => (Choice::Wgpu(Some(gpu.name.clone())), format!("`{}` is a GPU ({})", gpu.name, gpu.backend)),
        None if found.is_empty() => (Choice::Cpu, "there is no Vulkan, Metal or DX12 adapter".into()),
        None => (Choice::Cpu, format!("`{}` is a software adapter; native code is faster on this processor", found[0].name)),
    }
}

/// Opens a device. `tune` chooses the GEMM variant by a short measurement, remembered between runs.
///
/// # Errors
/// If there is no such device or its driver fails.
pub fn open(choice: &Choice) -> Result<(Box<dyn Session>, String), DeviceError> {
    match choice {
        Choice::Auto => {
            let (choice, why) = auto();
            open(&choice).map(|(session, _)| (session, why))
        }
        Choice::Cpu => Ok((Box::new(Host::<f32>::new()), "as asked".into())),
        Choice::Reference => Ok((Box::new(Host::<f64>::new()), "as asked".into())),
        Choice::Wgpu(name) => {
            let mut gpu = Gpu::open(name.as_deref(), OpenOptions::default())?;
            let choice = tune::choose(&mut gpu)?;
            let why = format!("as asked; {choice}");
            Ok((Box::new(gpu), why))
        }
    }
}
