// WGSL on CUDA C++: the types, operators and functions that translated kernels use. NVRTC reads it, and a C++17
// compiler of a host behind a header that defines WGSL_HOST and the macros below.
//
// Where WGSL's rules and C++'s differ:
//   i32 + - *          wrap; undefined in C++                   through u32
//   x / 0, MIN / -1    are x and MIN; x % 0 and MIN % -1 are 0  w_div, w_rem
//   x << n, x >> n     take n modulo 32; undefined in C++       w_shl, w_shr
//   u32(f), i32(f)     saturate, NaN gives 0                    __float2uint_rz, __float2int_rz
//   min, max of a NaN  either operand                           fminf, fmaxf: the other operand
//   a * b + c          may be fused                             NVRTC's default
//   an index           must be in bounds                        plan::verify; WGSL_INDEX on a host
#pragma once
typedef float f32;
typedef unsigned int u32;
typedef int i32;
#define WGSL_FN static __device__ __forceinline__
#ifndef WGSL_HOST
// A kernel uses few of the functions below.
#pragma nv_diag_suppress 177
#define WGSL_READ(...) const __VA_ARGS__* __restrict__
#define WGSL_WRITE(...) __VA_ARGS__* __restrict__
// Aligned for loads of tiles (coop.cuh).
#define WGSL_SHARED(...) alignas(16) static __shared__ __VA_ARGS__
// Shared memory that the launch brings.
#define WGSL_DYNAMIC(name, bytes) extern __shared__ uint4 name[]
#define WGSL_INDEX(i, n) (i)
// A host's way in: name, block, whether threads meet at barriers, the pointers' number and list, what to poison, the
// launch's shared memory.
#define WGSL_ENTRY(name, x, y, z, barriers, count, pointers, poison, dynamic)
#endif

// Their bits: arithmetic is f32's.
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };
// Conversions of the one or the other: to f32, and from it to the nearest, of two that are as near to the even one.
// `narrow2` makes two in one instruction, the first in the lower half.
template <class H> struct w_half;
#ifndef WGSL_HOST
#define WGSL_MEMBER static __device__ __forceinline__
template <> struct w_half<f16> {
  WGSL_MEMBER f32 widen(unsigned short a) {
    f32 wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(a));
    return wide;
  }
  WGSL_MEMBER unsigned short narrow(f32 a) {
    unsigned short narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(a));
    return narrow;
  }
  WGSL_MEMBER u32 narrow2(f32 a, f32 b) {
#if __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
    return both;
#else
    return narrow(a) | (u32)narrow(b) << 16;
#endif
  }
};
template <> struct w_half<bf16> {
  WGSL_MEMBER f32 widen(unsigned short a) { return __uint_as_float((u32)a << 16); }
  WGSL_MEMBER unsigned short narrow(f32 a) {
#if __CUDA_ARCH__ >= 800
    unsigned short narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(a));
    return narrow;
#else
    const u32 bits = __float_as_uint(a);
    if (a != a) return 0x7fff;
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
  }
  WGSL_MEMBER u32 narrow2(f32 a, f32 b) {
#if __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
    return both;
#else
    return narrow(a) | (u32)narrow(b) << 16;
#endif
  }
};
#endif
WGSL_FN f32 w_widen(f16 a) { return w_half<f16>::widen(a.bits); }
WGSL_FN f32 w_widen(bf16 a) { return w_half<bf16>::widen(a.bits); }

template <class T, int N> struct vec;
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> { T x, y; };
template <class T> struct vec<T, 3> { T x, y, z; };
// Aligned, so that a load or a store is one instruction.
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> { T x, y, z, w; };
// What an H keeps of each.
template <class H> WGSL_FN vec<f32, 4> w_round(vec<f32, 4> a) {
  typedef w_half<H> half;
  const u32 low = half::narrow2(a.x, a.y), high = half::narrow2(a.z, a.w);
  return {half::widen((unsigned short)low), half::widen((unsigned short)(low >> 16)), half::widen((unsigned short)high),
          half::widen((unsigned short)(high >> 16))};
}
// An array that can be copied.
template <class T, u32 N> struct arr {
  T v[N];
  __device__ __forceinline__ T& operator[](u32 i) { return v[WGSL_INDEX(i, N)]; }
  __device__ __forceinline__ const T& operator[](u32 i) const { return v[WGSL_INDEX(i, N)]; }
};

