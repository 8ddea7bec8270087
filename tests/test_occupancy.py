"""Occupancy: by NVIDIA's own calculator, a header for any C++ compiler, and threads by the sources of the kernels."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fusedformer import build
from fusedformer.benchmarks import occupancy, static_baseline
from fusedformer.benchmarks.report.tables import static_table
from fusedformer.benchmarks.static import cache
from fusedformer.benchmarks.static.row import SHARED_LIMIT, StaticRow
from fusedformer.benchmarks.static_hopper.row import HopperRow

# Reads lines of: architecture, threads, registers, shared memory declared, and added at launch. Properties as
# cudaGetDeviceProperties gives them for A100, H100, B200 and RTX 5090.
CALCULATOR = """
#include <climits>
#include <cstdio>
#include "cuda_occupancy.h"

int main() {
  int arch, threads, registers;
  size_t declared, added;
  while (std::scanf("%d %d %d %zu %zu", &arch, &threads, &registers, &declared, &added) == 5) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10;
    device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = arch == 120 ? 1536 : 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.numSms = 132;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = (arch == 80 ? 164 : arch == 120 ? 100 : 228) * 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = declared;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = added;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, added)) return 1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""
SHAPES = """
#include <cstdio>
#include "ladder.h"

int main() {
  using fusedformer::TeamKind;
  for (int held : {0, 1, 4, 8}) {
    std::printf("Blocks %d %d\\n", held, fusedformer::block_threads(TeamKind::kBlocks, held));
    std::printf("Lanes %d %d\\n", held, fusedformer::block_threads(TeamKind::kLanes, held));
  }
}
"""
BOUNDS = re.compile(r"__launch_bounds__\((?P<threads>[\w:* ]+)[^;{]*?\s(?P<kernel>\w+_kernel)\(")


def compiled(program: str, include: Path, folder: Path) -> Path:
    """The program of a C++ source, compiled."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    (folder / "main.cpp").write_text(program)
    command = ["g++", "-std=c++20", "-O1", "-I", str(include), "main.cpp", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "main"


@pytest.fixture(scope="module")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVIDIA's calculator as a program."""
    nvcc = build.find_nvcc()
    packages = Path(sys.prefix).glob("lib/python*/site-packages")
    places = [folder for path in packages for of in ("nvidia/*", "triton/backends/*") for folder in path.glob(of)]
    places += [nvcc.resolve().parents[1]] if nvcc else []
    header = next((path for place in places if (path := place / "include" / "cuda_occupancy.h").is_file()), None)
    if header is None:
        pytest.skip("no cuda_occupancy.h: neither beside nvcc nor in the packages nvidia and triton")
    return compiled(CALCULATOR, header.parent, tmp_path_factory.mktemp("calculator"))


def calculated(calculator: Path, cases: Sequence[tuple[int, ...]]) -> list[int]:
    """Blocks of each case of architecture, threads, registers, shared memory declared and added."""
    text = "\n".join(" ".join(map(str, case)) for case in cases)
    printed = subprocess.run([calculator], input=text, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in printed.splitlines()]


def recorded() -> list[StaticRow]:
    if not cache.RECORD.is_file():
        pytest.skip("no record: not a checkout")
    return static_baseline.load(cache.RECORD.parent)


def test_any_block_is_as_nvidia_calculates(calculator: Path) -> None:
    threads = (1, 31, 32, 33, 96, 128, 160, 256, 288, 384, 512, 544, 672, 768, 1000, 1024, 1025)
    registers = (0, 1, 8, 9, 16, 24, 32, 40, 41, 63, 64, 72, 80, 96, 104, 128, 160, 168, 192, 200, 232, 255, 256, 257)
    shared = (
        0,
        1,
        127,
        128,
        1000,
        4096,
        8192,
        9588,
        11_894,
        15_000,
        33_000,
        48_000,
        49_152,
        49_153,
        50_000,
        99_000,
        101_376,
    )
    largest = (101_377, 166_912, 166_913, 200_000, 232_448, 232_449)
    cases = [
        (arch, *block, declared, total - declared)
        for arch, *block, total in itertools.product(SHARED_LIMIT, threads, registers, shared + largest)
        for declared in {0, min(total, 48), min(total, 49_152)}
    ]
    expected = calculated(calculator, cases)
    found = [occupancy.blocks(arch, block, per_thread, sum(bytes_)) for arch, block, per_thread, *bytes_ in cases]
    wrong = [(case, one, other) for case, one, other in zip(cases, found, expected, strict=True) if one != other]
    assert wrong == []
    assert len(set(expected)) > 20


