//! Layers with named parameters, and how those are initialised and stored. Names and file shapes
//! are PyTorch's.

mod params;

pub use params::{FileLayout, Init, Param, Params};

use crate::ir::{Graph, Group};
use crate::ops::{
    BatchNorm, BatchNormEval, Conv2d, Conv2dInputGrad, Emit, Epilogue, GlobalAvgPool, MaxPool2d,
    Op, PhaseWeights, Relu, UpsampleNearest, ValueId, WeightedSum,
};
use crate::tensor::Shape;

/// PyTorch's default `eps` of BatchNorm.
const BN_EPS: f32 = 1e-5;
/// PyTorch's default momentum of BatchNorm's running statistics.
const BN_MOMENTUM: f32 = 0.1;

/// Channels in memory: a multiple of 4.
pub const fn padded(channels: usize) -> usize {
    channels.next_multiple_of(4)
}

/// Builds a graph layer by layer and collects the parameters.
#[derive(Debug)]
pub struct Builder {
    /// The graph so far.
    pub graph: Graph,
    /// Parameters and buffers so far.
    pub params: Params,
    /// BatchNorm uses and updates batch statistics; otherwise the running ones.
    pub training: bool,
}

/// A convolution's hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Input channels, padding excluded (3 for RGB).
    pub inputs: usize,
    /// Output channels, padding excluded.
    pub outputs: usize,
    /// Side of the kernel in pixels.
    pub kernel: usize,
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Pixels of zeros around the image.
    pub pad: usize,
    /// Whether a bias is added.
    pub bias: bool,
    /// How the weights are drawn.
    pub init: Init,
}

impl Builder {
    /// A builder over an existing graph (and its layout).
    pub fn new(graph: Graph, training: bool) -> Self {
        Self { graph, params: Params::default(), training }
    }

    /// A parameter or buffer, registered. A parameter that the layout has frozen
    /// ([`Layout::frozen`](crate::ir::Layout::frozen)) is a buffer.
    pub fn param(
        &mut self,
        name: &str,
        shape: Shape,
        group: Group,
        init: Init,
        file: FileLayout,
    ) -> ValueId {
        let held = self.graph.layout.get(name).map(|state| state.range.group);
        let group = if held == Some(Group::Buffer) { Group::Buffer } else { group };
        self.params.add(Param { name: name.into(), shape, group, init, file });
        self.graph.state(name, shape, group)
    }

    fn op(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.graph.label(name);
        self.graph.emit1(op.into(), inputs)
    }

    /// Convolution `name.weight`, `name.bias`.
    pub fn conv(&mut self, name: &str, x: ValueId, c: Conv) -> ValueId {
        let (w, bias) = self.conv_params(name, c);
        let inputs: Vec<_> = [x, w].into_iter().chain(bias).collect();
        let epilogue = Epilogue { bias: c.bias, ..Epilogue::default() };
        self.op(name, Conv2d { stride: c.stride, pad: c.pad, epilogue }, &inputs)
    }

    fn conv_params(&mut self, name: &str, c: Conv) -> (ValueId, Option<ValueId>) {
        let shape = Shape::new(padded(c.outputs), c.kernel, c.kernel, padded(c.inputs));
        let file = FileLayout::Conv { outputs: c.outputs, inputs: c.inputs, kernel: c.kernel };
        let w = self.param(&format!("{name}.weight"), shape, Group::Param, c.init, file);
        let fan_in = c.inputs * c.kernel * c.kernel;
        (w, c.bias.then(|| self.bias(name, c.outputs, fan_in)))
    }

    /// A convolution of the image resized to this side by [`Builder::upsample`], called `resized`.
    /// A 3x3 one of twice the side is a transposed convolution of the image itself, by
    /// [`PhaseWeights`]: no pixel is copied, and 4 products do for 9.
    pub fn upsample_conv(
        &mut self,
        name: &str,
        resized: &str,
        x: ValueId,
        side: usize,
        c: Conv,
    ) -> ValueId {
        let image = self.graph.ty(x).shape;
        if [image.h * 2, image.w * 2] != [side; 2] || (c.kernel, c.stride, c.pad) != (3, 1, 1) {
            let x = self.upsample(resized, x, side);
            return self.conv(name, x, c);
        }
        let (w, bias) = self.conv_params(name, c);
        let v = self.op(resized, PhaseWeights, &[w]);
        let epilogue = Epilogue { bias: c.bias, ..Epilogue::default() };
        let op = Conv2dInputGrad { stride: 2, pad: 1, h: side, w: side, epilogue };
        let inputs: Vec<_> = [x, v].into_iter().chain(bias).collect();
        self.op(name, op, &inputs)
    }

