// LayerNorm over the last dimension and its gradients: norm.cuh, centred.
#include "norm_launch.h"

namespace fusedformer {

cudaError_t layer_norm_fwd(const NormForward& args, cudaStream_t stream) {
  return norm_fwd<Centred, false>(args, stream);
}

cudaError_t layer_norm_bwd(const NormBackward& args, cudaStream_t stream) {
  return norm_bwd<Centred>(args, stream);
}

std::int64_t layer_norm_bwd_partials(DType dtype, std::int64_t rows, std::int64_t n) {
  return bwd_partials(dtype, rows, n, Centred::kParameters);
}

}  // namespace fusedformer
