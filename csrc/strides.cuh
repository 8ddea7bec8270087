// Where the rows of a tensor begin that is read in place, whatever its leading dimensions and their strides.
#pragma once

#include "device.h"
#include "ops.h"

namespace fusedformer {

inline __device__ std::int64_t row_offset(const RowStrides& rows, std::int64_t row) {
  if (rows.levels == 1) return row * rows.strides[0];
  auto rest = static_cast<unsigned>(row);  // RowStrides has so few rows then; 64-bit divisions are subroutines
  std::int64_t offset = 0;
#pragma unroll
  for (int level = 0; level < RowStrides::kMaxLevels; ++level) {
    if (level >= rows.levels) break;
    const bool is_last = level + 1 == rows.levels;
    offset += std::int64_t{is_last ? rest : rest % rows.sizes[level]} * rows.strides[level];
    if (!is_last) rest /= rows.sizes[level];
  }
  return offset;
}

}  // namespace fusedformer
