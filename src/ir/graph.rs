//! Values, nodes and persistent state.

use crate::ops::{Emit, Op, ShapeError, ValueId};
use crate::tensor::{DType, Shape, TensorType};

/// The flat buffers that outlive a step. Parameter `p` has the same offset in `Param`, `Grad`,
/// `Moment1`, `Moment2` and `Accumulated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Weights that are trained.
    Param,
    /// Running statistics of BatchNorm and the weights that are not trained ([`Layout::frozen`]),
    /// then the flag that guards updates ([`Layout::guard`]) and the scale of the loss
    /// ([`Layout::loss_scale`]).
    Buffer,
    /// Gradients of the weights.
    Grad,
    /// First moment (Adam) or momentum (SGD).
    Moment1,
    /// Second moment (Adam).
    Moment2,
    /// Mean gradient of the batches of a step so far, then their mean loss
    /// ([`Layout::accumulated_loss`]); only where gradients are accumulated. Where the loss is
    /// scaled, gradients without the scale: of several batches they are in `Grad`.
    Accumulated,
}

impl Group {
    /// Every group, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Param, Self::Buffer, Self::Grad, Self::Moment1, Self::Moment2, Self::Accumulated];
}

/// Part of a flat buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which flat buffer.
    pub group: Group,
    /// Its first element in the flat buffer.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Range {
    /// True if two ranges share an element.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.group == other.group
            && self.offset < other.offset + other.len
            && other.offset < self.offset + self.len
    }
}

/// A named tensor in `Param` or `Buffer`.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Checkpoint name, e.g. `encoder.layer1.0.conv1.weight`.
    pub name: String,
    /// Shape in memory.
    pub shape: Shape,
    /// Where it lives.
    pub range: Range,
}

/// Where every persistent tensor lives. Graphs of one model (training, evaluation) share it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// In order of registration.
    pub states: Vec<StateTensor>,
    /// Whether the gradient of a loss starts from a scale that is state too, not from 1: then every
    /// gradient is as many times itself until the update ([`crate::ops::LossScale`]).
    pub scaled: bool,
}

/// Ranges start at multiples of this many elements: 256 bytes, WebGPU's default
/// `min_storage_buffer_offset_alignment`.
pub(super) const ALIGN: usize = 64;

impl Layout {
    /// The same tensors as state that no update touches: they have neither gradients nor moments,
    /// and what is registered after them is trained alone.
    #[must_use]
    pub fn frozen(&self) -> Self {
        let mut frozen = Self::default();
        for state in &self.states {
            frozen.register(&state.name, state.shape, Group::Buffer);
        }
        frozen
    }
    /// Finds a state by name.
    pub fn get(&self, name: &str) -> Option<&StateTensor> {
        self.states.iter().find(|s| s.name == name)
    }
    /// Registers a state, or returns the one of that name.
    ///
    /// # Panics
    /// If the name is taken by another shape or group: two layers share a name.
    pub fn register(&mut self, name: &str, shape: Shape, group: Group) -> &StateTensor {
        assert!(
            matches!(group, Group::Param | Group::Buffer),
            "{name}: gradients and moments follow their parameter"
        );
        if let Some(i) = self.states.iter().position(|s| s.name == name) {
            let s = &self.states[i];
            assert!(
                s.shape == shape && s.range.group == group,
                "{name} is registered as {} and as {shape}",
                s.shape
            );
            return s;
        }
        let range = Range { group, offset: self.end(group), len: shape.len() };
        self.states.push(StateTensor { name: name.into(), shape, range });
        &self.states[self.states.len() - 1]
    }
    /// Where the next state of a group would be.
    fn end(&self, group: Group) -> usize {
        let kept = if group == Group::Buffer { Group::Buffer } else { Group::Param };
        let end = self
            .states
            .iter()
            .filter(|s| s.range.group == kept)
            .map(|s| s.range.offset + s.range.len)
            .max()
            .unwrap_or(0);
        end.next_multiple_of(ALIGN)
    }
    /// Elements of a flat buffer, padding and what stands behind the tensors included.
    pub fn size(&self, group: Group) -> usize {
        let behind = match group {
            Group::Buffer => 1 + usize::from(self.scaled),
            Group::Accumulated => 1,
            _ => 0,
        };
        self.end(group) + behind * ALIGN
    }
    /// Where the flag is that guards updates: 0 while every loss and gradient has been finite.
    pub fn guard(&self) -> Range {
        Range { group: Group::Buffer, offset: self.end(Group::Buffer), len: 1 }
    }
    /// Where the scale of the loss is: the scale, the good steps in a row, the skipped steps in
    /// all.
    ///
    /// # Panics
    /// If no loss is scaled.
    pub fn loss_scale(&self) -> Range {
        assert!(self.scaled, "no loss is scaled");
        Range { group: Group::Buffer, offset: self.end(Group::Buffer) + ALIGN, len: 3 }
    }
    /// Bytes of a flat buffer.
    pub fn bytes(&self, group: Group) -> usize {
        self.size(group) * DType::F32.bytes()
    }
    /// Where the mean loss of a step's batches is: behind the gradients.
    pub fn accumulated_loss(&self) -> Range {
        Range { group: Group::Accumulated, offset: self.size(Group::Param), len: 1 }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// Output `output` of node `node`.
    Node {
        /// Index in [`Graph::nodes`].
        node: usize,
        /// Which of the node's outputs.
        output: usize,
    },
    /// Uploaded before the step.
    Input,
    /// What persists between steps.
    State(Range),
    /// A part of the images that stay on the device ([`crate::ir::resident`]).
    Images(usize),
}

/// A tensor of the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Shape and element type.
    pub ty: TensorType,
    /// Label, e.g. `encoder.layer1.0.conv1`.
    pub name: String,
    /// What makes it.
    pub source: Source,
    /// Fixed place, for gradients and in-place updates.
    pub pin: Option<Range>,
}

