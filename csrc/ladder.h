// The ladder: which threads share a row of n elements, a pure function of sizes and machine.
//
// A row is counted in vectors of 16 bytes, v = ceil(n * element size / 16), so one table serves every dtype. A rung is
// the first row of the table that is long enough for v and that the GPU has; what it leaves open is fitted to v:
//
//     Lanes    8, 16 or 32 lanes of a warp share a row; several rows to a block
//     Blocks   a block, or on sm_90 and later a cluster of blocks, shares a row
//
// Either holds `held` vectors per thread in registers, so that the row is read once; `held` 0 streams: each pass reads
// the row again. Nothing here but rows_per_block depends on the number of rows, so that a row gives the same bits in
// any batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>

namespace fusedformer {

inline constexpr int kPortableCluster = 8;  // a larger one has to be asked for, and may be refused

// What clusters of this architecture have at most, where they are not refused.
constexpr int largest_cluster_of(int arch) { return arch >= 90 ? 2 * kPortableCluster : 1; }

struct Machine {
  int arch;             // 90 is sm_90
  int processors;       // SMs
  int largest_cluster;  // blocks
};

enum class TeamKind { kLanes, kBlocks };

struct Rung {
  std::int64_t longest;  // row, in vectors
  int oldest_arch;
  TeamKind team;
  int threads;  // that share a row: of Lanes all, of Blocks the most in one block
  int held;     // vectors per thread
  int cluster;  // blocks that share a row
};

inline constexpr std::int64_t kAnyLength = std::numeric_limits<std::int64_t>::max();

// Evidence. `static`: from the figures of `fusedformer static` (registers, no spills) and the bytes that they keep in
// flight, about 32 KiB a processor being what an H200's latency asks for; nothing was measured on a GPU yet.
inline constexpr Rung kLadder[] = {
    {8, 0, TeamKind::kLanes, 8, 1, 1},     // static: 4 rows to a warp, 3 shuffles a reduction instead of 5
    {32, 0, TeamKind::kLanes, 8, 4, 1},    // static: twice the bytes in flight of 16 lanes of 1
    {64, 0, TeamKind::kLanes, 16, 4, 1},   // static: as above
    {128, 0, TeamKind::kLanes, 32, 4, 1},  // static: as above
    {256, 0, TeamKind::kLanes, 32, 8, 1},  // static: the longest row without a barrier: two tensors in 168 registers
    {1024, 0, TeamKind::kBlocks, 256, 4, 1},     // static: 80 registers, 3 blocks of 256 threads to a processor
    {2048, 0, TeamKind::kBlocks, 256, 8, 1},     // static: 128 registers, 2 blocks of 256 threads to a processor
    {4096, 90, TeamKind::kBlocks, 256, 8, 2},    // static: as 2048
    {4096, 0, TeamKind::kBlocks, 512, 8, 1},     // static: without clusters, all that one processor's registers hold
    {8192, 90, TeamKind::kBlocks, 256, 8, 4},    // static: as 2048
    {16384, 90, TeamKind::kBlocks, 256, 8, 8},   // static: as 2048; the largest portable cluster
    {32768, 90, TeamKind::kBlocks, 512, 8, 8},   // static: 128 registers, one block of 512 threads to a processor
    {65536, 90, TeamKind::kBlocks, 512, 8, 16},  // static: as above; not portable
    {kAnyLength, 90, TeamKind::kBlocks, 512, 0, 8},  // static: few rows at a time, so that L2 serves the second pass
    {kAnyLength, 0, TeamKind::kBlocks, 512, 0, 1},   // static: a block for each row
};

// For what goes down the rows and keeps a sum of each column (column_sums.cuh): with few vectors to a thread, so that a
// processor's shared memory holds the sums of as many threads as its registers hold rows.
inline constexpr Rung kSummingLadder[] = {
    {8, 0, TeamKind::kLanes, 8, 1, 1},            // static: as in kLadder
    {32, 0, TeamKind::kLanes, 8, 4, 1},           // static: as above
    {64, 0, TeamKind::kLanes, 16, 4, 1},          // static: as above
    {128, 0, TeamKind::kLanes, 32, 4, 1},         // static: as above
    {1024, 0, TeamKind::kBlocks, 256, 4, 1},      // static: 64 KiB of sums in bf16, 3 blocks to a processor
    {2048, 90, TeamKind::kBlocks, 256, 4, 2},     // static: as 1024
    {4096, 90, TeamKind::kBlocks, 256, 4, 4},     // static: as 1024
    {8192, 90, TeamKind::kBlocks, 256, 4, 8},     // static: as 1024; the largest portable cluster
    {16384, 90, TeamKind::kBlocks, 256, 4, 16},   // static: as 1024; not portable
    {32768, 90, TeamKind::kBlocks, 256, 8, 16},   // static: 128 KiB of sums in bf16, one block to a processor
    {32768, 90, TeamKind::kBlocks, 512, 8, 8},    // static: as in kLadder; sums in fp32 alone, as in the next three
    {65536, 90, TeamKind::kBlocks, 512, 8, 16},   // static: as in kLadder
    {2048, 0, TeamKind::kBlocks, 256, 8, 1},      // static: without clusters
    {4096, 0, TeamKind::kBlocks, 512, 8, 1},      // static: as in kLadder
    {kAnyLength, 90, TeamKind::kBlocks, 512, 0, 8},  // static: as in kLadder; no sums
    {kAnyLength, 0, TeamKind::kBlocks, 512, 0, 1},   // static: as in kLadder; no sums
};

struct RowPlan {
  TeamKind team;
  int threads;         // of one block that share a row
  int held;            // vectors per thread; 0: streaming
  int cluster;         // blocks that share a row
  int rows_per_block;  // 1 for Blocks
};

// The most threads of a block, for which a kernel is compiled.
constexpr int block_threads(TeamKind team, int held) {
  if (team == TeamKind::kLanes) return 128;
  return held == 4 ? 256 : 512;
}

// Blocks of that many threads that fit on a processor together: what limits a kernel's registers.
constexpr int blocks_per_processor(TeamKind team, int held) {
  if (team == TeamKind::kLanes) return held == 1 ? 8 : held == 4 ? 5 : 3;
  return held == 0 ? 2 : held == 4 ? 3 : 1;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

constexpr std::int64_t vectors_of_row(std::int64_t n, int element_size) {
  return std::max<std::int64_t>(1, ceil_div(n, 16 / element_size));
}

using Ladder = std::span<const Rung>;

// Whether rows may come to be shared so.
constexpr bool has_shape(Ladder ladder, TeamKind team, int held) {
  return std::any_of(ladder.begin(), ladder.end(), [=](const Rung& rung) { return rung.team == team && rung.held == held; });
}

constexpr Rung find_rung(Ladder ladder, std::int64_t vectors, const Machine& machine) {
  for (const Rung& rung : ladder) {
    if (vectors <= rung.longest && machine.arch >= rung.oldest_arch && rung.cluster <= machine.largest_cluster) {
      return rung;
    }
  }
  return ladder.back();  // not reached: the last one suits everything
}

// The fewest whole warps of each block of the cluster that hold the row.
constexpr int fit_threads(const Rung& rung, int cluster, std::int64_t vectors) {
  constexpr int kWarp = 32;
  if (rung.held == 0) return rung.threads;
  return static_cast<int>(ceil_div(ceil_div(vectors, std::int64_t{cluster} * rung.held), kWarp)) * kWarp;
}

constexpr RowPlan fit_lanes(const Rung& rung, std::int64_t rows, int processors) {
  constexpr int kWarp = 32;
  int rows_per_block = block_threads(rung.team, rung.held) / rung.threads;
  // Smaller blocks, down to a warp, while they leave processors without any.
  while (rows_per_block * rung.threads > kWarp && ceil_div(rows, rows_per_block) < processors) rows_per_block /= 2;
  return {rung.team, rung.threads, rung.held, 1, rows_per_block};
}

constexpr RowPlan fit_blocks(const Rung& rung, std::int64_t vectors) {
  int cluster = rung.cluster, threads = fit_threads(rung, cluster, vectors);
  // The last block's share begins past (cluster - 1) threads: with fewer vectors it would be empty.
  while (cluster > 1 && vectors <= std::int64_t{cluster - 1} * threads) {
    cluster /= 2;
    threads = fit_threads(rung, cluster, vectors);
  }
  return {rung.team, threads, rung.held, cluster, 1};
}

constexpr RowPlan fit_rung(const Rung& rung, std::int64_t rows, std::int64_t vectors, int processors) {
  return rung.team == TeamKind::kLanes ? fit_lanes(rung, rows, processors) : fit_blocks(rung, vectors);
}

constexpr RowPlan plan_row(std::int64_t rows, std::int64_t n, int element_size, const Machine& machine,
                           Ladder ladder = kLadder) {
  const std::int64_t vectors = vectors_of_row(n, element_size);
  return fit_rung(find_rung(ladder, vectors, machine), rows, vectors, machine.processors);
}

// Shared memory that one block may have.
constexpr std::int64_t shared_bytes_of(int arch) {
  if (arch >= 90 && arch < 120) return 227 * 1024;
  return (arch == 80 || arch == 87 ? 163 : 99) * 1024;
}

// Shared memory in which a block keeps a number in fp32 for each column of each of its threads; 0 where it streams.
constexpr std::int64_t column_sum_bytes(const RowPlan& plan, int element_size) {
  constexpr int kFp32Size = 4;
  return std::int64_t{plan.threads} * plan.rows_per_block * plan.held * (16 / element_size) * kFp32Size;
}

// Blocks, or clusters, that go on to further rows until there are none: as many as run together, unless each would have
// so few rows that writing and reading its sums were no small part of the traffic. A processor without any is worse.
constexpr std::int64_t lasting_teams(const RowPlan& plan, std::int64_t rows, int processors) {
  constexpr std::int64_t kMinTurns = 16;
  const std::int64_t turns = ceil_div(rows, plan.rows_per_block);
  const int threads = plan.threads * plan.rows_per_block;
  const int blocks = blocks_per_processor(plan.team, plan.held) * block_threads(plan.team, plan.held) / threads;
  const std::int64_t together = std::int64_t{processors} * blocks / plan.cluster;
  const std::int64_t wanted = std::max(ceil_div(turns, kMinTurns), ceil_div(processors, plan.cluster));
  return std::max<std::int64_t>(1, std::min({turns, together, wanted}));
}

}  // namespace fusedformer
