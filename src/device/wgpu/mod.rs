//! The `wgpu` device: WGSL on Vulkan, Metal and DX12. One pipeline and bind group per dispatch,
//! made once.

mod adapter;
mod cache;
mod compile;
mod completion;
mod failure;
mod queries;
mod readback;

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(any(feature = "native", target_family = "wasm"))]
pub use adapter::adapters;
pub(crate) use adapter::select;
pub use adapter::{AdapterInfo, Pick, find};

#[cfg(any(feature = "native", target_family = "wasm"))]
use super::wait;
use super::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, ProgramId, Progress, Ticket,
};
use crate::ops::{Binding, Dispatch, Kernel, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan};
use crate::shader::CONSTANTS_BINDING;
use crate::tensor::{DType, Half};
use completion::Completion;
use failure::{Failure, fail, watch};
use queries::Queries;
use readback::Reading;

/// Bytes that one read takes of host-visible memory at most.
const READ_BYTES: usize = 16 << 20;

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Keep naga's bounds checks and loop limits (tests; costs up to 100x).
    pub checked: bool,
    /// Take the adapter's cooperative matrices for ones of this edge, though it does not list them
    /// (tests: llvmpipe lists 8 and computes 16 too).
    pub coop: Option<u32>,
    /// What becomes of the text of each kernel (tests: a kernel that is spoiled must fail).
    pub rewrite: Option<fn(String) -> String>,
}

impl OpenOptions {
    /// A kernel's text on a device that is opened so.
    fn source(&self, kernel: &Kernel) -> String {
        let text = crate::shader::source(kernel);
        match self.rewrite {
            Some(rewrite) => rewrite(text),
            None => text,
        }
    }
}

struct Command {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    grid: [u32; 3],
}

struct Program {
    commands: Vec<Command>,
    /// The commands of each of the plan's steps.
    steps: Vec<Range<usize>>,
}

/// What a ticket waits for.
struct Waiting {
    done: Completion,
    reading: Option<Reading>,
    /// Queries of a timed run, in nanoseconds.
    timed: bool,
}

/// A wgpu device.
pub struct Gpu {
    /// Opened again by the threads that compile.
    #[cfg(feature = "native")]
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: AdapterInfo,
    capabilities: Capabilities,
    options: OpenOptions,
    uniform: wgpu::Buffer,
    /// What the uniform holds once everything queued is done.
    uniforms: Option<StepUniforms>,
    buffers: BTreeMap<BufferId, wgpu::Buffer>,
    next_buffer: usize,
    programs: BTreeMap<ProgramId, Program>,
    next_program: usize,
    /// By the kernel's text.
    pipelines: BTreeMap<String, wgpu::ComputePipeline>,
    cache: Option<cache::PipelineCache>,
    queries: Option<Queries>,
    waiting: BTreeMap<Ticket, Waiting>,
    next_ticket: u64,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Whether kernels may use subgroups: a browser's WGSL wants them enabled in the text, and naga
/// none of that.
const SUBGROUPS: bool = !cfg!(target_family = "wasm");

/// Clocks of devices. That of a browser tells tenths of a millisecond, of which kernels take few.
const TIMESTAMPS: wgpu::Features = if cfg!(target_family = "wasm") {
    wgpu::Features::empty()
} else {
    wgpu::Features::TIMESTAMP_QUERY
};

/// What a device of an adapter can do, with these features. `coop` is the edge of matrices to use
/// in place of the one that the adapter lists.
fn capabilities(
    info: &AdapterInfo,
    limits: &wgpu::Limits,
    features: wgpu::Features,
    coop: Option<u32>,
) -> Capabilities {
    let max_groups = limits.max_compute_workgroups_per_dimension;
    let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    let max_binding = usize::try_from(max_binding).unwrap_or(usize::MAX);
    let storage_buffers = limits.max_storage_buffers_per_shader_stage as usize;
    let timestamps = features.contains(wgpu::Features::TIMESTAMP_QUERY);
    let subgroup = info.subgroup.filter(|[least, most]| SUBGROUPS && least == most);
    let known = !info.driver.is_empty(); // browsers do not tell
    let driver = if known { format!(", {}", info.driver) } else { String::new() };
    Capabilities {
        name: format!("wgpu:{} ({}{driver})", info.name, info.backend),
        target: Target {
            max_groups: max_groups.min(Target::WEBGPU.max_groups),
            max_binding: max_binding.min(Target::LARGEST_BINDING),
            storage_buffers,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            subgroup: subgroup.map(|lanes| lanes[0]),
            software: info.software,
            epilogues: true,
            // The kernels of a processor have no workgroup memory to meet in.
            moments: Target::WEBGPU.moments.filter(|_| !info.software),
            // A page waits for its kernels to be compiled one by one.
            compact: cfg!(target_family = "wasm"),
            copies: false,
            library: false,
            half: None,
            coop: info.coop.map(|listed| coop.unwrap_or(listed)),
        },
        dispatches: true,
        // WGSL has no bf16.
        halves: if features.contains(wgpu::Features::SHADER_F16) { &[Half::F16] } else { &[] },
        limits: Limits { max_binding, max_groups, max_storage_buffers: storage_buffers },
        memory: None,
        overhead: size_of::<StepUniforms>() + if timestamps { Queries::BYTES } else { 0 },
        read_bytes: Some(READ_BYTES),
        watched: true,
        timestamps,
    }
}

impl Gpu {
    /// Opens an adapter that [`adapters`] lists.
    ///
    /// # Errors
    /// If the driver refuses.
    pub(crate) async fn open(
        adapter: &wgpu::Adapter,
        info: &AdapterInfo,
        options: OpenOptions,
    ) -> Result<Self, DeviceError> {
        let limits = adapter.limits();
        let wanted = TIMESTAMPS
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::SHADER_F16
            | if SUBGROUPS { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() }
            | if info.coop.is_some() { adapter::COOP } else { wgpu::Features::empty() };
        let features = adapter.features() & wanted;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("aavae"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            experimental_features: adapter::experimental(info),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| {
            DeviceError::Driver { device: info.name.clone(), message: e.to_string() }
        })?;
        let failure = watch(&device);
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("step"),
            size: size_of::<StepUniforms>() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let queries = features
            .contains(wgpu::Features::TIMESTAMP_QUERY)
            .then(|| Queries::new(&device, &queue));
        // CPU adapters compile at the first dispatch, so there is nothing to keep at pipeline
        // creation.
        let cached =
            features.contains(wgpu::Features::PIPELINE_CACHE) && !info.software && !options.checked;
        let capabilities = capabilities(info, &limits, features, options.coop);
        Ok(Self {
            cache: cached.then(|| cache::PipelineCache::open(&device, adapter)).flatten(),
            #[cfg(feature = "native")]
            adapter: adapter.clone(),
            info: info.clone(),
            device,
            queue,
            capabilities,
            options,
            uniform,
            uniforms: None,
            buffers: BTreeMap::new(),
            next_buffer: 0,
            programs: BTreeMap::new(),
            next_program: 0,
            pipelines: BTreeMap::new(),
            queries,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            failure,
        })
    }

