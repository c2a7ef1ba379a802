// A libcudnn.so.9 that computes on the processor, for tests of the device `cuda` without a GPU: descriptors, heuristics
// and plans of the graph API as far as convolutions with pointwise tails need them. What is executed is queued on the
// stand-in driver's stream (driver.cpp) as a host function, so that it can be captured.
//
// Strict where the library is lenient: attributes have their one type, a finished descriptor takes nothing more, an
// unfinished one is of no use, and every address must lie in memory that is allocated.
//
// Of what it proposes, 0 sums in no order, 1 uses tensor cores, 2 wants 1 GiB, 3 cannot be made ready, 4 to 7 compute.
//
// Behind `library.h`. stand_in_cudnn(WRONG, NAME, N, STATUS): engine WRONG leaves out a tap; call N (from 1) of a function
// returns STATUS. Engine WRONG - 100 writes a float behind the gradients of weights, engine WRONG - 200 leaves out a tap from its
// execution N + 1 on. STAND_IN_CUDNN=WRONG from the start.
enum { BAD_PARAM = 2000, NOT_SUPPORTED = 3000, EXECUTION_FAILED = 5000 };
enum { POINTWISE, CONVOLUTION, ENGINE, CONFIG, HEURISTICS, PLAN, FORWARD = 10, FILTER, DATA, TAIL, GRAPH = 15, PACK, TENSOR };
enum { NO_ORDER, TENSOR_CORES, HUGE, UNREADY, PROPOSALS = 8 };

static unsigned long executed;
static const bool from_the_start = getenv("STAND_IN_CUDNN") && ((wrong = atoi(getenv("STAND_IN_CUDNN"))), true);

static int refuse(int status, const char* why) { last = why; return status; }

struct Descriptor {
  int kind;
  bool finished = false;
  std::map<int, std::vector<char>> attributes;
  int engine = -1;            // of an engine, a configuration, a plan
  Descriptor* graph = nullptr;
  template <class T> std::vector<T> all(int name) const {
    auto found = attributes.find(name);
    if (found == attributes.end()) return {};
    const T* first = (const T*)found->second.data();
    return std::vector<T>(first, first + found->second.size() / sizeof(T));
  }
  template <class T> T one(int name, T none = T()) const { auto v = all<T>(name); return v.size() ? v[0] : none; }
};
struct Handle { void* stream = nullptr; };

static size_t size_of(int type) {
  switch (type) {
    case 2: case 24: return 1;
    case 1: case 4: case 7: case 8: case 10: case 11: case 14: case 19: return 4;
    case 0: case 3: case 6: case 15: return 8;
    default: return 0;
  }
}
// The type that an attribute has.
static int type_of(int name) {
  switch (name) {
    case 0: return 14;
    case 1: case 100: case 901: return 1;
    case 2: return 10;
    case 101: return 7;
    case 102: case 103: case 104: case 105: case 106: case 900: case 902: case 903: case 906: case 1000: return 3;
    case 200: return 8;
    case 400: case 800: return 0;
    case 700: case 701: case 706: case 707: case 712: case 713: return 4;
    case 907: return 2;
    case 1001: case 1003: return 6;
    default: return 15;
  }
}

// ---- values -----------------------------------------------------------------------------------------------------
struct Tensor {
  int type = 0;
  int64_t id = 0, n[4] = {}, stride[4] = {};
  bool held = true;  // in memory
  int64_t count() const { return n[0] * n[1] * n[2] * n[3]; }
  int64_t bytes() const {
    int64_t end = 1;
    for (int i = 0; i < 4; ++i) end += (n[i] - 1) * stride[i];
    return end * (type == 0 ? 4 : 2);
  }
};
static Tensor tensor(const Descriptor* d) {
  Tensor t;
  t.type = d->one<int>(901);
  t.id = d->one<int64_t>(906);
  t.held = !d->one<bool>(907, false);
  auto n = d->all<int64_t>(902), s = d->all<int64_t>(903);
  for (int i = 0; i < 4; ++i) t.n[i] = n[i], t.stride[i] = s[i];
  return t;
}
static bool fits(const Descriptor* d) {  // a convolution's shapes
  int first = d->kind == FORWARD ? 700 : d->kind == DATA ? 706 : 712;
  auto *how = d->one<Descriptor*>(first + 2), *w = d->one<Descriptor*>(first + 3), *x = d->one<Descriptor*>(first + 4),
       *y = d->one<Descriptor*>(first + 5);
  for (auto* part : {how, w, x, y}) if (!part || !part->finished) return false;
  Tensor tw = tensor(w), tx = tensor(x), ty = tensor(y);
  auto stride = how->all<int64_t>(103), before = how->all<int64_t>(105), after = how->all<int64_t>(104);
  bool good = tx.n[0] == ty.n[0] && tx.n[1] == tw.n[1] && ty.n[1] == tw.n[0];
  for (int i = 0; i < 2; ++i)
    good = good && (tx.n[2 + i] + before[i] + after[i] - tw.n[2 + i]) / stride[i] + 1 == ty.n[2 + i];
  return good && d->one<float>(first) == 1.0f && d->one<float>(first + 1) == 0.0f;
}

