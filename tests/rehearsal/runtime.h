// What the files of libcudart.so.13 share.
#pragma once

#include <cuda_runtime_api.h>

namespace rehearsal {

cudaError_t failed(cudaError_t error);  // keeps it for cudaGetLastError

}  // namespace rehearsal