def test_every_shipped_variant_is_as_nvidia_calculates_and_the_model_took_no_other(calculator: Path) -> None:
    rows = recorded()
    found = [occupancy.of(row) for row in rows]
    cases = [
        (row.arch, one.threads, row.registers, 0, row.shared_bytes) for row, one in zip(rows, found) if one is not None
    ]
    assert len(cases) == len(rows)
    blocks = [one.blocks for one in found if one is not None]
    assert blocks == calculated(calculator, cases)
    assert min(blocks) > 0
    assert {row.programs - count for row, count in zip(rows, blocks) if row.programs} == {0}


def test_threads_of_kernels_are_those_of_their_launch_bounds(tmp_path: Path) -> None:
    """Each kernel of csrc/, of which there is a row."""
    csrc = build.find_csrc()
    texts = [path.read_text(encoding="utf-8") for path in sorted(csrc.iterdir()) if path.suffix in (".cu", ".cuh")]
    bounds = {found["kernel"]: found["threads"].strip() for text in texts for found in BOUNDS.finditer(text)}
    bounds.pop("scale_fwd_kernel")  # the example of row.cuh
    constants = dict(re.findall(r"\b(k\w+Threads|kThreads|kColumnWarps) = (\d+)", "\n".join(texts)))
    named = {name: int(value) for name, value in constants.items()}
    warps = {"kColumnWarps* kWarpSize": 32 * named["kColumnWarps"]}
    printed = subprocess.check_output([compiled(SHAPES, csrc, tmp_path)], text=True)
    shapes = {f"RowShape<{team}, {held}>": int(count) for team, held, count in map(str.split, printed.splitlines())}
    rows = [row for row in recorded() if not row.op.startswith("attention")]
    assert {row.kernel for row in rows} == set(bounds)
    for row in rows:
        bound = bounds[row.kernel]
        bound = bounds[row.kernel]
        shape = re.search(r"RowShape<\w+, \d+>", row.variant)
        # Chunks, cross entropy's own, have the threads of Lanes.
        expected = shapes[shape[0].replace("Chunks", "Lanes")] if shape else (named | warps)[bound]
        assert (shape is not None) == (bound == "Shape::kThreads")
        assert occupancy.threads_of(row) == expected, f"{row.kernel} {row.variant}"


def test_threads_of_attention_are_those_of_its_launches() -> None:
    from fusedformer.kernels.attention.variants import variants

    variant = variants(90)[0]
    row = StaticRow(op=variant.op, kernel=variant.kernel, variant=variant.name, arch=90, registers=64)
    assert occupancy.threads_of(row) == 32 * variant.num_warps
    assert occupancy.of(StaticRow(op="attention", kernel=variant.kernel, variant="no such", arch=90)) is None
    # Compiled, its PTX has .reqntid 384.
    assert occupancy.threads_of(HopperRow(op="attention", kernel="attention_hopper_fwd_kernel", arch=90)) == 384


def test_share_is_of_the_warps_of_an_sm() -> None:
    row = StaticRow(op="gelu", kernel="gelu_fwd_kernel", variant="float, GeluErf, 4", arch=90, registers=72)
    found = occupancy.of(row)
    assert found == occupancy.Occupancy(threads=256, blocks=3, share=24 / 64)
    assert str(found) == "3 x 256, 38%"
    table = static_table([row, StaticRow(op="glu", arch=90, skipped="no nvcc")])
    cells = [line[table.columns.index("occupancy (blocks x threads)")] for line in table.lines]
    assert cells == ["3 x 256, 38%", ""]


def test_json_has_it_and_is_a_baseline_all_the_same(tmp_path: Path) -> None:
    rows = [
        StaticRow(op="gelu", kernel="gelu_fwd_kernel", variant="float, GeluErf, 4", arch=120, registers=32),
        StaticRow(op="glu", arch=120, skipped="no nvcc"),
    ]
    described = json.loads(json.dumps(occupancy.described(rows)))
    assert [row["occupancy"] for row in described] == [{"threads": 256, "blocks": 6, "share": 1.0}, None]
    (tmp_path / "rows.json").write_text(json.dumps(described))
    assert static_baseline.load(tmp_path / "rows.json") == rows


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((75, 128, 32, 0), "arch is 75, known are"),
        ((90, 0, 32, 0), "threads is 0"),
        ((90, 128, -1, 0), "registers -1"),
        ((90, 128, 32, -1), "shared_bytes -1"),
    ],
)
def test_what_is_no_block_is_named(block: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        occupancy.blocks(*block)
