"""What is installed, from where, and that it works outside the checkout."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from fusedformer.benchmarks.static import sass

pytestmark = pytest.mark.needs_index

ROOT = Path(__file__).parents[1]
HAS_NVCC = shutil.which("nvcc") is not None or bool(
    list(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvcc"))
)


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command, stderr included, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    result = subprocess.run(
        command, cwd=cwd, env=environment | (env or {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as a plain folder: no links, no git, nothing built."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("src", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """A wheel built from the sdist built from the sources, so that what the sdist lacks is missed here."""
    environment = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    log = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=checkout, env=environment)
    (checkout / "build.log").write_text(log)
    (path,) = (checkout / "dist").glob("*.whl")
    if folder := os.environ.get("FUSEDFORMER_DIST"):
        shutil.copy(path, folder)  # for who wants to go on with it: building takes minutes
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, outside the checkout."""
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def python(code: str, installed: Path, **environment: str) -> str:
    return run(sys.executable, "-c", code, cwd=installed, env={"PYTHONPATH": str(installed)} | environment)


def test_links_lead_into_the_package() -> None:
    for name in ("kernels", "transformer", "benchmarks"):
        link = ROOT / name
        if link.is_symlink():
            assert link.resolve() == ROOT / "src" / "fusedformer" / name


def test_no_file_outgrows_a_reader() -> None:
    paths = [p for folder in ("src", "csrc", "tests", "examples") for p in (ROOT / folder).rglob("*") if p.is_file()]
    long = {str(p.relative_to(ROOT)): n for p in paths if p.suffix in (".py", ".cu", ".cuh", ".h", ".cpp")
            if (n := len(p.read_text().splitlines())) > 400}  # fmt: skip
    assert not long


def test_the_sdist_holds_what_git_does(tmp_path: Path) -> None:
    """But for the links, the measured results, and the settings of git itself."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    names = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", "dist", ".", cwd=tmp_path)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    kept_out = ("results/", ".git", ".pre-commit")
    files = {name for name in names if (tmp_path / name).is_file() and not name.startswith(kept_out)}
    assert files <= held
    assert not {name for name in held if name.endswith((".so", ".pyc"))}


def test_installs_one_top_level_name(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names - {"bin"} == {"fusedformer"}


@pytest.mark.skipif(not HAS_NVCC, reason="no nvcc: the wheel is pure Python")
def test_wheel_has_the_extension_and_no_python_abi(wheel: Path, installed: Path) -> None:
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    symbols = run("nm", "-D", "--undefined-only", "fusedformer/_C.so", cwd=installed)
    assert not re.search(r"\b_?Py[A-Z_]", symbols)
    assert "libcudart" not in run("readelf", "-d", "fusedformer/_C.so", cwd=installed)


@pytest.mark.skipif(not HAS_NVCC, reason="no nvcc: the wheel is pure Python")
def test_extension_is_small_and_soon_compiled(checkout: Path, installed: Path) -> None:
    """One architecture of four: 30 MB for all of them, and 3 minutes of two cores for one."""
    size = (installed / "fusedformer" / "_C.so").stat().st_size
    assert size <= 30e6 / 4
    found = re.search(
        r"_C\.so has ([\d.]+) MB and took its compilers (\d+) s of CPU time", (checkout / "build.log").read_text()
    )
    assert found
    print(found[0])
    assert float(found[1]) == pytest.approx(size / 1e6, abs=0.1)
    # Cores that other work shares run at half the speed: what fails here has doubled.
    assert int(found[2]) <= 2 * (2 * 180)


@pytest.mark.skipif(not HAS_NVCC, reason="no nvcc: the wheel is pure Python")
def test_extension_loads_without_cuda(installed: Path) -> None:
    code = "from fusedformer.kernels import eager, library; print(library.extension_status(), eager.status())"
    assert python(code, installed).splitlines()[-1] == "loaded loaded"


def test_computes_outside_the_checkout(installed: Path) -> None:
    code = (
        "import fusedformer, torch; x = torch.randn(3, 5);"
        "torch.testing.assert_close(fusedformer.softmax(x), x.softmax(-1)); print(fusedformer.__file__)"
    )
    assert python(code, installed).strip().startswith(str(installed))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_emulates_from_an_installed_wheel(installed: Path) -> None:
    """The wheel carries the device code, so any program can run through it."""
    code = (
        "import fusedformer, torch; x = torch.randn(3, 5);"
        "torch.testing.assert_close(fusedformer.softmax(x), x.softmax(-1)); print('same')"
    )
    assert python(code, installed, FUSEDFORMER_EMULATE="1").splitlines()[-1] == "same"


def command(installed: Path, folder: Path, *arguments: str) -> str:
    """Output of the wheel's `fusedformer`, which must exit with 0, in a folder that has its caches too."""
    # Wide enough that cells are not wrapped.
    environment = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "300"}
    return run(str(installed / "bin" / "fusedformer"), *arguments, cwd=folder, env=environment)


