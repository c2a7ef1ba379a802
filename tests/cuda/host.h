// CUDA kernels on a host: makes a C++17 compiler accept the very text that NVRTC gets, and runs it. For tests.
//   threads of a block  one after another where the kernel has no barrier, else fibers switched at __syncthreads
//   order of threads    forward, backward or shuffled: a result that depends on it shows a missing barrier
//   indices             all checked; the first one that is out of bounds ends the dispatch with a message
//   shared memory       filled with NaN before each block
//   copies              of cp.async are done as late, or as early, as its rules allow
//   warps               32 lanes meet at shuffles, ldmatrix and mma, which follow the figures of the PTX manual
//   blocks              independent; the caller may give ranges of them to several threads of its own
// Not modelled: lanes in lockstep elsewhere, memory order, time, and fused multiply-add (the host rounds a product before it is added).
// No header of the C++ library: a kernel compiles in a fraction of the time.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#define WGSL_HOST 1
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct host_dim3 { unsigned x, y, z; };
static thread_local host_dim3 blockIdx, threadIdx, gridDim, blockDim;

static inline unsigned __float2uint_rz(float a) {
  return !(a > 0.0f) ? 0u : a >= 4294967296.0f ? 4294967295u : (unsigned)a;
}
static inline int __float2int_rz(float a) {
  return a != a ? 0 : a >= 2147483648.0f ? 2147483647 : a < -2147483648.0f ? -2147483647 - 1 : (int)a;
}
static inline unsigned __float_as_uint(float a) { unsigned u; memcpy(&u, &a, 4); return u; }
static inline float __uint_as_float(unsigned a) { float f; memcpy(&f, &a, 4); return f; }

// 2^e, and the exponent of a number's leading digit: of doubles that are far from their own limits.
static inline double host_power(int e) {
  unsigned long long bits = (unsigned long long)(1023 + e) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return power;
}
static inline int host_exponent(double a) {
  unsigned long long bits;
  memcpy(&bits, &a, 8);
  return (int)(bits >> 52 & 0x7ff) - 1023;
}

// 16-bit floats by the definition of IEEE 754, of their bits: of so many digits behind the leading one, and with an
// exponent that is at least LEAST and counts from there.
template <int DIGITS, int LEAST> struct host_half {
  static const unsigned one = 1u << DIGITS, infinity = 0x7fff & ~(one - 1);
  static float widen(unsigned short a) {
    unsigned sign = (unsigned)(a & 0x8000) << 16, size = a & 0x7fff, exponent = size / one, units = size % one;
    if (size >= infinity) return __uint_as_float(sign | 0x7f800000 | units << (23 - DIGITS));
    // What is not subnormal has a leading one.
    double wide = exponent ? (one + units) * host_power((int)exponent - 1 + LEAST - DIGITS)
                           : units * host_power(LEAST - DIGITS);
    return (float)(sign ? -wide : wide);
  }
  static unsigned short narrow(float a) {
    unsigned sign = __float_as_uint(a) >> 16 & 0x8000;
    double size = fabs((double)a);
    if (a != a) return 0x7fff;
    if (isinf(a)) return (unsigned short)(sign | infinity);
    int exponent = host_exponent(size) > LEAST ? host_exponent(size) : LEAST;
    // In units of the last place, which double holds exactly; rint rounds to the even one of two.
    unsigned units = (unsigned)rint(size * host_power(DIGITS - exponent));
    // A carry goes into the exponent, as does the leading one of what is not subnormal.
    unsigned bits = (unsigned)(exponent - LEAST) * one + units;
    return (unsigned short)(sign | (bits < infinity ? bits : infinity));
  }
  static unsigned narrow2(float a, float b) { return narrow(a) | (unsigned)narrow(b) << 16; }
};
struct f16;
struct bf16;
template <class H> struct w_half;
template <> struct w_half<f16> : host_half<10, -14> {};
template <> struct w_half<bf16> : host_half<7, -126> {};

