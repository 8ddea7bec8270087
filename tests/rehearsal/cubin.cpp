// The kernels of a cubin: an ELF file, with each kernel's attributes in a section .nv.info.<kernel>.
#include <elf.h>

#include <cstring>
#include <map>

#include "device.h"

namespace rehearsal {

namespace {

// NVIDIA's numbers of attributes.
constexpr int kMaxThreads = 0x05, kRequiredThreads = 0x10, kParameter = 0x17, kRegisters = 0x2f;
constexpr int kSizedFormat = 0x04;  // a 16-bit size and that many bytes follow; the value itself does otherwise

template <class T>
T read(const char* address) {
  T value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}

// Calls visit(attribute, payload) for each attribute of a section.
template <class Visit>
void each_attribute(const char* start, std::size_t bytes, Visit visit) {
  for (const char* at = start; at + 4 <= start + bytes;) {
    const int format = static_cast<unsigned char>(at[0]), number = static_cast<unsigned char>(at[1]);
    const auto size = read<std::uint16_t>(at + 2);
    if (format == kSizedFormat) visit(number, at + 4);
    at += 4 + (format == kSizedFormat ? size : 0);
  }
}

void read_attributes(Function& function, const char* start, std::size_t bytes) {
  each_attribute(start, bytes, [&](int number, const char* payload) {
    if (number == kMaxThreads || number == kRequiredThreads) {
      function.max_threads = 1;
      for (int axis = 0; axis < 3; ++axis) function.max_threads *= read<std::uint32_t>(payload + 4 * axis);
    } else if (number == kParameter) {
      const int size = static_cast<int>(read<std::uint32_t>(payload + 8) >> 18);
      function.parameters.push_back({read<std::uint16_t>(payload + 4), size});
    }
  });
}

}  // namespace

std::vector<Function*> read_cubin(const void* image) {
  const char* base = static_cast<const char*>(image);
  std::vector<Function*> functions;
  if (std::strncmp(base, ELFMAG, SELFMAG) != 0) return functions;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(base);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(base + header->e_shoff);
  const char* names = base + sections[header->e_shstrndx].sh_offset;
  std::map<std::string, const Elf64_Shdr*> by_name;
  for (int index = 0; index < header->e_shnum; ++index)
    by_name[names + sections[index].sh_name] = &sections[index];

  const std::string prefix = ".nv.info.";
  std::map<std::string, Function*> found;
  for (const auto& [name, section] : by_name) {
    if (name.rfind(prefix, 0) != 0) continue;
    auto* function = new Function{.name = name.substr(prefix.size())};
    read_attributes(*function, base + section->sh_offset, section->sh_size);
    const auto shared = by_name.find(".nv.shared." + function->name);
    if (shared != by_name.end()) function->static_shared = static_cast<int>(shared->second->sh_size);
    found[function->name] = function;
    functions.push_back(function);
  }
  const auto info = by_name.find(".nv.info"), symbols = by_name.find(".symtab"), strings = by_name.find(".strtab");
  if (info == by_name.end() || symbols == by_name.end() || strings == by_name.end()) return functions;
  each_attribute(base + info->second->sh_offset, info->second->sh_size, [&](int number, const char* payload) {
    if (number != kRegisters) return;
    const auto* symbol = reinterpret_cast<const Elf64_Sym*>(base + symbols->second->sh_offset);
    symbol += read<std::uint32_t>(payload);
    const auto function = found.find(base + strings->second->sh_offset + symbol->st_name);
    if (function != found.end()) function->second->registers = static_cast<int>(read<std::uint32_t>(payload + 4));
  });
  return functions;
}

}  // namespace rehearsal
