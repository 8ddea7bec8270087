// libcudart.so.13: the runtime's functions about the device, kernels and memory. Streams are in streams.cpp.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "device.h"
#include "runtime.h"

using rehearsal::Function;
using rehearsal::Launch;

namespace rehearsal {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) { return last_error = error; }

}  // namespace rehearsal

using rehearsal::failed;

namespace {

constexpr std::size_t kLargestCopy = std::size_t{16} << 20;  // of values that nobody computed, more is a waste of time

// By the address of the host's stub. Filled while libraries are loaded.
std::unordered_map<const void*, Function*>& kernels() {
  static std::unordered_map<const void*, Function*> kernels;
  return kernels;
}

std::mutex mutex;
std::map<const void*, void*> symbols;
std::map<std::uintptr_t, std::size_t> pinned;

// What a launch names: a host's stub, or what __cudaGetKernel gave for it.
Function* function_of(const void* handle) {
  const auto found = kernels().find(handle);
  return found != kernels().end() ? found->second : static_cast<Function*>(const_cast<void*>(handle));
}

cudaError_t check(const Function* function, const Launch& launch) {
  return rehearsal::check_launch(*function, launch, nullptr) ? cudaSuccess : failed(cudaErrorInvalidConfiguration);
}

cudaError_t launch(const void* handle, dim3 grid, dim3 block, std::size_t shared, bool is_cooperative = false) {
  return check(function_of(handle), Launch{.grid = {grid.x, grid.y, grid.z},
                                           .block = {block.x, block.y, block.z},
                                           .dynamic_shared = shared,
                                           .is_cooperative = is_cooperative});
}

bool is_pinned(const void* pointer) {
  const std::lock_guard guard(mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const auto found = pinned.upper_bound(address);
  return found != pinned.begin() && address < std::prev(found)->first + std::prev(found)->second;
}

bool is_host(const void* pointer) {
  return !rehearsal::is_device_address(reinterpret_cast<std::uintptr_t>(pointer));
}

bool is_inside(const void* pointer, std::size_t bytes, const char* call) {
  if (is_host(pointer) || bytes == 0 || rehearsal::bytes_from(reinterpret_cast<std::uintptr_t>(pointer)) >= bytes)
    return true;
  rehearsal::refuse("%s: %zu B that are not all inside one allocation", call, bytes);
  return false;
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, const char* call) {
  ++rehearsal::counters[rehearsal::kCopies];
  if (!is_inside(to, bytes, call) || !is_inside(from, bytes, call)) return failed(cudaErrorInvalidValue);
  if (bytes <= kLargestCopy) std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t fill(void* address, int value, std::size_t bytes, const char* call) {
  if (!is_inside(address, bytes, call)) return failed(cudaErrorInvalidValue);
  if (bytes <= kLargestCopy) std::memset(address, value, bytes);
  return cudaSuccess;
}

CUresult not_pretended() { return CUDA_ERROR_NOT_SUPPORTED; }

}  // namespace

// Kernels that nvcc compiled register themselves. Their code is compressed and is not read: of their registers and
// static shared memory nothing is known here; tests/test_static*.py knows it.

EXPORT void** __cudaRegisterFatBinary(void*) { return new void*(nullptr); }
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 1; }
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}

EXPORT void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*,
                                   int*) {
  kernels()[stub] = new Function{.name = name};
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(function_of(stub));
  return cudaSuccess;
}

namespace {
struct Configuration {
  dim3 grid, block;
  std::size_t shared;
  void* stream;
};
thread_local Configuration configuration;
}  // namespace

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, std::size_t shared,
                                      cudaStream_t) {
  return launch(kernel, grid, block, shared);
}

EXPORT cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void**, std::size_t shared,
                                    cudaStream_t) {
  return launch(stub, grid, block, shared);
}

EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* stub, dim3 grid, dim3 block, void**, std::size_t shared,
                                               cudaStream_t) {
  return launch(stub, grid, block, shared, true);
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void**) {
  Launch launch{.grid = {config->gridDim.x, config->gridDim.y, config->gridDim.z},
                .block = {config->blockDim.x, config->blockDim.y, config->blockDim.z},
                .dynamic_shared = config->dynamicSmemBytes};
  for (unsigned index = 0; index < config->numAttrs; ++index) {
    const cudaLaunchAttribute& attribute = config->attrs[index];
    if (attribute.id == cudaLaunchAttributeCooperative) launch.is_cooperative = attribute.val.cooperative != 0;
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    launch.cluster[0] = attribute.val.clusterDim.x;
    launch.cluster[1] = attribute.val.clusterDim.y;
    launch.cluster[2] = attribute.val.clusterDim.z;
  }
  return check(function_of(stub), launch);
}

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  const Function* function = function_of(stub);
  *attributes = {};
  attributes->numRegs = function->registers;
  attributes->sharedSizeBytes = function->static_shared;
  attributes->maxThreadsPerBlock = function->max_threads;
  attributes->maxDynamicSharedSizeBytes = function->dynamic_limit;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}

EXPORT cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  Function* function = function_of(stub);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) function->allows_large_clusters = value != 0;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return rehearsal::set_dynamic_limit(*function, value) ? cudaSuccess : failed(cudaErrorInvalidValue);
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub, int threads,
                                                                 std::size_t shared) {
  *blocks = rehearsal::active_blocks(*function_of(stub), threads, shared);
  return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub, int threads,
                                                                          std::size_t shared, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, stub, threads, shared);
}

