//! Products by cuDNN ([`Variant::Library`](crate::ops::Variant)): a convolution or one of its
//! gradients with its epilogue as a graph of cuDNN's operations, and the engines that it proposes
//! for it.
//!
//! Operands keep their types and sums are f32, as everywhere; the epilogue is fused in f32 and
//! rounded once. Engines that sum in no fixed order, or in less than f32, are passed over, and with
//! f32 operands those of tensor cores, which round them. A result of another type than its
//! operands, the gradient of weights, is a fused conversion.

use std::ffi::c_int;
use std::rc::Rc;

use super::cudnn::{
    BehaviorNote, Character, ConvolutionMode, Cudnn, DataType, Descriptor, Flag, HeuristicMode,
    Kind, NanPropagation, NumericalNote, OnDevice, Pointer, PointwiseMode,
};
use super::driver::{Address, Memory};
use crate::ops::{Epilogue, Io, Op};
use crate::tensor::{DType, Half, Shape};

/// Memory that an engine may take beside its operands, in bytes; engines that want more are passed
/// over.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Engine configurations that are asked for: all that the library orders.
const ASKED: usize = 64;
/// Configurations of one engine that are kept: they differ in tiles, engines in more.
const OF_ONE: usize = 2;
/// `CUDNN_HEUR_MODE_A`, `_B` and `_FALLBACK`: configurations in the order of their expected speed,
/// by two estimates, then those that always work. In f32 the first two may know of tensor cores
/// only.
const MODES: [HeuristicMode; 3] = [HeuristicMode(3), HeuristicMode(1), HeuristicMode(2)];

/// `cudnnBackendNumericalNote_t`.
mod note {
    pub(super) const TENSOR_CORE: i32 = 0; // of f32 operands: rounded to TF32
    pub(super) const DOWN_CONVERT_INPUTS: i32 = 1;
    pub(super) const REDUCED_PRECISION_REDUCTION: i32 = 2;
    pub(super) const NONDETERMINISTIC: i32 = 4;
}
/// Notes of either kind that an engine may have.
const NOTES: usize = 16;
/// `CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION`.
const COMPILED: BehaviorNote = BehaviorNote(0);

/// `cudnnBackendAttributeName_t`.
mod attribute {
    use std::ffi::c_int;
    pub(super) const POINTWISE: [c_int; 3] = [0, 1, 2]; // mode, precision, NaN
    pub(super) const CONVOLUTION: [c_int; 7] = [100, 101, 102, 103, 104, 105, 106];
    pub(super) const HEURISTICS: [c_int; 3] = [200, 201, 202]; // mode, graph, results
    pub(super) const HEURISTICS_DEVICE: c_int = 204;
    pub(super) const CONFIG_ENGINE: c_int = 300;
    pub(super) const PLAN: [c_int; 3] = [400, 401, 402]; // handle, engine configuration, workspace
    pub(super) const PLAN_DEVICE: c_int = 407;
    pub(super) const POINTWISE_OPERATION: [c_int; 6] = [750, 751, 752, 753, 756, 757];
    pub(super) const GRAPH: [c_int; 2] = [800, 801]; // handle, operations
    pub(super) const TENSOR: [c_int; 6] = [900, 901, 902, 903, 906, 907];
    pub(super) const PACK: [c_int; 3] = [1000, 1001, 1003]; // ids, pointers, workspace
    pub(super) const ENGINE: [c_int; 3] = [1301, 1303, 1305]; // index, numerical notes, behaviour
    pub(super) const DESCRIPTION: c_int = 2702;
}

/// Which of the products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Data,
    Filter,
}

/// A product: operands, result and what follows, in the order of its kernel's bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) pass: Pass,
    /// Images, weights `[Cout, K, K, Cin]` and maps of the convolution.
    pub(super) x: Shape,
    pub(super) w: Shape,
    pub(super) y: Shape,
    pub(super) stride: usize,
    pub(super) pad: usize,
    pub(super) operands: DType,
    pub(super) result: DType,
    pub(super) epilogue: Epilogue,
}

