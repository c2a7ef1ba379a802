//! The `cuda` device: the same WGSL, as CUDA C++ (`shader::cuda`), on NVIDIA's driver. A step is
//! one graph.
//!
//! Nothing of CUDA is needed to build it and nothing is linked: the driver and the run-time
//! compiler are opened when a device is ([`FOLDERS`] names where to look first).
//!
//! A plan's first run queues its kernels one by one, so that the driver loads them. The second
//! makes a graph of the same launches, in which a kernel waits for those alone that it meets
//! (`graph`), and every whole step from then on is one launch of it.
//! What changes from step to step lies in the uniform, which is copied to the device before.
//!
//! Where cuDNN is installed and asked for ([`CUDNN`]) its engines are candidates for products
//! ([`Variant::Library`](crate::ops::Variant)), and so is what cuBLASLt, which it brings, proposes
//! for those of matrices: a tuner compares them with our kernels on the very device and takes one
//! only where it is right and faster. No default takes one.

#[macro_use]
mod bind;
mod calls;
mod compile;
mod cublas;
mod cudnn;
mod driver;
mod graph;
mod libraries;
mod nvrtc;
mod product;
mod report;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use super::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, ProgramId, Progress, Ticket,
    Values,
};
use crate::ops::{Binding, Dispatch, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan};
use crate::shader::cuda::{TARGET, target};
use crate::shader::source;
use crate::tensor::{DType, Half};
use calls::{Asked, Call};
pub use calls::{Proposal, proposals};
use compile::{Code, CompileError, Compiler};
use driver::{Address, Context, Event, Failed, Graph, Memory, Pinned};
use graph::Touched;
use libraries::OfProducts;
pub use libraries::{CUDNN, FOLDERS};
pub use report::{GpuInfo, Installation, report};

/// Bytes that one read takes of pinned memory at most.
const READ_BYTES: usize = 16 << 20;
/// Blocks of pinned memory that are kept for later reads.
const SPARE_BLOCKS: usize = 2;

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whole steps are graphs; without, every kernel is launched by itself (tests).
    pub graphs: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { graphs: true }
    }
}

/// A failure of the driver in the words of devices.
fn error(device: &str, of: &str, failed: Failed) -> DeviceError {
    let device = device.to_owned();
    let message = match of {
        "" => failed.to_string(),
        _ => format!("{failed}, of `{of}`"),
    };
    match failed.is_lost() {
        true => DeviceError::Lost { device, message },
        false => DeviceError::Driver { device, message },
    }
}

/// A kernel with its arguments, or a call of a library.
struct Command {
    /// The op and the kernel, for messages.
    label: String,
    work: Work,
    touched: Touched,
}

enum Work {
    Kernel { code: Code, grid: [u32; 3], arguments: Vec<Address> },
    Library(Call),
}

struct Program {
    name: String,
    commands: Vec<Command>,
    /// The commands of each of the plan's steps.
    steps: Vec<Range<usize>>,
    /// Whether every kernel has run.
    warm: bool,
    /// Graphs of steps, by the first and the end.
    graphs: BTreeMap<[usize; 2], Graph>,
}

impl Program {
    /// What is queued for steps.
    fn commands(&self, steps: &Range<usize>) -> &[Command] {
        match &self.steps[steps.clone()] {
            [first, .., last] => &self.commands[first.start..last.end],
            [only] => &self.commands[only.clone()],
            [] => &[],
        }
    }
}

/// What a ticket waits for.
struct Waiting {
    done: Event,
    /// When a timed run began.
    began: Option<Event>,
    /// Where a read goes, and its floats.
    reading: Option<(Pinned, usize)>,
}

/// A CUDA device.
pub struct Cuda {
    // What the driver made goes before the context that it was made in.
    programs: BTreeMap<ProgramId, Program>,
    waiting: BTreeMap<Ticket, Waiting>,
    spare_events: Vec<Event>,
    spare_blocks: Vec<Pinned>,
    buffers: BTreeMap<BufferId, Memory>,
    uniform: Memory,
    compiler: Compiler,
    library: Option<OfProducts>,
    /// What libraries were asked for.
    asked: Asked,
    context: Rc<Context>,
    /// What the uniform holds once everything queued is done.
    uniforms: Option<StepUniforms>,
    capabilities: Capabilities,
    options: OpenOptions,
    libraries: [PathBuf; 2],
    next_buffer: usize,
    next_program: usize,
    next_ticket: u64,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("name", &self.capabilities.name).finish_non_exhaustive()
    }
}

