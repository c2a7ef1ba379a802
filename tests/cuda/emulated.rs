//! The device `cuda-emulated`: translated kernels, compiled for the host, under the session's
//! checks.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ops::Range;
use std::rc::Rc;

use aavae::device::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, ProgramId, Progress, Session,
    Ticket, Values,
};
use aavae::ops::{Binding, StepUniforms};
use aavae::plan::{Limits, Place, Plan};
use aavae::shader::source;
use aavae::tensor::{DType, Half};
use rayon::prelude::*;

use crate::compiler::{Bug, Code, load};

/// Order of the threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Backward,
    Shuffled,
}

impl Order {
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Shuffled];

    fn number(self) -> u32 {
        match self {
            Self::Forward => 0,
            Self::Backward => 1,
            Self::Shuffled => 0x5eed,
        }
    }
}

/// Memory aligned as a GPU's is for the widest load.
#[derive(Clone, Default)]
struct Memory(Vec<[u32; 4]>);

impl Memory {
    fn words(&self) -> &[u32] {
        self.0.as_flattened()
    }
    fn words_mut(&mut self) -> &mut [u32] {
        self.0.as_flattened_mut()
    }
}

/// A kernel with its arguments: buffer, first byte and bytes of each.
struct Command {
    label: String,
    code: Code,
    grid: [u32; 3],
    arguments: Vec<(BufferId, usize, usize)>,
}

struct Program {
    commands: Vec<Command>,
    /// The commands of each of the plan's steps.
    steps: Vec<Range<usize>>,
}

pub(crate) struct Emulated {
    capabilities: Capabilities,
    order: Order,
    bug: Bug,
    buffers: Vec<Memory>,
    uniform: BufferId,
    programs: BTreeMap<ProgramId, Program>,
    done: BTreeMap<Ticket, Done>,
    next: u64,
}

impl Emulated {
    pub(crate) fn new(order: Order, bug: Bug) -> Self {
        let mut device = Self {
            capabilities: Capabilities {
                halves: Half::ALL,
                name: "cuda-emulated".into(),
                target: crate::target(),
                dispatches: true,
                limits: Limits { max_groups: crate::target().max_groups, ..Limits::NONE },
                memory: None,
                overhead: size_of::<StepUniforms>(),
                read_bytes: None,
                watched: false,
                timestamps: false,
            },
            order,
            bug,
            buffers: vec![],
            uniform: BufferId(0),
            programs: BTreeMap::new(),
            done: BTreeMap::new(),
            next: 0,
        };
        device.uniform = device.buffer(size_of::<StepUniforms>());
        device
    }

    pub(crate) fn session(order: Order) -> Session {
        Session::from(Self::new(order, Bug::default()))
    }

    fn buffer(&mut self, bytes: usize) -> BufferId {
        self.buffers.push(Memory(vec![[0; 4]; bytes.div_ceil(16).max(1)]));
        BufferId(self.buffers.len() - 1)
    }

    fn ticket(&mut self, done: Done) -> Ticket {
        self.next += 1;
        self.done.insert(Ticket(self.next), done);
        Ticket(self.next)
    }

    fn failed(&self, message: String) -> DeviceError {
        DeviceError::Driver { device: self.capabilities.name.clone(), message }
    }

    /// What a kernel is given at a binding.
    fn argument(
        &self,
        plan: &Plan,
        bound: &Bound,
        step: usize,
        binding: Binding,
    ) -> Option<(BufferId, usize, usize)> {
        let s = &plan.ops[step];
        let place = |place: Place, bytes: usize| {
            let (buffer, first) = bound.place(place);
            // Kernels take whole vectors of four.
            (buffer, first * 4, bytes.next_multiple_of(16))
        };
        Some(match binding {
            Binding::Input(i) => place(s.inputs[i].1, s.io.inputs[i].bytes()),
            Binding::Output(i) => place(s.outputs[i].1, s.io.outputs[i].bytes()),
            Binding::Scratch(i) => {
                let buffer = s.scratch[i];
                place(Place::Buffer(buffer), plan.buffers[buffer].bytes)
            }
            Binding::Table(i) => (bound.tables[step][i], 0, s.tables[i].len() * 4),
            Binding::Step => (self.uniform, 0, size_of::<StepUniforms>()),
            Binding::Skip => return None,
        })
    }
}

/// An address that threads may share: the blocks of a dispatch write elements of their own.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Address(*mut u8);
#[allow(unsafe_code, reason = "kernels get raw pointers, as on a GPU")]
// SAFETY: see above; a kernel that breaks it is wrong on a GPU too.
unsafe impl Sync for Address {}

