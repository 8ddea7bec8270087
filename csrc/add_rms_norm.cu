// RMSNorm of dropout(x) + residual: norm.cuh, not centred. Its gradients are those of rms_norm.cu.
#include "norm_launch.h"

namespace fusedformer {

cudaError_t add_rms_norm_fwd(const NormForward& args, cudaStream_t stream) {
  return norm_fwd<Uncentred, true>(args, stream);
}

}  // namespace fusedformer
