// What the stand-ins of NVIDIA's libraries of products share: calls that are made to fail, 16-bit floats, memory and work
// of the stand-in driver (driver.cpp). Each of them is this and its own text behind.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

enum { OK = 0 };

static std::recursive_mutex lock;
static std::string last, fail_name;
static std::map<std::string, unsigned long> calls;
static unsigned long fail_nth;
static int fail_status, wrong = -1;
static long held = 0;  // objects that exist

static int enter(const char* name) {
  unsigned long n = ++calls[name];
  last = "";
  if (fail_name != name || n != fail_nth) return OK;
  last = "the stand-in says so";
  return fail_status;
}
// Forgets counts; what it proposes under this number is wrong, and call `nth` of a function returns a status.
static void set(int proposal, const char* name, unsigned long nth, int status) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  calls.clear();
  wrong = proposal;
  fail_name = name;
  fail_nth = nth;
  fail_status = status;
}
#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT int
#define ENTER std::lock_guard<std::recursive_mutex> guard(lock); if (int failed = enter(__func__)) return failed

static void* of_driver(const char* name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name); }
// Bytes from an address to the end of its memory.
static int64_t room_of(char* at) {
  static auto* room = (size_t(*)(uint64_t))of_driver("stand_in_room");
  return room((uint64_t)at);
}
// Queues work on a stream of the driver.
static int queue(void* stream, void (*function)(void*), void* data) {
  static auto* launch = (int (*)(void*, void (*)(void*), void*))of_driver("cuLaunchHostFunc");
  return launch(stream, function, data);
}

// ---- values, of the types of binary32 (0), binary16 (2) and bfloat16 (any other) -----------------------------------
static float widen(const char* at, int type) {
  if (type == 0) { float x; memcpy(&x, at, 4); return x; }
  uint16_t bits;
  memcpy(&bits, at, 2);
  if (type != 2) { uint32_t wide = (uint32_t)bits << 16; float x; memcpy(&x, &wide, 4); return x; }
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double x = exponent == 31 ? (fraction ? NAN : INFINITY)
           : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
  return (float)(bits >> 15 ? -x : x);
}
static void narrow(char* at, int type, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (type == 0) { memcpy(at, &x, 4); return; }
  uint16_t out;
  if (type != 2) {
    out = std::isnan(x) ? (uint16_t)(bits >> 16 | 64) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    uint16_t sign = bits >> 16 & 0x8000;
    double a = fabs((double)x);
    if (std::isnan(x)) out = sign | 0x7e00;
    else if (a >= 65520) out = sign | 0x7c00;
    else {
      int e = a < ldexp(1, -14) ? -14 : ilogb(a);
      long n = lrint(ldexp(a, 10 - e));  // to even, as the environment rounds
      out = sign | (uint16_t)(e == -14 ? n : n + ((long)(e + 14) << 10));
    }
  }
  memcpy(at, &out, 2);
}