impl Command {
    /// Runs every block, on all cores.
    fn run(&self, buffers: &mut [Memory], order: Order) -> Result<(), String> {
        let (mut at, mut bytes) = (Vec::new(), Vec::new());
        for &(buffer, first, length) in &self.arguments {
            let memory = &mut buffers[buffer.0];
            let size = memory.0.len() * 16;
            assert!(first + length <= size, "{}: a binding exceeds its buffer", self.label);
            at.push(Address(memory.0.as_mut_ptr().cast::<u8>().wrapping_add(first)));
            bytes.push(length);
        }
        let blocks: usize = self.grid.iter().map(|x| *x as usize).product();
        let share = blocks.div_ceil(rayon::current_num_threads() * 4).max(1);
        let at = &at;
        (0..blocks.div_ceil(share)).into_par_iter().try_for_each(|part| {
            let (first, last) = (part * share, ((part + 1) * share).min(blocks));
            let pointers = at.as_ptr().cast::<*mut u8>();
            let (entry, grid, number) = (self.code.entry, self.grid.as_ptr(), order.number());
            #[allow(unsafe_code, reason = "kernels are native code")]
            // SAFETY: addresses and sizes are of live buffers, and `host.h` checks every index.
            let message = unsafe { entry(pointers, bytes.as_ptr(), grid, first, last, number) };
            if message.is_null() {
                return Ok(());
            }
            #[allow(unsafe_code, reason = "the message is a C string")]
            // SAFETY: the message is the thread's own and ends in a zero.
            let message = unsafe { CStr::from_ptr(message) };
            Err(format!("{}: {}", self.label, message.to_string_lossy()))
        })
    }
}

impl Device for Emulated {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn allocate(&mut self, _: &str, ty: DType, n: usize) -> Result<BufferId, DeviceError> {
        Ok(self.buffer(n * ty.bytes()))
    }
    fn write(&mut self, buffer: BufferId, at: usize, data: Data<'_>) -> Result<(), DeviceError> {
        let words = &mut self.buffers[buffer.0].words_mut()[at..at + data.len()];
        match data {
            Data::U32(x) => words.copy_from_slice(x),
            Data::F32(x) => words.iter_mut().zip(x).for_each(|(w, x)| *w = x.to_bits()),
            Data::F64(x) => words.iter_mut().zip(x).for_each(|(w, x)| *w = (*x as f32).to_bits()),
        }
        Ok(())
    }
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        _: Progress<'_>,
    ) -> Result<ProgramId, DeviceError> {
        let dispatches = plan.ops.iter().flat_map(|s| &s.dispatches);
        let kernels: Vec<_> = dispatches.map(|d| (d.kernel.file, source(&d.kernel))).collect();
        let mut codes = load(&kernels, &self.bug).map_err(|e| self.failed(e))?.into_iter();
        let (mut commands, mut steps) = (Vec::new(), Vec::new());
        for (i, step) in plan.ops.iter().enumerate() {
            let first = commands.len();
            let dispatches = step.dispatches.iter().zip(&step.constants);
            for ((dispatch, words), code) in dispatches.zip(&mut codes) {
                let bindings = dispatch.bindings.iter();
                let mut arguments: Vec<_> =
                    bindings.filter_map(|b| self.argument(plan, &bound, i, *b)).collect();
                if let (false, Some(constants)) = (words.is_empty(), bound.constants) {
                    arguments.push((constants, words.start * 4, words.len() * 4));
                }
                let label = format!("{} ({})", step.label, dispatch.kernel.file);
                assert_eq!(arguments.len(), code.bindings, "{label}: bindings");
                commands.push(Command { label, code, grid: dispatch.grid, arguments });
            }
            steps.push(first..commands.len());
        }
        self.next += 1;
        let id = ProgramId(self.next as usize);
        self.programs.insert(id, Program { commands, steps });
        Ok(id)
    }
    fn run(
        &mut self,
        program: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        _timed: bool,
    ) -> Result<Ticket, DeviceError> {
        let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(uniforms));
        self.buffers[self.uniform.0].words_mut()[..words.len()].copy_from_slice(words);
        let program = &self.programs[&program];
        for step in &program.steps[steps] {
            for command in &program.commands[step.clone()] {
                let ran = command.run(&mut self.buffers, self.order);
                ran.map_err(|e| self.failed(e))?;
            }
        }
        Ok(self.ticket(Done::default()))
    }
    fn read(&mut self, buffer: BufferId, at: usize, n: usize) -> Result<Ticket, DeviceError> {
        let words = &self.buffers[buffer.0].words()[at..at + n];
        let values = Values::F32(words.iter().map(|w| f32::from_bits(*w)).collect());
        Ok(self.ticket(Done { values: Some(values), seconds: None }))
    }
    fn poll(&mut self, ticket: Ticket, _wait: bool) -> Result<Option<Done>, DeviceError> {
        Ok(Some(self.done.remove(&ticket).unwrap_or_default()))
    }
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]) {
        programs.iter().for_each(|p| drop(self.programs.remove(p)));
        buffers.iter().for_each(|b| self.buffers[b.0] = Memory::default());
    }
    fn held_bytes(&self) -> usize {
        self.buffers.iter().map(|m| m.0.len() * 16).sum()
    }
}
