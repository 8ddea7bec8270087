// Dropout: elements are dropped with probability p, and the others grow by 1 / (1 - p).
//
// Whether element (row, column) is dropped follows from the seed and its index alone: by word `column % 4` of Philox
// 4x32-10 with the counter (column / 4, row mod 2^32, row / 2^32, 0), so that nothing is stored and every pass, the
// backward among them, finds the same again. kernels/philox.py is its definition.
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
#pragma once

#include "ops.h"
#include "vector.cuh"

namespace fusedformer {

struct PhiloxWords {
  unsigned values[4];
};

inline __device__ PhiloxWords philox(std::uint64_t seed, PhiloxWords counter) {
  auto& c = counter.values;
  unsigned key[2] = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product_0 = std::uint64_t{0xD2511F53u} * c[0], product_2 = std::uint64_t{0xCD9E8D57u} * c[2];
    c[0] = static_cast<unsigned>(product_2 >> 32) ^ c[1] ^ key[0];
    c[1] = static_cast<unsigned>(product_2);
    c[2] = static_cast<unsigned>(product_0 >> 32) ^ c[3] ^ key[1];
    c[3] = static_cast<unsigned>(product_0);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The dropout of one row; none without a seed.
class RowDropout {
 public:
  __device__ RowDropout(const Dropout& dropout, std::int64_t row)
      : is_on_(dropout.seed != nullptr),
        seed_(is_on_ ? static_cast<std::uint64_t>(*dropout.seed) : 0),
        row_(row),
        first_kept_(static_cast<unsigned>(ceilf(dropout.p * 16777216.0f))),
        scale_(dropout.scale) {}

  __device__ bool is_on() const { return is_on_; }

  template <int kColumns>
  __device__ Floats<kColumns> apply(Floats<kColumns> values, std::int64_t column) const {
    if (!is_on_) return values;
    const unsigned kept = kept_of<kColumns>(column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = kept >> i & 1 ? values[i] * scale_ : 0.0f;
    return values;
  }

 private:
  // Bit i: column + i is kept.
  template <int kColumns>
  __device__ unsigned kept_of(std::int64_t column) const {
    const int lead = static_cast<int>(column % 4);
    unsigned bits = 0;
    // Not unrolled, for all slots of a row in registers have a copy of this.
#pragma unroll 1
    for (int at = 0; at < lead + kColumns; at += 4) {
      const auto group = static_cast<unsigned>((column + at) / 4);
      const auto random =
          philox(seed_, {{group, static_cast<unsigned>(row_), static_cast<unsigned>(row_ >> 32), 0}});
#pragma unroll
      for (int i = 0; i < 4; ++i) bits |= static_cast<unsigned>(random.values[i] >> 8 >= first_kept_) << i << at;
    }
    return bits >> lead;
  }

  bool is_on_;
  std::uint64_t seed_;
  std::int64_t row_;
  unsigned first_kept_;  // of 24 random bits, as a fraction of 1
  float scale_;
};

}  // namespace fusedformer