impl Product {
    /// What the first dispatch of an op with a variant of the library's computes.
    ///
    /// # Panics
    /// If the op is no product.
    pub(super) fn of(op: &Op, io: &Io) -> Self {
        let [a, b] = [0, 1].map(|i| io.inputs[i].shape);
        let result = io.outputs[0].shape;
        let (pass, [x, w, y], stride, pad, epilogue) = match op {
            Op::Conv2d(c) => (Pass::Forward, [a, b, result], c.stride, c.pad, c.epilogue),
            Op::Conv2dInputGrad(c) => (Pass::Data, [result, b, a], c.stride, c.pad, c.epilogue),
            Op::Conv2dWeightGrad(c) => {
                (Pass::Filter, [a, result, b], c.stride, c.pad, Epilogue::default())
            }
            _ => panic!("{} is no product", op.name()),
        };
        let epilogue = epilogue.without_parts();
        let (operands, result) = (io.inputs[0].dtype, io.outputs[0].dtype);
        Self { pass, x, w, y, stride, pad, operands, result, epilogue }
    }

    /// Whether the library of matrices computes it.
    pub(super) fn is_matrices(&self) -> bool {
        self.epilogue.is_of_matrices(self.w, [self.stride, self.pad], self.result)
    }

    /// Tensors that it binds: two operands, the result, and those of the epilogue.
    fn tensors(&self) -> usize {
        3 + self.epilogue.inputs()
    }

    /// The shape of the result.
    fn result(&self) -> Shape {
        match self.pass {
            Pass::Forward => self.y,
            Pass::Data => self.x,
            Pass::Filter => self.w,
        }
    }

    /// Whether an engine with such notes computes what we compute.
    fn accepts(&self, notes: &[NumericalNote]) -> bool {
        use note::{
            DOWN_CONVERT_INPUTS, NONDETERMINISTIC, REDUCED_PRECISION_REDUCTION, TENSOR_CORE,
        };
        let f32s = self.operands == DType::F32;
        notes.iter().all(|note| match note.0 {
            DOWN_CONVERT_INPUTS | REDUCED_PRECISION_REDUCTION | NONDETERMINISTIC => false,
            TENSOR_CORE => !f32s,
            _ => true,
        })
    }
}

/// `cudnnDataType_t`.
fn data_type(ty: DType) -> DataType {
    match ty.half() {
        None => DataType(0),
        Some(Half::F16) => DataType(2),
        Some(Half::Bf16) => DataType(9),
    }
}

const F32: DataType = DataType(0);

/// A tensor in NHWC, which cuDNN takes as NCHW with strides; one that is not bound is in no memory.
fn tensor(
    library: &Rc<Cudnn>,
    id: i64,
    ty: DataType,
    s: Shape,
    bound: bool,
) -> Result<Rc<Descriptor>, String> {
    let [alignment, kind, dimensions, strides, unique, is_virtual] = attribute::TENSOR;
    let [n, h, w, c] = [s.n, s.h, s.w, s.c].map(|x| x as i64);
    let tensor = Descriptor::new(library, Kind::Tensor)?
        .with(kind, &[ty])?
        .with(dimensions, &[n, c, h, w])?
        .with(strides, &[h * w * c, 1, w * c, c])?
        .with(unique, &[id])?
        .with(alignment, &[16i64])?;
    if bound { tensor.finish() } else { tensor.with(is_virtual, &[Flag(true)])?.finish() }
}

/// Which device plans are made for.
pub(super) enum Target<'a> {
    Device(&'a OnDevice),
    /// One that is described only.
    Described(Rc<Descriptor>),
}

/// A graph of operations that is built up.
struct Builder<'a> {
    library: &'a Rc<Cudnn>,
    operations: Vec<Rc<Descriptor>>,
    /// Ids of tensors that no memory holds.
    next: i64,
}

