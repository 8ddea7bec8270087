// Gives every CPU tensor pages of its own between two unreadable ones, so that a read or write outside it ends the
// process where it happens, in the emulated kernels as in Triton's interpreter.
#undef TORCH_TARGET_VERSION  // allocators are not part of the stable ABI
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>

namespace {

struct Mapping {
  void* address;
  std::size_t bytes;
};

std::mutex mutex;
std::unordered_map<void*, Mapping>& mappings = *new std::unordered_map<void*, Mapping>;  // by tensor data, to the end

void unmap(void* data) {
  const std::lock_guard lock(mutex);
  const auto found = mappings.find(data);
  munmap(found->second.address, found->second.bytes);
  mappings.erase(found);
}

class GuardedAllocator final : public c10::Allocator {
 public:
  explicit GuardedAllocator(bool at_end) : at_end_(at_end) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, cpu};
    const std::size_t page = sysconf(_SC_PAGESIZE), usable = (bytes + page - 1) / page * page;
    const Mapping mapping = {mmap(nullptr, usable + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                             usable + 2 * page};
    if (mapping.address == MAP_FAILED) throw std::bad_alloc();
    char* const first = static_cast<char*>(mapping.address) + page;
    mprotect(first, usable, PROT_READ | PROT_WRITE);
    char* const data = at_end_ ? first + usable - bytes : first;
    const std::lock_guard lock(mutex);
    mappings[data] = mapping;
    return {data, data, &unmap, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &unmap; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  bool at_end_;  // the tensor's last byte is the page's last one; else its first byte is the page's first
};

}  // namespace

extern "C" void guard_cpu_tensors(bool at_end) { c10::SetCPUAllocator(new GuardedAllocator(at_end), 255); }
