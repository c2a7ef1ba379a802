// A libnvrtc.so.13 that hands the text to the system's C++ compiler behind host.h and returns the shared object as
// machine code, for the stand-in driver (driver.cpp). STAND_IN_INCLUDE is the folder of host.h, STAND_IN_OBJECTS one
// that keeps objects between runs; STAND_IN_FAIL_COMPILE makes every compilation fail.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <unistd.h>
#define API extern "C" __attribute__((visibility("default"))) int
struct Program { std::string text, log, image; };
static std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}
static std::string folder(const char* variable) { return getenv(variable) ? getenv(variable) : "."; }

API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int r) {
  return r == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}
API nvrtcCreateProgram(void** p, const char* text, const char*, int, const char* const*, const char* const*) {
  *p = new Program{text, "", ""};
  return 0;
}
API nvrtcDestroyProgram(void** p) { delete (Program*)*p; *p = nullptr; return 0; }
API nvrtcCompileProgram(void* p, int, const char* const*) {
  auto& program = *(Program*)p;
  if (getenv("STAND_IN_FAIL_COMPILE")) {
    program.log = "kernels.cu(1): error: the stand-in says so";
    return 6;
  }
  std::string include = folder("STAND_IN_INCLUDE");
  size_t name = std::hash<std::string>()(program.text + read(include + "/host.h"));
  std::string object = folder("STAND_IN_OBJECTS") + "/" + std::to_string(name) + ".so";
  if (access(object.c_str(), R_OK)) {
    std::string unique = object + "." + std::to_string(getpid()) + "." + std::to_string((size_t)p);
    std::string text = unique + ".cpp", part = unique + ".part", log = unique + ".log";
    std::ofstream(text) << "#include \"host.h\"\n" << program.text;
    std::string command = "c++ -std=c++17 -O1 -w -shared -fPIC -fno-strict-aliasing -U_FORTIFY_SOURCE -I'" + include +
                          "' '" + text + "' -o '" + part + "' >'" + log + "' 2>&1";
    int failed = system(command.c_str());
    program.log = read(log);
    unlink(text.c_str());
    unlink(log.c_str());
    if (failed) return 6;
    rename(part.c_str(), object.c_str());
  }
  std::string image = read(object);
  uint64_t size = image.size();
  program.image = "STAND-IN" + std::string((const char*)&size, 8) + image;
  return 0;
}
API nvrtcGetProgramLogSize(void* p, size_t* n) { *n = ((Program*)p)->log.size() + 1; return 0; }
API nvrtcGetProgramLog(void* p, char* text) { strcpy(text, ((Program*)p)->log.c_str()); return 0; }
API nvrtcGetCUBINSize(void* p, size_t* n) { *n = ((Program*)p)->image.size(); return 0; }
API nvrtcGetCUBIN(void* p, char* image) {
  auto& from = ((Program*)p)->image;
  memcpy(image, from.data(), from.size());
  return 0;
}
