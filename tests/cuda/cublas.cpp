// A libcublasLt.so.13 that computes on the processor, for tests of the device `cuda` without a GPU: products of two
// matrices that lie column by column. Behind `library.h`.
//
// Strict where the library is lenient: attributes have their one size, what is preferred must be said, a product's
// matrices must fit, and every address must lie in memory that is allocated.
//
// Of what it proposes, 0 cannot be taken, 1 wants 1 GiB, 2 to 4 compute.
//
// stand_in_cublas(WRONG, NAME, N, STATUS): proposal WRONG leaves out a term; call N (from 1) of a function returns STATUS.
enum { NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { F32 = 0, COMPUTE_F32 = 68, WITH_BIAS = 4, PARTS_IN_F32 = 2, PROPOSALS = 5 };

struct Handle {};
struct Operation { int transposed[2] = {0, 0}; unsigned epilogue = 1; char* bias = nullptr; };
struct Layout { int type; uint64_t rows, columns; int64_t ld; };
struct Preference { uint64_t workspace = 0; unsigned reductions = 7, alignment[4] = {256, 256, 256, 256}; };
struct Proposal { uint64_t algorithm[8]; size_t workspace; int status; float waves; int reserved[4]; };

EXPORT size_t cublasLtGetVersion() { return 130102; }
EXPORT const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_?";
  }
}
API cublasLtCreate(Handle** h) { ENTER; *h = new Handle; ++held; return OK; }
API cublasLtDestroy(Handle* h) { ENTER; delete h; --held; return OK; }
API cublasLtMatmulDescCreate(Operation** o, int compute, int scale) {
  ENTER;
  if (compute != COMPUTE_F32 || scale != F32) return NOT_SUPPORTED;
  *o = new Operation;
  ++held;
  return OK;
}
API cublasLtMatmulDescDestroy(Operation* o) { ENTER; delete o; --held; return OK; }
// Copies a value of exactly so many bytes.
template <class T> static int take(T& to, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return INVALID_VALUE;
  memcpy(&to, value, bytes);
  return OK;
}
API cublasLtMatmulDescSetAttribute(Operation* o, int which, const void* value, size_t bytes) {
  ENTER;
  switch (which) {
    case 3: case 4: return take(o->transposed[which - 3], value, bytes);
    case 7: return take(o->epilogue, value, bytes);
    case 8: return take(o->bias, value, bytes);
    default: return INVALID_VALUE;
  }
}
API cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  ENTER;
  if ((type != 0 && type != 2 && type != 14) || !rows || !columns || ld < (int64_t)rows) return INVALID_VALUE;
  *l = new Layout{type, rows, columns, ld};
  ++held;
  return OK;
}
API cublasLtMatrixLayoutDestroy(Layout* l) { ENTER; delete l; --held; return OK; }
API cublasLtMatmulPreferenceCreate(Preference** p) { ENTER; *p = new Preference; ++held; return OK; }
API cublasLtMatmulPreferenceDestroy(Preference* p) { ENTER; delete p; --held; return OK; }
API cublasLtMatmulPreferenceSetAttribute(Preference* p, int which, const void* value, size_t bytes) {
  ENTER;
  switch (which) {
    case 1: return take(p->workspace, value, bytes);
    case 3: return take(p->reductions, value, bytes);
    case 5: case 6: case 7: case 8: return take(p->alignment[which - 5], value, bytes);
    default: return INVALID_VALUE;
  }
}

