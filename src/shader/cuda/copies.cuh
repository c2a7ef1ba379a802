// Copies from a bound buffer into shared memory that go on while the thread does, behind wgsl.cuh: 16 bytes each, which
// become zeros where `inside` is false, without a look at the buffer. A thread's copies up to w_copies_commit() are a
// group; w_copies_wait(n) waits for all of its groups but the n newest. What other threads have copied is there after a
// barrier behind their waits. w_copy_near leaves what it copies in the multiprocessor's cache too. A host brings its own.
#pragma once
#if !defined(WGSL_HOST) && __CUDA_ARCH__ >= 800
#define WGSL_COPY(name, cache) \
  template <u32 N, class T> WGSL_FN void name(arr<T, N>& array, u32 to, const T* buffer, u32 from, bool inside) { \
    const u32 at = (u32)__cvta_generic_to_shared(&array.v[to]), bytes = inside ? 16u : 0u; \
    asm volatile("cp.async." cache ".shared.global [%0], [%1], 16, %2;" \
                 ::"r"(at), "l"(buffer + from), "r"(bytes) : "memory"); \
  }
WGSL_COPY(w_copy, "cg")
WGSL_COPY(w_copy_near, "ca")
WGSL_FN void w_copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// The number is a literal of the instruction: a constant by the time that it is inlined.
WGSL_FN void w_copies_wait(u32 newest) {
  switch (newest) {
    case 0u: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1u: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2u: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
  }
}
#endif