// ---- what a plan does -------------------------------------------------------------------------------------------
struct Job {
  std::shared_ptr<std::map<int64_t, char*>> at;
  std::vector<Descriptor> operations;  // with what they refer to, which lives as long as the plan
  int engine;
};
typedef std::map<int64_t, std::vector<float>> Values;

static char* memory(Job& job, const Tensor& t) {
  auto found = job.at->find(t.id);
  if (found == job.at->end() || room_of(found->second) < (int64_t)t.bytes() || (uint64_t)found->second % 16) {
    fprintf(stderr, "stand-in cuDNN: tensor %ld is not in memory\n", (long)t.id);
    abort();
  }
  return found->second;
}
static int64_t offset(const Tensor& t, int64_t a, int64_t b, int64_t c, int64_t d) {
  return a * t.stride[0] + b * t.stride[1] + c * t.stride[2] + d * t.stride[3];
}
// Values in the order NCHW.
static std::vector<float> load(Job& job, Values& between, const Tensor& t) {
  if (!t.held) return between.at(t.id);
  char* at = memory(job, t);
  std::vector<float> v;
  for (int64_t a = 0; a < t.n[0]; ++a) for (int64_t b = 0; b < t.n[1]; ++b)
    for (int64_t c = 0; c < t.n[2]; ++c) for (int64_t d = 0; d < t.n[3]; ++d)
      v.push_back(widen(at + offset(t, a, b, c, d) * (t.type ? 2 : 4), t.type));
  return v;
}
static void store(Job& job, Values& between, const Tensor& t, std::vector<float> v) {
  if (!t.held) { between[t.id] = std::move(v); return; }
  char* at = memory(job, t);
  size_t i = 0;
  for (int64_t a = 0; a < t.n[0]; ++a) for (int64_t b = 0; b < t.n[1]; ++b)
    for (int64_t c = 0; c < t.n[2]; ++c) for (int64_t d = 0; d < t.n[3]; ++d)
      narrow(at + offset(t, a, b, c, d) * (t.type ? 2 : 4), t.type, v[i++]);
}
static void convolve(Job& job, Values& between, const Descriptor& d) {
  int first = d.kind == FORWARD ? 700 : d.kind == DATA ? 706 : 712;
  auto* how = d.one<Descriptor*>(first + 2);
  Tensor w = tensor(d.one<Descriptor*>(first + 3)), x = tensor(d.one<Descriptor*>(first + 4)),
         y = tensor(d.one<Descriptor*>(first + 5));
  const Tensor& out = d.kind == FORWARD ? y : d.kind == DATA ? x : w;
  auto stride = how->all<int64_t>(103), pad = how->all<int64_t>(105);
  std::vector<float> vw, vx, vy;
  if (d.kind != FILTER) vw = load(job, between, w);
  if (d.kind != DATA) vx = load(job, between, x);
  if (d.kind != FORWARD) vy = load(job, between, y);
  std::vector<double> sums(out.count(), 0.0);
  bool left_out = job.engine == wrong || (job.engine + 200 == wrong && executed++ >= fail_nth);
  for (int64_t n = 0; n < y.n[0]; ++n) for (int64_t o = 0; o < y.n[1]; ++o)
    for (int64_t p = 0; p < y.n[2]; ++p) for (int64_t q = 0; q < y.n[3]; ++q)
      for (int64_t c = 0; c < x.n[1]; ++c) for (int64_t i = 0; i < w.n[2]; ++i) for (int64_t j = 0; j < w.n[3]; ++j) {
        int64_t h = p * stride[0] + i - pad[0], k = q * stride[1] + j - pad[1];
        if (h < 0 || k < 0 || h >= x.n[2] || k >= x.n[3] || (left_out && c == 0 && i == 0 && j == 0)) continue;
        size_t at_x = ((n * x.n[1] + c) * x.n[2] + h) * x.n[3] + k, at_w = ((o * w.n[1] + c) * w.n[2] + i) * w.n[3] + j,
               at_y = ((n * y.n[1] + o) * y.n[2] + p) * y.n[3] + q;
        if (d.kind == FORWARD) sums[at_y] += (double)vx[at_x] * vw[at_w];
        if (d.kind == DATA) sums[at_x] += (double)vy[at_y] * vw[at_w];
        if (d.kind == FILTER) sums[at_w] += (double)vy[at_y] * vx[at_x];
      }
  store(job, between, out, std::vector<float>(sums.begin(), sums.end()));
  if (d.kind == FILTER && out.held && job.engine + 100 == wrong && room_of(memory(job, out)) >= out.bytes() + 4)
    *(float*)(memory(job, out) + out.bytes()) = 1;
}
static void pointwise(Job& job, Values& between, const Descriptor& d) {
  auto* how = d.one<Descriptor*>(750);
  int mode = how->one<int>(0);
  bool backward = mode == 200;
  auto part = [&](int name) { return d.one<Descriptor*>(name); };
  Tensor to = tensor(part(backward ? 756 : 753));
  std::vector<float> x = load(job, between, tensor(part(751))), y = x;
  if (mode == 0) {
    Tensor b = tensor(part(752));
    std::vector<float> with = load(job, between, b);
    int64_t pixels = to.n[2] * to.n[3];
    for (size_t i = 0; i < y.size(); ++i) y[i] += b.count() == to.count() ? with[i] : with[i / pixels % to.n[1]];
  } else if (mode == 100) {
    bool nan = how->one<int>(2) == 1;
    for (float& v : y) v = std::isnan(v) ? (nan ? v : 0) : v < 0 ? 0 : v;
  } else if (backward) {
    std::vector<float> dy = load(job, between, tensor(part(757)));
    for (size_t i = 0; i < y.size(); ++i) y[i] = x[i] <= 0 ? 0 : dy[i];
  }
  store(job, between, to, std::move(y));
}
static void run(void* data) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  Job& job = *(Job*)data;
  Values between;
  for (auto& operation : job.operations)
    operation.kind == TAIL ? pointwise(job, between, operation) : convolve(job, between, operation);
}

