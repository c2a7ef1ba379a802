// Pixels of images that stay on the device as bytes: y[n, p] = R | G << 8 | B << 16 of pixel p of
// image indices[n], for the COUNT images from FIRST on, which `images` is; others are not written.
// Reads indices [N], images [COUNT, WORDS]; writes (=) y [N, IMAGE].
// Grid: ceil(PIXELS / WG) workgroups, folded.
// Reference: ops/gather_images.rs `GatherImages::reference`.
#import lib/grid
const PIXELS: u32 = 1u; // uniform
const IMAGE: u32 = 1u; // uniform
const WORDS: u32 = 1u; // uniform
const FIRST: u32 = 0u; // uniform
const COUNT: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> indices: array<u32>; // [N]
@group(0) @binding(1) var<storage, read> images: array<u32>; // [COUNT, WORDS]
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let place = divide(i, IMAGE);
  // Of an image before FIRST this wraps to a large number.
  let image = indices[place.x] - FIRST;
  if (image >= COUNT) { return; }
  let byte = 3u * place.y;
  let at = image * WORDS + byte / 4u;
  let shift = 8u * (byte % 4u);
  var pixel = images[at] >> shift;
  // The last one or two bytes may be in the next word.
  if (shift > 8u) { pixel |= images[at + 1u] << (32u - shift); }
  y[i] = pixel & 0xffffffu;
}
