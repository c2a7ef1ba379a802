// A libcuda.so.1 that runs on the processor, for tests of the device `cuda` without a GPU. Modules are the shared
// objects that the stand-in compiler (compiler.cpp) made of the same CUDA C++.
//
// Strict where a driver is lenient: work waits in its stream until something waits for it, memory starts as NaN,
// and every address must lie in memory that is allocated. Of the kernels of a graph that wait for no other, the one
// that was added last runs first. An error of queued work stays, as in a real context.
//
//   STAND_IN_FAIL=NAME:N:CODE  call N (from 1) of a function returns CODE
//   STAND_IN_COUNTS=FILE       at the end: calls of each function, bytes uploaded, and what was not freed
//   STAND_IN_DRIVER=VERSION    cuDriverGetVersion (13000)
//   STAND_IN_MEMORY=BYTES      of the device (8 GiB)
// stand_in_counts, stand_in_fail: the same for a test in this process.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

typedef int Result;
typedef uint64_t Address;
typedef std::function<Result()> Work;
enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, CAPTURING = 900,
  NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719
};

static std::recursive_mutex lock;
static std::map<std::string, unsigned long> calls;
static std::string fail_name;
static unsigned long fail_nth;
static int fail_code;

static void report();
// Counts a call and says what it must return; 0 to go on.
static Result enter(const char* name) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  static bool first = true;
  if (first) {
    first = false;
    // Before the maps here are destroyed.
    atexit(report);
    if (const char* text = getenv("STAND_IN_FAIL")) {
      char function[64];
      if (sscanf(text, "%63[^:]:%lu:%d", function, &fail_nth, &fail_code) == 3) fail_name = function;
    }
  }
  unsigned long n = ++calls[name];
  return fail_name == name && n == fail_nth ? fail_code : OK;
}
#define API extern "C" __attribute__((visibility("default"))) Result
#define ENTER if (Result failed = enter(__func__)) return failed; std::lock_guard<std::recursive_mutex> guard(lock)

struct Graph;
struct Stream { std::vector<Work> queue; Graph* captured = nullptr; };
struct Event { size_t at = 0; float ms = 0; };
struct Node { Work work; std::vector<size_t> after; float ms = 0; };
struct Graph { std::vector<Node> nodes; };
struct Module { void* library; };
struct Function {
  const char* (*entry)(void* const*, const size_t*, const unsigned*, size_t, size_t, unsigned);
  const unsigned* block;
  unsigned pointers, dynamic, allowed;
};
static std::map<Address, size_t> memory;
static std::set<void*> pinned, streams, events, graphs, execs, modules, functions;
static size_t used = 0, queued = 0, done = 0;
static int retained = 0, context;
static bool edges = true;
// What the device's clock says of a kernel, and of what a library queues.
constexpr float KERNEL_MS = 0.25f, LIBRARY_MS = 0.125f;
static float spent = 0;
static Result sticky = OK;

static size_t capacity() {
  const char* text = getenv("STAND_IN_MEMORY");
  return text ? strtoull(text, nullptr, 10) : 8ull << 30;
}
// Bytes from an address to the end of its allocation.
static size_t room(Address at) {
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return 0;
  --after;
  return at < after->first + after->second ? after->first + after->second - at : 0;
}
static bool is(const std::set<void*>& all, void* one) { return all.count(one) != 0; }
static bool capturing() {
  for (void* s : streams) if (((Stream*)s)->captured) return true;
  return false;
}
static Result put(void* stream, Work work, float ms = 0) {
  if (!is(streams, stream)) return INVALID_VALUE;
  if (Graph* captured = ((Stream*)stream)->captured) {
    Node node{std::move(work), {}, ms};
    if (!captured->nodes.empty()) node.after.push_back(captured->nodes.size() - 1);
    captured->nodes.push_back(std::move(node));
    return OK;
  }
  ((Stream*)stream)->queue.push_back(std::move(work));
  ++queued;
  spent += ms;
  return OK;
}
static float total(const Graph* graph) {
  float ms = 0;
  for (auto& node : graph->nodes) ms += node.ms;
  return ms;
}
static Result drain() {
  if (capturing()) return CAPTURING;
  for (void* s : streams) {
    std::vector<Work> queue = std::move(((Stream*)s)->queue);
    ((Stream*)s)->queue.clear();
    for (Work& work : queue) {
      if (!sticky) sticky = work();
      ++done;
    }
  }
  return sticky;
}

