// ring[serial % ROWS, :] = (serial & 0xffff, serial >> 16, values): what the host reads of a step,
// kept until it asks.
//   A dispatch writes the values V0 to V5 that are present from COLUMN on; the last one, with
//   STAMP, the serial number.
// Reads the step, value0, value1, value2, value3, value4, value5 [1]; updates (in place) one row of
// ring [ROWS, WIDTH].
// Grid: one workgroup. Reference: ops/record.rs `Record::reference`.
#import lib/step
const ROWS: u32 = 64u; // uniform
const WIDTH: u32 = 8u; // uniform: 2 + values
const COLUMN: u32 = 2u; // uniform
const STAMP: bool = true; // spec
const V0: bool = false; // spec
const V1: bool = false; // spec
const V2: bool = false; // spec
const V3: bool = false; // spec
const V4: bool = false; // spec
const V5: bool = false; // spec
const WG: u32 = 1u;
@group(0) @binding(0) var<storage, read_write> ring: array<f32>; // [ROWS, WIDTH]
@group(0) @binding(1) var<uniform> step: Step;
// #if V0
@group(0) @binding(2) var<storage, read> value0: array<f32>; // [1]
// #end
// #if V1
@group(0) @binding(3) var<storage, read> value1: array<f32>; // [1]
// #end
// #if V2
@group(0) @binding(4) var<storage, read> value2: array<f32>; // [1]
// #end
// #if V3
@group(0) @binding(5) var<storage, read> value3: array<f32>; // [1]
// #end
// #if V4
@group(0) @binding(6) var<storage, read> value4: array<f32>; // [1]
// #end
// #if V5
@group(0) @binding(7) var<storage, read> value5: array<f32>; // [1]
// #end

@compute @workgroup_size(WG)
fn main() {
  let row = step.serial % ROWS * WIDTH;
  // #if V0
  ring[row + COLUMN] = value0[0];
  // #end
  // #if V1
  ring[row + COLUMN + 1u] = value1[0];
  // #end
  // #if V2
  ring[row + COLUMN + 2u] = value2[0];
  // #end
  // #if V3
  ring[row + COLUMN + 3u] = value3[0];
  // #end
  // #if V4
  ring[row + COLUMN + 4u] = value4[0];
  // #end
  // #if V5
  ring[row + COLUMN + 5u] = value5[0];
  // #end
  // #if STAMP
  ring[row] = f32(step.serial & 0xffffu);
  ring[row + 1u] = f32(step.serial >> 16u);
  // #end
}