    fn bias(&mut self, name: &str, outputs: usize, fan_in: usize) -> ValueId {
        let shape = Shape::vector(padded(outputs));
        self.param(
            &format!("{name}.bias"),
            shape,
            Group::Param,
            Init::pytorch_uniform(fan_in),
            FileLayout::Vector { len: outputs },
        )
    }

    /// Linear layer `name.weight` [out, in], `name.bias`, on rows `[N, 1, 1, in]`.
    pub fn linear(&mut self, name: &str, x: ValueId, outputs: usize, bias: bool) -> ValueId {
        let inputs = self.graph.ty(x).shape.c;
        self.linear_as(name, x, FileLayout::Linear { outputs, inputs }, bias)
    }

    /// The linear layer whose rows are read as a `(channels, side, side)` image by PyTorch
    /// (`view`); here the result is NHWC, so the rows are permuted at import and export. Returns
    /// `[N, 1, 1, side * side * channels]`.
    pub fn linear_image(
        &mut self,
        name: &str,
        x: ValueId,
        channels: usize,
        side: usize,
    ) -> ValueId {
        let inputs = self.graph.ty(x).shape.c;
        self.linear_as(name, x, FileLayout::LinearImage { channels, side, inputs }, true)
    }

    fn linear_as(&mut self, name: &str, x: ValueId, file: FileLayout, bias: bool) -> ValueId {
        let (outputs, inputs) = match file {
            FileLayout::Linear { outputs, inputs } => (outputs, inputs),
            FileLayout::LinearImage { channels, side, inputs } => (channels * side * side, inputs),
            _ => unreachable!("a linear layer"),
        };
        let shape = Shape::new(padded(outputs), 1, 1, inputs);
        let w = self.param(
            &format!("{name}.weight"),
            shape,
            Group::Param,
            Init::pytorch_uniform(inputs),
            file,
        );
        let mut operands = vec![x, w];
        if bias {
            let layout = match file {
                FileLayout::LinearImage { channels, side, .. } => {
                    FileLayout::VectorImage { channels, side }
                }
                _ => FileLayout::Vector { len: outputs },
            };
            let init = Init::pytorch_uniform(inputs);
            operands.push(self.param(
                &format!("{name}.bias"),
                Shape::vector(padded(outputs)),
                Group::Param,
                init,
                layout,
            ));
        }
        let epilogue = Epilogue { bias, ..Epilogue::default() };
        self.op(name, Conv2d { stride: 1, pad: 0, epilogue }, &operands)
    }

    /// BatchNorm (2d and 1d alike), then an optional residual, then an optional ReLU.
    pub fn batch_norm(
        &mut self,
        name: &str,
        x: ValueId,
        add: Option<ValueId>,
        relu: bool,
    ) -> ValueId {
        let c = self.graph.ty(x).shape.c;
        let mut vector = |suffix: &str, group, value| {
            self.param(
                &format!("{name}.{suffix}"),
                Shape::vector(c),
                group,
                Init::Constant(value),
                FileLayout::Vector { len: c },
            )
        };
        let mut inputs = vec![x];
        inputs.push(vector("weight", Group::Param, 1.0));
        inputs.push(vector("bias", Group::Param, 0.0));
        inputs.push(vector("running_mean", Group::Buffer, 0.0));
        inputs.push(vector("running_var", Group::Buffer, 1.0));
        inputs.extend(add);
        if self.training {
            self.op(
                name,
                BatchNorm {
                    eps: BN_EPS,
                    momentum: BN_MOMENTUM,
                    add: add.is_some(),
                    relu,
                    parts: None,
                },
                &inputs,
            )
        } else {
            self.op(name, BatchNormEval { eps: BN_EPS, add: add.is_some(), relu }, &inputs)
        }
    }

    /// The positive part of each element.
    pub fn relu(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, Relu, &[x])
    }

    /// Sum of two tensors.
    pub fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> ValueId {
        self.op(name, WeightedSum { a: 1.0, b: 1.0 }, &[a, b])
    }

    /// 3x3 max pooling of stride 2.
    pub fn max_pool(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, MaxPool2d, &[x])
    }

    /// Mean over height and width.
    pub fn global_avg_pool(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, GlobalAvgPool, &[x])
    }

    /// Nearest upsampling to a square of this side.
    pub fn upsample(&mut self, name: &str, x: ValueId, side: usize) -> ValueId {
        if self.graph.ty(x).shape.h == side {
            x
        } else {
            self.op(name, UpsampleNearest { h: side, w: side }, &[x])
        }
    }

    /// The same elements under another shape.
    pub fn reshape(&mut self, name: &str, x: ValueId, shape: Shape) -> ValueId {
        self.op(name, crate::ops::Reshape { shape }, &[x])
    }
}
