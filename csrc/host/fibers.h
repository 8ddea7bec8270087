// A stack and registers for each thread of a block, switched without system calls.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstddef>
#include <stdexcept>

namespace emulator {

template <unsigned kCount>
class Fibers {
 public:
  Fibers() {
    void* const memory = mmap(nullptr, kCount * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("the emulator could not reserve its stacks");
    stacks_ = static_cast<char*>(memory);
  }
  ~Fibers() { munmap(stacks_, kCount * kStackBytes); }
  Fibers(const Fibers&) = delete;

  // Runs fiber i from where it switched back, or else from `entry`, which must not return; returns when it switches
  // back. ucontext only gives a fiber its stack: its own switches save the signal mask, by a system call each.
  void resume(unsigned i, void (*entry)()) {
    if (_setjmp(caller_) != 0) return;
    if (started_[i]) _longjmp(registers_[i], 1);
    started_[i] = true;
    // Only now, for a process may have just some 65,000 areas of memory.
    mprotect(stacks_ + i * kStackBytes, kGuardBytes, PROT_NONE);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks_ + i * kStackBytes;
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, entry, 0);
    setcontext(&context);
  }

  // In fiber i: returns to who resumed it, and from here when it is resumed again.
  void switch_back(unsigned i) {
    if (_setjmp(registers_[i]) == 0) _longjmp(caller_, 1);
  }

  // Forgets what all fibers were doing. What lies on their stacks is not destroyed.
  void abandon() { started_.fill(false); }

 private:
  static constexpr std::size_t kStackBytes = 64 << 10, kGuardBytes = 4 << 10;
  std::array<jmp_buf, kCount> registers_;
  std::array<bool, kCount> started_ = {};
  jmp_buf caller_;
  char* stacks_;
};

}  // namespace emulator