impl Builder<'_> {
    /// A tensor between two operations.
    fn between(&mut self, s: Shape) -> Result<Rc<Descriptor>, String> {
        self.next += 1;
        tensor(self.library, self.next, F32, s, false)
    }

    /// `to = mode(from, with)`.
    fn pointwise(
        &mut self,
        mode: c_int,
        from: &Rc<Descriptor>,
        with: Option<&Rc<Descriptor>>,
        to: &Rc<Descriptor>,
    ) -> Result<(), String> {
        let [of, precision, nan] = attribute::POINTWISE;
        let pointwise = Descriptor::new(self.library, Kind::Pointwise)?
            .with(of, &[PointwiseMode(mode)])?
            .with(precision, &[F32])?;
        // A NaN stays NaN.
        let pointwise = match mode {
            RELU_FORWARD => pointwise.with(nan, &[NanPropagation(1)])?,
            _ => pointwise,
        };
        let [what, x, b, y, dx, dy] = attribute::POINTWISE_OPERATION;
        let operation = Descriptor::new(self.library, Kind::PointwiseOperation)?
            .refer(what, &[pointwise.finish()?])?;
        let one = |d: &Rc<Descriptor>| [Rc::clone(d)];
        let operation = match with {
            // The gradient of a ReLU is what a mask does: 0 where x is at most 0.
            Some(mask) if mode == RELU_BACKWARD => {
                operation.refer(x, &one(mask))?.refer(dy, &one(from))?.refer(dx, &one(to))?
            }
            Some(with) => {
                operation.refer(x, &one(from))?.refer(b, &one(with))?.refer(y, &one(to))?
            }
            None => operation.refer(x, &one(from))?.refer(y, &one(to))?,
        };
        self.operations.push(operation.finish()?);
        Ok(())
    }
}

/// `cudnnPointwiseMode_t`.
const ADD: c_int = 0;
const IDENTITY: c_int = 21;
const RELU_FORWARD: c_int = 100;
const RELU_BACKWARD: c_int = 200;

/// The product as a graph of cuDNN's operations. A tensor has the number of its binding, from 1.
pub(super) fn graph(
    library: &Rc<Cudnn>,
    product: &Product,
    target: &Target<'_>,
) -> Result<Rc<Descriptor>, String> {
    let (operands, result) = (data_type(product.operands), data_type(product.result));
    let mut build = Builder { library, operations: Vec::new(), next: product.tensors() as i64 };
    // What is added or masked, in the order of the bindings.
    let mut tail: Vec<(c_int, Option<Rc<Descriptor>>)> = Vec::new();
    let Epilogue { bias, add, relu, mask, .. } = product.epilogue;
    let (mut id, of) = (3, product.result());
    let mut bound = |ty, s| {
        id += 1;
        tensor(library, id, ty, s, true).map(Some)
    };
    if bias {
        tail.push((ADD, bound(F32, Shape::vector(of.c))?));
    }
    if add {
        tail.push((ADD, bound(result, of)?));
    }
    if relu {
        tail.push((RELU_FORWARD, None));
    }
    if mask {
        tail.push((RELU_BACKWARD, bound(result, of)?));
    }
    if tail.is_empty() && operands != result {
        tail.push((IDENTITY, None));
    }
    // The sums, and after each step of the tail what it leaves; the last is the result.
    let mut left = tail.iter().map(|_| build.between(of)).collect::<Result<Vec<_>, String>>()?;
    left.push(tensor(library, 3, result, of, true)?);
    build.operations.push(convolution(library, product, operands, &left[0])?);
    for ((mode, with), pair) in tail.iter().zip(left.windows(2)) {
        build.pointwise(*mode, &pair[0], with.as_ref(), &pair[1])?;
    }
    let [handle, operations] = attribute::GRAPH;
    let graph = Descriptor::new(library, Kind::OperationGraph)?;
    let graph = graph.refer(operations, &build.operations)?;
    match target {
        Target::Device(on) => graph.with(handle, &[on.value()])?.finish(),
        Target::Described(_) => graph.finish(),
    }
}

