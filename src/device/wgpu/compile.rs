//! Compiling the kernels of a plan on every core, distinct ones once.
//!
//! Real GPUs compile when a pipeline is made. CPU adapters compile when a shader is first
//! dispatched, on the one thread of the device's queue; a whole training step takes tens of seconds
//! that way. There each core gets a device of its own and a share of the kernels, which it
//! dispatches with an empty grid; the driver's shader cache on disk then has them all for the
//! device that trains.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cache::PipelineCache;
use super::{AdapterInfo, Gpu, OpenOptions};
use crate::device::{DeviceError, Progress};
use crate::ops::{Binding, Kernel};
use crate::plan::Plan;
use crate::shader;

/// Bytes of a stand-in buffer: every binding of an empty grid fits.
const STAND_IN: u64 = 256;

/// What compiling needs of a device; shared by the threads.
#[derive(Clone, Copy)]
struct Context<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    cache: Option<&'a wgpu::PipelineCache>,
    adapter: &'a wgpu::Adapter,
    info: &'a AdapterInfo,
    checked: bool,
}

impl<'a> Context<'a> {
    fn of(gpu: &'a Gpu) -> Self {
        Self {
            device: &gpu.device,
            queue: &gpu.queue,
            cache: gpu.cache.as_ref().map(PipelineCache::handle),
            adapter: &gpu.adapter,
            info: &gpu.info,
            checked: gpu.options.checked,
        }
    }
}

/// A kernel that is not compiled yet.
struct Missing<'a> {
    kernel: &'a Kernel,
    bindings: &'a [Binding],
    text: String,
}

/// Makes the plan's pipelines that this device does not have yet.
pub(super) fn compile(
    gpu: &mut Gpu,
    plan: &Plan,
    progress: Progress<'_>,
) -> Result<(), DeviceError> {
    let mut distinct: BTreeMap<String, Missing<'_>> = BTreeMap::new();
    for dispatch in plan.ops.iter().flat_map(|s| &s.dispatches) {
        let text = shader::source(&dispatch.kernel);
        if !gpu.pipelines.contains_key(&text) && !distinct.contains_key(&text) {
            let (kernel, bindings) = (&dispatch.kernel, &dispatch.bindings[..]);
            distinct.insert(text.clone(), Missing { kernel, bindings, text });
        }
    }
    let missing: Vec<Missing<'_>> = distinct.into_values().collect();
    if missing.is_empty() {
        return Ok(());
    }
    // A handful is compiled faster than threads and devices start.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(missing.len() / if gpu.info.software { 16 } else { 2 }).max(1);
    let ready = AtomicUsize::new(0);
    let tick = || {
        let done = ready.fetch_add(1, Ordering::Relaxed) + 1;
        progress(done, missing.len());
    };
    let lazy = gpu.info.software && !gpu.options.checked;
    let made: Vec<Result<Made, DeviceError>> = std::thread::scope(|scope| {
        let own = Context::of(gpu);
        let (missing, tick) = (&missing, &tick);
        let run = move |t| share(own, missing, t, threads, lazy, tick);
        let spawn = |t| std::thread::Builder::new().spawn_scoped(scope, move || run(t));
        // Where the system allows no more threads, this one does their shares.
        let spawned: Vec<_> = (1..threads).map(|t| (t, spawn(t))).collect();
        let mut made = vec![run(0)];
        for (t, handle) in spawned {
            made.push(match handle {
                Ok(handle) => {
                    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(_) => run(t),
            });
        }
        made
    });
    for made in made {
        gpu.pipelines.extend(made?);
    }
    gpu.check(None)?;
    if let Some(cache) = &mut gpu.cache {
        cache.store();
    }
    Ok(())
}

/// Texts and their pipelines.
type Made = Vec<(String, wgpu::ComputePipeline)>;

/// Every `threads`th kernel from the `t`th on.
fn share(
    own: Context<'_>,
    missing: &[Missing<'_>],
    t: usize,
    threads: usize,
    lazy: bool,
    tick: &(dyn Fn() + Sync),
) -> Result<Made, DeviceError> {
    let mut made = Vec::new();
    let mine = missing.iter().skip(t).step_by(threads);
    // On a lazy adapter every thread but the first dispatches on a device of its own.
    let helper = match lazy && t > 0 {
        true => Some(Gpu::open(own.adapter, own.info, OpenOptions::default())?),
        false => None,
    };
    let other = helper.as_ref().map(Context::of);
    for m in mine {
        let pipeline = pipeline(own, m.kernel, &m.text);
        if lazy && threads > 1 {
            match other {
                Some(other) => {
                    dispatch_nothing(other, m.bindings, &self::pipeline(other, m.kernel, &m.text))
                }
                None => dispatch_nothing(own, m.bindings, &pipeline),
            }
        }
        made.push((m.text.clone(), pipeline));
        tick();
    }
    if let Some(helper) = &helper {
        let submission = helper.queue.submit([]);
        helper.is_done(&submission, true)?;
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

/// Dispatches a pipeline with an empty grid, which makes a lazy driver compile it.
fn dispatch_nothing(gpu: Context<'_>, bindings: &[Binding], pipeline: &wgpu::ComputePipeline) {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
    let descriptor = wgpu::BufferDescriptor {
        label: Some("stand-in"),
        size: STAND_IN,
        usage,
        mapped_at_creation: false,
    };
    // One per binding: a buffer may not be read and written by one dispatch.
    let buffers: Vec<_> = bindings.iter().map(|_| gpu.device.create_buffer(&descriptor)).collect();
    let entries: Vec<_> = (0..bindings.len())
        .filter(|&i| bindings[i] != Binding::Skip)
        .map(|i| wgpu::BindGroupEntry {
            binding: i as u32,
            resource: buffers[i].as_entire_binding(),
        })
        .collect();
    let layout = pipeline.get_bind_group_layout(0);
    let descriptor =
        wgpu::BindGroupDescriptor { label: Some("warm"), layout: &layout, entries: &entries };
    let group = gpu.device.create_bind_group(&descriptor);
    let mut encoder =
        gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("warm") });
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(0, 1, 1);
    drop(pass);
    gpu.queue.submit([encoder.finish()]);
}
