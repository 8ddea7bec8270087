"""The four worlds of the test suite, and the count of cases each of them ran.

A test that takes the `world` fixture runs once per world: `reference` (plain PyTorch on the CPU), `emulated` (the
device code on the CPU) and `gpu`. Tests of the fourth, `static`, are marked `@pytest.mark.static`. A test file names
its op with `pytestmark = pytest.mark.op("softmax")`; the run ends with a table of passed cases by op and world.
"""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton chooses between compiler and interpreter when it is imported, so before fusedformer is.
    os.environ["TRITON_INTERPRET"] = "1"

import oracle  # noqa: E402

from fusedformer import build  # noqa: E402
from fusedformer.benchmarks.harness import libraries  # noqa: E402
from fusedformer.benchmarks.harness.op import missing_kernel  # noqa: E402
from fusedformer.benchmarks.ops import OPS  # noqa: E402
from fusedformer.benchmarks.static import sass  # noqa: E402
from fusedformer.kernels import emulation, replay  # noqa: E402

# The order in which the emulator runs threads: the same in every run, unless another seed is asked for.
SEED = os.environ.setdefault("FUSEDFORMER_EMULATION_SEED", "0")

WORLDS = ("reference", "emulated", "static", "gpu")
CSRC_OPS = {source.stem for source in build.find_csrc().glob("*.cu")}


@dataclass(frozen=True)
class World:
    """Where a case runs."""

    name: str
    device: torch.device

    @property
    def is_device_code(self) -> bool:
        """Whether kernels run here rather than plain PyTorch."""
        return self.name != "reference"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--worlds").split(",")
        names = [name for name in ("reference", "emulated") if name in wanted]
        metafunc.parametrize("world", names + ["gpu"] * (HAS_GPU and "gpu" in wanted), indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """One of the worlds that execute code; skips, with the reason, where this machine cannot."""
    name: str = request.param
    if name == "gpu":
        _skip_if_not_ours(_op_of(request.node))
        yield World(name, torch.device("cuda"))
        return
    if name == "emulated":
        with emulated_world(_op_of(request.node)) as emulated:
            yield emulated
        return
    with emulation.emulated(False):
        yield World(name, torch.device("cpu"))


@contextlib.contextmanager
def emulated_world(op: str | None) -> Iterator[World]:
    """The emulated world for a test of `op` that runs in no other; skips as the fixture does."""
    _skip_if_not_emulated(op)
    with emulation.emulated():
        yield World("emulated", torch.device("cpu"))


@pytest.fixture(params=["emulated", "gpu"])
def hopper_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the Hopper attention kernels run, with their tier on: the simulator, or an sm_90 GPU."""
    pytest.importorskip("triton")
    from fusedformer.kernels.attention.hopper import dispatch

    if reason := dispatch.missing():
        pytest.skip(reason)
    with dispatch.preferred("1"):
        if request.param == "gpu":
            if not (HAS_GPU and torch.cuda.get_device_capability() == (9, 0)):
                pytest.skip("gpu world: no sm_90 here")
            yield torch.device("cuda")
        else:
            with emulated_world("attention") as world:
                yield world.device


@pytest.fixture
def served(hopper_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Hopper kernels that were launched, in order; replays of a launch are none."""
    from fusedformer.kernels.attention.hopper import launch

    names: list[str] = []
    do_launch = launch.launch

    def noted(name: str, *args: Any) -> None:
        names.append(name)
        do_launch(name, *args)

    monkeypatch.setattr(launch, "launch", noted)
    return names


def _skip_if_not_ours(op: str | None) -> None:
    if op is not None and op in OPS and (reason := missing_kernel(op, "cuda")):
        pytest.skip(f"gpu world: {reason}")


def _skip_if_not_emulated(op: str | None) -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulated world: no g++")
    if HAS_GPU and op not in CSRC_OPS:
        pytest.skip("emulated world: Triton compiles for the GPU in this run; set CUDA_VISIBLE_DEVICES= to interpret")


def _op_of(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("op")
    return marker.args[0] if marker else None


def _world_of(item: pytest.Item) -> str | None:
    if item.get_closest_marker("static"):
        return "static"
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("world") if callspec else None


@pytest.fixture(scope="module")
def timm() -> Any:
    """timm, also where there is no torchvision that works."""
    try:
        return libraries.load_library("timm")
    except ImportError:
        pytest.skip("timm is not installed")


@pytest.fixture(autouse=True)
def _nothing_replayed() -> None:
    """Each test sees its launches made, whatever tests before it have launched."""
    replay.forget()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns, with NaN where it can: a place that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_report_header() -> str:
    return f"emulated world: FUSEDFORMER_EMULATION_SEED={SEED}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--worlds",
        default="reference,emulated,gpu",
        metavar="W,W",
        help="run tests that take a world in these only (gpu: where there is a CUDA device)",
    )
    parser.addoption(
        "--require-worlds",
        default="",
        metavar="W,W",
        help="fail the run unless every op of fusedformer.benchmarks.ops passed a case in each of these worlds",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    op, world_name = _op_of(item), _world_of(item)
    if op and world_name:
        item.user_properties.append(("case", f"{op}/{world_name}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note the largest share of the error budget that the case used."""
    oracle.largest_ratio = 0.0
    yield
    if oracle.largest_ratio:
        item.user_properties.append(("ratio", oracle.largest_ratio))


def _cases(config: pytest.Config) -> Counter[str]:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    passed = reporter.stats.get("passed", []) if reporter else []
    return Counter(value for report in passed for key, value in report.user_properties if key == "case")


def _missing(config: pytest.Config) -> list[str]:
    cases = _cases(config)
    required = [name for name in config.getoption("--require-worlds").split(",") if name]
    return [f"{op}/{name}" for op in OPS for name in required if not cases[f"{op}/{name}"]]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and session.exitstatus == pytest.ExitCode.OK and _missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for case in _missing(config):
        terminalreporter.write_line(f"FAILED: no case of {case} ran", red=True)
    cases, ratios = _cases(config), _largest_ratios(config)
    ops = sorted({case.split("/")[0] for case in cases})
    if not ops:
        return
    terminalreporter.section("cases passed by world (largest error, as a share of its budget against float64)")
    terminalreporter.write_line(f"{'op':<14}" + "".join(f"{name:>16}" for name in WORLDS))
    for op in ops:
        cells = [(cases[f"{op}/{name}"], ratios.get(f"{op}/{name}")) for name in WORLDS]
        texts = [f"{count}" if ratio is None else f"{count} ({ratio:.2f})" for count, ratio in cells]
        terminalreporter.write_line(f"{op:<14}" + "".join(f"{text:>16}" for text in texts))
    if not HAS_GPU:
        terminalreporter.write_line("gpu: no CUDA device here")
    for reason, count in sorted(_skip_reasons(terminalreporter).items()):
        terminalreporter.write_line(f"{count} skipped: {reason}")


def _largest_ratios(config: pytest.Config) -> dict[str, float]:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    largest: dict[str, float] = {}
    for report in reporter.stats.get("passed", []):
        properties = dict(report.user_properties)
        if "case" in properties and "ratio" in properties:
            case = properties["case"]
            largest[case] = max(largest.get(case, 0.0), properties["ratio"])
    return largest


def _skip_reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", []))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose modules the compiling processes can import; skips where there is no Triton to compile with."""
    pytest.importorskip("triton")
    if sass.find_nvdisasm() is None:
        pytest.skip("static world: no nvdisasm")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path
