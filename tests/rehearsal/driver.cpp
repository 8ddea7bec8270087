// libcuda.so.1: the driver's functions that Triton, Gluon's TMA descriptors and PyTorch call.
#include <cstring>
#include <fstream>
#include <iterator>

#include "device.h"

using rehearsal::Function;
using rehearsal::Launch;
using rehearsal::refuse;

namespace {

const auto kContext = reinterpret_cast<CUcontext>(std::uintptr_t{0x5e7});

struct Module {
  std::vector<Function*> functions;
  bool is_trusted;  // from NVRTC's stand-in: whatever kernel it is asked for is there
};

CUresult launch(CUfunction handle, const CUlaunchConfig& config, void** parameters) {
  Launch launch{.grid = {config.gridDimX, config.gridDimY, config.gridDimZ},
                .block = {config.blockDimX, config.blockDimY, config.blockDimZ},
                .dynamic_shared = config.sharedMemBytes};
  for (unsigned index = 0; index < config.numAttrs; ++index) {
    const CUlaunchAttribute& attribute = config.attrs[index];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) launch.is_cooperative = attribute.value.cooperative != 0;
    if (attribute.id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
    launch.cluster[0] = attribute.value.clusterDim.x;
    launch.cluster[1] = attribute.value.clusterDim.y;
    launch.cluster[2] = attribute.value.clusterDim.z;
  }
  const bool is_good = rehearsal::check_launch(*reinterpret_cast<Function*>(handle), launch, parameters);
  return is_good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

int element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 4;
  }
}

std::size_t swizzle_bytes(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    default: return 128;
  }
}

}  // namespace

EXPORT CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

EXPORT CUresult cuDriverGetVersion(int* version) {
  *version = rehearsal::kVersion;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_SUCCESS ? "no error" : "refused by the rehearsal (see stderr)";
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char** text) { return cuGetErrorString(error, text); }

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  std::strncpy(name, "NVIDIA H200 (rehearsal)", length);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute number, CUdevice) {
  *value = rehearsal::attribute(number);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* is_active) {
  *flags = 0;
  *is_active = 1;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = kContext;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = kContext;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetLimit(CUlimit, std::size_t) { return CUDA_SUCCESS; }

EXPORT CUresult cuCtxGetLimit(std::size_t* value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize() {
  return rehearsal::synchronise("cuCtxSynchronize", rehearsal::open_capture() != 0) ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

EXPORT CUresult cuModuleLoadData(CUmodule* result, const void* image) {
  auto* module = new Module{rehearsal::read_cubin(image), *static_cast<const char*>(image) == '\0'};
  *result = reinterpret_cast<CUmodule>(module);
  return module->functions.empty() && !module->is_trusted ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule* result, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(result, image);
}

EXPORT CUresult cuModuleLoad(CUmodule* result, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string image{std::istreambuf_iterator<char>(file), {}};
  return file ? cuModuleLoadData(result, image.c_str()) : CUDA_ERROR_FILE_NOT_FOUND;
}

EXPORT CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

EXPORT CUresult cuModuleGetFunction(CUfunction* result, CUmodule handle, const char* name) {
  if (reinterpret_cast<Module*>(handle)->is_trusted) {
    *result = reinterpret_cast<CUfunction>(new Function{.name = name});
    return CUDA_SUCCESS;
  }
  for (Function* function : reinterpret_cast<Module*>(handle)->functions) {
    if (function->name != name) continue;
    *result = reinterpret_cast<CUfunction>(function);
    return CUDA_SUCCESS;
  }
  refuse("no kernel %s in the module", name);
  return CUDA_ERROR_NOT_FOUND;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute number, CUfunction handle) {
  const auto& function = *reinterpret_cast<Function*>(handle);
  switch (number) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = function.max_threads; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = function.static_shared; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = function.registers; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function.dynamic_limit; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute number, int value) {
  auto& function = *reinterpret_cast<Function*>(handle);
  if (number == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) function.allows_large_clusters = value != 0;
  if (number != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  return rehearsal::set_dynamic_limit(function, value) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void**) {
  return launch(function, *config, parameters);
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** parameters,
                               void**) {
  CUlaunchConfig config{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, nullptr, 0};
  return launch(function, config, parameters);
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int threads,
                                                            std::size_t shared) {
  *blocks = rehearsal::active_blocks(*reinterpret_cast<Function*>(handle), threads, shared);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction handle, const CUlaunchConfig* config) {
  const auto& function = *reinterpret_cast<Function*>(handle);
  *clusters = rehearsal::active_blocks(function, config->blockDimX, config->sharedMemBytes) * rehearsal::kMultiprocessors;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void* value, CUpointer_attribute number, CUdeviceptr address) {
  if (rehearsal::bytes_from(address) == 0) return CUDA_ERROR_INVALID_VALUE;
  if (number == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr*>(value) = address;
  if (number == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) *static_cast<unsigned*>(value) = CU_MEMORYTYPE_DEVICE;
  if (number == CU_POINTER_ATTRIBUTE_CONTEXT) *static_cast<CUcontext*>(value) = kContext;
  return CUDA_SUCCESS;
}

// The rules are those of the driver's documentation of this function.
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ++rehearsal::counters[rehearsal::kDescriptors];
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  const char* problem = nullptr;
  const std::size_t element = element_bytes(type), span = swizzle_bytes(swizzle);
  if (reinterpret_cast<std::uintptr_t>(map) % 64 != 0) problem = "is not at a multiple of 64 bytes itself";
  if (rank == 0 || rank > 5) problem = "has not 1 to 5 dimensions";
  if (start % 16 != 0) problem = "describes memory that is not at a multiple of 16 bytes";
  if (problem == nullptr) {
    for (unsigned axis = 0; axis < rank; ++axis) {
      if (sizes[axis] == 0 || sizes[axis] > std::uint64_t{1} << 32) problem = "has a size of 0 or past 2^32";
      if (box[axis] == 0 || box[axis] > 256) problem = "has a box of 0 or past 256";
      if (steps[axis] == 0 || steps[axis] > 8) problem = "has an element stride of 0 or past 8";
      if (axis == 0) continue;
      const std::uint64_t stride = strides[axis - 1];
      if (stride % 16 != 0 || stride >= std::uint64_t{1} << 40) problem = "has a stride that is no multiple of 16 bytes";
    }
    if (box[0] * element % 16 != 0) problem = "has a box whose rows are no multiple of 16 bytes";
    if (span != 0 && box[0] * element > span) problem = "has a box wider than its swizzle";
    // Not how far it reaches: the driver does not ask, and descriptors of packed sequences reach further on purpose.
    if (problem == nullptr && rehearsal::bytes_from(start) == 0) problem = "starts outside of any allocation";
  }
  if (problem != nullptr) {
    refuse("a TMA descriptor of %u dimensions %s", rank, problem);
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memset(map, 0, sizeof(*map));
  return CUDA_SUCCESS;
}