EXPORT cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* stub, const cudaLaunchConfig_t* config) {
  const int threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
  unsigned size = 1;
  for (unsigned index = 0; index < config->numAttrs; ++index)
    if (config->attrs[index].id == cudaLaunchAttributeClusterDimension) size = config->attrs[index].val.clusterDim.x;
  const Function& function = *function_of(stub);
  const unsigned most = function.allows_large_clusters ? 16 : 8;
  const int blocks = rehearsal::active_blocks(function, threads, config->dynamicSmemBytes) * rehearsal::kMultiprocessors;
  *clusters = size == 0 || size > most ? 0 : blocks / static_cast<int>(size);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice);
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr number, int) {
  *value = rehearsal::attribute(number);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
  std::strncpy(text, "0000:00:00.0", length);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = rehearsal::kVersion;
  return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  using namespace rehearsal;
  *properties = {};
  std::strcpy(properties->name, "NVIDIA H200 (rehearsal)");
  properties->totalGlobalMem = kMemoryBytes;
  properties->sharedMemPerBlock = kSharedPerBlock;
  properties->sharedMemPerBlockOptin = kSharedPerBlockOptin;
  properties->sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
  properties->reservedSharedMemPerBlock = kReservedShared;
  properties->regsPerBlock = properties->regsPerMultiprocessor = kRegistersPerMultiprocessor;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
  properties->maxBlocksPerMultiProcessor = kBlocksPerMultiprocessor;
  for (int axis = 0; axis < 3; ++axis) {
    properties->maxThreadsDim[axis] = axis == 2 ? 64 : 1024;
    properties->maxGridSize[axis] = axis == 0 ? 0x7fffffff : 65535;
  }
  properties->major = 9;
  properties->multiProcessorCount = kMultiprocessors;
  properties->l2CacheSize = kL2Bytes;
  properties->memoryBusWidth = 6144;
  properties->textureAlignment = 512;
  properties->concurrentKernels = properties->unifiedAddressing = properties->cooperativeLaunch = 1;
  properties->canMapHostMemory = properties->asyncEngineCount = 1;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (*function == nullptr) *function = reinterpret_cast<void*>(&not_pretended);
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

EXPORT const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "refused by the rehearsal (see stderr)";
}

EXPORT const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }

EXPORT cudaError_t cudaPeekAtLastError() { return rehearsal::last_error; }

EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = rehearsal::last_error;
  rehearsal::last_error = cudaSuccess;
  return error;
}

EXPORT cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  *address = bytes == 0 ? nullptr : rehearsal::allocate(bytes);
  return *address == nullptr && bytes != 0 ? failed(cudaErrorMemoryAllocation) : cudaSuccess;
}

EXPORT cudaError_t cudaFree(void* address) {
  if (address == nullptr || rehearsal::release(address)) return cudaSuccess;
  rehearsal::refuse("cudaFree of what cudaMalloc did not give");
  return failed(cudaErrorInvalidValue);
}

EXPORT cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = rehearsal::kMemoryBytes;
  *free = *total - rehearsal::used_bytes();
  return cudaSuccess;
}

EXPORT cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  *address = std::calloc(1, bytes);
  const std::lock_guard guard(mutex);
  pinned[reinterpret_cast<std::uintptr_t>(*address)] = bytes;
  return cudaSuccess;
}

EXPORT cudaError_t cudaFreeHost(void* address) {
  const std::lock_guard guard(mutex);
  pinned.erase(reinterpret_cast<std::uintptr_t>(address));
  std::free(address);
  return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  const bool is_device = !is_host(pointer);
  attributes->type = is_device          ? cudaMemoryTypeDevice
                     : is_pinned(pointer) ? cudaMemoryTypeHost
                                          : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
  if (attributes->type == cudaMemoryTypeUnregistered) attributes->devicePointer = nullptr;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  const std::lock_guard guard(mutex);
  if (symbols[symbol] == nullptr) symbols[symbol] = rehearsal::allocate(std::size_t{1} << 20);
  *address = symbols[symbol];
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyToSymbol(const void*, const void*, std::size_t, std::size_t, cudaMemcpyKind) {
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (!rehearsal::synchronise("cudaMemcpy", rehearsal::open_capture() != 0)) return failed(cudaErrorStreamCaptureUnsupported);
  return copy(to, from, bytes, "cudaMemcpy");
}

EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  // From or to memory that is not pinned it waits, and cannot be captured.
  const bool waits = (is_host(to) && !is_pinned(to)) || (is_host(from) && !is_pinned(from));
  if (waits && rehearsal::open_capture() != 0) {
    rehearsal::refuse("cudaMemcpyAsync of memory that is not pinned, while a stream is captured");
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  return copy(to, from, bytes, "cudaMemcpyAsync");
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes, cudaStream_t) {
  return copy(to, from, bytes, "cudaMemcpyPeerAsync");
}

EXPORT cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                                     std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t) {
  for (std::size_t row = 0; row < height; ++row) {
    const auto error = copy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                            width, "cudaMemcpy2DAsync");
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemset(void* address, int value, std::size_t bytes) {
  return fill(address, value, bytes, "cudaMemset");
}

EXPORT cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  return fill(address, value, bytes, "cudaMemsetAsync");
}
