// Row-wise kernels at the memory limit: each byte of a row is read once and written once, in 128-bit accesses.
//
// A kernel is written for one shape, RowShape<Team, kHeld>, and the ladder (ladder.h) chooses among the shapes:
//
//     template <class T, class Shape>
//     __global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
//         scale_fwd_kernel(const T* __restrict__ x, T* __restrict__ y, std::int64_t rows, std::int64_t n) {
//       typename Shape::Team team;
//       for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
//         const Columns<T, Shape> columns(team, y + row * n, n);  // this thread's, cut where y is aligned
//         const Row<T, Shape> x_row(x + row * n, columns);        // read here, all loads in flight together
//         const RowWriter<T> y_row(y + row * n);
//         Sums<1> sum;
//         columns.for_each([&](auto place) {                      // a pass, as many as it takes
//           for (const float value : x_row.load(place).values) sum.values[0] += value;
//         });
//         sum = team.reduce(sum);
//         columns.for_each([&](auto place) {
//           auto values = x_row.load(place);
//           for (float& value : values.values) value *= sum.values[0];
//           y_row.store(place.column, values);
//         });
//       }
//     }
//
//     dispatch_row<T>(rows, n, [&](auto shape, const LaunchShape& launch_shape) {     (launch.h)
//       return launch(scale_fwd_kernel<T, typename decltype(shape)::type>, launch_shape, stream, x, y, rows, n);
//     });
//
// A Row keeps what it read as vectors of T in registers, kHeld of them per thread, and converts them in every pass;
// with kHeld 0 it streams, that is, it reads again in every pass. A pass visits only columns that exist, so there is
// nothing to mask: a thread without columns brings the identity to a reduction. What all rows share, such as weights,
// is not held: read it through a RowReader or ParameterReader at the place where it is used (it comes from cache).
#pragma once

#include "ladder.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

template <class TeamType, int kVectors>
struct RowShape {
  using Team = TeamType;
  static constexpr int kHeld = kVectors;
  static constexpr int kThreads = block_threads(Team::kKind, kHeld);
  static constexpr int kBlocks = blocks_per_processor(Team::kKind, kHeld);
};

// kColumns neighbouring columns of a row; `slot` tells where a Row holds them.
template <int kColumns>
struct Place : Width<kColumns> {
  std::int64_t column;
  int slot;
};

// Columns of a place that come in one vector of W: what is wider than the row, such as fp32 weights beside 16 bits, is
// read in parts, for all of it at once would take the registers that hold the row.
template <class W, int kColumns>
inline constexpr int kPartColumns = std::min(kColumns, kVectorWidth<W>);

// visit(Place, first) for each part, whose columns are those of the place from number `first` on.
template <class W, int kColumns, class Visit>
__device__ void for_each_part(const Place<kColumns>& place, Visit visit) {
  constexpr int kPart = kPartColumns<W, kColumns>;
#pragma unroll
  for (int first = 0; first < kColumns; first += kPart) visit(Place<kPart>{{}, place.column + first, place.slot}, first);
}

// The columns of one row that come to one thread: vectors, dealt out to the team one by one, and single elements at
// the row's unaligned ends.
template <class T, class Shape>
class Columns {
 public:
  static constexpr int kVectors = Shape::kHeld;
  static constexpr int kSmallestTeam = Shape::Team::kKind == TeamKind::kLanes ? 8 : kWarpSize;
  static constexpr int kEdges = (2 * (kVectorWidth<T> - 1) + kSmallestTeam - 1) / kSmallestTeam;

  __device__ Columns(const typename Shape::Team& team, const T* output_row, std::int64_t n)
      : cut_(cut_row(output_row, n)), thread_(team.thread()), threads_(team.threads()) {}

  __device__ const RowCut& cut() const { return cut_; }