// Way out of a dispatch that does something wrong. Kernels hold nothing that a jump would leak.
static thread_local jmp_buf host_exit;
static thread_local char host_message[160];
[[noreturn]] static void host_fail(const char* what, size_t i, size_t n) {
  snprintf(host_message, sizeof host_message, "%s: %zu of %zu in block %u %u %u, thread %u %u %u", what, i, n,
           blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  _longjmp(host_exit, 1);
}
static inline unsigned host_index(unsigned i, size_t n) {
  if (i >= n) host_fail("index out of bounds", i, n);
  return i;
}
#define WGSL_INDEX(i, n) host_index(i, n)

// A bound range; T may be const.
template <class T> struct host_buffer {
  T* at;
  size_t n;
  T& operator[](unsigned i) const { return at[host_index(i, n)]; }
  T& operator*() const { return at[host_index(0, n)]; }
};
struct host_binding {
  void* at;
  size_t bytes;
  template <class T> operator host_buffer<T>() const { return {(T*)at, bytes / sizeof(T)}; }
};
static thread_local void* const* host_at;
static thread_local const size_t* host_bytes;
#define WGSL_READ(...) const host_buffer<const __VA_ARGS__>
#define WGSL_WRITE(...) const host_buffer<__VA_ARGS__>
#define WGSL_AT(i) host_binding{host_at[i], host_bytes[i]}
#define WGSL_SHARED(...) static thread_local __VA_ARGS__
#define WGSL_DYNAMIC(name, bytes) alignas(16) static thread_local char name[bytes]
#define WGSL_POISON(variable) host_poison((void*)&variable, sizeof variable)
#define WGSL_TILE(at, bytes) host_tile(at, bytes)

// The shared variables of the kernel that runs.
static thread_local struct { char* at; size_t bytes; } host_shared[64];
static thread_local unsigned host_shared_count;
static inline void host_poison(void* at, size_t bytes) {
  memset(at, 0xff, bytes);
  if (host_shared_count < 64) host_shared[host_shared_count++] = {(char*)at, bytes};
}
// An address that an instruction takes `bytes` from.
template <class T> static T* host_tile(T* at, size_t bytes) {
  if ((size_t)at % bytes) host_fail("a tile that is not aligned", (size_t)at % bytes, bytes);
  for (unsigned i = 0; i < host_shared_count; ++i) {
    char* first = host_shared[i].at;
    if ((char*)at >= first && (char*)at + bytes <= first + host_shared[i].bytes) return at;
  }
  host_fail("a tile beyond shared memory", 0, bytes);
}

// ucontext starts a fiber, _setjmp and _longjmp switch: no system call.
const size_t HOST_THREADS = 1024, HOST_STACK = 64 << 10;
struct host_fiber {
  ucontext_t start;
  jmp_buf here;
  char* stack;
  bool begun, done;
  // Instructions of its warp so far, and whether it waits for lanes that have not come to the last one yet.
  unsigned turn;
  bool meets;
};
// What the lanes of a warp bring to an instruction. A lane may be at the next one while others are at this one.
struct host_lane {
  const void* line;
  unsigned a[4], b[2];
};
struct host_warp {
  host_lane lanes[2][32];
  unsigned come[2];
  char what[2];
};
static thread_local host_fiber* host_fibers;
static thread_local jmp_buf host_home;
static thread_local host_warp host_warps[HOST_THREADS / 32];
static thread_local unsigned host_now;
static thread_local void (*host_call)();

static void host_trampoline() {
  host_call();
  host_fibers[host_now].done = true;
  _longjmp(host_home, 1);
}
static __attribute__((noinline, unused)) void __syncthreads() {
  if (!_setjmp(host_fibers[host_now].here)) _longjmp(host_home, 1);
}
static void host_set_thread(unsigned t) {
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}
// Runs a fiber up to its next barrier or its end.
static __attribute__((noinline)) void host_switch(unsigned t) {
  if (_setjmp(host_home)) return;
  host_now = t;
  host_set_thread(t);
  if (host_fibers[t].begun) _longjmp(host_fibers[t].here, 1);
  host_fibers[t].begun = true;
  setcontext(&host_fibers[t].start);
}
static inline unsigned w_lane() { return host_now % 32; }
// Waits until all lanes are at the same instruction; what each brings to it.
static __attribute__((noinline, unused)) const host_lane* host_meet(char what, const host_lane& mine) {
  host_fiber& f = host_fibers[host_now];
  host_warp& warp = host_warps[host_now / 32];
  unsigned turn = f.turn++ % 2;
  if (warp.come[turn]++ == 0) warp.what[turn] = what;
  if (warp.what[turn] != what) host_fail("lanes of a warp at different instructions", what, warp.what[turn]);
  warp.lanes[turn][w_lane()] = mine;
  f.meets = true;
  if (!_setjmp(f.here)) _longjmp(host_home, 1);
  return host_warps[host_now / 32].lanes[turn];
}
static inline unsigned w_gather(unsigned bits, unsigned lane) {
  const host_lane* lanes = host_meet('g', {nullptr, {bits}, {}});
  return lanes[host_index(lane, 32)].a[0];
}
template <bool TRANSPOSED> static void w_ldmatrix(unsigned (&r)[4], const void* line) {
  const host_lane* lanes = host_meet('l', {line, {}, {}});
  for (unsigned i = 0; i < 4; ++i) {
    unsigned short two[2];
    for (unsigned e = 0; e < 2; ++e) {
      unsigned row = w_lane() / 4, column = w_lane() % 4 * 2 + e;
      if (TRANSPOSED) { unsigned other = row; row = column; column = other; }
      two[e] = ((const unsigned short*)lanes[i * 8 + row].line)[column];
    }
    r[i] = two[0] | (unsigned)two[1] << 16;
  }
}
// Element `e` of a register of two.
template <class H> static float host_element(unsigned r, unsigned e) {
  return w_half<H>::widen((unsigned short)(r >> e * 16));
}
// 16x8 of C += 16x16 of A times 16x8 of B.
template <class H>
static void w_mma(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const host_lane* lanes = host_meet('m', {nullptr, {a[0], a[1], a[2], a[3]}, {b0, b1}});
  float* c[4] = {&c0, &c1, &c2, &c3};
  for (unsigned i = 0; i < 4; ++i) {
    unsigned row = w_lane() / 4 + (i < 2 ? 0 : 8), column = w_lane() % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      unsigned ra = (row < 8 ? 0 : 1) + (k < 8 ? 0 : 2), rb = k < 8 ? 0 : 1;
      *c[i] += host_element<H>(lanes[row % 8 * 4 + k % 8 / 2].a[ra], k % 2) *
               host_element<H>(lanes[column * 4 + k % 8 / 2].b[rb], k % 2);
    }
  }
}
// Runs the lanes of a warp as long as all of them come to an instruction; how many ended.
static size_t host_go_on(unsigned t, unsigned threads, const unsigned* order) {
  size_t ended = 0;
  for (unsigned turn; (turn = (host_fibers[t].turn + 1) % 2), host_warps[t / 32].come[turn] == 32;) {
    host_warps[t / 32].come[turn] = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (order[i] / 32 != t / 32) continue;
      host_fibers[order[i]].meets = false;
      host_switch(order[i]);
      ended += host_fibers[order[i]].done;
    }
  }
  return ended;
}
// Copies to shared memory that go on while their thread does. They are done as late as its waits allow or, where threads
// go backward, at once: a stage that is read before it is there shows by the former, one that is filled while others
// still read it by the latter.
const unsigned HOST_COPIES = 256, HOST_PIECE = 16;
struct host_copy {
  char* to;
  const char* from;  // null: zeros
  unsigned group;
};
struct host_queue {
  host_copy copies[HOST_COPIES];
  unsigned first, count, group;
};
static thread_local host_queue* host_queues;
static thread_local bool host_early;
static void host_copy_now(const host_copy& c) {
  if (c.from) memcpy(c.to, c.from, HOST_PIECE);
  else memset(c.to, 0, HOST_PIECE);
}
template <class T, unsigned N> struct arr;
template <class T, unsigned N>
static void w_copy(arr<T, N>& array, unsigned to, const host_buffer<const T>& buffer, unsigned from, bool inside) {
  const unsigned elements = HOST_PIECE / sizeof(T);
  host_index(to + elements - 1, N);
  host_tile(&array.v[to], HOST_PIECE);
  host_copy copy = {(char*)&array.v[to], nullptr, 0};
  if (inside) {
    host_index(from + elements - 1, buffer.n);
    copy.from = (const char*)(buffer.at + from);
    if ((size_t)copy.from % HOST_PIECE) host_fail("a copy that is not aligned", (size_t)copy.from % HOST_PIECE, HOST_PIECE);
  }
  if (host_early) return host_copy_now(copy);
  host_queue& queue = host_queues[host_now];
  if (queue.count == HOST_COPIES) host_fail("copies under way", queue.count, HOST_COPIES);
  copy.group = queue.group;
  queue.copies[(queue.first + queue.count++) % HOST_COPIES] = copy;
}
template <class T, unsigned N>
static void w_copy_near(arr<T, N>& array, unsigned to, const host_buffer<const T>& buffer, unsigned from, bool inside) {
  w_copy(array, to, buffer, from, inside);
}
static __attribute__((unused)) void w_copies_commit() { ++host_queues[host_now].group; }
static __attribute__((unused)) void w_copies_wait(unsigned newest) {
  host_queue& queue = host_queues[host_now];
  // Groups are counted from 0; one that is open is not waited for.
  while (queue.count && queue.copies[queue.first].group + newest < queue.group) {
    host_copy_now(queue.copies[queue.first]);
    queue.first = (queue.first + 1) % HOST_COPIES;
    --queue.count;
  }
}
static void host_block(unsigned threads, const unsigned* order) {
  if (!host_fibers) host_fibers = (host_fiber*)calloc(HOST_THREADS, sizeof(host_fiber));
  if (!host_queues) host_queues = (host_queue*)calloc(HOST_THREADS, sizeof(host_queue));
  for (unsigned t = 0; t < threads; ++t) host_queues[t].first = host_queues[t].count = host_queues[t].group = 0;
  for (unsigned t = 0; t < threads; ++t) {
    host_fiber& f = host_fibers[t];
    if (!f.stack) f.stack = (char*)malloc(HOST_STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack;
    f.start.uc_stack.ss_size = HOST_STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, host_trampoline, 0);
    f.begun = f.done = f.meets = false;
    f.turn = 0;
  }
  memset(host_warps, 0, sizeof host_warps);
  // A round for each phase between barriers.
  for (size_t left = threads; left > 0;) {
    size_t ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      unsigned t = order[i];
      if (host_fibers[t].done) continue;
      host_switch(t);
      ended += host_fibers[t].done + host_go_on(t, threads, order);
    }
    size_t meet = 0;
    for (unsigned t = 0; t < threads; ++t) meet += host_fibers[t].meets;
    if (meet) host_fail("lanes that wait for others of their warp", meet, left);
    if (ended && ended != left) host_fail("threads that ended while others wait at a barrier", ended, left);
    left -= ended;
  }
  for (unsigned t = 0; t < threads; ++t) {
    if (host_queues[t].count) host_fail("copies that nobody waits for", host_queues[t].count, 0);
  }
}

