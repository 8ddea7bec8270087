// Where the emulator's choices come from: a seed, and numbers that follow from it.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <random>

namespace emulator {

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~result_type{0}; }

  result_type operator()() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  // The number of a set bit; every one has its chance, though not the same.
  unsigned pick(std::uint32_t bits) {
    const auto turn = static_cast<int>((*this)() % 32);
    return (std::countr_zero(std::rotr(bits, turn)) + turn) % 32;
  }

 private:
  std::uint64_t state_;
};

inline std::uint64_t current_seed() {
  static const std::uint64_t drawn = std::random_device{}();
  const char* chosen = std::getenv("FUSEDFORMER_EMULATION_SEED");
  return chosen == nullptr || *chosen == '\0' ? drawn : std::strtoull(chosen, nullptr, 10);
}

}  // namespace emulator
