"""The stand-in for CUDA's driver under `make rehearse`: it refuses what the driver documents that it refuses."""

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "rehearsal"
INVALID_VALUE = 1


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled stand-in."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None or shutil.which("g++") is None:
        pytest.skip("needs g++, and Triton for CUDA's headers")
    includes = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    library = tmp_path_factory.mktemp("rehearsal") / "libcuda.so.1"
    sources = [str(SOURCES / name) for name in ("device.cpp", "cubin.cpp", "driver.cpp")]
    flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Werror", f"-isystem{includes}")
    subprocess.run(("g++", *flags, *sources, "-o", str(library)), check=True)
    return ctypes.CDLL(str(library))


def launch(
    driver: ctypes.CDLL, *, grid: int = 1, threads: int = 128, shared: int = 0, allowed: int | None = None
) -> int:
    """What cuLaunchKernel answers for a kernel that nothing is known of."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), b"\0") == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"kernel") == 0
    if allowed is not None and (error := driver.cuFuncSetAttribute(function, 8, allowed)):
        return int(error)
    sizes = map(ctypes.c_uint, (1, grid, 1, threads, 1, 1, shared))
    return int(driver.cuLaunchKernel(function, *sizes, None, None, None))


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({}, 0),
        ({"grid": 65535}, 0),
        ({"grid": 65536}, INVALID_VALUE),
        ({"grid": 0}, INVALID_VALUE),
        ({"threads": 1024}, 0),
        ({"threads": 1025}, INVALID_VALUE),
        ({"shared": 48 * 1024}, 0),
        ({"shared": 48 * 1024 + 1}, INVALID_VALUE),
        ({"shared": 232448, "allowed": 232448}, 0),
        ({"allowed": 232449}, INVALID_VALUE),
    ],
)
def test_a_launch_past_a_limit_is_refused(driver: ctypes.CDLL, settings: dict[str, int], answer: int) -> None:
    refused = driver.rehearsal_count(4)
    assert launch(driver, **settings) == answer
    assert driver.rehearsal_count(4) - refused == (answer != 0)


@pytest.mark.parametrize("address", [8, 16])
def test_a_descriptor_of_memory_that_is_not_there_is_refused(driver: ctypes.CDLL, address: int) -> None:
    map_ = (ctypes.c_char * 256)()
    start = ctypes.addressof(map_)
    aligned = ctypes.c_void_p(start + -start % 64)
    sizes, strides = (ctypes.c_uint64 * 2)(64, 64), (ctypes.c_uint64 * 1)(128)
    box, steps = (ctypes.c_uint32 * 2)(64, 64), (ctypes.c_uint32 * 2)(1, 1)
    arguments = (aligned, 9, 2, ctypes.c_void_p(address), sizes, strides, box, steps, 0, 3, 0, 0)
    assert driver.cuTensorMapEncodeTiled(*arguments) == INVALID_VALUE