impl Cuda {
    /// Opens a GPU by its index.
    ///
    /// # Errors
    /// If the driver, the compiler or the GPU is missing, or the driver fails.
    pub fn open(index: usize, options: OpenOptions) -> Result<Self, DeviceError> {
        let driver = libraries::driver()?;
        let failed = |e: Failed| error(&format!("cuda:{index}"), "", e);
        let count = driver.count().map_err(failed)?;
        if index >= count {
            let message = format!("there is no CUDA device {index} (found {count})");
            let hint = Some("`aavae devices` lists them".into());
            return Err(DeviceError::NotFound { message, hint });
        }
        let (nvrtc, compiler_path) = libraries::compiler(&driver)?;
        let gpu = driver.device(index).map_err(failed)?;
        let ([major, minor], [sm, smaller]) = (libraries::version(driver.version), gpu.capability);
        let libraries = [driver.path.clone(), compiler_path];
        let context = Context::new(driver, &gpu).map_err(failed)?;
        let compiler = Compiler::new(nvrtc, gpu.capability);
        let (nvrtc_major, nvrtc_minor) = compiler.version();
        let library = libraries::wanted(nvrtc_major)?;
        let cudnn = library
            .as_ref()
            .map_or(String::new(), |l| format!(", cuDNN {}", l.cudnn.describe()[0]));
        let name = format!(
            "cuda:{} (sm_{sm}{smaller}, driver for CUDA {major}.{minor}, NVRTC \
             {nvrtc_major}.{nvrtc_minor}{cudnn})",
            gpu.name
        );
        let capabilities = Capabilities {
            name,
            target: Target { library: library.is_some(), ..target(gpu.capability) },
            dispatches: true,
            halves: Half::ALL,
            limits: Limits { max_groups: TARGET.max_groups, ..Limits::NONE },
            memory: Some(context.free_memory().map_err(failed)?),
            overhead: size_of::<StepUniforms>(),
            read_bytes: Some(READ_BYTES),
            watched: false,
            timestamps: true,
        };
        let uniform = Memory::new(&context, size_of::<StepUniforms>()).map_err(failed)?;
        Ok(Self {
            programs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            spare_events: Vec::new(),
            spare_blocks: Vec::new(),
            buffers: BTreeMap::new(),
            uniform,
            compiler,
            library,
            asked: Asked::default(),
            context,
            uniforms: None,
            capabilities,
            options,
            libraries,
            next_buffer: 0,
            next_program: 0,
            next_ticket: 0,
        })
    }

    /// The libraries of the driver and of the compiler.
    pub fn libraries(&self) -> &[PathBuf; 2] {
        &self.libraries
    }

    fn failed(&self, of: &str, failed: Failed) -> DeviceError {
        error(&self.capabilities.name, of, failed)
    }

    /// Makes the device current on this thread.
    fn enter(&self) -> Result<(), DeviceError> {
        self.context.enter().map_err(|e| self.failed("", e))
    }

    fn compile(&mut self, plans: &[&Plan], progress: Progress<'_>) -> Result<(), DeviceError> {
        let compiled = self.compiler.compile(&self.context, plans, progress);
        compiled.map_err(|e| match e {
            CompileError::Driver(e) => {
                self.failed(plans.first().map_or("", |plan| plan.name.as_str()), e)
            }
            CompileError::Refused(message) => {
                DeviceError::Driver { device: self.capabilities.name.clone(), message }
            }
        })
    }

    /// An event that has been recorded now.
    fn moment(&mut self) -> Result<Event, DeviceError> {
        let event = match self.spare_events.pop() {
            Some(event) => Ok(event),
            None => Event::new(&self.context),
        };
        let recorded = event.and_then(|e| e.record().map(|()| e));
        recorded.map_err(|e| self.failed("", e))
    }

