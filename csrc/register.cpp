// The operators of functions.h, registered with PyTorch through its stable ABI, and handed out for eager.cpp.
#include "functions.h"

#include <torch/csrc/stable/library.h>

#ifdef FUSEDFORMER_EMULATED
#define FUSEDFORMER_NAMESPACE fusedformer_emulated
#define FUSEDFORMER_DISPATCH_KEY CPU
#else
#define FUSEDFORMER_NAMESPACE fusedformer
#define FUSEDFORMER_DISPATCH_KEY CUDA
#endif

namespace functions = fusedformer::functions;

STABLE_TORCH_LIBRARY_IMPL(FUSEDFORMER_NAMESPACE, FUSEDFORMER_DISPATCH_KEY, library) {
#define FUSEDFORMER_REGISTER(name) library.impl(#name, TORCH_BOX(&functions::name));
  FUSEDFORMER_FUNCTIONS(FUSEDFORMER_REGISTER)
}

extern "C" __attribute__((visibility("default"))) const void* fusedformer_functions() {
#define FUSEDFORMER_ENTRY(name) .name = &functions::name,
  static constexpr functions::Table table = {FUSEDFORMER_FUNCTIONS(FUSEDFORMER_ENTRY)};
  return &table;
}