/// The product alone, to `sums`.
fn convolution(
    library: &Rc<Cudnn>,
    product: &Product,
    operands: DataType,
    sums: &Rc<Descriptor>,
) -> Result<Rc<Descriptor>, String> {
    let [precision, mode, dilations, strides, after, before, dimensions] = attribute::CONVOLUTION;
    let (stride, pad) = ([product.stride as i64; 2], [product.pad as i64; 2]);
    let how = Descriptor::new(library, Kind::Convolution)?
        .with(precision, &[F32])?
        .with(mode, &[ConvolutionMode(1)])? // CUDNN_CROSS_CORRELATION: the kernel is not turned
        .with(dimensions, &[2i64])?
        .with(dilations, &[1i64; 2])?
        .with(strides, &stride)?
        .with(before, &pad)?
        .with(after, &pad)?
        .finish()?;
    // Attributes: alpha, beta, the convolution, w, x, y; of gradients with their tensors' names.
    let (kind, first) = match product.pass {
        Pass::Forward => (Kind::Forward, 700),
        Pass::Data => (Kind::BackwardData, 706),
        Pass::Filter => (Kind::BackwardFilter, 712),
    };
    let [x, w, y] = [product.x, product.w, product.y];
    let operand = |id, s| tensor(library, id, operands, s, true);
    let [w, x, y] = match product.pass {
        Pass::Forward => [operand(2, w)?, operand(1, x)?, Rc::clone(sums)],
        Pass::Data => [operand(2, w)?, Rc::clone(sums), operand(1, y)?],
        Pass::Filter => [Rc::clone(sums), operand(1, x)?, operand(2, y)?],
    };
    Descriptor::new(library, kind)?
        .refer(first + 2, &[how])?
        .refer(first + 3, &[w])?
        .refer(first + 4, &[x])?
        .refer(first + 5, &[y])?
        .with(first, &[1f32])?
        .with(first + 1, &[0f32])?
        .finish()
}

/// A way to compute a product that cuDNN proposes, not yet made ready.
pub(super) struct Engine {
    config: Rc<Descriptor>,
    /// cuDNN's number of it.
    pub(super) index: i64,
    /// It is compiled when it is made ready.
    pub(super) compiled: bool,
}

