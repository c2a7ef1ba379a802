"""The networks of `twin.py` with the casts of mixed precision: what passes between layers is stored as 16-bit floats.

`half(model, dtype, scale)` changes a model in place. Arithmetic stays in the model's type; what is rounded, each once:

    maps (activations of more than one pixel), when an op has written them: a convolution with its bias, residual and
        ReLU; a batch norm with its residual and ReLU; the reshape in front of the decoder's first convolution
    the gradients of those maps; where a map has two readers that are convolutions, the one that is differentiated first
        is rounded by itself as well
    the weights of convolutions of such maps, in both products with them; their gradients are not rounded. Where the map
        is upsampled to twice its side first, the sums of weights that meet one pixel of the smaller one

The images, features, latents, linear layers, losses and everything of one value a channel are left alone. Gradients are
rounded at `scale` times their size, as under a scaled loss.
"""

import types

import torch
import torch.nn.functional as F
from torch import nn

from twin import DecoderBlock, EncoderBasicBlock


class Rounding(torch.autograd.Function):
    """Rounds the value if `forward`, and its gradient."""

    @staticmethod
    def forward(ctx, x, dtype, scale, value):
        ctx.dtype, ctx.scale = dtype, scale
        return x.to(dtype).to(x.dtype) if value else x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return (g * ctx.scale).to(ctx.dtype).to(g.dtype) / ctx.scale, None, None, None


class RoundedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, dtype):
        return w.to(dtype).to(w.dtype)

    @staticmethod
    def backward(ctx, g):
        return g, None


class HalfConv(nn.Module):
    """A convolution of a map in 16 bits. Its result is rounded by whoever has added what is added to it."""

    def __init__(self, conv, dtype):
        super().__init__()
        self.conv, self.dtype = conv, dtype

    def forward(self, x):
        c = self.conv
        w = RoundedWeight.apply(c.weight, self.dtype)
        return F.conv2d(x, w, c.bias, c.stride, c.padding)


# How often each row of a 3x3 kernel is in each row of the transposed 4x4 one.
COPIES = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])


class HalfUpsampleConv(HalfConv):
    """A 3x3 convolution of a map whose pixels are repeated, as a transposed one of the map itself: what is rounded are
    the sums of weights that meet one pixel."""

    def forward(self, x):
        c = self.conv
        copies = COPIES.to(c.weight)
        w = torch.einsum("ai,bj,ocij->coab", copies, copies, c.weight)
        return F.conv_transpose2d(x, RoundedWeight.apply(w, self.dtype), c.bias, stride=2, padding=1)


def half(model, dtype, scale=1.0):
    def store(x):
        return Rounding.apply(x, dtype, scale, True)

    def store_gradient(x):
        return Rounding.apply(x, dtype, scale, False)

    def product(conv):
        return HalfConv(conv, dtype)

    def encoder_block(self, x):
        main, skip = x, x
        if self.downsample is not None:
            main = store_gradient(x)
            conv, norm = self.downsample
            skip = store(norm(store(product(conv)(x))))
        y = store(F.relu(self.bn1(store(product(self.conv1)(main)))))
        return store(F.relu(self.bn2(store(product(self.conv2)(y))) + skip))

    def encoder(self, x):
        x = store(F.relu(self.bn1(store(self.conv1(x)))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))

    def decoder_block(self, x):
        main, skip = x, x
        if self.upsample is not None:
            # The convolution of one pixel commutes with the repetition of pixels.
            main = store_gradient(x)
            skip = store(product(self.upsample[-1])(x))
            skip = store(self.up(skip))
        if getattr(self.up, "factor", None) == 2:
            y = HalfUpsampleConv(self.conv1, dtype)(main)
        else:
            y = product(self.conv1)(store(self.up(main)))
        y = store(F.relu(y))
        return store(F.relu(product(self.conv2)(y) + skip))

    def decoder(self, z):
        x = F.relu(self.linear_projection1(z))
        x = F.relu(self.linear_projection2(x))
        x = store(x.view(len(x), self.h // 16, 4, 4))
        x = store(F.relu(product(self.conv1)(x)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        x = store(F.relu(product(self.conv2)(x)))
        return store(product(self.final_conv)(x))

    forwards = {EncoderBasicBlock: encoder_block, DecoderBlock: decoder_block}
    for module in model.modules():
        if forward := forwards.get(type(module)):
            module.forward = types.MethodType(forward, module)
    model.encoder.forward = types.MethodType(encoder, model.encoder)
    if model.decoder is not None:
        model.decoder.forward = types.MethodType(decoder, model.decoder)
    return model