// Components by an index that is not constant, as selects: an address would put the vector into local memory.
template <class T> WGSL_FN T w_get(vec<T, 2> v, u32 i) { return WGSL_INDEX(i, 2u) == 0u ? v.x : v.y; }
template <class T> WGSL_FN T w_get(vec<T, 3> v, u32 i) {
  return WGSL_INDEX(i, 3u) == 0u ? v.x : i == 1u ? v.y : v.z;
}
template <class T> WGSL_FN T w_get(vec<T, 4> v, u32 i) {
  return WGSL_INDEX(i, 4u) == 0u ? v.x : i == 1u ? v.y : i == 2u ? v.z : v.w;
}
template <class T> WGSL_FN void w_set(vec<T, 2>& v, u32 i, T s) {
  if (WGSL_INDEX(i, 2u) == 0u) v.x = s; else v.y = s;
}
template <class T> WGSL_FN void w_set(vec<T, 3>& v, u32 i, T s) {
  if (WGSL_INDEX(i, 3u) == 0u) v.x = s; else if (i == 1u) v.y = s; else v.z = s;
}
template <class T> WGSL_FN void w_set(vec<T, 4>& v, u32 i, T s) {
  if (WGSL_INDEX(i, 4u) == 0u) v.x = s; else if (i == 1u) v.y = s; else if (i == 2u) v.z = s; else v.w = s;
}
template <int A, int B, class V> WGSL_FN auto w_swizzle(V v) -> vec<decltype(v.x), 2> {
  return {w_get(v, A), w_get(v, B)};
}
template <int A, int B, int C, class V> WGSL_FN auto w_swizzle(V v) -> vec<decltype(v.x), 3> {
  return {w_get(v, A), w_get(v, B), w_get(v, C)};
}
template <int A, int B, int C, int D, class V> WGSL_FN auto w_swizzle(V v) -> vec<decltype(v.x), 4> {
  return {w_get(v, A), w_get(v, B), w_get(v, C), w_get(v, D)};
}

