// Gated linear units, GELU(gate) up and SiLU(gate) up, and their gradients.
//
//     y = f(gate) up,  dgate = dy up f'(gate),  dup = dy f(gate)
//
// Gate and up are the halves of one tensor's rows, or two tensors: both are read where they lie, with a row stride, and
// so are the gradients written. Threads stay in their columns (columns.cuh), for then nothing is divided to find a row.
// Ideal traffic, in elements of y: 3 forward, 5 backward.
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
#include <initializer_list>
#include <numeric>

#include "activations.cuh"
#include "columns.cuh"
#include "launch.h"
#include "vector.cuh"

namespace fusedformer {

template <class T, class Form, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    glu_fwd_kernel(const T* __restrict__ gate,  // (rows, n), as all below
                   const T* __restrict__ up, T* __restrict__ y, std::int64_t rows, std::int64_t n,
                   std::int64_t rows_of_group, std::int64_t gate_stride, std::int64_t up_stride) {
  const std::int64_t column = first_column<kColumns>();
  if (column >= n) return;
  for_each_row(rows, rows_of_group, [&](std::int64_t row) {
    const auto gates = load_floats<kColumns>(gate + row * gate_stride + column);
    auto values = load_floats<kColumns>(up + row * up_stride + column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] *= Form::template at<T>(gates[i]).value;
    store_floats(y + row * n + column, values);
  });
}

template <class T, class Form, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    glu_bwd_kernel(const T* __restrict__ dy,    // (rows, n), as all below
                   const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ dgate, T* __restrict__ dup,
                   std::int64_t rows, std::int64_t n, std::int64_t rows_of_group, std::int64_t gate_stride,
                   std::int64_t up_stride, std::int64_t dgate_stride, std::int64_t dup_stride) {
  const std::int64_t column = first_column<kColumns>();
  if (column >= n) return;
  for_each_row(rows, rows_of_group, [&](std::int64_t row) {
    auto dys = load_floats<kColumns>(dy + row * n + column);
    auto gates = load_floats<kColumns>(gate + row * gate_stride + column);
    const auto ups = load_floats<kColumns>(up + row * up_stride + column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const ValueAndSlope form = Form::template at<T>(gates[i]);
      gates[i] = dys[i] * ups[i] * form.slope;
      dys[i] *= form.value;
    }
    store_floats(dgate + row * dgate_stride + column, gates);
    store_floats(dup + row * dup_stride + column, dys);
  });
}

// Calls launch(Type<T>, Type<Form>, Width<columns of a thread>), for rows of n columns with these strides.
template <class Launch>
cudaError_t dispatch_glu(DType dtype, Activation activation, std::int64_t n,
                         std::initializer_list<std::int64_t> strides, std::initializer_list<const void*> addresses,
                         Launch launch) {
  std::int64_t alignment = n;
  for (const std::int64_t stride : strides) alignment = std::gcd(alignment, stride);
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_form<GeluErf, GeluTanh, Silu>(activation, [&](auto form) {
      return dispatch_width<T>(allows_vectors<T>(alignment, addresses),
                               [&](auto width) { return launch(element, form, width); });
    });
  });
}

cudaError_t glu_fwd(DType dtype, Activation activation, StridedRows<const void*> gate, StridedRows<const void*> up,
                    void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  if (rows == 0 || n == 0) return cudaSuccess;
  const RowGroups groups = row_groups(rows, kMaxGroups);
  const auto launch_forward = [&](auto element, auto form, auto width) {
    using T = typename decltype(element)::type;
    constexpr int kColumns = width.kCount;
    return launch(glu_fwd_kernel<T, typename decltype(form)::type, kColumns>, column_shape<kColumns>(n, groups.count),
                  stream, static_cast<const T*>(gate.data), static_cast<const T*>(up.data), static_cast<T*>(y), rows,
                  n, groups.rows, gate.row_stride, up.row_stride);
  };
  return dispatch_glu(dtype, activation, n, {gate.row_stride, up.row_stride}, {gate.data, up.data, y}, launch_forward);
}

cudaError_t glu_bwd(DType dtype, Activation activation, const void* dy, StridedRows<const void*> gate,
                    StridedRows<const void*> up, StridedRows<void*> dgate, StridedRows<void*> dup, std::int64_t rows,
                    std::int64_t n, cudaStream_t stream) {
  if (rows == 0 || n == 0) return cudaSuccess;
  const RowGroups groups = row_groups(rows, kMaxGroups);
  const auto launch_backward = [&](auto element, auto form, auto width) {
    using T = typename decltype(element)::type;
    constexpr int kColumns = width.kCount;
    return launch(glu_bwd_kernel<T, typename decltype(form)::type, kColumns>, column_shape<kColumns>(n, groups.count),
                  stream, static_cast<const T*>(dy), static_cast<const T*>(gate.data), static_cast<const T*>(up.data),
                  static_cast<T*>(dgate.data), static_cast<T*>(dup.data), rows, n, groups.rows, gate.row_stride,
                  up.row_stride, dgate.row_stride, dup.row_stride);
  };
  return dispatch_glu(dtype, activation, n, {gate.row_stride, up.row_stride, dgate.row_stride, dup.row_stride},
                      {dy, gate.data, up.data, dgate.data, dup.data}, launch_backward);
}

}  // namespace fusedformer