    fn ticket(&mut self, waiting: Waiting) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.waiting.insert(ticket, waiting);
        ticket
    }

    /// Keeps what a ticket used for the next ones.
    fn recycle(&mut self, waiting: Waiting) {
        self.spare_events.push(waiting.done);
        self.spare_events.extend(waiting.began);
        if let Some((block, _)) = waiting.reading
            && self.spare_blocks.len() < SPARE_BLOCKS
        {
            self.spare_blocks.push(block);
        }
    }

    /// Pinned memory for a read: the smallest spare block that is large enough, or a new one.
    fn block(&mut self, bytes: usize) -> Result<Pinned, DeviceError> {
        let spare = self.spare_blocks.iter().enumerate().filter(|b| b.1.bytes >= bytes);
        if let Some(i) = spare.min_by_key(|b| b.1.bytes).map(|b| b.0) {
            return Ok(self.spare_blocks.swap_remove(i));
        }
        let bytes = bytes.next_power_of_two().max(1 << 16);
        Pinned::new(&self.context, bytes).map_err(|e| self.failed("a read", e))
    }

    /// What a dispatch of an op takes, and what of it is read and written.
    fn arguments(
        &self,
        plan: &Plan,
        bound: &Bound,
        step: usize,
        dispatch: &Dispatch,
    ) -> (Vec<Address>, Touched) {
        let (mut arguments, mut touched) = (Vec::new(), Touched::default());
        for binding in &dispatch.bindings {
            let Some(bytes) = self.bytes(plan, bound, step, *binding) else { continue };
            arguments.push(bytes.start);
            match binding {
                Binding::Output(_) | Binding::Scratch(_) => touched.writes.push(bytes),
                _ => touched.reads.push(bytes),
            }
        }
        (arguments, touched)
    }

    /// The bytes of what stands at a binding; `None` if nothing does.
    fn bytes(
        &self,
        plan: &Plan,
        bound: &Bound,
        step: usize,
        binding: Binding,
    ) -> Option<Range<Address>> {
        let s = &plan.ops[step];
        let place = |place: Place, bytes: usize| {
            let (buffer, offset) = bound.place(place);
            let (memory, offset) = (&self.buffers[&buffer], offset * DType::F32.bytes());
            // Kernels take whole vectors of four.
            let end = offset + bytes.next_multiple_of(16);
            assert!(end <= memory.bytes, "{}: a binding exceeds its buffer", s.label);
            memory.at + offset as Address..memory.at + end as Address
        };
        let whole = |memory: &Memory| memory.at..memory.at + memory.bytes as Address;
        Some(match binding {
            Binding::Input(i) => place(s.inputs[i].1, s.io.inputs[i].bytes()),
            Binding::Output(i) => place(s.outputs[i].1, s.io.outputs[i].bytes()),
            Binding::Scratch(i) => {
                let buffer = s.scratch[i];
                place(Place::Buffer(buffer), plan.buffers[buffer].bytes)
            }
            Binding::Table(i) => whole(&self.buffers[&bound.tables[step][i]]),
            Binding::Step => whole(&self.uniform),
            Binding::Skip => return None,
        })
    }

    fn launch(&self, commands: &[Command]) -> Result<(), DeviceError> {
        for c in commands {
            match &c.work {
                Work::Kernel { code, grid, arguments } => {
                    let launched =
                        self.context.launch(&code.function, *grid, code.block, arguments);
                    launched.map_err(|e| self.failed(&c.label, e))?;
                }
                Work::Library(call) => call.queue().map_err(|e| self.refused(&c.label, &e))?,
            }
        }
        Ok(())
    }

    /// Device memory that is an op's own.
    fn memory(&self, label: &str, bytes: usize) -> Result<Memory, DeviceError> {
        Memory::new(&self.context, bytes).map_err(|e| match e.is_out_of_memory() {
            true => DeviceError::OutOfMemory {
                device: self.capabilities.name.clone(),
                buffer: label.into(),
                bytes,
                held: self.held_bytes(),
            },
            false => self.failed(label, e),
        })
    }

    /// Commands as a graph.
    fn graph(&self, name: &str, commands: &[Command]) -> Result<Graph, DeviceError> {
        let touched: Vec<Touched> = commands.iter().map(|c| c.touched.clone()).collect();
        let mut graph = self.context.graph().map_err(|e| self.failed("", e))?;
        for (c, after) in commands.iter().zip(graph::dependencies(&touched)) {
            let added = match &c.work {
                Work::Kernel { code, grid, arguments } => {
                    graph.add(&code.function, *grid, code.block, arguments, &after)
                }
                Work::Library(call) => {
                    let work = self.captured(&c.label, call)?;
                    graph.add_captured(&work, &after)
                }
            };
            added.map_err(|e| self.failed(&c.label, e))?;
        }
        graph.finish().map_err(|e| self.failed(name, e))
    }

    /// Makes the graph of steps that are to be launched as one, if there is none. These are a whole
    /// plan whose kernels have run, and a library's call that is timed: how long the host takes to
    /// queue it, which a graph does not wait for, is not asked.
    fn as_graph(
        &mut self,
        id: ProgramId,
        steps: &Range<usize>,
        timed: bool,
    ) -> Result<bool, DeviceError> {
        let program = &self.programs[&id];
        let (whole, commands) = (*steps == (0..program.steps.len()), program.commands(steps));
        let called = || commands.iter().any(|c| matches!(c.work, Work::Library(_)));
        if !(self.options.graphs && (whole && program.warm || timed && called())) {
            return Ok(false);
        }
        let key = [steps.start, steps.end];
        if !program.graphs.contains_key(&key) {
            let made = self.graph(&program.name, commands)?;
            if let Some(program) = self.programs.get_mut(&id) {
                program.graphs.insert(key, made);
            }
        }
        Ok(true)
    }
}