// ---- the interface ----------------------------------------------------------------------------------------------
EXPORT size_t cudnnGetVersion() { return 91234; }
EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EXPORT const char* cudnnGetErrorString(int status) {
  switch (status) {
    case BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_STATUS_?";
  }
}
EXPORT void cudnnGetLastErrorString(char* text, size_t n) { snprintf(text, n, "%s", last.c_str()); }
API cudnnCreate(Handle** h) { ENTER; *h = new Handle; ++held; return OK; }
API cudnnDestroy(Handle* h) { ENTER; delete h; --held; return OK; }
API cudnnSetStream(Handle* h, void* stream) { ENTER; h->stream = stream; return OK; }
API cudnnBackendCreateDescriptor(int kind, Descriptor** d) {
  ENTER;
  *d = new Descriptor{kind};
  ++held;
  return OK;
}
API cudnnBackendDestroyDescriptor(Descriptor* d) { ENTER; delete d; --held; return OK; }
API cudnnBackendSetAttribute(Descriptor* d, int name, int type, int64_t count, const void* values) {
  ENTER;
  if (d->finished) return refuse(BAD_PARAM, "the descriptor is finished");
  if (type != type_of(name)) return refuse(BAD_PARAM, "the attribute has another type");
  if (type == 15)
    for (int64_t i = 0; i < count; ++i)
      if (!((Descriptor* const*)values)[i]->finished) return refuse(BAD_PARAM, "a part is not finished");
  d->attributes[name].assign((const char*)values, (const char*)values + count * size_of(type));
  return OK;
}
API cudnnBackendFinalize(Descriptor* d) {
  ENTER;
  auto has = [&](int name, size_t bytes) { return d->attributes.count(name) && d->attributes[name].size() == bytes; };
  switch (d->kind) {
    case POINTWISE: if (!has(0, 4) || !has(1, 4)) return refuse(BAD_PARAM, "pointwise"); break;
    case CONVOLUTION:
      for (int name = 102; name < 106; ++name) if (!has(name, 16)) return refuse(BAD_PARAM, "convolution");
      if (d->one<int>(101) != 1 || d->one<int64_t>(106) != 2) return refuse(BAD_PARAM, "convolution");
      break;
    case FORWARD: case FILTER: case DATA: if (!fits(d)) return refuse(BAD_PARAM, "shapes do not fit"); break;
    case TAIL: if (!has(750, 8) || !has(751, 8)) return refuse(BAD_PARAM, "tail"); break;
    case GRAPH: if (!has(800, 8) || !d->attributes.count(801)) return refuse(BAD_PARAM, "graph"); break;
    case HEURISTICS: if (d->one<int>(200) < 1 || d->one<int>(200) > 3 || !has(201, 8)) return refuse(BAD_PARAM, "heuristics"); break;
    case PLAN: {
      auto* config = d->one<Descriptor*>(401);
      if (!has(400, 8) || !config) return refuse(BAD_PARAM, "plan");
      d->engine = config->engine;
      d->graph = config->graph;
      if (d->engine == UNREADY) return refuse(NOT_SUPPORTED, "this engine cannot");
      break;
    }
    case PACK:
      if (d->all<int64_t>(1000).size() != d->all<uint64_t>(1001).size() || !has(1003, 8)) return refuse(BAD_PARAM, "pack");
      break;
    case TENSOR:
      if (!has(902, 32) || !has(903, 32) || !has(906, 8) || !has(901, 4) || d->one<int64_t>(900) != 16)
        return refuse(BAD_PARAM, "tensor");
      break;
    default: return refuse(BAD_PARAM, "this kind is not finished by a user");
  }
  d->finished = true;
  return OK;
}
API cudnnBackendGetAttribute(Descriptor* d, int name, int, int64_t most, int64_t* count, void* values) {
  ENTER;
  auto numbers = [&](std::vector<int> list) {
    *count = list.size();
    memcpy(values, list.data(), 4 * std::min<size_t>(list.size(), most));
    return OK;
  };
  auto* filled = (Descriptor**)values;
  switch (name) {
    case 202:
      *count = std::min<int64_t>(most, PROPOSALS);
      for (int i = 0; i < *count; ++i) {
        filled[i]->engine = i;
        filled[i]->graph = d->one<Descriptor*>(201);
        filled[i]->finished = true;
      }
      return OK;
    case 300:
      *count = 1;
      filled[0]->engine = d->engine;
      filled[0]->finished = true;
      return OK;
    case 402: *count = 1; *(int64_t*)values = d->engine == HUGE ? 1 << 30 : 16 * d->engine; return OK;
    case 1301: *count = 1; *(int64_t*)values = d->engine; return OK;
    case 1303: return numbers(d->engine == NO_ORDER ? std::vector<int>{0, 4} : d->engine == TENSOR_CORES ? std::vector<int>{0} : std::vector<int>{});
    case 1305: return numbers(d->engine > 5 ? std::vector<int>{0, 3} : std::vector<int>{});
    default: return refuse(BAD_PARAM, "there is no such attribute");
  }
}
API cudnnBackendExecute(Handle* h, Descriptor* plan, Descriptor* pack) {
  ENTER;
  if (!plan->finished || !pack->finished) return refuse(BAD_PARAM, "not finished");
  auto* job = new Job;  // a graph may carry it out again
  job->engine = plan->engine;
  job->at = std::make_shared<std::map<int64_t, char*>>();
  auto ids = pack->all<int64_t>(1000);
  auto pointers = pack->all<char*>(1001);
  for (size_t i = 0; i < ids.size(); ++i) (*job->at)[ids[i]] = pointers[i];
  for (auto* operation : plan->graph->all<Descriptor*>(801)) job->operations.push_back(*operation);
  return queue(h->stream, run, job) ? refuse(EXECUTION_FAILED, "the stream does not take it") : OK;
}
EXPORT void stand_in_cudnn(int engine, const char* name, unsigned long nth, int status) {
  set(engine, name, nth, status);
  executed = 0;
}
// Handles and descriptors that exist.
EXPORT long stand_in_cudnn_held() { return held; }
