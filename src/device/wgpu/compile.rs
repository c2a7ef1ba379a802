//! Compiling the kernels of plans, distinct ones once.

#[cfg(feature = "native")]
mod threads;

use std::collections::BTreeMap;

use super::Gpu;
use super::cache::PipelineCache;
use crate::device::{DeviceError, Progress};
use crate::ops::{Dispatch, Kernel};
use crate::plan::Plan;

/// What compiling needs of a device.
#[derive(Clone, Copy)]
struct Context<'a> {
    device: &'a wgpu::Device,
    cache: Option<&'a wgpu::PipelineCache>,
    checked: bool,
}

impl<'a> Context<'a> {
    fn of(gpu: &'a Gpu) -> Self {
        Self {
            device: &gpu.device,
            cache: gpu.cache.as_ref().map(PipelineCache::handle),
            checked: gpu.options.checked,
        }
    }
}

/// A kernel that is not compiled yet.
pub(super) struct Missing<'a> {
    pub(super) dispatch: &'a Dispatch,
    text: String,
}

/// All dispatches of plans.
pub(super) fn dispatches<'a>(plans: &[&'a Plan]) -> impl Iterator<Item = &'a Dispatch> {
    plans.iter().flat_map(|p| &p.ops).flat_map(|s| &s.dispatches)
}

/// The kernels of plans that are not compiled yet.
pub(super) fn missing<'a>(gpu: &Gpu, plans: &[&'a Plan]) -> Vec<Missing<'a>> {
    among(gpu, dispatches(plans))
}

fn among<'a>(gpu: &Gpu, dispatches: impl Iterator<Item = &'a Dispatch>) -> Vec<Missing<'a>> {
    let mut distinct: BTreeMap<String, Missing<'_>> = BTreeMap::new();
    for dispatch in dispatches {
        let text = gpu.options.source(&dispatch.kernel);
        if !gpu.pipelines.contains_key(&text) && !distinct.contains_key(&text) {
            distinct.insert(text.clone(), Missing { dispatch, text });
        }
    }
    distinct.into_values().collect()
}

/// Makes the pipelines of dispatches that this device does not have yet.
pub(super) fn compile<'a>(
    gpu: &mut Gpu,
    dispatches: impl Iterator<Item = &'a Dispatch>,
    progress: Progress<'_>,
) -> Result<(), DeviceError> {
    let missing = among(gpu, dispatches);
    if missing.is_empty() {
        return Ok(());
    }
    let made = make(gpu, &missing, progress)?;
    gpu.pipelines.extend(made);
    gpu.check(None)?;
    if let Some(cache) = &mut gpu.cache {
        cache.store();
    }
    Ok(())
}

/// Texts and their pipelines.
type Made = Vec<(String, wgpu::ComputePipeline)>;

#[cfg(feature = "native")]
use threads::make;

/// A browser compiles in a process of its own, in order, and tells what it has done.
#[cfg(not(feature = "native"))]
fn make(gpu: &Gpu, missing: &[Missing<'_>], progress: Progress<'_>) -> Result<Made, DeviceError> {
    let mut made = Made::new();
    for m in missing {
        #[cfg(target_family = "wasm")]
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Internal);
        made.push((m.text.clone(), pipeline(Context::of(gpu), &m.dispatch.kernel, &m.text)));
        #[cfg(target_family = "wasm")]
        if let Some(error) = crate::device::wait::block_on(scope.pop()) {
            let message = format!("`{}`: {error}", m.dispatch.kernel.file);
            return Err(DeviceError::Driver { device: gpu.info.name.clone(), message });
        }
        gpu.check(None)?;
        progress(made.len(), missing.len());
    }
    Ok(made)
}

fn pipeline(gpu: Context<'_>, kernel: &Kernel, text: &str) -> wgpu::ComputePipeline {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(kernel.file),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    };
    let module = if gpu.checked {
        gpu.device.create_shader_module(descriptor)
    } else {
        #[allow(
            unsafe_code,
            reason = "runtime checks cost up to 100x; every index is bounded by the kernel's own \
                constants, and the tests run every kernel checked as well"
        )]
        // SAFETY: the shaders are ours, embedded in the binary; plan::verify checks every buffer's
        // size.
        unsafe {
            gpu.device
                .create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    };
    gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.file),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: gpu.cache,
    })
}