    /// Opens the adapter that a name or an index means.
    ///
    /// # Errors
    /// If there is no such adapter, more than one, or the driver refuses.
    pub async fn request(pick: &Pick, options: OpenOptions) -> Result<Self, DeviceError> {
        let (adapter, info) = select(pick).await?;
        Self::open(&adapter, &info, options).await
    }

    /// [`Gpu::request`], waited for.
    ///
    /// # Errors
    /// Those of [`Gpu::request`].
    #[cfg(any(feature = "native", target_family = "wasm"))]
    pub fn pick(pick: &Pick, options: OpenOptions) -> Result<Self, DeviceError> {
        wait::block_on(Self::request(pick, options))
    }

    /// What the driver has reported since the last call.
    fn check(&self, allocating: Option<(&str, usize)>) -> Result<(), DeviceError> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let device = self.info.name.clone();
        Err(match (failure.take(), allocating) {
            (None, _) => return Ok(()),
            (Some(Failure::OutOfMemory), Some((buffer, bytes))) => DeviceError::OutOfMemory {
                device,
                buffer: buffer.into(),
                bytes,
                held: self.held_bytes(),
            },
            (Some(Failure::OutOfMemory), None) => {
                DeviceError::Driver { device, message: "out of memory".into() }
            }
            // A device that is lost stays lost.
            (Some(Failure::Lost(message)), _) => {
                *failure = Some(Failure::Lost(message.clone()));
                DeviceError::Lost { device, message }
            }
            (Some(Failure::Other(message)), _) => DeviceError::Driver { device, message },
        })
    }

