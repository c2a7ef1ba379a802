//! Shapes of a convolution, shared by its reference, its lowering and its native versions.

use crate::tensor::Shape;

/// One convolution: `x [n, ih, iw, c]`, `y [n, oh, ow, oc]`, `w [oc, k, k, c]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) n: usize,
    pub(super) ih: usize,
    pub(super) iw: usize,
    pub(super) c: usize,
    pub(super) oh: usize,
    pub(super) ow: usize,
    pub(super) oc: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
}

impl Geometry {
    /// The convolution of images `x` with square kernels `w` to `y`.
    pub(super) fn new(x: Shape, w: Shape, y: Shape, stride: usize, pad: usize) -> Self {
        Self { n: x.n, ih: x.h, iw: x.w, c: x.c, oh: y.h, ow: y.w, oc: y.c, k: w.h, stride, pad }
    }
    /// A 1x1 convolution of stride 1 sees no neighbours: its pixels are the rows of one matrix.
    pub(super) fn is_matrix(&self) -> bool {
        self.k == 1 && self.stride == 1 && self.pad == 0
    }
    /// A matrix as one image of one row of pixels; any other convolution as it is.
    pub(super) fn as_matrix(self) -> Self {
        if self.is_matrix() {
            let pixels = self.n * self.ih * self.iw;
            Self { n: 1, ih: 1, iw: pixels, oh: 1, ow: pixels, ..self }
        } else {
            self
        }
    }
    /// Elements of the weights.
    pub(super) fn weights(&self) -> usize {
        self.oc * self.k * self.k * self.c
    }
}

/// Extent of a convolution's output; `None` if the kernel exceeds the padded input.
pub(super) fn out_extent(size: usize, kernel: usize, stride: usize, pad: usize) -> Option<usize> {
    (size + 2 * pad).checked_sub(kernel).map(|room| room / stride + 1)
}
