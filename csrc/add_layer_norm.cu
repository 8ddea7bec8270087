// LayerNorm of dropout(x) + residual: norm.cuh, centred. Its gradients are those of layer_norm.cu.
#include "norm_launch.h"

namespace fusedformer {

cudaError_t add_layer_norm_fwd(const NormForward& args, cudaStream_t stream) {
  return norm_fwd<Centred, true>(args, stream);
}

}  // namespace fusedformer