API cuInit(unsigned) { ENTER; return OK; }
API cuDriverGetVersion(int* version) {
  ENTER;
  const char* text = getenv("STAND_IN_DRIVER");
  *version = text ? atoi(text) : 13000;
  return OK;
}
static const char* meaning(Result r) {
  switch (r) {
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    default: return nullptr;
  }
}
API cuGetErrorName(Result r, const char** text) { *text = meaning(r); return OK; }
API cuGetErrorString(Result, const char** text) { *text = "the stand-in says so"; return OK; }
API cuDeviceGetCount(int* n) { ENTER; *n = 1; return OK; }
API cuDeviceGet(int* device, int i) { ENTER; *device = i; return i ? INVALID_DEVICE : OK; }
API cuDeviceGetName(char* text, int n, int) { ENTER; snprintf(text, n, "stand-in"); return OK; }
API cuDeviceTotalMem_v2(size_t* n, int) { ENTER; *n = capacity(); return OK; }
API cuDeviceGetAttribute(int* value, int which, int) {
  ENTER;
  *value = which == 75 ? 9 : which == 76 ? 0 : which == 16 ? 132 : 0;
  return OK;
}
API cuDevicePrimaryCtxRetain(void** c, int) { ENTER; ++retained; *c = &context; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { ENTER; --retained; return OK; }
API cuCtxSetCurrent(void* c) { ENTER; return c == &context ? OK : INVALID_VALUE; }
API cuMemGetInfo_v2(size_t* free, size_t* total) { ENTER; *total = capacity(); *free = *total - used; return OK; }

API cuStreamCreate(void** s, unsigned) { ENTER; *s = new Stream; streams.insert(*s); return OK; }
API cuStreamDestroy_v2(void* s) {
  ENTER;
  if (!streams.erase(s)) return INVALID_VALUE;
  delete (Stream*)s;
  return OK;
}
API cuStreamSynchronize(void* s) { ENTER; return is(streams, s) ? drain() : (Result)INVALID_VALUE; }

API cuEventCreate(void** e, unsigned) { ENTER; *e = new Event; events.insert(*e); return OK; }
API cuEventDestroy_v2(void* e) {
  ENTER;
  if (!events.erase(e)) return INVALID_VALUE;
  delete (Event*)e;
  return OK;
}
API cuEventRecord(void* e, void* s) {
  ENTER;
  if (!is(events, e) || !is(streams, s)) return INVALID_VALUE;
  ((Event*)e)->at = queued;
  ((Event*)e)->ms = spent;
  return sticky;
}
API cuEventQuery(void* e) {
  ENTER;
  if (!is(events, e)) return INVALID_VALUE;
  return sticky ? sticky : done >= ((Event*)e)->at ? (Result)OK : (Result)NOT_READY;
}
API cuEventSynchronize(void* e) { ENTER; return is(events, e) ? drain() : (Result)INVALID_VALUE; }
API cuEventElapsedTime(float* ms, void* a, void* b) {
  ENTER;
  if (!is(events, a) || !is(events, b)) return INVALID_VALUE;
  *ms = ((Event*)b)->ms - ((Event*)a)->ms;
  return done >= ((Event*)a)->at && done >= ((Event*)b)->at ? OK : NOT_READY;
}

API cuMemAlloc_v2(Address* at, size_t n) {
  ENTER;
  if (!n) return INVALID_VALUE;
  if (capturing()) return CAPTURING;
  if (used + n > capacity()) return OUT_OF_MEMORY;
  void* m = aligned_alloc(256, (n + 255) / 256 * 256);
  memset(m, 0xff, n);
  *at = (Address)m;
  memory[*at] = n;
  used += n;
  return OK;
}
API cuMemFree_v2(Address at) {
  ENTER;
  drain();
  auto found = memory.find(at);
  if (found == memory.end()) return INVALID_VALUE;
  used -= found->second;
  memory.erase(found);
  free((void*)at);
  return OK;
}
API cuMemHostAlloc(void** at, size_t n, unsigned) {
  ENTER;
  *at = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  memset(*at, 0xff, n);
  pinned.insert(*at);
  return OK;
}
API cuMemFreeHost(void* at) {
  ENTER;
  drain();
  if (!pinned.erase(at)) return INVALID_VALUE;
  free(at);
  return OK;
}
API cuMemsetD8Async(Address to, unsigned char value, size_t n, void* s) {
  ENTER;
  return put(s, [=] { return room(to) < n ? (Result)ILLEGAL_ADDRESS : (memset((void*)to, value, n), (Result)OK); });
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* s) {
  ENTER;
  calls["uploaded"] += n;
  std::vector<char> copy((const char*)from, (const char*)from + n);
  return put(s, [=] {
    return room(to) < n ? (Result)ILLEGAL_ADDRESS : (memcpy((void*)to, copy.data(), n), (Result)OK);
  });
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* s) {
  ENTER;
  if (!is(pinned, to)) return INVALID_VALUE;
  return put(s, [=] { return room(from) < n ? (Result)ILLEGAL_ADDRESS : (memcpy(to, (void*)from, n), (Result)OK); });
}

// The image is "STAND-IN", its length and a shared object.
API cuModuleLoadData(void** m, const void* image) {
  ENTER;
  if (memcmp(image, "STAND-IN", 8)) return INVALID_IMAGE;
  uint64_t n;
  memcpy(&n, (const char*)image + 8, 8);
  std::string path = std::string(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp") + "/stand-in-XXXXXX";
  int file = mkstemp(&path[0]);
  bool written = file >= 0 && write(file, (const char*)image + 16, n) == (ssize_t)n;
  if (file >= 0) close(file);
  void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  unlink(path.c_str());
  if (!library) return INVALID_IMAGE;
  *m = new Module{library};
  modules.insert(*m);
  return OK;
}
API cuModuleUnload(void* m) {
  ENTER;
  // The object stays: a message may still point into it.
  return modules.erase(m) ? OK : INVALID_VALUE;
}
API cuModuleGetFunction(void** f, void* m, const char* name) {
  ENTER;
  if (!is(modules, m)) return INVALID_VALUE;
  void* library = ((Module*)m)->library;
  std::string n = name;
  auto entry = (decltype(Function::entry))dlsym(library, ("host_" + n).c_str());
  auto block = (const unsigned*)dlsym(library, ("host_block_" + n).c_str());
  auto pointers = (const unsigned*)dlsym(library, ("host_pointers_" + n).c_str());
  auto dynamic = (const unsigned*)dlsym(library, ("host_dynamic_" + n).c_str());
  if (!entry || !block || !pointers || !dynamic) return NOT_FOUND;
  *f = new Function{entry, block, *pointers, *dynamic, 48 << 10};
  functions.insert(*f);
  return OK;
}
API cuFuncSetAttribute(void* fn, int attribute, int value) {
  ENTER;
  // The most that the oldest of the GPUs in question has.
  bool fits = attribute == 8 ? value >= 0 && value <= 99 << 10 : attribute == 9 && value <= 100;
  if (!is(functions, fn) || !fits) return INVALID_VALUE;
  if (attribute == 8) ((Function*)fn)->allowed = value;
  return OK;
}
// What a launch does; its arguments are copied.
static Result launch(Work& work, void* fn, const unsigned* grid, const unsigned* block, unsigned shared, void** parameters) {
  if (!is(functions, fn)) return INVALID_VALUE;
  auto* f = (Function*)fn;
  bool fits = shared == f->dynamic && shared <= f->allowed;
  for (int i = 0; i < 3; ++i) fits = fits && block[i] == f->block[i] && grid[i] && (!i || grid[i] <= 65535);
  if (!fits) return INVALID_VALUE;
  std::vector<void*> at;
  for (unsigned i = 0; i < f->pointers; ++i) at.push_back(*(void**)parameters[i]);
  std::vector<unsigned> groups(grid, grid + 3);
  work = [=]() -> Result {
    std::vector<size_t> bytes;
    for (void* p : at) {
      bytes.push_back(room((Address)p));
      if (!bytes.back()) return ILLEGAL_ADDRESS;
    }
    size_t all = (size_t)groups[0] * groups[1] * groups[2];
    const char* message = f->entry(at.data(), bytes.data(), groups.data(), 0, all, 1);
    if (message) fprintf(stderr, "stand-in: %s\n", message);
    return message ? LAUNCH_FAILED : OK;
  };
  return OK;
}
API cuLaunchKernel(void* fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* s, void** parameters, void**) {
  ENTER;
  unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  Work work;
  if (Result r = launch(work, fn, grid, block, shared, parameters)) return r;
  return put(s, work, KERNEL_MS);
}
API cuGraphCreate(void** g, unsigned flags) {
  ENTER;
  if (flags) return INVALID_VALUE;
  *g = new Graph;
  graphs.insert(*g);
  return OK;
}
// As in cuda.h, CUDA_KERNEL_NODE_PARAMS_v2.
struct Parameters {
  void* function;
  unsigned grid[3], block[3], shared;
  void **arguments, **extra, *kernel, *context;
};
// The handle of a node is its number, from 1.
API cuGraphAddKernelNode_v2(void** node, void* g, void* const* after, size_t count, const Parameters* p) {
  ENTER;
  if (!is(graphs, g) || p->extra || p->kernel || (p->context && p->context != &context)) return INVALID_VALUE;
  auto& nodes = ((Graph*)g)->nodes;
  Node added;
  for (size_t i = 0; i < count; ++i) {
    if (!after[i] || (size_t)after[i] > nodes.size()) return INVALID_VALUE;
    added.after.push_back((size_t)after[i] - 1);
  }
  added.ms = KERNEL_MS;
  if (Result r = launch(added.work, p->function, p->grid, p->block, p->shared, p->arguments)) return r;
  nodes.push_back(std::move(added));
  *node = (void*)nodes.size();
  return OK;
}
// What is queued meanwhile becomes a chain of nodes. The mode is CU_STREAM_CAPTURE_MODE_RELAXED.
API cuStreamBeginCapture_v2(void* s, int mode) {
  ENTER;
  if (!is(streams, s) || mode != 2 || ((Stream*)s)->captured) return INVALID_VALUE;
  ((Stream*)s)->captured = new Graph;
  return OK;
}
API cuStreamEndCapture(void* s, void** g) {
  if (is(streams, s) && ((Stream*)s)->captured) {
    *g = ((Stream*)s)->captured;
    ((Stream*)s)->captured = nullptr;
    graphs.insert(*g);
  }
  ENTER;
  return *g ? OK : INVALID_VALUE;
}
API cuGraphAddChildGraphNode(void** node, void* g, void* const* after, size_t count, void* child) {
  ENTER;
  if (!is(graphs, g) || !is(graphs, child) || ((Graph*)child)->nodes.empty()) return INVALID_VALUE;
  auto& nodes = ((Graph*)g)->nodes;
  Node added;
  for (size_t i = 0; i < count; ++i) {
    if (!after[i] || (size_t)after[i] > nodes.size()) return INVALID_VALUE;
    added.after.push_back((size_t)after[i] - 1);
  }
  added.ms = total((Graph*)child);
  added.work = [parts = ((Graph*)child)->nodes]() -> Result {
    for (auto& part : parts)
      if (Result r = part.work()) return r;
    return OK;
  };
  nodes.push_back(std::move(added));
  *node = (void*)nodes.size();
  return OK;
}
API cuLaunchHostFunc(void* s, void (*function)(void*), void* data) {
  ENTER;
  return put(s, [=]() -> Result { function(data); return OK; }, LIBRARY_MS);
}
// Bytes from an address to the end of its allocation, for the other stand-ins.
extern "C" __attribute__((visibility("default"))) size_t stand_in_room(Address at) { return room(at); }
API cuGraphInstantiateWithFlags(void** e, void* g, uint64_t) {
  ENTER;
  if (!is(graphs, g)) return INVALID_VALUE;
  *e = new Graph(*(Graph*)g);
  execs.insert(*e);
  return OK;
}
API cuGraphLaunch(void* e, void* s) {
  ENTER;
  if (!is(execs, e)) return INVALID_VALUE;
  return put(s, [=]() -> Result {
    auto& nodes = ((Graph*)e)->nodes;
    std::vector<size_t> waits(nodes.size(), 0);
    std::vector<std::vector<size_t>> next(nodes.size());
    std::set<size_t> ready;
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (edges) waits[i] = nodes[i].after.size();
      for (size_t before : nodes[i].after) next[before].push_back(i);
      if (!waits[i]) ready.insert(i);
    }
    while (!ready.empty()) {
      size_t i = *ready.rbegin();
      ready.erase(i);
      if (Result r = nodes[i].work()) return r;
      for (size_t n : next[i])
        if (edges && !--waits[n]) ready.insert(n);
    }
    return OK;
  }, total((Graph*)e));
}
API cuGraphDestroy(void* g) {
  ENTER;
  if (!graphs.erase(g)) return INVALID_VALUE;
  delete (Graph*)g;
  return OK;
}
API cuGraphExecDestroy(void* e) {
  ENTER;
  drain();
  if (!execs.erase(e)) return INVALID_VALUE;
  delete (Graph*)e;
  return OK;
}

// What the real cuDNN looks for and does not call before it runs something: without these it proposes less.
#define UNUSED(name) API name() { return 3; }
UNUSED(cuCtxGetCurrent) UNUSED(cuCtxGetLimit) UNUSED(cuCtxPopCurrent) UNUSED(cuCtxPushCurrent) UNUSED(cuStreamGetCtx) UNUSED(cuLinkCreate)
UNUSED(cuLinkAddData) UNUSED(cuLinkComplete) UNUSED(cuLinkDestroy) UNUSED(cuLaunchCooperativeKernel)
UNUSED(cuLibraryLoadData) UNUSED(cuLibraryLoadFromFile) UNUSED(cuLibraryGetKernel) UNUSED(cuLibraryUnload)
UNUSED(cuKernelSetAttribute) UNUSED(cuKernelGetAttribute) UNUSED(cuKernelGetFunction) UNUSED(cuLaunchKernelEx)
UNUSED(cuOccupancyMaxPotentialClusterSize) UNUSED(cuTensorMapEncodeIm2col) UNUSED(cuTensorMapEncodeTiled)

// `NAME COUNT` a line; `held` is what has not been freed.
static std::string counts() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  std::string text;
  for (auto& [name, n] : calls) text += name + " " + std::to_string(n) + "\n";
  size_t held = memory.size() + pinned.size() + streams.size() + events.size() + graphs.size() + execs.size() +
                modules.size() + (size_t)retained;
  return text + "held " + std::to_string(held) + "\n";
}
extern "C" __attribute__((visibility("default"))) const char* stand_in_counts() {
  static std::string text;
  return (text = counts()).c_str();
}
// Whether kernels of a graph wait for others.
extern "C" __attribute__((visibility("default"))) void stand_in_edges(bool wait) { edges = wait; }
// Forgets counts and errors; call `nth` of `name` then returns `code`.
extern "C" __attribute__((visibility("default"))) void stand_in_fail(const char* name, unsigned long nth, int code) {
  enter("stand_in_fail");
  std::lock_guard<std::recursive_mutex> guard(lock);
  calls.clear();
  sticky = OK;
  fail_name = name;
  fail_nth = nth;
  fail_code = code;
}
static void report() {
  const char* path = getenv("STAND_IN_COUNTS");
  FILE* file = path ? fopen(path, "w") : nullptr;
  if (!file) return;
  fputs(counts().c_str(), file);
  fclose(file);
}
