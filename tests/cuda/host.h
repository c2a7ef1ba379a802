// CUDA kernels on a host: makes a C++17 compiler accept the very text that NVRTC gets, and runs it. For tests.
//   threads of a block  one after another where the kernel has no barrier, else fibers switched at __syncthreads
//   order of threads    forward, backward or shuffled: a result that depends on it shows a missing barrier
//   indices             all checked; the first one that is out of bounds ends the dispatch with a message
//   shared memory       filled with NaN before each block
//   blocks              independent; the caller may give ranges of them to several threads of its own
// Not modelled: warps, memory order, time, and fused multiply-add (the host rounds a product before it is added).
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
#define WGSL_POISON(variable) memset((void*)&variable, 0xff, sizeof variable)

// ucontext starts a fiber, _setjmp and _longjmp switch: no system call.
const size_t HOST_THREADS = 1024, HOST_STACK = 64 << 10;
struct host_fiber {
  ucontext_t start;
  jmp_buf here;
  char* stack;
  bool begun, done;
};
static thread_local host_fiber* host_fibers;
static thread_local jmp_buf host_home;
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
static void host_block(unsigned threads, const unsigned* order) {
  if (!host_fibers) host_fibers = (host_fiber*)calloc(HOST_THREADS, sizeof(host_fiber));
  for (unsigned t = 0; t < threads; ++t) {
    host_fiber& f = host_fibers[t];
    if (!f.stack) f.stack = (char*)malloc(HOST_STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack;
    f.start.uc_stack.ss_size = HOST_STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, host_trampoline, 0);
    f.begun = f.done = false;
  }
  // A round for each phase between barriers.
  for (size_t left = threads; left > 0;) {
    size_t ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      unsigned t = order[i];
      if (host_fibers[t].done) continue;
      host_switch(t);
      ended += host_fibers[t].done;
    }
    if (ended && ended != left) host_fail("threads that ended while others wait at a barrier", ended, left);
    left -= ended;
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
  host_at = at;
  host_bytes = bytes;
  if (_setjmp(host_exit)) return host_message;
  for (size_t b = first; b < last; ++b) {
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
// number of its arguments.
#define WGSL_ENTRY(name, X, Y, Z, BARRIERS, COUNT, POINTERS, POISON) \
  static void host_call_##name() { name POINTERS; } \
  static void host_poison_##name() POISON \
  extern "C" const unsigned host_pointers_##name = COUNT; \
  extern "C" const unsigned host_block_##name[3] = {X, Y, Z}; \
  extern "C" const char* host_##name(void* const* at, const size_t* bytes, const unsigned* grid, size_t first, \
                                     size_t last, unsigned order) { \
    return host_run(host_call_##name, host_poison_##name, BARRIERS, {X, Y, Z}, at, bytes, grid, first, last, order); \
  }
