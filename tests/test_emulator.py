"""The g++ emulator itself: it runs right kernels right, and reports wrong ones without ending the process."""

import ctypes
import shutil
from pathlib import Path

import conftest
import pytest

from fusedformer import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

KERNELS = r"""
#include "launch.h"
#include "reduce.cuh"

using namespace fusedformer;

__global__ void reverse_kernel(float* out) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier_kernel(float* out) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_in_warp_kernel(float* out) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

__global__ void reverse_in_warp_without_barrier_kernel(float* out) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

__global__ void early_exit_kernel(float* out) {
  out[threadIdx.x] = -1;
  if (threadIdx.x >= 40) return;
  __syncthreads();
  const unsigned mask = threadIdx.x < 32 ? 0xffffffffu : 0xffu;
  out[threadIdx.x] = __shfl_xor_sync(mask, static_cast<float>(threadIdx.x), 1);
}

__global__ void two_barriers_kernel(float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void half_a_warp_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  __syncthreads();
}

__global__ void not_in_mask_kernel(float* out) { out[0] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

__global__ void reads_exited_lane_kernel(float* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void past_shared_memory_kernel(float*) { shared_memory<float>()[blockDim.x + threadIdx.x] = 0; }

struct alignas(16) Four {
  float values[4];
};

__global__ void misaligned_kernel(float* out) { store_vector(out + 1, Four{}); }

__global__ void block_order_kernel(float* out) {
  static float next = 0;
  out[next == 0 ? 0 : 1] += 0;
  out[blockIdx.x] = next++;
  if (next == gridDim.x) next = 0;
}

// Each block gives its rank to the next one.
__global__ void ring_kernel(float* out) {
  float* shared = shared_memory<float>();
  cluster_arrive();
  cluster_wait();
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  store_in_block(shared + threadIdx.x, next, static_cast<float>(cluster_rank()));
  cluster_arrive();
  cluster_wait();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
}

__global__ void ring_without_last_barrier_kernel(float* out) {
  float* shared = shared_memory<float>();
  cluster_arrive();
  cluster_wait();
  __syncthreads();
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  store_in_block(shared + threadIdx.x, next, static_cast<float>(cluster_rank()));
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
}

__global__ void ring_without_first_barrier_kernel(float*) {
  store_in_block(shared_memory<float>() + threadIdx.x, cluster_size() - 1 - cluster_rank(), 0.0f);
  cluster_arrive();
  cluster_wait();
}

__global__ void exit_before_neighbour_kernel(float*) {
  if (cluster_rank() == 1) return;
  cluster_arrive();
  cluster_wait();
  store_in_block(shared_memory<float>(), 1, 0.0f);
}

__global__ void past_the_cluster_kernel(float*) { store_in_block(shared_memory<float>(), cluster_size(), 0.0f); }

__global__ void arrives_twice_kernel(float*) {
  cluster_arrive();
  cluster_arrive();
}

__global__ void waits_alone_kernel(float*) { cluster_wait(); }

__global__ void two_kinds_of_barrier_kernel(float*) {
  if (threadIdx.x < 32) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
}

#define CASE(kernel)                                                              \
  if (which == #kernel) {                                                         \
    const LaunchShape shape = {dim3(blocks), threads, shared_bytes, 1, cluster}; \
    return launch(kernel##_kernel, shape, nullptr, out);                          \
  }

cudaError_t run(const std::string& which, unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster,
                float* out) {
  CASE(reverse);
  CASE(reverse_without_barrier);
  CASE(reverse_in_warp);
  CASE(reverse_in_warp_without_barrier);
  CASE(early_exit);
  CASE(two_barriers);
  CASE(half_a_warp);
  CASE(not_in_mask);
  CASE(reads_exited_lane);
  CASE(past_shared_memory);
  CASE(misaligned);
  CASE(block_order);
  CASE(ring);
  CASE(ring_without_last_barrier);
  CASE(ring_without_first_barrier);
  CASE(exit_before_neighbour);
  CASE(past_the_cluster);
  CASE(arrives_twice);
  CASE(waits_alone);
  CASE(two_kinds_of_barrier);
  return cudaErrorInvalidValue;
}

extern "C" int run_case(const char* which, unsigned blocks, unsigned threads, unsigned shared_bytes,
                        unsigned cluster, float* out, char* message, unsigned size) {
  try {
    return run(which, blocks, threads, shared_bytes, cluster, out);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), size - 1);
    return -1;
  }
}
"""