def test_commands_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Those that need neither a GPU nor a compiler; what they print says how it was obtained."""
    pytest.importorskip("matplotlib")
    doctor = command(installed, tmp_path, "doctor")
    assert "CUDA extension: " in doctor
    assert "register_transformers" in doctor
    sweep = ("bench", "softmax", "--sweep", "M=256 N=64", "--budget", "15s", "--output", "run")
    bench = command(installed, tmp_path, *sweep)
    for text in (
        "no checkout",
        "Times of softmax, backward, M=256 N=64",
        "torch.softmax",
        "measured",
        "Not here: QuACK",
    ):
        assert text in bench
    assert "0 SLOWER, 0 FASTER" in command(installed, tmp_path, "compare", "run", "run")
    assert "Report: drawn/report.html" in command(installed, tmp_path, "report", "run", "--output", "drawn")
    (html,) = (tmp_path / "drawn").rglob("*.html")
    assert "Times of softmax, forward" in html.read_text()
    one_length = ("--context", "1k", "--mode", "prefill", "--output", "profile")
    profile = command(installed, tmp_path, "profile", "--model", "gpt2", *one_length)
    for text in ("Growth: prefill", "modelled", "largest context", "predicted", "Nothing was measured"):
        assert text in profile
    assert list((tmp_path / "profile" / "plots").glob("*.png"))


@pytest.mark.skipif(not HAS_NVCC, reason="no nvcc: nothing is compiled")
def test_a_second_static_from_the_wheel_finds_what_the_first_compiled(installed: Path, tmp_path: Path) -> None:
    if sass.find_nvdisasm() is None:
        pytest.skip("static world: no nvdisasm")
    first = command(installed, tmp_path, "static", "--op", "gelu", "--json", "first.json")
    for text in ("gelu_fwd_kernel", "__nv_bfloat16, GeluErf, 8", "sm_120", "occupancy", "All `predicted`"):
        assert text in first
    began = time.monotonic()
    command(installed, tmp_path, "static", "--op", "gelu", "--json", "second.json")
    assert time.monotonic() - began < 15
    rows = json.loads((tmp_path / "second.json").read_text())
    assert rows == json.loads((tmp_path / "first.json").read_text())
    assert {row["arch"] for row in rows} == {80, 90, 100, 120}
    assert all(row["occupancy"]["blocks"] for row in rows)


def test_pure_python_build_says_why_in_one_line(checkout: Path, tmp_path: Path) -> None:
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v", "-w", str(tmp_path), ".")
    output = run(*build, cwd=checkout, env={"FUSEDFORMER_PURE_PYTHON": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert sum("FUSEDFORMER_PURE_PYTHON" in line for line in output.splitlines()) == 1
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        assert "fusedformer/py.typed" in archive.namelist()
    assert metadata["Name"] == "fusedformer"
    requires = metadata.get_all("Requires-Dist") or []
    assert [line for line in requires if "extra" not in line] == [
        "torch>=2.10",
        'triton>=3.6; platform_system == "Linux"',
    ]


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_mypy_sees_the_types(place: str, tmp_path: Path, installed: Path) -> None:
    snippet = tmp_path / "use.py"
    snippet.write_text("import fusedformer\nreveal_type(fusedformer.softmax)\n")
    where, path = (ROOT, ROOT / "src") if place == "inside" else (tmp_path, installed)
    # An installed package's own errors are not its user's: silent, as mypy is about site-packages.
    options = ("--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}")
    command = (sys.executable, "-m", "mypy", *options, str(snippet))
    output = run(*command, cwd=where, env={"MYPYPATH": str(path)})
    assert re.search(r"def \(x: .*Tensor, dim: .*int.*\) -> .*Tensor", output), output
