// From NormForward and NormBackward (ops.h) to the kernels of norm.cuh.
#pragma once

#include "norm.cuh"

namespace fusedformer {

// Whether both allow 16-byte accesses at the same columns; null stands for a tensor that is not there.
inline bool are_aligned_alike(const void* first, const void* second) {
  return second == nullptr || (address_of(first) - address_of(second)) % kVectorBytes == 0;
}

template <class Norm, bool kAdds>
cudaError_t norm_fwd(const NormForward& args, cudaStream_t stream) {
  if (!are_aligned_alike(args.y, args.s)) return cudaErrorInvalidValue;
  return dispatch_weight(args.dtype, args.weight_dtype, [&](auto element, auto weight_element) {
    using T = typename decltype(element)::type;
    using W = typename decltype(weight_element)::type;
    return dispatch_row<T>(args.rows, args.n, [&](auto row_shape, const LaunchShape& shape) {
      using Shape = typename decltype(row_shape)::type;
      return launch(norm_fwd_kernel<Norm, kAdds, T, W, Shape>, shape, stream, static_cast<const T*>(args.x.data),
                    static_cast<const T*>(args.residual.data), static_cast<const W*>(args.weight),
                    static_cast<const W*>(args.bias), static_cast<T*>(args.y), static_cast<T*>(args.s), args.mean,
                    args.rstd, args.rows, args.n, args.x.row_stride, args.residual.row_stride, args.eps,
                    args.dropout);
    });
  });
}

inline constexpr std::int64_t kMaxRowGroups = 128;

// Enough rows of sums for either way to make them, and where clusters of 16 blocks are refused.
inline std::int64_t bwd_partials(DType dtype, std::int64_t rows, std::int64_t n, int sums) {
  const int element_size = dtype == DType::kFloat32 ? 4 : 2;
  const Machine machine = current_machine();
  const auto plan = find_plan(rows, n, element_size, machine, kSummingLadder);
  const std::int64_t teams = plan ? summing_teams(*plan, rows, n, element_size, sums, machine) : 0;
  return std::max(teams, row_groups(rows, kMaxRowGroups).count);
}

template <class Norm, class T>
cudaError_t launch_partials(const NormBackward& args, cudaStream_t stream) {
  const RowGroups groups = row_groups(args.rows, kMaxRowGroups);
  const auto launch_columns = [&](auto width) {
    constexpr int kColumns = decltype(width)::kCount;
    return launch(norm_bwd_partials_kernel<Norm, T, kColumns>, column_shape<kColumns>(args.n, groups.count), stream,
                  static_cast<const T*>(args.dy.data), static_cast<const T*>(args.x.data), args.mean, args.rstd,
                  args.dweight_partials, args.dbias_partials, args.rows, args.n, args.dy.row_stride,
                  args.x.row_stride, groups.rows);
  };
  // Neighbouring threads read neighbouring columns of one row: aligned in every row, or else one column each.
  return dispatch_width<T>(args.n % kVectorWidth<T> == 0, launch_columns);
}

// Launches norm_bwd_kernel; the rows of sums that it makes on the way are `teams`, 0 if it makes none.
template <class Norm, class T, class W>
cudaError_t launch_bwd(const NormBackward& args, cudaStream_t stream, std::int64_t& teams) {
  const bool wants_sums = args.dweight_partials != nullptr || args.dbias_partials != nullptr;
  const bool is_aligned = address_of(args.dx) % kVectorBytes == 0;
  const auto launch_shape = [&](auto row_shape, LaunchShape shape) {
    using Shape = typename decltype(row_shape)::type;
    const RowPlan plan = {Shape::Team::kKind, static_cast<int>(shape.threads), Shape::kHeld,
                          static_cast<int>(shape.cluster), static_cast<int>(shape.groups)};
    const Machine machine = current_machine();
    teams = 0;
    if (wants_sums && is_aligned) {
      teams = summing_teams(plan, args.rows, args.n, sizeof(T), Norm::kParameters, machine);
    }
    if (teams > 0) shape = summing_shape(shape, plan, teams, sizeof(T), Norm::kParameters);
    return launch(norm_bwd_kernel<Norm, T, W, Shape>, shape, stream, static_cast<const T*>(args.dy.data),
                  static_cast<const T*>(args.ds), static_cast<const T*>(args.x.data),
                  static_cast<const W*>(args.weight), args.mean, args.rstd, static_cast<T*>(args.dx),
                  static_cast<T*>(args.dx_of_dropout), teams > 0 ? args.dweight_partials : nullptr,
                  teams > 0 ? args.dbias_partials : nullptr, args.rows, args.n, args.dy.row_stride,
                  args.x.row_stride, args.dropout);
  };
  // One ladder with sums and without them, so that dx has the same bits.
  return dispatch_row<T, kSummingLadder>(args.rows, args.n, launch_shape);
}

template <class Norm>
cudaError_t norm_bwd(const NormBackward& args, cudaStream_t stream) {
  if (!are_aligned_alike(args.dx, args.dx_of_dropout) || !are_aligned_alike(args.dx, args.ds)) return cudaErrorInvalidValue;
  if (args.n == 0) return cudaSuccess;
  return dispatch_weight(args.dtype, args.weight_dtype, [&](auto element, auto weight_element) {
    using T = typename decltype(element)::type;
    using W = typename decltype(weight_element)::type;
    std::int64_t partials = 0;
    cudaError_t error = launch_bwd<Norm, T, W>(args, stream, partials);
    const bool wants_sums = args.dweight != nullptr || args.dbias != nullptr;
    if (error == cudaSuccess && partials == 0 && args.rows > 0 && wants_sums) {
      partials = row_groups(args.rows, kMaxRowGroups).count;
      error = launch_partials<Norm, T>(args, stream);
    }
    if (error == cudaSuccess) {
      error = sum_partials(args.dweight_partials, static_cast<W*>(args.dweight), partials, args.n, stream);
    }
    if (error != cudaSuccess) return error;
    return sum_partials(args.dbias_partials, static_cast<W*>(args.dbias), partials, args.n, stream);
  });
}

}  // namespace fusedformer