class EmulatorError(Exception):
    """What the emulator threw."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("emulator")
    source = folder / "cases.cu"
    source.write_text(KERNELS)
    build.compile_emulated([source], folder / "cases.so")
    return ctypes.CDLL(str(folder / "cases.so"))


def run(
    library: ctypes.CDLL, case: str, threads: int = 64, blocks: int = 1, shared_floats: int = 64, cluster: int = 1
) -> list[float]:
    out = (ctypes.c_float * 1024)(*([float("nan")] * 1024))
    message = ctypes.create_string_buffer(4096)
    shape = (blocks, threads, 4 * shared_floats, cluster)
    status = library.run_case(case.encode(), *shape, out, message, len(message))
    if status == -1:
        raise EmulatorError(message.value.decode())
    assert status == 0, f"cudaError {status}"
    return list(out)


@pytest.fixture(params=range(8))
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", str(request.param))
    return request.param


def test_shared_memory_and_barriers(library: ctypes.CDLL, seed: int) -> None:
    assert run(library, "reverse")[:64] == list(range(63, -1, -1))
    assert run(library, "reverse_in_warp")[:64] == [i ^ 31 for i in range(64)]


@pytest.mark.parametrize("case", ["reverse_without_barrier", "reverse_in_warp_without_barrier"])
def test_a_missing_barrier_shows_on_every_seed(library: ctypes.CDLL, seed: int, case: str) -> None:
    assert any(value != value for value in run(library, case)[:64])


def test_threads_may_exit_early(library: ctypes.CDLL, seed: int) -> None:
    out = run(library, "early_exit")
    assert out[:64] == [i ^ 1 for i in range(40)] + [-1] * 24


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "two_barriers",
            r"divergent barrier; threads 0-31 wait in __syncthreads\S* at cases.cu:\d+; threads 32-63",
        ),
        (
            "half_a_warp",
            r"deadlock.*threads 0-15 wait in __shfl_xor_sync\(0xffffffff\).*; threads 16-63 wait in __sync",
        ),
        ("not_in_mask", r"lane \d+ is not in __shfl_xor_sync\(0x0000ffff\)"),
        ("reads_exited_lane", r"lane \d+ reads lane \d+, which takes no part in __shfl_xor_sync"),
        ("past_shared_memory", r"a write past the block's 256 bytes of shared memory"),
        ("misaligned", r"a 16-byte store to a misaligned address, thread \(\d+, 0, 0\)"),
    ],
)
def test_reports(library: ctypes.CDLL, seed: int, case: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message) as caught:
        run(library, case)
    assert f"emulated kernel {case}_kernel, block (0, 0, 0) of (1, 1, 1), FUSEDFORMER_EMULATION_SEED={seed}:" in str(
        caught.value
    )
    assert run(library, "reverse")[:64] == list(range(63, -1, -1)), "the emulator goes on after an error"


@pytest.mark.parametrize("cluster", [2, 3, 16])
def test_blocks_of_a_cluster_share_memory(library: ctypes.CDLL, seed: int, cluster: int) -> None:
    out = run(library, "ring", threads=32, blocks=2 * cluster, cluster=cluster)
    ranks = [(rank - 1) % cluster for rank in range(cluster)] * 2
    assert out[: 64 * cluster] == [rank for rank in ranks for _ in range(32)]


def test_a_missing_barrier_of_the_cluster_shows(library: ctypes.CDLL, seed: int) -> None:
    """Either somebody stores where a block was, or reads what is not there yet."""
    failure, out = "", [0.0]
    try:
        out = run(library, "ring_without_last_barrier", threads=32, blocks=16, cluster=8)
    except EmulatorError as error:
        failure = str(error)
    assert "which has exited" in failure or any(value != value for value in out[:512])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("ring_without_first_barrier", r"the shared memory of block \d of the cluster, which has not begun"),
        ("exit_before_neighbour", r"the shared memory of block 1 of the cluster, which has exited, thread"),
        ("past_the_cluster", r"the shared memory of block 4 of the cluster, which has 4"),
        ("arrives_twice", r"a second arrival without a wait: cluster_arrive\S* at cases.cu"),
        ("waits_alone", r"a wait without an arrival: cluster_wait"),
        (
            "two_kinds_of_barrier",
            r"deadlock.*; block 3 of the cluster; threads 0-31 wait in cluster_wait.*; threads 32-63 wait in __sync",
        ),
    ],
)
def test_reports_of_clusters(library: ctypes.CDLL, seed: int, case: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(library, case, blocks=4, cluster=4)
    assert run(library, "ring", blocks=2, cluster=2)[:128] == [1] * 64 + [0] * 64, "the emulator goes on after an error"


def test_same_seed_same_schedule(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed in (1, 1, 2):
        monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", str(seed))
        orders.append(run(library, "block_order", threads=1, blocks=50)[:50])
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(("threads", "shared_floats", "error"), [(0, 0, 9), (1025, 0, 9), (32, 58113, 1)])
def test_refuses_what_cuda_would_not_launch(library: ctypes.CDLL, threads: int, shared_floats: int, error: int) -> None:
    with pytest.raises(AssertionError, match=f"cudaError {error}$|cudaError {error}\n"):
        run(library, "reverse", threads=threads, shared_floats=shared_floats)


@pytest.mark.parametrize(("blocks", "cluster"), [(3, 2), (17, 17), (1, 2)])
def test_refuses_clusters_that_cuda_would_not_launch(library: ctypes.CDLL, blocks: int, cluster: int) -> None:
    with pytest.raises(AssertionError, match="cudaError 9"):
        run(library, "ring", blocks=blocks, cluster=cluster)


def test_large_clusters_have_to_be_asked_for(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch` asks; a GPU without room for one says so."""
    monkeypatch.setenv("FUSEDFORMER_EMULATED_GPU", "90 132 8")
    assert run(library, "ring", threads=32, blocks=8, cluster=8)[:32] == [7] * 32
    with pytest.raises(AssertionError, match="cudaError 912"):
        run(library, "ring", threads=32, blocks=16, cluster=16)


@pytest.mark.parametrize("op", ["softmax", "attention"])
def test_the_emulated_world_is_skipped_without_a_compiler(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(pytest.skip.Exception, match="no g"), conftest.emulated_world(op):
        pass


def test_the_emulated_world_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The .cu sources run there as elsewhere; Triton has chosen its compiler."""
    monkeypatch.setattr(conftest, "HAS_GPU", True)
    with conftest.emulated_world("softmax") as world:
        assert world.device.type == "cpu"
    with pytest.raises(pytest.skip.Exception, match="CUDA_VISIBLE_DEVICES"), conftest.emulated_world("attention"):
        pass


def test_no_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.build_emulated(cache_dir=tmp_path)
