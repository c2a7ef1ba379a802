// Operands of a convolution, or of its input gradient (TRANSPOSED), as a product with weights.
// TRANSPOSED = false: an output pixel reads x at (oy * STRIDE + kh - PAD, ox * STRIDE + kw - PAD).
// TRANSPOSED = true:  an output pixel reads x at ((oy + PAD - kh) / STRIDE, (ox + PAD - kw) /
// STRIDE)
//   where both divide: x is the output gradient, y the input gradient. Rows (columns) of one parity
//   of oy (ox) share their taps.
// ACROSS: w is the weights of the forward convolution, of which this is the input gradient: its
//   output channels are what is summed over here.
// Requires nothing of the importer.
#import lib/conv
const TRANSPOSED: bool = false; // spec
const ACROSS: bool = false; // spec

const CLASSES: u32 = 1u + (STRIDE - 1u) * u32(TRANSPOSED); // parities of an output row or column
const OHC: u32 = (OH + CLASSES - 1u) / CLASSES; // rows of one parity, in one image

// Row `coordinate(shifted(first_tap(oy), kh))` of x is what tap kh of output row oy reads; columns
// alike. This is where tap 0 is, in pixels of the larger image.
fn first_tap(o: u32) -> i32 {
    return select(i32(o) * i32(STRIDE) - i32(PAD), i32(o) + i32(PAD), TRANSPOSED);
}

// Where tap k is; outside the image if it is negative.
fn shifted(first: i32, k: u32) -> i32 {
    return select(first + i32(k), first - i32(k), TRANSPOSED);
}

// The same in pixels of x; outside the image if it is not below its extent.
fn coordinate(tap: i32) -> i32 {
    return select(tap, tap / i32(STRIDE), TRANSPOSED);
}
