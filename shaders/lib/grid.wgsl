// One-dimensional index of an invocation from a grid folded to two axes
// (a grid axis holds at most 65,535 workgroups).
// Requires of the importer: workgroups of WG invocations along x.
const WG: u32 = 64u; // spec
// Quotient and remainder by what is known at run time only: one division, where a compiler may make
// two.
fn divide(i: u32, by: u32) -> vec2<u32> {
  let quotient = i / by;
  return vec2<u32>(quotient, i - quotient * by);
}

fn global_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
  return (group.y * groups.x + group.x) * WG + local;
}
