// One block of an emulated grid: its threads, what they wait for, and its shared memory.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "emulator.h"
#include "fibers.h"

namespace emulator {

// Where a thread waits for others.
struct Meeting {
  const char* call;
  unsigned mask;
  std::source_location where;

  bool operator==(const Meeting& other) const {
    return mask == other.mask && where.line() == other.where.line() && std::strcmp(call, other.call) == 0 &&
           std::strcmp(where.file_name(), other.where.file_name()) == 0;
  }

  std::string text() const {
    const std::string file = where.file_name();
    char mask_text[16];
    std::snprintf(mask_text, sizeof(mask_text), "(0x%08x)", mask);
    return std::string(call) + mask_text + " at " + file.substr(file.find_last_of('/') + 1) + ":" +
           std::to_string(where.line());
  }
};

struct Thread {
  unsigned position;  // in the block
  Meeting meeting = {};
  std::uint64_t value = 0;  // brought to a warp_exchange, then taken from it
  unsigned source = 0;
  bool has_arrived = false;     // at the cluster's barrier, and not gone on yet
  std::uint64_t arrived_at = 0;  // the number of that barrier
};

// One bit for each lane.
struct Warp {
  std::uint32_t alive = 0;        // has not exited
  std::uint32_t ready = 0;        // can go on
  std::uint32_t in_exchange = 0;  // waits for lanes of its warp
  std::uint32_t in_cluster = 0;   // waits for the cluster; one that is alive and in none waits for the block
};

inline unsigned volume(const Index3& sizes) { return sizes.x * sizes.y * sizes.z; }

// A part of a cluster, which is one block where a launch asks for none.
class Block {
 public:
  using BlockFibers = Fibers<kMaxThreads>;

  explicit Block(BlockFibers& block_fibers) : fibers(block_fibers) {}

  void start(const LaunchShape& shape, const Index3& block_index, unsigned cluster_rank) {
    index = block_index;
    rank = cluster_rank;
    alive = volume(shape.block);
    at_barrier = 0;
    has_begun = false;
    shared.assign(shape.shared_bytes + kCanaryBytes, kPoison);
    warps.fill({});
    threads.clear();
    for (unsigned position = 0; position < alive; ++position) {
      threads.push_back({position});
      warps[position / kWarpSize].alive |= 1u << position % kWarpSize;
    }
    for (Warp& warp : warps) warp.ready = warp.alive;
  }

  std::uint32_t ready_warps() const {
    std::uint32_t bits = 0;
    for (unsigned warp = 0; warp < warps.size(); ++warp) {
      if (warps[warp].ready != 0) bits |= 1u << warp;
    }
    return bits;
  }

  bool has_overrun() const {
    return std::any_of(shared.end() - kCanaryBytes, shared.end(), [](unsigned char byte) { return byte != kPoison; });
  }

  Thread& thread(unsigned warp, unsigned lane) { return threads[warp * kWarpSize + lane]; }

  // Lets every thread go on from the block's barrier, if all have come; false if they came to different ones.
  bool release_barrier_if_complete() {
    if (at_barrier == 0 || at_barrier < alive) return true;
    const Meeting* first = nullptr;
    for (unsigned warp = 0; warp < warps.size(); ++warp) {
      for (std::uint32_t left = warps[warp].alive; left != 0; left &= left - 1) {
        const Meeting& meeting = thread(warp, std::countr_zero(left)).meeting;
        if (first == nullptr) first = &meeting;
        if (!(meeting == *first)) return false;
      }
    }
    at_barrier = 0;
    for (Warp& warp : warps) warp.ready = warp.alive;
    return true;
  }

  // Gives the lanes that meet their values, if all have come; a complaint if one asks for a value that nobody brought.
  std::string release_exchange_if_complete(unsigned index_of_warp, const Meeting& meeting) {
    Warp& warp = warps[index_of_warp];
    const std::uint32_t expected = meeting.mask & warp.alive;
    if ((expected & ~warp.in_exchange) != 0) return "";
    std::array<std::uint64_t, kWarpSize> brought;
    for (std::uint32_t left = expected; left != 0; left &= left - 1) {
      const unsigned lane = std::countr_zero(left);
      if (!(thread(index_of_warp, lane).meeting == meeting)) return "";
      brought[lane] = thread(index_of_warp, lane).value;
    }
    for (std::uint32_t left = expected; left != 0; left &= left - 1) {
      Thread& taker = thread(index_of_warp, std::countr_zero(left));
      if (taker.source >= kWarpSize || (expected >> taker.source & 1) == 0) {
        return "lane " + std::to_string(taker.position % kWarpSize) + " reads lane " + std::to_string(taker.source) +
               ", which takes no part in " + meeting.text();
      }
      taker.value = brought[taker.source];
    }
    warp.in_exchange &= ~expected;
    warp.ready |= expected;
    return "";
  }

  void release_cluster() {
    for (Warp& warp : warps) {
      warp.ready |= warp.in_cluster;
      warp.in_cluster = 0;
    }
  }

  // "; threads 0-31 wait in __syncthreads(0xffffffff) at reduce.cuh:70; ..."
  std::string list_waiting() const {
    std::string out;
    for (std::size_t begin = 0, end; begin < threads.size(); begin = end) {
      const Meeting* meeting = waiting_at(begin);
      end = begin + 1;
      while (end < threads.size() && same(meeting, waiting_at(end))) ++end;
      const std::string range = end == begin + 1 ? std::to_string(begin)
                                                 : std::to_string(begin) + "-" + std::to_string(end - 1);
      out += "; threads " + range + (meeting == nullptr ? " have exited" : " wait in " + meeting->text());
    }
    return out;
  }

  BlockFibers& fibers;
  Index3 index;
  unsigned rank = 0;  // in the cluster
  std::vector<Thread> threads;
  std::array<Warp, kMaxThreads / kWarpSize> warps;
  std::vector<unsigned char> shared;
  unsigned alive = 0, at_barrier = 0;
  bool has_begun = false;  // some thread has run

 private:
  static constexpr std::size_t kCanaryBytes = 256;
  static constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type

  const Meeting* waiting_at(std::size_t position) const {
    const bool is_alive = warps[position / kWarpSize].alive >> position % kWarpSize & 1;
    return is_alive ? &threads[position].meeting : nullptr;
  }

  static bool same(const Meeting* a, const Meeting* b) {
    return a == b || (a != nullptr && b != nullptr && *a == *b);
  }
};

}  // namespace emulator
