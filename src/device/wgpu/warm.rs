//! Compiling kernels on every core of a CPU adapter. Such drivers compile a shader when it is first dispatched, on the one thread of
//! the device's queue; a whole training step takes tens of seconds that way. Here each core gets a device of its own and a share of the
//! kernels, which it dispatches with an empty grid; the driver's shader cache on disk then has them all for the device that trains.

use super::{Gpu, OpenOptions};
use crate::device::DeviceError;
use crate::ops::{Binding, Kernel};
use crate::plan::Plan;

/// Bytes of a stand-in buffer: every binding of an empty grid fits.
const STAND_IN: u64 = 256;

/// Compiles the plan's kernels that this device has not compiled yet. Real GPUs compile at pipeline creation and need none of this.
pub(super) fn warm(gpu: &mut Gpu, plan: &Plan) -> Result<(), DeviceError> {
    if !gpu.info.software || gpu.options.checked {
        return Ok(());
    }
    let mut kernels: Vec<(&Kernel, &[Binding])> = Vec::new();
    for dispatch in plan.steps.iter().flat_map(|s| &s.dispatches) {
        if !kernels.iter().any(|(k, _)| **k == dispatch.kernel) {
            kernels.push((&dispatch.kernel, &dispatch.bindings));
        }
    }
    // A handful is compiled faster than a second device opens.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(kernels.len() / 16);
    if threads < 2 {
        return Ok(());
    }
    let name = gpu.info.name.clone();
    std::thread::scope(|scope| {
        let share = |t: usize| kernels.iter().skip(t).step_by(threads).copied().collect::<Vec<_>>();
        let others: Vec<_> = (1..threads)
            .map(|t| {
                let (share, name) = (share(t), &name);
                scope.spawn(move || compile(&mut Gpu::open(Some(name), OpenOptions::default())?, &share))
            })
            .collect();
        let mut result = compile(gpu, &share(0));
        for other in others {
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(other);
        }
        result
    })
}

fn compile(gpu: &mut Gpu, kernels: &[(&Kernel, &[Binding])]) -> Result<(), DeviceError> {
    let usage = ::wgpu::BufferUsages::STORAGE | ::wgpu::BufferUsages::UNIFORM;
    let descriptor = ::wgpu::BufferDescriptor { label: Some("stand-in"), size: STAND_IN, usage, mapped_at_creation: false };
    // One per binding: a buffer may not be read and written by one dispatch.
    let buffers: Vec<_> = (0..16).map(|_| gpu.device.create_buffer(&descriptor)).collect();
    for (kernel, bindings) in kernels {
        let pipeline = gpu.pipeline(kernel);
        let entries: Vec<_> = (0..bindings.len())
            .filter(|&i| bindings[i] != Binding::Skip)
            .map(|i| ::wgpu::BindGroupEntry { binding: i as u32, resource: buffers[i].as_entire_binding() })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let group = gpu.device.create_bind_group(&::wgpu::BindGroupDescriptor { label: Some("warm"), layout: &layout, entries: &entries });
        let mut encoder = gpu.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor { label: Some("warm") });
        let mut pass = encoder.begin_compute_pass(&::wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(0, 1, 1);
        drop(pass);
        gpu.queue.submit([encoder.finish()]);
    }
    gpu.wait(None)
}
