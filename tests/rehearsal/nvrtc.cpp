// What PyTorch wants to get from NVRTC, its compiler at run time: a program of one byte, whose kernels the driver's
// stand-in takes on trust.
#include <cstddef>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
int one_byte(std::size_t* size) {
  *size = 1;
  return 0;
}
int no_text(char* text) {
  *text = '\0';
  return 0;
}
}  // namespace

EXPORT int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}

EXPORT int nvrtcGetCUBINSize(void*, std::size_t* size) { return one_byte(size); }
EXPORT int nvrtcGetPTXSize(void*, std::size_t* size) { return one_byte(size); }
EXPORT int nvrtcGetProgramLogSize(void*, std::size_t* size) { return one_byte(size); }
EXPORT int nvrtcGetCUBIN(void*, char* text) { return no_text(text); }
EXPORT int nvrtcGetPTX(void*, char* text) { return no_text(text); }
EXPORT int nvrtcGetProgramLog(void*, char* text) { return no_text(text); }
EXPORT const char* nvrtcGetErrorString(int) { return "of the rehearsal"; }

EXPORT int nvrtcGetLoweredName(void*, const char*, const char** name) {
  *name = "kernel";
  return 0;
}
EXPORT int nvrtcGetNumSupportedArchs(int* count) {
  *count = 1;
  return 0;
}
EXPORT int nvrtcGetSupportedArchs(int* archs) {
  *archs = 90;
  return 0;
}
