// Cooperative matrices of 16 by 16 on tensor cores, behind wgsl.cuh. A lane's share of a matrix is what `ldmatrix`
// and `mma.m16n8k16` of the PTX manual give it. With g = lane / 4 and t = lane % 4, in the order of the registers:
//   A  two halves each   (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8), and one column further
//   B  two halves each   for columns 0..8, then 8..16:  (2 t, g), (2 t + 8, g), and one row further
//   C  one f32 each      for columns 0..8, then 8..16:  (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
// As on other devices a tile and its lines must begin at multiples of 16 bytes. A host brings its own w_ldmatrix
// and w_mma, and looks at each address through WGSL_TILE.
#pragma once
#if defined(WGSL_HOST) || __CUDA_ARCH__ >= 800
template <class H> struct coop_a { u32 r[4]; };
template <class H> struct coop_b { u32 r[4]; };
struct coop_c { f32 r[8]; };
#ifndef WGSL_HOST
#define WGSL_TILE(at, bytes) (at)
// Four matrices of 8 lines of 8 16-bit floats; lane 8 i + j says where line j of matrix i begins. Each lane gets the elements
// 2 t and 2 t + 1 of line g of each matrix, of their transposes if that is wanted.
template <bool TRANSPOSED> WGSL_FN void w_ldmatrix(u32 (&r)[4], const void* line) {
  u32 at = (u32)__cvta_generic_to_shared(line);
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  }
}
// Adds the product of A and eight columns of B, both of H, to eight columns of C.
template <class H> WGSL_FN void w_mma(f32& c0, f32& c1, f32& c2, f32& c3, const u32 (&a)[4], u32 b0, u32 b1);
#define WGSL_MMA(type) \
  template <> \
  __device__ __forceinline__ void w_mma<type>(f32& c0, f32& c1, f32& c2, f32& c3, const u32 (&a)[4], u32 b0, u32 b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type ".f32 " \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
  }
WGSL_MMA(f16)
WGSL_MMA(bf16)
#endif

// Scalars of a tile's memory, which may be declared as vectors: the stride then counts vectors.
template <class T> struct w_tile {
  static constexpr u32 width = 1;
  typedef T scalar;
};
template <class T> struct w_tile<vec<T, 4>> {
  static constexpr u32 width = 4;
  typedef T scalar;
};

// The four quarters of a tile, the two that lie below each other in memory first (DOWN) or those side by side.
template <bool DOWN, bool TRANSPOSED, class T> WGSL_FN void w_quarters(u32 (&r)[4], const T& corner, u32 stride) {
  const u32 lane = w_lane(), low = lane & 8u, high = lane >> 1 & 8u;
  const u32 line = (lane & 7u) + (DOWN ? low : high), first = DOWN ? high : low;
  auto* at = (const typename w_tile<T>::scalar*)&corner + (line * stride * w_tile<T>::width + first);
  w_ldmatrix<TRANSPOSED>(r, WGSL_TILE(at, 16));
}
template <bool ROWS, class T>
WGSL_FN coop_a<typename w_tile<T>::scalar> w_coop_load_a(const T& corner, u32 stride) {
  coop_a<typename w_tile<T>::scalar> a;
  w_quarters<ROWS, !ROWS>(a.r, corner, stride);
  return a;
}
template <bool ROWS, class T>
WGSL_FN coop_b<typename w_tile<T>::scalar> w_coop_load_b(const T& corner, u32 stride) {
  coop_b<typename w_tile<T>::scalar> b;
  w_quarters<ROWS, ROWS>(b.r, corner, stride);
  return b;
}
template <class H> WGSL_FN coop_c w_coop_multiply_add(coop_a<H> a, coop_b<H> b, coop_c c) {
  w_mma<H>(c.r[0], c.r[1], c.r[2], c.r[3], a.r, b.r[0], b.r[1]);
  w_mma<H>(c.r[4], c.r[5], c.r[6], c.r[7], a.r, b.r[2], b.r[3]);
  return c;
}
template <bool ROWS, class T> WGSL_FN void w_coop_store(coop_c c, T& corner, u32 stride) {
  const u32 lane = w_lane(), row = lane >> 2, column = (lane & 3u) * 2u, step = stride * w_tile<T>::width;
  auto* at = (f32*)&corner;
  for (u32 half = 0; half < 2u; ++half) {
    for (u32 down = 0; down < 2u; ++down) {
      const u32 i = row + down * 8u, j = column + half * 8u;
      const f32 left = c.r[half * 4u + down * 2u], right = c.r[half * 4u + down * 2u + 1u];
      if constexpr (ROWS) {
        *(vec<f32, 2>*)WGSL_TILE(at + (i * step + j), 8) = {left, right};
      } else {
        *WGSL_TILE(at + (j * step + i), 4) = left;
        *WGSL_TILE(at + ((j + 1u) * step + i), 4) = right;
      }
    }
  }
}
#endif