/// An op applied to values.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The op that is applied.
    pub op: Op,
    /// Label: the layer that emitted it.
    pub name: String,
    /// The values that it takes.
    pub inputs: Vec<ValueId>,
    /// The values that it makes.
    pub outputs: Vec<ValueId>,
}

/// One step as a graph. Nodes are in execution order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Where the persistent tensors are.
    pub layout: Layout,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Values by id.
    pub values: Vec<Value>,
    /// Uploaded before each step.
    pub inputs: Vec<ValueId>,
    /// Read back after it, by name.
    pub outputs: Vec<(String, ValueId)>,
    label: String,
}

impl Graph {
    /// A graph over persistent tensors that another graph has already laid out.
    pub fn with_layout(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }
    /// Label of the nodes that follow.
    pub fn label(&mut self, label: impl Into<String>) {
        self.label = label.into();
    }
    pub(super) fn value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId(
            u32::try_from(self.values.len() - 1)
                .unwrap_or_else(|_| panic!("a graph of {} values", self.values.len())),
        )
    }
    /// A tensor uploaded before each step.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let id = self.value(Value { ty, name: name.into(), source: Source::Input, pin: None });
        self.inputs.push(id);
        id
    }
    /// A persistent tensor, registered on first use.
    pub fn state(&mut self, name: &str, shape: Shape, group: Group) -> ValueId {
        let range = self.layout.register(name, shape, group).range;
        self.at(name, shape, range)
    }
    /// A persistent range as a value (one value per range and shape).
    pub fn at(&mut self, name: &str, shape: Shape, range: Range) -> ValueId {
        assert_eq!(shape.len(), range.len, "{name}: a view must cover its range");
        let same = |v: &Value| v.source == Source::State(range) && v.ty == TensorType::f32(shape);
        if let Some(i) = self.values.iter().position(same) {
            return ValueId(i as u32);
        }
        self.value(Value {
            ty: TensorType::f32(shape),
            name: name.into(),
            source: Source::State(range),
            pin: None,
        })
    }
    /// A whole flat buffer as a vector.
    pub fn whole(&mut self, group: Group) -> ValueId {
        let len = self.layout.size(group);
        self.at(
            &format!("{group:?}").to_lowercase(),
            Shape::vector(len),
            Range { group, offset: 0, len },
        )
    }
    /// Adds a node.
    ///
    /// # Errors
    /// If the op refuses the inputs.
    fn try_emit(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, ShapeError> {
        let types: Vec<_> = inputs.iter().map(|&i| self.ty(i)).collect();
        let node = self.nodes.len();
        let name = self.label.clone();
        let outputs: Vec<_> = op
            .outputs(&types)
            .map_err(|e| ShapeError { message: format!("at `{name}`: {}", e.message), ..e })?
            .into_iter()
            .enumerate()
            .map(|(output, ty)| {
                let pin =
                    op.in_place().iter().find(|p| p.1 == output).map(|&(input, _)| {
                        match self.values[inputs[input].0 as usize].source {
                            Source::State(range) => range,
                            ref other => panic!(
                                "{}: `{name}` updates a value that is not persistent ({other:?})",
                                op.name()
                            ),
                        }
                    });
                let name = if output == 0 {
                    format!("{name}:{}", op.name())
                } else {
                    format!("{name}:{}.{output}", op.name())
                };
                self.value(Value { ty, name, source: Source::Node { node, output }, pin })
            })
            .collect();
        self.nodes.push(Node { op, name, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }
    /// Adds a node of another graph over the same values, behind the others.
    pub(super) fn push(&mut self, node: Node) {
        for (output, y) in node.outputs.iter().enumerate() {
            self.values[y.0 as usize].source = Source::Node { node: self.nodes.len(), output };
        }
        self.nodes.push(node);
    }
    /// Marks a value to be read back.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.into(), value));
    }
    /// The parts of the images that stay on the device, in order.
    pub fn images(&self) -> impl Iterator<Item = ValueId> + '_ {
        let stays = |(_, v): &(u32, &Value)| matches!(v.source, Source::Images(_));
        (0..).zip(&self.values).filter(stays).map(|(i, _)| ValueId(i))
    }
    /// The range a value lives in, if it is persistent or pinned.
    pub fn range(&self, value: ValueId) -> Option<Range> {
        let v = &self.values[value.0 as usize];
        match v.source {
            Source::State(range) => Some(range),
            _ => v.pin,
        }
    }
    /// Number of nodes that read a value, plus one if it is an output of the graph.
    pub fn uses(&self, value: ValueId) -> usize {
        self.nodes.iter().flat_map(|n| &n.inputs).filter(|&&i| i == value).count()
            + self.outputs.iter().filter(|o| o.1 == value).count()
    }
}

impl Emit for Graph {
    /// # Panics
    /// If the op refuses the inputs: shapes that users choose are validated before a graph is
    /// built.
    fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        self.try_emit(op, inputs).unwrap_or_else(|e| panic!("{e}"))
    }
    fn ty(&self, value: ValueId) -> TensorType {
        self.values[value.0 as usize].ty
    }
}
