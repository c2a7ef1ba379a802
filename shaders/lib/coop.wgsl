// A product of f16 matrices with f32 sums by cooperative matrices: what does not depend on the
// operands.
// A cooperative matrix lies across the lanes of a subgroup. `coopLoadT` reads one by rows,
// `coopLoad` by columns, `coopStoreT` writes rows; strides count elements of the array, here vec4s.
// On their way out matrices go through workgroup memory, STRIP side by side at a time, where lanes
// find elements again.
// Requires nothing of the importer, but to be imported first.
enable f16;
enable wgpu_cooperative_matrix;
const T: u32 = 16u; // spec: edge of a matrix
const EDGE_8: bool = false; // spec: T is 8, else it is 16
const SG: u32 = 32u; // spec: lanes of a subgroup
const BM: u32 = 64u; // spec: rows of the result per group
const BN: u32 = 64u; // spec: columns per group
const BK: u32 = 32u; // spec: depth of a tile, a multiple of T
const WM: u32 = 32u; // spec: rows per subgroup, a multiple of T that divides BM
const WN: u32 = 32u; // spec: columns per subgroup, a multiple of T that divides BN
const BUFFERS: u32 = 2u; // spec: tiles in workgroup memory; with 1, one barrier more per tile
const SINGLE: bool = false; // spec: BUFFERS is 1

const T4: u32 = T / 4u;
const PAD4: u32 = 2u; // vec4s behind each row of an operand: eight rows start in different banks
const MS: u32 = WM / T; // matrices of a subgroup, down
const NS: u32 = WN / T; // and across
const BESIDE: u32 = BN / WN; // subgroups side by side
const SUBGROUPS: u32 = BM / WM * BESIDE;
const WG: u32 = SUBGROUPS * SG;
const STRIP: u32 = min(NS, 2u);
const STRIPS: u32 = NS / STRIP;
const STRIP4: u32 = STRIP * T4;
const SY: u32 = STRIP4 + 1u; // vec4s from row to row
const PIECES: u32 = (T * STRIP4 + SG - 1u) / SG; // vec4s of a strip per lane

// #if !EDGE_8
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
// #end
// #if EDGE_8
alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;
// #end

// [SUBGROUPS, T, STRIP4], and then, where moments are wanted, [WG, 2]
var<workgroup> sh_y: array<vec4<f32>, max(SUBGROUPS * T * SY, 2u * WG)>;