// Runs blocks `first..last` of a grid. Order 0 is forward, 1 backward, any other the seed of a shuffle.
static const char* host_run(void (*call)(), void (*poison)(), bool barriers, host_dim3 block, void* const* at,
                            const size_t* bytes, const unsigned* grid, size_t first, size_t last, unsigned order) {
  unsigned threads = block.x * block.y * block.z, ids[HOST_THREADS];
  if (threads > HOST_THREADS) return "a block of more than 1024 threads";
  for (unsigned i = 0; i < threads; ++i) ids[i] = order == 1 ? threads - 1 - i : i;
  unsigned long long state = order;
  for (unsigned i = threads; order > 1 && i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    unsigned j = (unsigned)((state >> 33) % i), swapped = ids[i - 1];
    ids[i - 1] = ids[j];
    ids[j] = swapped;
  }
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = block;
  host_call = call;
  host_early = order == 1;
  host_at = at;
  host_bytes = bytes;
  if (_setjmp(host_exit)) return host_message;
  for (size_t b = first; b < last; ++b) {
    host_shared_count = 0;
    blockIdx = {(unsigned)(b % grid[0]), (unsigned)(b / grid[0] % grid[1]), (unsigned)(b / grid[0] / grid[1])};
    poison();
    if (barriers) {
      host_block(threads, ids);
    } else {
      for (unsigned i = 0; i < threads; ++i) {
        host_set_thread(ids[i]);
        call();
      }
    }
  }
  return nullptr;
}

// `host_NAME` runs the kernel and says what went wrong, `host_block_NAME` is its block, `host_pointers_NAME` the
// number of its arguments, `host_dynamic_NAME` the bytes of shared memory that its launch brings.
#define WGSL_ENTRY(name, X, Y, Z, BARRIERS, COUNT, POINTERS, POISON, DYNAMIC) \
  static void host_call_##name() { name POINTERS; } \
  static void host_poison_##name() POISON \
  extern "C" const unsigned host_pointers_##name = COUNT; \
  extern "C" const unsigned host_dynamic_##name = DYNAMIC; \
  extern "C" const unsigned host_block_##name[3] = {X, Y, Z}; \
  extern "C" const char* host_##name(void* const* at, const size_t* bytes, const unsigned* grid, size_t first, \
                                     size_t last, unsigned order) { \
    return host_run(host_call_##name, host_poison_##name, BARRIERS, {X, Y, Z}, at, bytes, grid, first, last, order); \
  }