// Constructors from scalars and shorter vectors.
template <class T> WGSL_FN vec<T, 2> w_vec2(T a, T b) { return {a, b}; }
template <class T> WGSL_FN vec<T, 2> w_vec2(vec<T, 2> a) { return a; }
template <class T> WGSL_FN vec<T, 3> w_vec3(T a, T b, T c) { return {a, b, c}; }
template <class T> WGSL_FN vec<T, 3> w_vec3(vec<T, 2> a, T c) { return {a.x, a.y, c}; }
template <class T> WGSL_FN vec<T, 3> w_vec3(T a, vec<T, 2> b) { return {a, b.x, b.y}; }
template <class T> WGSL_FN vec<T, 3> w_vec3(vec<T, 3> a) { return a; }
template <class T> WGSL_FN vec<T, 4> w_vec4(T a, T b, T c, T d) { return {a, b, c, d}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(vec<T, 2> a, T c, T d) { return {a.x, a.y, c, d}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(T a, vec<T, 2> b, T d) { return {a, b.x, b.y, d}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(T a, T b, vec<T, 2> c) { return {a, b, c.x, c.y}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(vec<T, 2> a, vec<T, 2> b) { return {a.x, a.y, b.x, b.y}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(vec<T, 3> a, T d) { return {a.x, a.y, a.z, d}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(T a, vec<T, 3> b) { return {a, b.x, b.y, b.z}; }
template <class T> WGSL_FN vec<T, 4> w_vec4(vec<T, 4> a) { return a; }
template <int N, class T> WGSL_FN vec<T, N> w_splat(T s) {
  if constexpr (N == 2) return {s, s};
  else if constexpr (N == 3) return {s, s, s};
  else return {s, s, s, s};
}

// A function of scalars, by component.
#define WGSL_LIFT1(f) \
  template <class T> WGSL_FN auto f(vec<T, 2> a) -> vec<decltype(f(a.x)), 2> { return {f(a.x), f(a.y)}; } \
  template <class T> WGSL_FN auto f(vec<T, 3> a) -> vec<decltype(f(a.x)), 3> { \
    return {f(a.x), f(a.y), f(a.z)}; \
  } \
  template <class T> WGSL_FN auto f(vec<T, 4> a) -> vec<decltype(f(a.x)), 4> { \
    return {f(a.x), f(a.y), f(a.z), f(a.w)}; \
  }
#define WGSL_LIFT2(f) \
  template <class T, class U> WGSL_FN auto f(vec<T, 2> a, vec<U, 2> b) -> vec<decltype(f(a.x, b.x)), 2> { \
    return {f(a.x, b.x), f(a.y, b.y)}; \
  } \
  template <class T, class U> WGSL_FN auto f(vec<T, 3> a, vec<U, 3> b) -> vec<decltype(f(a.x, b.x)), 3> { \
    return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z)}; \
  } \
  template <class T, class U> WGSL_FN auto f(vec<T, 4> a, vec<U, 4> b) -> vec<decltype(f(a.x, b.x)), 4> { \
    return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)}; \
  }
#define WGSL_LIFT3(f) \
  template <class T> WGSL_FN vec<T, 2> f(vec<T, 2> a, vec<T, 2> b, vec<T, 2> c) { \
    return {f(a.x, b.x, c.x), f(a.y, b.y, c.y)}; \
  } \
  template <class T> WGSL_FN vec<T, 3> f(vec<T, 3> a, vec<T, 3> b, vec<T, 3> c) { \
    return {f(a.x, b.x, c.x), f(a.y, b.y, c.y), f(a.z, b.z, c.z)}; \
  } \
  template <class T> WGSL_FN vec<T, 4> f(vec<T, 4> a, vec<T, 4> b, vec<T, 4> c) { \
    return {f(a.x, b.x, c.x), f(a.y, b.y, c.y), f(a.z, b.z, c.z), f(a.w, b.w, c.w)}; \
  }

// Arithmetic.
#define WGSL_ARITHMETIC(f, op) \
  WGSL_FN f32 f(f32 a, f32 b) { return a op b; } \
  WGSL_FN u32 f(u32 a, u32 b) { return a op b; } \
  WGSL_FN i32 f(i32 a, i32 b) { return (i32)((u32)a op (u32)b); } \
  WGSL_LIFT2(f)
WGSL_ARITHMETIC(w_add, +)
WGSL_ARITHMETIC(w_sub, -)
WGSL_ARITHMETIC(w_mul, *)
WGSL_FN f32 w_div(f32 a, f32 b) { return a / b; }
WGSL_FN u32 w_div(u32 a, u32 b) { return b == 0u ? a : a / b; }
WGSL_FN i32 w_div(i32 a, i32 b) { return b == 0 ? a : b == -1 ? (i32)(0u - (u32)a) : a / b; }
WGSL_LIFT2(w_div)
WGSL_FN f32 w_rem(f32 a, f32 b) { return fmodf(a, b); }
WGSL_FN u32 w_rem(u32 a, u32 b) { return b == 0u ? 0u : a % b; }
WGSL_FN i32 w_rem(i32 a, i32 b) { return b == 0 || b == -1 ? 0 : a % b; }
WGSL_LIFT2(w_rem)
WGSL_FN f32 w_neg(f32 a) { return -a; }
WGSL_FN i32 w_neg(i32 a) { return (i32)(0u - (u32)a); }
WGSL_LIFT1(w_neg)

// Bits.
WGSL_FN u32 w_shl(u32 a, u32 n) { return a << (n & 31u); }
WGSL_FN i32 w_shl(i32 a, u32 n) { return (i32)((u32)a << (n & 31u)); }
WGSL_LIFT2(w_shl)
WGSL_FN u32 w_shr(u32 a, u32 n) { return a >> (n & 31u); }
WGSL_FN i32 w_shr(i32 a, u32 n) { return a >> (n & 31u); }
WGSL_LIFT2(w_shr)
#define WGSL_BITS(f, op) \
  WGSL_FN u32 f(u32 a, u32 b) { return a op b; } \
  WGSL_FN i32 f(i32 a, i32 b) { return a op b; } \
  WGSL_FN bool f(bool a, bool b) { return a op b; } \
  WGSL_LIFT2(f)
WGSL_BITS(w_and, &)
WGSL_BITS(w_or, |)
WGSL_BITS(w_xor, ^)
WGSL_FN u32 w_inv(u32 a) { return ~a; }
WGSL_FN i32 w_inv(i32 a) { return ~a; }
WGSL_LIFT1(w_inv)

// Comparison and selection.
#define WGSL_COMPARE(f, op) \
  WGSL_FN bool f(f32 a, f32 b) { return a op b; } \
  WGSL_FN bool f(u32 a, u32 b) { return a op b; } \
  WGSL_FN bool f(i32 a, i32 b) { return a op b; } \
  WGSL_FN bool f(bool a, bool b) { return a op b; } \
  WGSL_LIFT2(f)
WGSL_COMPARE(w_eq, ==)
WGSL_COMPARE(w_ne, !=)
WGSL_COMPARE(w_lt, <)
WGSL_COMPARE(w_le, <=)
WGSL_COMPARE(w_gt, >)
WGSL_COMPARE(w_ge, >=)
WGSL_FN bool w_not(bool a) { return !a; }
WGSL_LIFT1(w_not)
WGSL_FN bool w_all(bool a) { return a; }
WGSL_FN bool w_all(vec<bool, 2> a) { return a.x && a.y; }
WGSL_FN bool w_all(vec<bool, 3> a) { return a.x && a.y && a.z; }
WGSL_FN bool w_all(vec<bool, 4> a) { return a.x && a.y && a.z && a.w; }
WGSL_FN bool w_any(bool a) { return a; }
WGSL_FN bool w_any(vec<bool, 2> a) { return a.x || a.y; }
WGSL_FN bool w_any(vec<bool, 3> a) { return a.x || a.y || a.z; }
WGSL_FN bool w_any(vec<bool, 4> a) { return a.x || a.y || a.z || a.w; }
template <class T> WGSL_FN vec<T, 2> w_select(vec<bool, 2> c, vec<T, 2> a, vec<T, 2> b) {
  return {c.x ? a.x : b.x, c.y ? a.y : b.y};
}
template <class T> WGSL_FN vec<T, 3> w_select(vec<bool, 3> c, vec<T, 3> a, vec<T, 3> b) {
  return {c.x ? a.x : b.x, c.y ? a.y : b.y, c.z ? a.z : b.z};
}
template <class T> WGSL_FN vec<T, 4> w_select(vec<bool, 4> c, vec<T, 4> a, vec<T, 4> b) {
  return {c.x ? a.x : b.x, c.y ? a.y : b.y, c.z ? a.z : b.z, c.w ? a.w : b.w};
}

// Functions.
WGSL_FN f32 w_abs(f32 a) { return fabsf(a); }
WGSL_FN i32 w_abs(i32 a) { return a < 0 ? w_neg(a) : a; }
WGSL_LIFT1(w_abs)
WGSL_FN f32 w_min(f32 a, f32 b) { return fminf(a, b); }
WGSL_FN u32 w_min(u32 a, u32 b) { return b < a ? b : a; }
WGSL_FN i32 w_min(i32 a, i32 b) { return b < a ? b : a; }
WGSL_LIFT2(w_min)
WGSL_FN f32 w_max(f32 a, f32 b) { return fmaxf(a, b); }
WGSL_FN u32 w_max(u32 a, u32 b) { return a < b ? b : a; }
WGSL_FN i32 w_max(i32 a, i32 b) { return a < b ? b : a; }
WGSL_LIFT2(w_max)
template <class T> WGSL_FN T w_clamp(T e, T low, T high) { return w_min(w_max(e, low), high); }
#define WGSL_UNARY(f, call) WGSL_FN f32 f(f32 a) { return call; } WGSL_LIFT1(f)
WGSL_UNARY(w_floor, floorf(a))
WGSL_UNARY(w_ceil, ceilf(a))
WGSL_UNARY(w_trunc, truncf(a))
WGSL_UNARY(w_round, rintf(a))
WGSL_UNARY(w_fract, a - floorf(a))
WGSL_UNARY(w_exp, expf(a))
WGSL_UNARY(w_exp2, exp2f(a))
WGSL_UNARY(w_log, logf(a))
WGSL_UNARY(w_log2, log2f(a))
WGSL_UNARY(w_sqrt, sqrtf(a))
WGSL_UNARY(w_rsqrt, 1.0f / sqrtf(a))
WGSL_UNARY(w_sin, sinf(a))
WGSL_UNARY(w_cos, cosf(a))
WGSL_UNARY(w_tanh, tanhf(a))
WGSL_FN f32 w_pow(f32 a, f32 b) { return powf(a, b); }
WGSL_LIFT2(w_pow)
WGSL_FN f32 w_fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
WGSL_LIFT3(w_fma)
WGSL_FN f32 w_mix(f32 a, f32 b, f32 t) { return a * (1.0f - t) + b * t; }
WGSL_LIFT3(w_mix)
WGSL_FN f32 w_dot(vec<f32, 2> a, vec<f32, 2> b) { return a.x * b.x + a.y * b.y; }
WGSL_FN f32 w_dot(vec<f32, 3> a, vec<f32, 3> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
WGSL_FN f32 w_dot(vec<f32, 4> a, vec<f32, 4> b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
WGSL_FN vec<f32, 4> w_unpack4x8unorm(u32 p) {
  return {(f32)(p & 255u) / 255.0f, (f32)(p >> 8 & 255u) / 255.0f, (f32)(p >> 16 & 255u) / 255.0f,
          (f32)(p >> 24) / 255.0f};
}

// Conversions of value, and of bits.
template <class To> struct w_to;
template <> struct w_to<f32> {
  static __device__ __forceinline__ f32 cast(f16 a) { return w_widen(a); }
  static __device__ __forceinline__ f32 cast(bf16 a) { return w_widen(a); }
  static __device__ __forceinline__ f32 cast(f32 a) { return a; }
  static __device__ __forceinline__ f32 cast(u32 a) { return (f32)a; }
  static __device__ __forceinline__ f32 cast(i32 a) { return (f32)a; }
  static __device__ __forceinline__ f32 cast(bool a) { return a ? 1.0f : 0.0f; }
  static __device__ __forceinline__ f32 bits(u32 a) { return __uint_as_float(a); }
  static __device__ __forceinline__ f32 bits(i32 a) { return __uint_as_float((u32)a); }
  static __device__ __forceinline__ f32 bits(f32 a) { return a; }
};
template <> struct w_to<u32> {
  static __device__ __forceinline__ u32 cast(f16 a) { return __float2uint_rz(w_widen(a)); }
  static __device__ __forceinline__ u32 cast(bf16 a) { return __float2uint_rz(w_widen(a)); }
  static __device__ __forceinline__ u32 cast(f32 a) { return __float2uint_rz(a); }
  static __device__ __forceinline__ u32 cast(u32 a) { return a; }
  static __device__ __forceinline__ u32 cast(i32 a) { return (u32)a; }
  static __device__ __forceinline__ u32 cast(bool a) { return a ? 1u : 0u; }
  static __device__ __forceinline__ u32 bits(f32 a) { return __float_as_uint(a); }
  static __device__ __forceinline__ u32 bits(i32 a) { return (u32)a; }
  static __device__ __forceinline__ u32 bits(u32 a) { return a; }
};
template <> struct w_to<i32> {
  static __device__ __forceinline__ i32 cast(f16 a) { return __float2int_rz(w_widen(a)); }
  static __device__ __forceinline__ i32 cast(bf16 a) { return __float2int_rz(w_widen(a)); }
  static __device__ __forceinline__ i32 cast(f32 a) { return __float2int_rz(a); }
  static __device__ __forceinline__ i32 cast(u32 a) { return (i32)a; }
  static __device__ __forceinline__ i32 cast(i32 a) { return a; }
  static __device__ __forceinline__ i32 cast(bool a) { return a ? 1 : 0; }
  static __device__ __forceinline__ i32 bits(f32 a) { return (i32)__float_as_uint(a); }
  static __device__ __forceinline__ i32 bits(u32 a) { return (i32)a; }
  static __device__ __forceinline__ i32 bits(i32 a) { return a; }
};
template <class H> struct w_to_half {
  static __device__ __forceinline__ H cast(H a) { return a; }
  static __device__ __forceinline__ H cast(f32 a) { return {w_half<H>::narrow(a)}; }
  // Exact up to 2^24. All beyond 65520 are infinite as f16; of bf16 no kernel converts larger ones.
  static __device__ __forceinline__ H cast(u32 a) { return cast((f32)a); }
  static __device__ __forceinline__ H cast(i32 a) { return cast((f32)a); }
  static __device__ __forceinline__ H cast(bool a) { return cast(a ? 1.0f : 0.0f); }
};
template <> struct w_to<f16> : w_to_half<f16> {};
template <> struct w_to<bf16> : w_to_half<bf16> {};
template <> struct w_to<bool> {
  static __device__ __forceinline__ bool cast(f16 a) { return w_widen(a) != 0.0f; }
  static __device__ __forceinline__ bool cast(bf16 a) { return w_widen(a) != 0.0f; }
  template <class T> static __device__ __forceinline__ bool cast(T a) { return a != T(0); }
};
template <class T> constexpr bool w_is_half = false;
template <> constexpr bool w_is_half<f16> = true;
template <> constexpr bool w_is_half<bf16> = true;
template <class To, class T> WGSL_FN To w_cast(T a) { return w_to<To>::cast(a); }
template <class To, class T> WGSL_FN vec<To, 2> w_cast(vec<T, 2> a) {
  return {w_cast<To>(a.x), w_cast<To>(a.y)};
}
template <class To, class T> WGSL_FN vec<To, 3> w_cast(vec<T, 3> a) {
  return {w_cast<To>(a.x), w_cast<To>(a.y), w_cast<To>(a.z)};
}
template <class To, class T> WGSL_FN vec<To, 4> w_cast(vec<T, 4> a) {
  return {w_cast<To>(a.x), w_cast<To>(a.y), w_cast<To>(a.z), w_cast<To>(a.w)};
}
template <class To> WGSL_FN vec<To, 4> w_cast(vec<f32, 4> a) {
  if constexpr (w_is_half<To>) {
    const u32 low = w_half<To>::narrow2(a.x, a.y), high = w_half<To>::narrow2(a.z, a.w);
    return {{(unsigned short)low}, {(unsigned short)(low >> 16)}, {(unsigned short)high},
            {(unsigned short)(high >> 16)}};
  } else {
    return {w_cast<To>(a.x), w_cast<To>(a.y), w_cast<To>(a.z), w_cast<To>(a.w)};
  }
}
template <class To, class T> WGSL_FN To w_bitcast(T a) { return w_to<To>::bits(a); }
template <class To, class T> WGSL_FN vec<To, 2> w_bitcast(vec<T, 2> a) {
  return {w_bitcast<To>(a.x), w_bitcast<To>(a.y)};
}
template <class To, class T> WGSL_FN vec<To, 3> w_bitcast(vec<T, 3> a) {
  return {w_bitcast<To>(a.x), w_bitcast<To>(a.y), w_bitcast<To>(a.z)};
}
template <class To, class T> WGSL_FN vec<To, 4> w_bitcast(vec<T, 4> a) {
  return {w_bitcast<To>(a.x), w_bitcast<To>(a.y), w_bitcast<To>(a.z), w_bitcast<To>(a.w)};
}

// Subgroups, which are warps.
#ifndef WGSL_HOST
WGSL_FN u32 w_lane() {
  u32 lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
WGSL_FN u32 w_gather(u32 bits, u32 lane) { return __shfl_sync(0xffffffffu, bits, (int)lane); }
#endif
template <class T> WGSL_FN T w_shuffle(T a, u32 lane) {
  return w_bitcast<T>(w_gather(w_bitcast<u32>(a), lane));
}
template <class T> WGSL_FN vec<T, 4> w_shuffle(vec<T, 4> a, u32 lane) {
  return {w_shuffle(a.x, lane), w_shuffle(a.y, lane), w_shuffle(a.z, lane), w_shuffle(a.w, lane)};
}

// Built-in values.
WGSL_FN vec<u32, 3> w_workgroup_id() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
WGSL_FN vec<u32, 3> w_num_workgroups() { return {gridDim.x, gridDim.y, gridDim.z}; }
WGSL_FN vec<u32, 3> w_local_invocation_id() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
WGSL_FN u32 w_local_invocation_index() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
WGSL_FN u32 w_subgroup_id() { return w_local_invocation_index() / 32u; }
WGSL_FN vec<u32, 3> w_global_invocation_id() {
  return {blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
          blockIdx.z * blockDim.z + threadIdx.z};
}
