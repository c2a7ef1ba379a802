//! The `wgpu` device: one pipeline and bind group per dispatch, made once; a step is one uniform write and one submission
//! (several where a submission would run so long that an operating system might reset the GPU).

mod adapter;
mod readback;
pub(crate) mod tune;
mod warm;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) use adapter::select;
pub use adapter::{AdapterInfo, adapters};

use crate::device::{Data, DeviceError, PlanId, Session};
use crate::ir::{Group, Layout};
use crate::ops::{Binding, Kernel, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan, Step, verify};
use crate::shader;

/// Longest submission aimed at on a GPU; operating systems reset one that runs for about two seconds.
const SUBMISSION: Duration = Duration::from_millis(250);
/// Steps whose scalar outputs are kept on the device before they are read back together.
const RING: usize = 64;
/// Steps queued ahead of the device.
const IN_FLIGHT: usize = 2;

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Keep naga's bounds checks and loop limits (tests; costs up to 100x).
    pub checked: bool,
}

struct Loaded {
    plan: Plan,
    buffers: Vec<wgpu::Buffer>,
    /// Constant tables of each step.
    tables: Vec<Vec<wgpu::Buffer>>,
    commands: Vec<Command>,
    /// Submissions a step is split into.
    parts: usize,
    scalars: Vec<usize>,
    ring: Option<wgpu::Buffer>,
    pending: Vec<u32>,
    log: Vec<(u32, Vec<f32>)>,
    in_flight: Vec<wgpu::SubmissionIndex>,
}

struct Command {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    grid: [u32; 3],
    /// Index of the plan's step.
    step: usize,
}