/// What cuDNN proposes for a product, the fastest by its own estimate first.
pub(super) fn engines(
    product: &Product,
    graph: &Rc<Descriptor>,
    target: &Target<'_>,
) -> Result<Vec<Engine>, String> {
    let (mut found, mut failure): (Vec<Engine>, _) = (Vec::new(), None);
    for mode in MODES {
        // What one estimate cannot say another one can.
        let configs = configurations(graph, target, mode);
        for config in configs.unwrap_or_else(|e| {
            failure = Some(e);
            vec![]
        }) {
            let Some(engine) = config.list(attribute::CONFIG_ENGINE, Kind::Engine, 1)?.pop() else {
                continue;
            };
            let [number, numerical, behavior] = attribute::ENGINE;
            let mut index = [0i64];
            engine.get(number, &mut index)?;
            let mut notes = [NumericalNote(-1); NOTES];
            let mut behaviors = [BehaviorNote(-1); NOTES];
            let count = engine.get(numerical, &mut notes)?;
            let behaves = engine.get(behavior, &mut behaviors)?;
            let known = found.iter().filter(|e| e.index == index[0]).count();
            if known < OF_ONE && product.accepts(&notes[..count]) {
                let compiled = behaviors[..behaves].contains(&COMPILED);
                found.push(Engine { config, index: index[0], compiled });
            }
        }
    }
    match failure {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

/// Engine configurations by one of the library's estimates.
fn configurations(
    graph: &Rc<Descriptor>,
    target: &Target<'_>,
    by: HeuristicMode,
) -> Result<Vec<Rc<Descriptor>>, String> {
    let [mode, of, results] = attribute::HEURISTICS;
    let heuristics = Descriptor::new(graph.library(), Kind::Heuristics)?
        .refer(of, &[Rc::clone(graph)])?
        .with(mode, &[by])?;
    let heuristics = match target {
        Target::Device(_) => heuristics,
        Target::Described(device) => {
            heuristics.refer(attribute::HEURISTICS_DEVICE, &[Rc::clone(device)])?
        }
    };
    heuristics.finish()?.list(results, Kind::EngineConfig, ASKED)
}

/// A product that is ready to be computed, by one engine.
pub(super) struct Prepared {
    plan: Rc<Descriptor>,
    /// Bytes that it takes beside its operands.
    pub(super) workspace: usize,
}

impl Engine {
    /// Makes it ready, which may compile it.
    pub(super) fn prepare(&self, target: &Target<'_>) -> Result<Prepared, String> {
        let [handle, config, workspace] = attribute::PLAN;
        let plan = Descriptor::new(self.config.library(), Kind::ExecutionPlan)?
            .refer(config, &[Rc::clone(&self.config)])?;
        let plan = match target {
            Target::Device(on) => plan.with(handle, &[on.value()])?,
            Target::Described(device) => {
                plan.refer(attribute::PLAN_DEVICE, &[Rc::clone(device)])?
            }
        };
        let plan = plan.finish()?;
        let mut bytes = [0i64];
        plan.get(workspace, &mut bytes)?;
        let workspace = usize::try_from(bytes[0]).map_err(|_| "a negative workspace")?;
        Ok(Prepared { plan, workspace })
    }
}

/// A device that is described by cuDNN's own text (`CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION`).
pub(super) fn described(library: &Rc<Cudnn>, json: &str) -> Result<Rc<Descriptor>, String> {
    let text: Vec<Character> = json.bytes().chain([0]).map(Character).collect();
    Descriptor::new(library, Kind::DeviceProperties)?.with(attribute::DESCRIPTION, &text)?.finish()
}

/// The products that a device has asked its library for.
pub(super) struct Products {
    // Plans go before what they were made with.
    known: Vec<(Product, Proposals)>,
    on: Rc<OnDevice>,
}

/// What the library proposes for a product.
struct Proposals {
    /// Those that are not made ready yet, the last one next.
    engines: Vec<Engine>,
    ready: Vec<Rc<Prepared>>,
    /// Why one could not be made ready.
    failure: Option<String>,
}

impl Products {
    pub(super) fn new(on: OnDevice) -> Self {
        Self { on: Rc::new(on), known: Vec::new() }
    }

    /// A product by the library's proposal number `rank` of those that can be made ready here.
    ///
    /// # Errors
    /// If there are not so many, or the library fails.
    pub(super) fn prepare(&mut self, product: &Product, rank: u32) -> Result<Rc<Prepared>, String> {
        let target = Target::Device(&self.on);
        let at = match self.known.iter().position(|k| k.0 == *product) {
            Some(at) => at,
            None => {
                let graph = graph(&self.on.library, product, &target)?;
                let mut engines = engines(product, &graph, &target)?;
                engines.reverse();
                let proposals = Proposals { engines, ready: Vec::new(), failure: None };
                self.known.push((*product, proposals));
                self.known.len() - 1
            }
        };
        let proposals = &mut self.known[at].1;
        while proposals.ready.len() <= rank as usize {
            let Some(engine) = proposals.engines.pop() else {
                let (count, why) = (proposals.ready.len(), proposals.failure.as_deref());
                let why = why.map_or(String::new(), |why| format!("; of another it says: {why}"));
                return Err(format!("it proposes {count} engines for this product{why}"));
            };
            match engine.prepare(&target) {
                Ok(prepared) if prepared.workspace <= WORKSPACE => {
                    proposals.ready.push(Rc::new(prepared));
                }
                Ok(_) => {}
                Err(why) => proposals.failure = Some(why),
            }
        }
        Ok(Rc::clone(&proposals.ready[rank as usize]))
    }

    /// A product with its memory.
    pub(super) fn bind(
        &self,
        prepared: &Rc<Prepared>,
        arguments: &[Address],
        workspace: Memory,
    ) -> Result<Call, String> {
        let [ids, pointers, beside] = attribute::PACK;
        let numbers: Vec<i64> = (1..).take(arguments.len()).collect();
        let at: Vec<Pointer> = arguments.iter().map(|a| Pointer(*a)).collect();
        let pack = Descriptor::new(&self.on.library, Kind::VariantPack)?
            .with(ids, &numbers)?
            .with(pointers, &at)?
            .with(beside, &[Pointer(workspace.at)])?
            .finish()?;
        let (on, prepared) = (Rc::clone(&self.on), Rc::clone(prepared));
        Ok(Call { on, prepared, pack, workspace })
    }
}

/// A call of the library.
pub(super) struct Call {
    pack: Rc<Descriptor>,
    prepared: Rc<Prepared>,
    pub(super) workspace: Memory,
    on: Rc<OnDevice>,
}

impl Call {
    /// Queues it.
    pub(super) fn queue(&self) -> Result<(), String> {
        self.on.execute(&self.prepared.plan, &self.pack)
    }
}