    /// Whether the driver has reported something that nobody has been told yet.
    #[cfg(target_family = "wasm")]
    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn buffer(&self, label: &str, bytes: usize) -> Result<wgpu::Buffer, DeviceError> {
        use wgpu::BufferUsages as Usage;
        // A browser tells later what it had no room for.
        #[cfg(target_family = "wasm")]
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.max(16) as u64,
            usage: Usage::STORAGE | Usage::UNIFORM | Usage::COPY_SRC | Usage::COPY_DST,
            mapped_at_creation: false,
        });
        #[cfg(target_family = "wasm")]
        if wait::block_on(scope.pop()).is_some() {
            fail(&self.failure, Failure::OutOfMemory);
        }
        self.check(Some((label, bytes)))?;
        Ok(buffer)
    }

    fn binding<'a>(
        &'a self,
        bound: &Bound,
        place: Place,
        bytes: usize,
    ) -> wgpu::BindingResource<'a> {
        let bytes = bytes.next_multiple_of(16) as u64;
        let (buffer, offset) = bound.place(place);
        let (buffer, offset) = (&self.buffers[&buffer], (offset * DType::F32.bytes()) as u64);
        debug_assert!(offset + bytes <= buffer.size(), "a binding exceeds its buffer");
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(bytes),
        })
    }

    /// The bind group of a dispatch of a step.
    fn group(
        &self,
        plan: &Plan,
        bound: &Bound,
        [index, dispatch]: [usize; 2],
        pipeline: &wgpu::ComputePipeline,
    ) -> wgpu::BindGroup {
        let step = &plan.ops[index];
        let (bindings, words) = (&step.dispatches[dispatch].bindings, &step.constants[dispatch]);
        let resource = |b: &Binding| match b {
            Binding::Input(j) => self.binding(bound, step.inputs[*j].1, step.io.inputs[*j].bytes()),
            Binding::Output(j) => {
                self.binding(bound, step.outputs[*j].1, step.io.outputs[*j].bytes())
            }
            Binding::Scratch(j) => {
                let b = step.scratch[*j];
                self.binding(bound, Place::Buffer(b), plan.buffers[b].bytes)
            }
            Binding::Table(j) => self.buffers[&bound.tables[index][*j]].as_entire_binding(),
            Binding::Step => self.uniform.as_entire_binding(),
            Binding::Skip => unreachable!("nothing is bound there"),
        };
        let mut entries: Vec<_> = bindings
            .iter()
            .enumerate()
            .filter(|(_, b)| **b != Binding::Skip)
            .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: resource(b) })
            .collect();
        if let (false, Some(constants)) = (words.is_empty(), bound.constants) {
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &self.buffers[&constants],
                offset: (words.start * size_of::<u32>()) as u64,
                size: wgpu::BufferSize::new((words.len() * size_of::<u32>()) as u64),
            });
            entries.push(wgpu::BindGroupEntry { binding: CONSTANTS_BINDING, resource });
        }
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&step.label),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }

    fn encode(&self, commands: &[Command], timed: bool) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("step") };
        let mut encoder = self.device.create_command_encoder(&descriptor);
        let queries = self.queries.as_ref().filter(|_| timed);
        let timestamp_writes = queries.map(|q| wgpu::ComputePassTimestampWrites {
            query_set: &q.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some("step"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for c in commands {
            pass.set_pipeline(&c.pipeline);
            pass.set_bind_group(0, &c.bindings, &[]);
            pass.dispatch_workgroups(c.grid[0], c.grid[1], c.grid[2]);
        }
        drop(pass);
        if let Some(q) = queries {
            encoder.resolve_query_set(&q.set, 0..2, &q.resolved, 0);
        }
        encoder
    }

    fn waiting(&mut self, waiting: Waiting) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.waiting.insert(ticket, waiting);
        ticket
    }
}

/// A browser would keep the memory until its garbage is collected.
#[cfg(target_family = "wasm")]
impl Drop for Gpu {
    fn drop(&mut self) {
        self.device.destroy();
    }
}