/// A wgpu device holding one model.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: AdapterInfo,
    target: Target,
    limits: Limits,
    options: OpenOptions,
    uniform: wgpu::Buffer,
    layout: Layout,
    flats: BTreeMap<Group, wgpu::Buffer>,
    plans: Vec<Loaded>,
    pipelines: BTreeMap<String, wgpu::ComputePipeline>,
    failure: Arc<Mutex<Option<String>>>,
    /// Time the host spent on steps, without waiting for the device.
    host_time: Duration,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// Opens an adapter: `None` takes a real GPU, a name any adapter whose name contains it.
    ///
    /// # Errors
    /// If there is no such adapter or the driver refuses.
    pub fn open(name: Option<&str>, options: OpenOptions) -> Result<Self, DeviceError> {
        let (adapter, info) = select(name)?;
        let driver = |message: String| DeviceError::Driver { device: info.name.clone(), message };
        let limits = adapter.limits();
        let wanted = wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("aavae"),
            required_features: adapter.features() & wanted,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| driver(e.to_string()))?;
        let failure = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&sink, e.to_string())));
        let sink = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&sink, format!("device lost ({reason:?}): {message}"));
            }
        });
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("step"),
            size: size_of::<StepUniforms>() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Ok(Self {
            target: Target { max_groups: limits.max_compute_workgroups_per_dimension.min(65_535), ..Target::default() },
            limits: Limits {
                max_binding: usize::try_from(limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)).unwrap_or(usize::MAX),
                max_groups: limits.max_compute_workgroups_per_dimension,
                max_storage_buffers: limits.max_storage_buffers_per_shader_stage as usize,
            },
            device,
            queue,
            info,
            options,
            uniform,
            layout: Layout::default(),
            flats: BTreeMap::new(),
            plans: Vec::new(),
            pipelines: BTreeMap::new(),
            failure,
            host_time: Duration::ZERO,
        })
    }

    /// The adapter.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// Sets what plans should be lowered to (see `tune`).
    pub fn set_target(&mut self, target: Target) {
        self.target = target;
    }

    fn check(&self) -> Result<(), DeviceError> {
        let failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        failure.map_or(Ok(()), |message| Err(DeviceError::Driver { device: self.info.name.clone(), message }))
    }

    fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
        self.device
            .poll(wgpu::PollType::Wait { submission_index: submission, timeout: None })
            .map_err(|e| DeviceError::Driver { device: self.info.name.clone(), message: e.to_string() })?;
        self.check()
    }

    fn buffer(&self, label: &str, bytes: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.max(16) as u64,
            usage: STORAGE,
            mapped_at_creation: false,
        })
    }

    fn flat(&mut self, group: Group) {
        if !self.flats.contains_key(&group) {
            let buffer = self.buffer(&format!("{group:?}"), self.layout.size(group) * 4);
            self.flats.insert(group, buffer);
        }
    }

    /// The pipeline of a kernel, made once per distinct text.
    fn pipeline(&mut self, kernel: &Kernel) -> wgpu::ComputePipeline {
        let source = shader::source(kernel);
        if let Some(p) = self.pipelines.get(&source) {
            return p.clone();
        }
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(kernel.file), source: wgpu::ShaderSource::Wgsl(source.as_str().into()) };
        let module = if self.options.checked {
            self.device.create_shader_module(descriptor)
        } else {
            #[allow(
                unsafe_code,
                reason = "runtime checks cost up to 100x; every index is bounded by the kernel's own constants, and the tests run every kernel checked as well"
            )]
            // SAFETY: the shaders are ours, embedded in the binary; plan::verify checks every buffer's size.
            unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            }
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.file),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: false, ..Default::default() },
            cache: None,
        });
        self.pipelines.insert(source, pipeline.clone());
        pipeline
    }

    fn binding<'a>(&'a self, buffers: &'a [wgpu::Buffer], plan: &Plan, place: Place, bytes: usize) -> wgpu::BindingResource<'a> {
        let bytes = bytes.next_multiple_of(16) as u64;
        let (buffer, offset) = match place {
            Place::Buffer(b) => (&buffers[b], 0),
            Place::State(r) => (&self.flats[&r.group], r.offset as u64 * 4),
        };
        debug_assert!(offset + bytes <= buffer.size(), "{}: a binding exceeds its buffer", plan.name);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(bytes) })
    }

    /// A buffer of each step's tables, filled.
    fn tables(&self, plan: &Plan) -> Vec<Vec<wgpu::Buffer>> {
        let fill = |step: &Step, words: &Vec<u32>| {
            let buffer = self.buffer(&format!("{} (table)", step.label), words.len() * 4);
            self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
            buffer
        };
        plan.steps.iter().map(|step| step.tables.iter().map(|words| fill(step, words)).collect()).collect()
    }

    fn commands(&mut self, plan: &Plan, buffers: &[wgpu::Buffer], tables: &[Vec<wgpu::Buffer>]) -> Vec<Command> {
        let mut commands = Vec::new();
        for (index, step) in plan.steps.iter().enumerate() {
            for dispatch in &step.dispatches {
                let pipeline = self.pipeline(&dispatch.kernel);
                let entries: Vec<_> = dispatch
                    .bindings
                    .iter()
                    .enumerate()
                    .filter(|(_, b)| **b != Binding::Skip)
                    .map(|(i, b)| wgpu::BindGroupEntry {
                        binding: i as u32,
                        resource: match b {
                            Binding::Input(j) => self.binding(buffers, plan, step.inputs[*j].1, step.io.inputs[*j].bytes()),
                            Binding::Output(j) => self.binding(buffers, plan, step.outputs[*j].1, step.io.outputs[*j].bytes()),
                            Binding::Scratch(j) => {
                                self.binding(buffers, plan, Place::Buffer(step.scratch[*j]), plan.buffers[step.scratch[*j]].bytes)
                            }
                            Binding::Table(j) => tables[index][*j].as_entire_binding(),
                            Binding::Step => self.uniform.as_entire_binding(),
                            Binding::Skip => unreachable!("filtered above"),
                        },
                    })
                    .collect();
                let bindings = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&step.label),
                    layout: &pipeline.get_bind_group_layout(0),
                    entries: &entries,
                });
                commands.push(Command { pipeline, bindings, grid: dispatch.grid, step: index });
            }
        }
        commands
    }

    fn encode(&self, commands: &[Command]) -> wgpu::CommandEncoder {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for c in commands {
            pass.set_pipeline(&c.pipeline);
            pass.set_bind_group(0, &c.bindings, &[]);
            pass.dispatch_workgroups(c.grid[0], c.grid[1], c.grid[2]);
        }
        drop(pass);
        encoder
    }

    fn place_bytes(&self, id: PlanId, place: Place, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let (buffer, offset) = match place {
            Place::Buffer(b) => (&self.plans[id.0].buffers[b], 0),
            Place::State(r) => (&self.flats[&r.group], r.offset * 4),
        };
        let data = readback::read(&self.device, &self.queue, buffer, offset, bytes)
            .map_err(|message| DeviceError::Driver { device: self.info.name.clone(), message })?;
        self.check()?;
        Ok(data)
    }

    fn bad(&self, id: PlanId, place: Place, len: usize) -> Result<bool, DeviceError> {
        let bytes = self.place_bytes(id, place, len * 4)?;
        Ok(floats(&bytes).iter().any(|x| !x.is_finite()))
    }
}