impl Device for Cuda {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn allocate(
        &mut self,
        label: &str,
        ty: DType,
        elements: usize,
    ) -> Result<BufferId, DeviceError> {
        self.enter()?;
        // Kernels take whole vectors of four.
        let bytes = (elements * ty.bytes()).next_multiple_of(16).max(16);
        let memory = self.memory(label, bytes)?;
        self.next_buffer += 1;
        let id = BufferId(self.next_buffer);
        self.buffers.insert(id, memory);
        Ok(id)
    }
    fn write(
        &mut self,
        buffer: BufferId,
        offset: usize,
        data: Data<'_>,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let narrow: Vec<f32>;
        let bytes: &[u8] = match data {
            Data::F32(x) => bytemuck::cast_slice(x),
            Data::U32(x) => bytemuck::cast_slice(x),
            Data::F64(x) => {
                narrow = x.iter().map(|x| *x as f32).collect();
                bytemuck::cast_slice(&narrow)
            }
        };
        let (memory, first) = (&self.buffers[&buffer], offset * DType::F32.bytes());
        assert!(first + bytes.len() <= memory.bytes, "a write beyond its buffer");
        let written = self.context.upload(memory.at + first as Address, bytes);
        written.map_err(|e| self.failed("", e))
    }
    fn prepare(&mut self, plans: &[&Plan], progress: Progress<'_>) -> Result<(), DeviceError> {
        self.enter()?;
        self.compile(plans, progress)
    }
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        progress: Progress<'_>,
    ) -> Result<ProgramId, DeviceError> {
        self.enter()?;
        self.compile(&[plan], progress)?;
        let (mut commands, mut steps) = (Vec::new(), Vec::new());
        for (i, step) in plan.ops.iter().enumerate() {
            let first = commands.len();
            let by_library = step.dispatches.len() - step.kernels().len();
            for (j, (dispatch, words)) in step.dispatches.iter().zip(&step.constants).enumerate() {
                let (mut arguments, touched) = self.arguments(plan, &bound, i, dispatch);
                if let Some((of, rank)) = step.library().filter(|_| j < by_library) {
                    let label = format!("{} ({})", step.label, calls::name(of));
                    let work = Work::Library(self.call(step, &label, (of, rank), &arguments)?);
                    commands.push(Command { label, work, touched });
                    continue;
                }
                // The uniform of constants stands behind all other bindings.
                if let (false, Some(constants)) = (words.is_empty(), bound.constants) {
                    let first = (words.start * size_of::<u32>()) as Address;
                    arguments.push(self.buffers[&constants].at + first);
                }
                let code = self.compiler.code(&source(&dispatch.kernel));
                let label = format!("{} ({})", step.label, dispatch.kernel.file);
                assert_eq!(arguments.len(), code.bindings, "{label}: bindings");
                let work = Work::Kernel { code, grid: dispatch.grid, arguments };
                commands.push(Command { label, work, touched });
            }
            steps.push(first..commands.len());
        }
        let id = ProgramId(self.next_program);
        self.next_program += 1;
        let name = plan.name.clone();
        self.programs
            .insert(id, Program { name, commands, steps, warm: false, graphs: BTreeMap::new() });
        Ok(id)
    }
    fn run(
        &mut self,
        id: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        timed: bool,
    ) -> Result<Ticket, DeviceError> {
        self.enter()?;
        if self.uniforms != Some(*uniforms) {
            let copied = self.context.upload(self.uniform.at, bytemuck::bytes_of(uniforms));
            copied.map_err(|e| self.failed("the uniform", e))?;
            self.uniforms = Some(*uniforms);
        }
        let as_graph = self.as_graph(id, &steps, timed)?;
        let began = if timed { Some(self.moment()?) } else { None };
        let program = &self.programs[&id];
        if as_graph {
            let launched = program.graphs[&[steps.start, steps.end]].launch();
            launched.map_err(|e| self.failed(&program.name, e))?;
        } else {
            self.launch(program.commands(&steps))?;
            if let Some(program) = self.programs.get_mut(&id) {
                program.warm |= steps == (0..program.steps.len());
            }
        }
        let done = self.moment()?;
        Ok(self.ticket(Waiting { done, began, reading: None }))
    }
    fn read(
        &mut self,
        buffer: BufferId,
        offset: usize,
        elements: usize,
    ) -> Result<Ticket, DeviceError> {
        self.enter()?;
        let (first, bytes) = (offset * DType::F32.bytes(), elements * DType::F32.bytes());
        let block = self.block(bytes)?;
        let memory = &self.buffers[&buffer];
        assert!(first + bytes <= memory.bytes, "a read beyond its buffer");
        let copied = self.context.download(&block, memory.at + first as Address, bytes);
        copied.map_err(|e| self.failed("a read", e))?;
        let done = self.moment()?;
        Ok(self.ticket(Waiting { done, began: None, reading: Some((block, elements)) }))
    }
    fn poll(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Done>, DeviceError> {
        let Some(waiting) = self.waiting.get(&ticket) else { return Ok(Some(Done::default())) };
        self.enter()?;
        if !waiting.done.is_done(wait).map_err(|e| self.failed("", e))? {
            return Ok(None);
        }
        let seconds = match &waiting.began {
            Some(began) => Some(waiting.done.seconds_since(began).map_err(|e| self.failed("", e))?),
            None => None,
        };
        let values = waiting.reading.as_ref().map(|(block, n)| Values::F32(block.floats(*n)));
        // Runs before this one are done as well, and nobody may ask after them.
        let earlier = self.waiting.range(..=ticket);
        let over = earlier.filter(|(t, w)| **t == ticket || w.reading.is_none());
        for spent in over.map(|(t, _)| *t).collect::<Vec<_>>() {
            if let Some(waiting) = self.waiting.remove(&spent) {
                self.recycle(waiting);
            }
        }
        Ok(Some(Done { values, seconds }))
    }
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]) {
        // Work that uses them may be queued; a device that is lost has none.
        self.enter().and_then(|()| self.context.synchronize().map_err(|e| self.failed("", e))).ok();
        // What was read may still be asked for.
        self.waiting.retain(|_, waiting| waiting.reading.is_some());
        for program in programs {
            self.programs.remove(program);
        }
        for buffer in buffers {
            self.buffers.remove(buffer);
        }
    }
    fn held_bytes(&self) -> usize {
        let calls =
            self.programs.values().flat_map(|p| &p.commands).filter_map(|c| match &c.work {
                Work::Library(call) => Some(call.workspace().bytes),
                Work::Kernel { .. } => None,
            });
        let buffers = self.buffers.values().map(|m| m.bytes);
        self.uniform.bytes + buffers.chain(calls).sum::<usize>()
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Memory must not go while a kernel or a copy uses it.
        self.context.enter().and_then(|()| self.context.synchronize()).ok();
    }
}
