// RMSNorm over the last dimension and its gradients: norm.cuh, not centred.
#include "norm_launch.h"

namespace fusedformer {

cudaError_t rms_norm_fwd(const NormForward& args, cudaStream_t stream) {
  return norm_fwd<Uncentred, false>(args, stream);
}

cudaError_t rms_norm_bwd(const NormBackward& args, cudaStream_t stream) {
  return norm_bwd<Uncentred>(args, stream);
}

std::int64_t rms_norm_bwd_partials(DType dtype, std::int64_t rows, std::int64_t n) {
  return bwd_partials(dtype, rows, n, Uncentred::kParameters);
}

}  // namespace fusedformer