fn note(sink: &Mutex<Option<String>>, message: String) {
    // The first failure is the cause; later ones follow from it.
    sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(message);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

impl Session for Gpu {
    fn device(&self) -> String {
        format!("wgpu:{} ({}, {})", self.info.name, self.info.backend, self.info.driver)
    }
    fn target(&self) -> Target {
        self.target
    }
    fn limits(&self) -> Limits {
        self.limits
    }
    fn allocate(&mut self, layout: &Layout) -> Result<(), DeviceError> {
        assert!(self.plans.is_empty(), "a session holds one model");
        self.layout = layout.clone();
        self.flats.clear();
        Ok(())
    }
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        verify(&plan, &self.limits)?;
        assert_eq!(plan.layout, self.layout, "plan `{}` was made for another model", plan.name);
        for &group in &plan.groups {
            self.flat(group);
        }
        warm::warm(self, &plan)?;
        let buffers: Vec<_> = plan.buffers.iter().enumerate().map(|(i, b)| self.buffer(&format!("{}.b{i}", plan.name), b.bytes)).collect();
        let tables = self.tables(&plan);
        let commands = self.commands(&plan, &buffers, &tables);
        let scalars: Vec<usize> = (0..plan.outputs.len()).filter(|&o| plan.outputs[o].ty.shape.len() == 1).collect();
        let ring = (!scalars.is_empty()).then(|| self.buffer("scalars", RING * scalars.len() * 4));
        self.plans.push(Loaded {
            plan,
            buffers,
            tables,
            commands,
            parts: 1,
            scalars,
            ring,
            pending: vec![],
            log: vec![],
            in_flight: vec![],
        });
        self.check()?;
        Ok(PlanId(self.plans.len() - 1))
    }
    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }
    fn write_state(&mut self, group: Group, offset: usize, data: &[f32]) -> Result<(), DeviceError> {
        self.flat(group);
        self.queue.write_buffer(&self.flats[&group], offset as u64 * 4, bytemuck::cast_slice(data));
        self.check()
    }
    fn read_state(&mut self, group: Group) -> Result<Vec<f32>, DeviceError> {
        self.flat(group);
        let buffer = &self.flats[&group];
        let data = readback::read(&self.device, &self.queue, buffer, 0, self.layout.size(group) * 4)
            .map_err(|message| DeviceError::Driver { device: self.info.name.clone(), message })?;
        self.check()?;
        Ok(floats(&data))
    }
    fn upload(&mut self, id: PlanId, input: usize, data: Data<'_>) -> Result<(), DeviceError> {
        let loaded = &self.plans[id.0];
        let port = &loaded.plan.inputs[input];
        assert_eq!(data.len(), port.ty.shape.len(), "input `{}`", port.name);
        let Place::Buffer(b) = port.place else { unreachable!("inputs live in buffers") };
        let bytes = match data {
            Data::F32(x) => bytemuck::cast_slice(x),
            Data::U32(x) => bytemuck::cast_slice(x),
        };
        self.queue.write_buffer(&loaded.buffers[b], 0, bytes);
        self.check()
    }
    fn run(&mut self, id: PlanId, step: &StepUniforms) -> Result<(), DeviceError> {
        let full = self.plans[id.0].pending.len() == RING;
        if full {
            let drained = self.collect(id)?;
            self.plans[id.0].log.extend(drained);
        }
        while self.plans[id.0].in_flight.len() >= IN_FLIGHT {
            let oldest = self.plans[id.0].in_flight.remove(0);
            self.wait(Some(oldest))?;
        }
        let start = Instant::now();
        self.queue.write_buffer(&self.uniform, 0, bytemuck::bytes_of(step));
        let loaded = &self.plans[id.0];
        let chunk = loaded.commands.len().div_ceil(loaded.parts).max(1);
        let chunks: Vec<&[Command]> = loaded.commands.chunks(chunk).collect();
        let mut last = None;
        for (i, commands) in chunks.iter().enumerate() {
            let mut encoder = self.encode(commands);
            if let (Some(ring), true) = (&loaded.ring, i + 1 == chunks.len()) {
                let slot = loaded.pending.len() * loaded.scalars.len();
                for (k, &o) in loaded.scalars.iter().enumerate() {
                    let (buffer, offset) = match loaded.plan.outputs[o].place {
                        Place::Buffer(b) => (&loaded.buffers[b], 0),
                        Place::State(r) => (&self.flats[&r.group], r.offset as u64 * 4),
                    };
                    encoder.copy_buffer_to_buffer(buffer, offset, ring, ((slot + k) * 4) as u64, 4);
                }
            }
            last = Some(self.queue.submit([encoder.finish()]));
        }
        let spent = start.elapsed();
        self.host_time += spent;
        let loaded = &mut self.plans[id.0];
        loaded.pending.push(step.step);
        // Split the following steps if one submission takes long on a real GPU.
        if let Some(last) = last {
            if loaded.parts == 1 && loaded.pending.len() == 2 && !self.info.software && loaded.log.is_empty() {
                let start = Instant::now();
                self.wait(Some(last))?;
                let parts = (start.elapsed().as_secs_f64() / SUBMISSION.as_secs_f64()).ceil().max(1.0) as usize;
                self.plans[id.0].parts = parts.min(64);
            } else {
                loaded.in_flight.push(last);
            }
        }
        self.check()
    }
    fn read(&mut self, id: PlanId, output: usize) -> Result<Vec<f32>, DeviceError> {
        let port = &self.plans[id.0].plan.outputs[output];
        Ok(floats(&self.place_bytes(id, port.place, port.ty.bytes())?))
    }
    fn drain(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError> {
        let mut log = std::mem::take(&mut self.plans[id.0].log);
        log.extend(self.collect(id)?);
        Ok(log)
    }
    fn allocated_bytes(&self) -> usize {
        let plans: u64 = self.plans.iter().flat_map(|p| p.buffers.iter().chain(p.tables.iter().flatten())).map(wgpu::Buffer::size).sum();
        (plans + self.flats.values().map(wgpu::Buffer::size).sum::<u64>()) as usize
    }
    fn first_non_finite(&mut self, id: PlanId, step: &StepUniforms) -> Result<Option<String>, DeviceError> {
        let states = self.layout.states.clone();
        for s in &states {
            self.flat(s.range.group);
            if self.bad(id, Place::State(s.range), s.range.len)? {
                return Ok(Some(s.name.clone()));
            }
        }
        self.queue.write_buffer(&self.uniform, 0, bytemuck::bytes_of(step));
        for i in 0..self.plans[id.0].plan.steps.len() {
            let loaded = &self.plans[id.0];
            let range: Vec<usize> = (0..loaded.commands.len()).filter(|&c| loaded.commands[c].step == i).collect();
            let (Some(&first), Some(&last)) = (range.first(), range.last()) else { continue };
            self.queue.submit([self.encode(&loaded.commands[first..=last]).finish()]);
            let Step { label, outputs, io, .. } = &loaded.plan.steps[i];
            for ((_, place), ty) in outputs.iter().zip(&io.outputs) {
                if self.bad(id, *place, ty.shape.len())? {
                    return Ok(Some(label.clone()));
                }
            }
        }
        Ok(None)
    }
    fn time_step(&mut self, id: PlanId, step: usize, times: usize) -> Result<f64, DeviceError> {
        self.wait(None)?;
        let loaded = &self.plans[id.0];
        let start = Instant::now();
        for _ in 0..times {
            let range: Vec<usize> = (0..loaded.commands.len()).filter(|&c| loaded.commands[c].step == step).collect();
            let (first, last) = (range[0], range[range.len() - 1]);
            self.queue.submit([self.encode(&loaded.commands[first..=last]).finish()]);
        }
        self.wait(None)?;
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }
    fn host_seconds(&self) -> f64 {
        self.host_time.as_secs_f64()
    }
    fn poison(&mut self, id: PlanId) -> Result<(), DeviceError> {
        let loaded = &self.plans[id.0];
        let inputs: Vec<_> = loaded.plan.inputs.iter().map(|p| p.place).collect();
        for (b, buffer) in loaded.buffers.iter().enumerate() {
            if !inputs.contains(&Place::Buffer(b)) {
                self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&vec![f32::NAN; buffer.size() as usize / 4]));
            }
        }
        self.check()
    }
}

impl Gpu {
    /// Reads the scalars of the pending steps.
    fn collect(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError> {
        let loaded = &mut self.plans[id.0];
        loaded.in_flight.clear();
        let steps = std::mem::take(&mut loaded.pending);
        let width = loaded.scalars.len();
        let (Some(ring), false) = (&loaded.ring, steps.is_empty()) else {
            self.wait(None)?;
            return Ok(steps.into_iter().map(|s| (s, vec![])).collect());
        };
        let data = readback::read(&self.device, &self.queue, ring, 0, steps.len() * width * 4)
            .map_err(|message| DeviceError::Driver { device: self.info.name.clone(), message })?;
        self.check()?;
        Ok(steps.into_iter().zip(floats(&data).chunks(width)).map(|(s, v)| (s, v.to_vec())).collect())
    }
}
