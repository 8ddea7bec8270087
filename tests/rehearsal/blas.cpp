// What PyTorch wants to get from cuBLAS and cuBLASLt beside "success": handles, versions and algorithms.
#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
int something;

int give(void** handle) {
  *handle = &something;
  return 0;
}
}  // namespace

EXPORT int cublasCreate_v2(void** handle) { return give(handle); }
EXPORT int cublasLtCreate(void** handle) { return give(handle); }
EXPORT int cublasLtMatmulDescCreate(void** handle, int, int) { return give(handle); }
EXPORT int cublasLtMatmulPreferenceCreate(void** handle) { return give(handle); }
EXPORT int cublasLtMatrixLayoutCreate(void** handle, int, std::uint64_t, std::uint64_t, std::int64_t) {
  return give(handle);
}

EXPORT int cublasGetVersion_v2(void*, int* version) {
  *version = 130000;
  return 0;
}

EXPORT int cublasGetMathMode(void*, int* mode) {
  *mode = 0;
  return 0;
}

// cublasLtMatmulHeuristicResult_t: the algorithm (64 B), workspace (8 B), state (4 B), waves (4 B), reserved (16 B).
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results,
                                          int* count) {
  std::memset(results, 0, 96);
  *count = 1;
  return 0;
}