  // visit(Place) for each; the same columns in every pass.
  template <class Visit>
  __device__ void for_each(Visit visit) const {
    if constexpr (kVectors == 0) {
      for_each_column<T>(*this, cut_, [&](auto width, std::int64_t column) {
        visit(Place<width.kCount>{{}, column, 0});
      });
    } else {
      for_each_vector(visit);
      for_each_edge(visit);
    }
  }

  template <class Visit>
  __device__ void for_each_vector(Visit visit) const {
    // A row that is held is short enough for int. Opaque, so that a pass computes its addresses anew: those of all
    // slots would take more registers than the vectors.
    const int tail = static_cast<int>(cut_.tail), stride = threads_ * kVectorWidth<T>;
    int column = static_cast<int>(cut_.head) + opaque(thread_) * kVectorWidth<T>;
#pragma unroll
    for (int slot = 0; slot < kVectors; ++slot) {
      if (column < tail) visit(Place<kVectorWidth<T>>{{}, column, slot});
      column += stride;
    }
  }

  template <class Visit>
  __device__ void for_each_edge(Visit visit) const {
    const auto head = static_cast<int>(cut_.head), tail = static_cast<int>(cut_.tail);
    const int count = head + static_cast<int>(cut_.n) - tail;
#pragma unroll
    for (int slot = 0; slot < kEdges; ++slot) {
      const int edge = thread_ + slot * threads_;
      if (edge < count) visit(Place<1>{{}, edge < head ? edge : tail + (edge - head), slot});
    }
  }

  // As for_each_column asks of a team.
  __device__ int thread() const { return thread_; }
  __device__ int threads() const { return threads_; }

 private:
  RowCut cut_;
  int thread_, threads_;
};

// One row of an input, as far as it is this thread's.
template <class T, class Shape>
class Row {
 public:
  __device__ Row(const T* row, const Columns<T, Shape>& columns) : reader_(row, columns.cut()) {
    if constexpr (Shape::kHeld > 0) {
      if (reader_.is_aligned()) {
        columns.for_each_vector([&](auto place) { vectors_[place.slot] = reader_.load_aligned(place.column); });
      } else {
        columns.for_each_vector([&](auto place) { vectors_[place.slot] = reader_.load_unaligned(place.column); });
      }
      columns.for_each_edge([&](auto place) { edges_[place.slot] = row[place.column]; });
    }
  }

  // Of a row that is held: what is there from now on, rounded to T.
  template <int kColumns>
  __device__ void replace(const Place<kColumns>& place, const Floats<kColumns>& values) {
    if constexpr (kColumns == 1) {
      edges_[place.slot] = from_float<T>(values[0]);
    } else {
      vectors_[place.slot] = from_floats<T>(values);
    }
  }

  template <int kColumns>
  __device__ Floats<kColumns> load(const Place<kColumns>& place) const {
    if constexpr (Shape::kHeld == 0) {
      return reader_.load(place, place.column);
    } else if constexpr (kColumns == 1) {
      return {{to_float(edges_[place.slot])}};
    } else {
      return to_floats(opaque(vectors_[place.slot]));
    }
  }

 private:
  RowReader<T> reader_;
  Vector<T> vectors_[Shape::kHeld > 0 ? Shape::kHeld : 1];
  T edges_[Columns<T, Shape>::kEdges];
};

// `weight` or `bias`, the same for all rows, or the number that stands for it where there is none.
template <class W>
class ParameterReader {
 public:
  __device__ ParameterReader(const W* row, const RowCut& cut, float otherwise)
      : reader_(row, row == nullptr ? RowCut{} : cut), given_(row != nullptr), otherwise_(otherwise) {}

  template <int kColumns>
  __device__ Floats<kColumns> load(const Place<kColumns>& place) const {
    if (given_) return reader_.load(place, place.column);
    Floats<kColumns> out;
#pragma unroll
    for (float& value : out.values) value = otherwise_;
    return out;
  }

 private:
  RowReader<W> reader_;
  bool given_;
  float otherwise_;
};

}  // namespace fusedformer
