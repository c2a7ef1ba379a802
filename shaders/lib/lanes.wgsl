// How a sum over rows is shared. With SHARED a workgroup sums one part of the rows for WIDTH vec4s
// of columns: each of its lanes takes every LANES-th row, and lanes meet in workgroup memory.
// Without, an invocation sums its part alone and no barrier is needed.
// Requires nothing of the importer; its host sets SHARED, and with it WG, WIDTH and LANES, powers
// of two with WIDTH * LANES = WG.
#import lib/grid
const SHARED: bool = false; // spec
const WIDTH: u32 = 1u; // uniform: vec4s of columns beside each other
const LANES: u32 = 1u; // uniform: lanes of a part

// Part, vec4 of columns and lane of an invocation. Those that have nothing to do get a part or a
// column behind the last; all of them have to reach the barriers.
fn place(group: vec3<u32>, groups: vec3<u32>, local: u32, columns: u32) -> vec3<u32> {
  // #if !SHARED
  let at = divide(global_index(group, groups, local), columns);
  let own = vec2<u32>();
  // #end
  // #if SHARED
  let blocks = (columns + WIDTH - 1u) / WIDTH;
  let block = divide(group.y * groups.x + group.x, blocks);
  let own = divide(local, WIDTH); // lane, vec4 of the block
  let at = vec2<u32>(block.x, block.y * WIDTH + own.y);
  // #end
  return vec3<u32>(at, own.x);
}

// Rows of the lane that begins with row `first` of those before `last`.
fn lane_rows(first: u32, last: u32) -> u32 {
  var rows = select(0u, last - first, first < last);
  // #if SHARED
  rows = (rows + LANES - 1u) / LANES;
  // #end
  return rows;
}
