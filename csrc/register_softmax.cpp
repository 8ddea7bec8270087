// Softmax, registered with PyTorch; see register.h.
#include "register.h"

namespace {

using namespace fusedformer::registration;

Tensor softmax_fwd(const Tensor& x) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor x_rows = in_rows(x), y = new_output_like(x);
  check_launch(fusedformer::softmax_fwd(dtype_of(x), x_rows.const_data_ptr(), y.mutable_data_ptr(), shape.rows,
                                        shape.n, device.stream()));
  return y;
}

Tensor softmax_bwd(const Tensor& dy, const Tensor& y) {
  check_like(dy, y, "dy and y");
  const Rows shape(y);
  const OnDeviceOf device(y);
  const Tensor dy_rows = in_rows(dy), y_rows = in_rows(y), dx = new_output_like(y);
  check_launch(fusedformer::softmax_bwd(dtype_of(y), dy_rows.const_data_ptr(), y_rows.const_data_ptr(),
                                        dx.mutable_data_ptr(), shape.rows, shape.n, device.stream()));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDFORMER_NAMESPACE, FUSEDFORMER_DISPATCH_KEY, library) {
  library.impl("softmax_fwd", TORCH_BOX(&softmax_fwd));
  library.impl("softmax_bwd", TORCH_BOX(&softmax_bwd));
}
