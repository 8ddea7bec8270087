"""Finding compilers and writing their commands, with scripts in the place of compilers."""

import shutil
import sys
from pathlib import Path

import pytest

from fusedformer import build

COMPILER = """#!{python}
import json, sys
from pathlib import Path
if "--list-gpu-arch" in sys.argv:
    print({archs!r})
elif "--version" in sys.argv:
    print({version!r})
elif "-o" in sys.argv:
    output = Path(sys.argv[sys.argv.index("-o") + 1])
    output.write_text(json.dumps(sys.argv[1:]))
    Path(f"{{output}}.d").write_text("")
"""


def make_compiler(path: Path, archs: str = "compute_90 compute_120", release: str = "13.0") -> Path:
    path.parent.mkdir(parents=True)
    version = f"Cuda compilation tools, release {release}, V{release}.88"
    path.write_text(COMPILER.format(python=sys.executable, archs=archs, version=version))
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine without compilers."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(build, "_site_packages", list)
    monkeypatch.setattr(build, "_STANDARD_CUDA", tmp_path / "usr" / "local" / "cuda")
    return monkeypatch


def test_nvcc_is_looked_for_where_it_may_be(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build.find_nvcc() is None
    with pytest.raises(build.BuildError, match=r"nvcc was not found in \$CUDA_HOME/bin, \$CUDA_PATH/bin"):
        build._require_nvcc()
    standard = make_compiler(tmp_path / "usr" / "local" / "cuda" / "bin" / "nvcc")
    assert build.find_nvcc() == standard
    from_pip = make_compiler(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    bare.setattr(build, "_site_packages", lambda: [tmp_path / "site"])
    assert build.find_nvcc() == from_pip
    on_path = make_compiler(tmp_path / "bin" / "nvcc")
    assert build.find_nvcc() == on_path
    for name in ("CUDA_PATH", "CUDA_HOME"):
        named = make_compiler(tmp_path / name / "bin" / "nvcc")
        bare.setenv(name, str(tmp_path / name))
        assert build.find_nvcc() == named


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ("compute_80\ncompute_90\ncompute_100\ncompute_120", "8.0 9.0 10.0 12.0+PTX"),
        ("compute_75\ncompute_80\ncompute_90", "8.0 9.0+PTX"),
    ],
)
def test_the_newest_known_architecture_is_kept_as_ptx(known: str, chosen: str, tmp_path: Path) -> None:
    assert build._known_architectures(make_compiler(tmp_path / "cuda" / "nvcc", known)) == chosen


def test_no_known_architecture_is_named(tmp_path: Path) -> None:
    nvcc = make_compiler(tmp_path / "cuda" / "nvcc", "compute_60 compute_70")
    with pytest.raises(build.BuildError, match=r"knows compute_60 compute_70, and none of 8\.0 9\.0 10\.0 12\.0"):
        build._known_architectures(nvcc)


@pytest.mark.parametrize(("release", "compressed"), [("12.9", False), ("13.0", True)])
def test_kernels_are_compressed_if_every_driver_can_read_it(release: str, compressed: bool, tmp_path: Path) -> None:
    nvcc = make_compiler(tmp_path / "cuda" / "nvcc", release=release)
    assert build._compression(nvcc) == (["-compress-mode=size"] if compressed else [])


def test_the_slowest_sources_are_compiled_first() -> None:
    csrc = build.find_csrc()
    sources = build.sources_of(csrc)
    assert sorted(sources) == sorted([*csrc.glob("*.cu"), *set(csrc.glob("*.cpp")) - {csrc / "eager.cpp"}])
    assert tuple(path.stem for path in sources[: len(build._SLOWEST)]) == build._SLOWEST


@pytest.mark.parametrize("with_ninja", [True, False])
def test_folders_may_have_any_name(with_ninja: bool, bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if with_ninja and build._find_ninja() is None:
        pytest.skip("no ninja")
    if not with_ninja:
        bare.setattr(build, "_find_ninja", lambda: None)
    folder = tmp_path / "it's $HOME, a:b"
    make_compiler(folder / "cuda" / "bin" / "nvcc")
    shutil.copytree(build.find_csrc(), folder / "csrc")
    bare.setattr(build, "find_csrc", lambda: folder / "csrc")
    bare.setenv("CUDA_HOME", str(folder / "cuda"))
    build.build_extension(folder / "out" / "_C.so", build_dir=folder / "objects")
    assert f'"-o", "{folder}/objects/_C.so"' in (folder / "out" / "_C.so").read_text()
    compiled = (folder / "objects" / "gelu.cu.o").read_text()
    assert f'"-c", "{folder}/csrc/gelu.cu"' in compiled
    assert f'"-I{folder}/csrc"' in compiled
    assert "code=compute_120" in compiled
    assert '"-compress-mode=size"' in compiled


def test_cxx_may_be_a_command(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gxx = make_compiler(tmp_path / "my tools" / "g++")
    bare.setenv("CXX", f"{sys.executable} '{gxx}' -fmax-errors=1")
    build.build_emulated(cache_dir=tmp_path)
    (library,) = tmp_path.glob("*.so")
    assert '["-fmax-errors=1", "-shared"' in library.read_text()
