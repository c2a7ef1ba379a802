//! On every core at once.
//!
//! Real GPUs compile when a pipeline is made. CPU adapters compile when a shader is first
//! dispatched, on the one thread of the device's queue; a whole training step takes tens of seconds
//! that way. There each core gets a device of its own and a share of the kernels, which it
//! dispatches with an empty grid; the driver's shader cache on disk then has them all for the
//! device that trains.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::completion::Completion;
use super::super::{AdapterInfo, Gpu, OpenOptions, Waiting};
use super::{Context, Made, Missing, pipeline};
use crate::device::{DeviceError, Progress, wait};
use crate::ops::{Binding, Dispatch};
use crate::shader;

/// Bytes of a stand-in buffer: every binding of an empty grid fits.
const STAND_IN: u64 = 256;

/// A device whose kernels the threads compile.
#[derive(Clone, Copy)]
struct Own<'a> {
    context: Context<'a>,
    queue: &'a wgpu::Queue,
    adapter: &'a wgpu::Adapter,
    info: &'a AdapterInfo,
}

impl<'a> Own<'a> {
    fn of(gpu: &'a Gpu) -> Self {
        let context = Context::of(gpu);
        Self { context, queue: &gpu.queue, adapter: &gpu.adapter, info: &gpu.info }
    }
}

/// Makes the pipelines of kernels.
pub(super) fn make(
    gpu: &Gpu,
    missing: &[Missing<'_>],
    progress: Progress<'_>,
) -> Result<Made, DeviceError> {
    let own = Own::of(gpu);
    // A handful is compiled faster than threads and devices start.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(missing.len() / if own.info.software { 16 } else { 2 }).max(1);
    let ready = AtomicUsize::new(0);
    let tick = || {
        let done = ready.fetch_add(1, Ordering::Relaxed) + 1;
        progress(done, missing.len());
    };
    let lazy = own.info.software && !own.context.checked;
    let made: Vec<Result<Made, DeviceError>> = std::thread::scope(|scope| {
        let tick = &tick;
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
    Ok(made.into_iter().collect::<Result<Vec<Made>, _>>()?.into_iter().flatten().collect())
}

/// Every `threads`th kernel from the `t`th on.
fn share(
    own: Own<'_>,
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
        true => {
            let opened = Gpu::open(own.adapter, own.info, OpenOptions::default());
            Some(wait::block_on(opened)?)
        }
        false => None,
    };
    let other = helper.as_ref().map(Own::of);
    for m in mine {
        let pipeline = pipeline(own.context, &m.dispatch.kernel, &m.text);
        if lazy && threads > 1 {
            match other {
                Some(other) => dispatch_nothing(
                    other,
                    m.dispatch,
                    &super::pipeline(other.context, &m.dispatch.kernel, &m.text),
                ),
                None => dispatch_nothing(own, m.dispatch, &pipeline),
            }
        }
        made.push((m.text.clone(), pipeline));
        tick();
    }
    if let Some(helper) = &helper {
        let submission = helper.queue.submit([]);
        let done = Completion::of(&helper.queue, submission);
        helper.is_done(&Waiting { done, reading: None, timed: false }, true)?;
    }
    Ok(made)
}

/// Dispatches a pipeline with an empty grid, which makes a lazy driver compile it.
fn dispatch_nothing(gpu: Own<'_>, dispatch: &Dispatch, pipeline: &wgpu::ComputePipeline) {
    let bound = dispatch.bindings.iter().zip(0..).filter(|(b, _)| **b != Binding::Skip);
    let mut bindings: Vec<u32> = bound.map(|(_, at)| at).collect();
    if !shader::constants(&dispatch.kernel).is_empty() {
        bindings.push(shader::CONSTANTS_BINDING);
    }
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
    let descriptor = wgpu::BufferDescriptor {
        label: Some("stand-in"),
        size: STAND_IN,
        usage,
        mapped_at_creation: false,
    };
    // One per binding: a buffer may not be read and written by one dispatch.
    let buffers: Vec<_> =
        bindings.iter().map(|_| gpu.context.device.create_buffer(&descriptor)).collect();
    let entries: Vec<_> = (bindings.iter().zip(&buffers))
        .map(|(&binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
        .collect();
    let layout = pipeline.get_bind_group_layout(0);
    let descriptor =
        wgpu::BindGroupDescriptor { label: Some("warm"), layout: &layout, entries: &entries };
    let group = gpu.context.device.create_bind_group(&descriptor);
    let mut encoder = gpu
        .context
        .device
        .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("warm") });
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(0, 1, 1);
    drop(pass);
    gpu.queue.submit([encoder.finish()]);
}