// Extents of a product: rows and columns of the result, and the terms of its sums; false if the matrices do not fit.
static bool fits(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d, uint64_t* terms) {
  uint64_t m = o.transposed[0] ? a.columns : a.rows, k = o.transposed[0] ? a.rows : a.columns;
  uint64_t n = o.transposed[1] ? b.rows : b.columns, l = o.transposed[1] ? b.columns : b.rows;
  *terms = k;
  return k == l && d.rows == m && d.columns == n && c.rows == m && c.columns == n && a.type == b.type &&
         c.type == d.type && (d.type == a.type || d.type == F32) && (o.epilogue == 1 || o.epilogue == WITH_BIAS);
}
API cublasLtMatmulAlgoGetHeuristic(Handle*, Operation* o, Layout* a, Layout* b, Layout* c, Layout* d, Preference* p,
                                   int most, Proposal* proposals, int* count) {
  ENTER;
  uint64_t terms;
  if (!fits(*o, *a, *b, *c, *d, &terms)) return INVALID_VALUE;
  if (o->epilogue == WITH_BIAS && (d->type != F32 || !o->bias)) return NOT_SUPPORTED;
  bool said = p->workspace && p->reductions == PARTS_IN_F32;
  for (unsigned bytes : p->alignment) said = said && bytes == 16;
  if (!said) return NOT_SUPPORTED;
  *count = most < PROPOSALS ? most : (int)PROPOSALS;
  for (int i = 0; i < *count; ++i)
    proposals[i] = Proposal{{(uint64_t)i}, i == 1 ? 1u << 30 : 16u * i, i == 0 ? (int)NOT_SUPPORTED : (int)OK, 1, {}};
  return OK;
}

struct Job {
  Operation operation;
  Layout layouts[4];
  char* at[4];
  float alpha, beta;
  int proposal;
};
static size_t size_of(const Layout& l) { return l.type ? 2 : 4; }
// Element `i` of column `j`.
static char* element(const Job& job, int of, uint64_t i, uint64_t j) {
  const Layout& l = job.layouts[of];
  return job.at[of] + (j * l.ld + i) * size_of(l);
}
static void run(void* data) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  const Job& job = *(Job*)data;
  for (int of = 0; of < 4; ++of) {
    const Layout& l = job.layouts[of];
    int64_t bytes = ((l.columns - 1) * l.ld + l.rows) * size_of(l);
    if ((uint64_t)job.at[of] % 16 || room_of(job.at[of]) < bytes) {
      fprintf(stderr, "stand-in cuBLASLt: matrix %d is not in memory\n", of);
      abort();
    }
  }
  if (job.operation.bias && room_of(job.operation.bias) < (int64_t)(job.layouts[3].rows * size_of(job.layouts[3]))) abort();
  const auto& [a, b, c, d] = job.layouts;
  const Operation& o = job.operation;
  uint64_t terms;
  fits(o, a, b, c, d, &terms);
  auto value = [&](int of, const Layout& l, uint64_t i, uint64_t j) {
    return o.transposed[of] ? widen(element(job, of, j, i), l.type) : widen(element(job, of, i, j), l.type);
  };
  for (uint64_t j = 0; j < d.columns; ++j)
    for (uint64_t i = 0; i < d.rows; ++i) {
      double sum = 0;
      for (uint64_t k = job.proposal == wrong ? 1 : 0; k < terms; ++k) sum += (double)value(0, a, i, k) * value(1, b, k, j);
      float x = job.alpha * (float)sum;
      if (job.beta != 0) x += job.beta * widen(element(job, 2, i, j), c.type);
      if (o.epilogue == WITH_BIAS) x += widen(o.bias + i * size_of(d), d.type);
      narrow(element(job, 3, i, j), d.type, x);
    }
}
API cublasLtMatmul(Handle*, Operation* o, const float* alpha, char* a, Layout* of_a, char* b, Layout* of_b, const float* beta,
                   char* c, Layout* of_c, char* d, Layout* of_d, const uint64_t* algorithm, char* workspace, size_t bytes,
                   void* stream) {
  ENTER;
  int proposal = (int)algorithm[0];
  if (proposal < 2 || proposal >= PROPOSALS) return NOT_SUPPORTED;
  if (bytes < 16u * proposal || room_of(workspace) < (int64_t)bytes) return INVALID_VALUE;
  // A graph may carry it out again.
  auto* job = new Job{*o, {*of_a, *of_b, *of_c, *of_d}, {a, b, c, d}, *alpha, *beta, proposal};
  return queue(stream, run, job) ? (int)EXECUTION_FAILED : (int)OK;
}
EXPORT void stand_in_cublas(int proposal, const char* name, unsigned long nth, int status) {
  set(proposal, name, nth, status);
}
// Handles and descriptors that exist.
EXPORT long stand_in_cublas_held() { return held; }