impl Device for Gpu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn allocate(
        &mut self,
        label: &str,
        ty: DType,
        elements: usize,
    ) -> Result<BufferId, DeviceError> {
        let bytes = elements * ty.bytes();
        let limit = self.device.limits().max_buffer_size;
        if bytes as u64 > limit {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            return Err(
                crate::plan::PlanError::Buffer { buffer: label.into(), bytes, limit }.into()
            );
        }
        let buffer = self.buffer(label, bytes)?;
        self.next_buffer += 1;
        let id = BufferId(self.next_buffer);
        self.buffers.insert(id, buffer);
        Ok(id)
    }
    fn write(
        &mut self,
        buffer: BufferId,
        offset: usize,
        data: Data<'_>,
    ) -> Result<(), DeviceError> {
        let narrow: Vec<f32>;
        let bytes = match data {
            Data::F32(x) => bytemuck::cast_slice(x),
            Data::U32(x) => bytemuck::cast_slice(x),
            Data::F64(x) => {
                narrow = x.iter().map(|x| *x as f32).collect();
                bytemuck::cast_slice(&narrow)
            }
        };
        self.queue.write_buffer(
            &self.buffers[&buffer],
            (offset * DType::F32.bytes()) as u64,
            bytes,
        );
        self.check(None)
    }
    fn missing(&self, plans: &[&Plan]) -> Vec<Dispatch> {
        compile::missing(self, plans).into_iter().map(|missing| missing.dispatch.clone()).collect()
    }
    fn compile(&mut self, of: &[Dispatch], progress: Progress<'_>) -> Result<(), DeviceError> {
        compile::compile(self, of.iter(), progress)
    }
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        progress: Progress<'_>,
    ) -> Result<ProgramId, DeviceError> {
        compile::compile(self, compile::dispatches(&[plan]), progress)?;
        let (mut commands, mut steps) = (Vec::new(), Vec::new());
        for (index, step) in plan.ops.iter().enumerate() {
            let first = commands.len();
            for (i, dispatch) in step.dispatches.iter().enumerate() {
                let pipeline = self.pipelines[&self.options.source(&dispatch.kernel)].clone();
                let bindings = self.group(plan, &bound, [index, i], &pipeline);
                commands.push(Command { pipeline, bindings, grid: dispatch.grid });
            }
            steps.push(first..commands.len());
        }
        self.check(None)?;
        let id = ProgramId(self.next_program);
        self.next_program += 1;
        self.programs.insert(id, Program { commands, steps });
        Ok(id)
    }
    fn run(
        &mut self,
        program: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        timed: bool,
    ) -> Result<Ticket, DeviceError> {
        if self.uniforms != Some(*uniforms) {
            self.queue.write_buffer(&self.uniform, 0, bytemuck::bytes_of(uniforms));
            self.uniforms = Some(*uniforms);
        }
        let timed = timed && self.queries.is_some();
        let program = &self.programs[&program];
        let range = match (program.steps.get(steps.start), steps.end.checked_sub(1)) {
            (Some(first), Some(last)) if last < program.steps.len() => {
                first.start..program.steps[last].end
            }
            _ => 0..0,
        };
        let mut encoder = self.encode(&program.commands[range], timed);
        let reading = self
            .queries
            .as_ref()
            .filter(|_| timed)
            .map(|q| Reading::begin(&self.device, &mut encoder, &q.resolved, 0, 16));
        let submission = self.queue.submit([encoder.finish()]);
        let reading = reading.map(Reading::map);
        self.check(None)?;
        let done = Completion::of(&self.queue, submission);
        Ok(self.waiting(Waiting { done, reading, timed }))
    }
    fn read(
        &mut self,
        buffer: BufferId,
        offset: usize,
        elements: usize,
    ) -> Result<Ticket, DeviceError> {
        let size = DType::F32.bytes();
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("read") };
        let mut encoder = self.device.create_command_encoder(&descriptor);
        let buffer = &self.buffers[&buffer];
        let reading =
            Reading::begin(&self.device, &mut encoder, buffer, offset * size, elements * size);
        let submission = self.queue.submit([encoder.finish()]);
        let reading = Some(reading.map());
        self.check(None)?;
        let done = Completion::of(&self.queue, submission);
        Ok(self.waiting(Waiting { done, reading, timed: false }))
    }
    fn poll(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Done>, DeviceError> {
        let Some(waiting) = self.waiting.get(&ticket) else { return Ok(Some(Done::default())) };
        if !self.is_done(waiting, wait)? {
            return Ok(None);
        }
        let waiting = self.waiting.remove(&ticket).unwrap_or_else(|| unreachable!("found above"));
        // Runs before this one are done as well, and nobody may ask after them.
        self.waiting.retain(|t, w| *t > ticket || w.reading.is_some());
        let Some(reading) = waiting.reading else { return Ok(Some(Done::default())) };
        let bytes = reading.finish().map_err(|message| {
            let device = self.info.name.clone();
            // A browser refuses to map memory of ours only where the device is gone, and may say so
            // before it says that.
            if cfg!(target_family = "wasm") {
                DeviceError::Lost { device, message }
            } else {
                DeviceError::Driver { device, message }
            }
        })?;
        if waiting.timed {
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
            let period = self.queries.as_ref().map_or(0.0, |q| f64::from(q.period));
            let seconds = Some(ticks[1].saturating_sub(ticks[0]) as f64 * period * 1e-9);
            return Ok(Some(Done { values: None, seconds }));
        }
        let values = super::Values::F32(bytemuck::pod_collect_to_vec(&bytes));
        Ok(Some(Done { values: Some(values), seconds: None }))
    }
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]) {
        for program in programs {
            self.programs.remove(program);
        }
        for buffer in buffers.iter().filter_map(|buffer| self.buffers.remove(buffer)) {
            // A browser would keep the memory until its garbage is collected.
            buffer.destroy();
        }
        // What was read may still be asked for.
        self.waiting.retain(|_, waiting| waiting.reading.is_some());
    }
    fn held_bytes(&self) -> usize {
        let readings = self.waiting.values().filter_map(|w| w.reading.as_ref()).map(Reading::bytes);
        let own = self.uniform.size() + self.queries.as_ref().map_or(0, |q| q.resolved.size());
        let bytes = own + self.buffers.values().map(wgpu::Buffer::size).sum::<u64>();
        bytes as usize + readings.sum::<usize>()
    }
}
