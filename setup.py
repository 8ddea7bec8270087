"""Builds fusedformer/_C.so with nvcc where there is one, and pure Python otherwise; the rest is in pyproject.toml.

The compiler commands are in src/fusedformer/build.py, which is loaded by its path: nothing is installed yet.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def load_build_module() -> ModuleType:
    """fusedformer.build, without importing fusedformer."""
    path = ROOT / "src" / "fusedformer" / "build.py"
    spec = importlib.util.spec_from_file_location("fusedformer_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build_module()


def reason_for_pure_python() -> str | None:
    """Why no CUDA extension can be built here; None if one can."""
    if os.environ.get("FUSEDFORMER_PURE_PYTHON", "0") not in ("", "0"):
        return "FUSEDFORMER_PURE_PYTHON is set"
    if build.find_nvcc() is None:
        return "no nvcc"
    if build.find_torch() is None:
        return "no PyTorch beside this Python (pip install --no-build-isolation uses the one that is installed)"
    return None


reason = reason_for_pure_python()

KERNELS = Extension("fusedformer._C", sources=[])
EAGER = Extension("fusedformer._eager", sources=[], optional=True)


def report_pure_python() -> None:
    """One line, from the command that builds: this file also runs for metadata alone."""
    if reason:
        print(f"fusedformer: building without the CUDA extension: {reason}; PyTorch computes instead")


class BuildExtension(build_ext):
    """Compiles csrc/ by fusedformer.build."""

    def initialize_options(self) -> None:
        """Compile the two libraries at once: one of them waits for nothing."""
        super().initialize_options()
        self.parallel = 2

    def run(self) -> None:
        """Say so where there is nothing to build; `build` leaves this command out then."""
        report_pure_python()
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """Of _C a plain name: the library uses PyTorch's stable ABI and no Python, so it fits every Python."""
        if not fullname.endswith("_C"):
            return super().get_ext_filename(fullname)
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Fails with the compiler's own words."""
        library = Path(self.get_ext_fullpath(ext.name))
        if ext.optional:
            try:
                build.build_eager(library)
            except build.BuildError as error:
                raise CompileError(f"{error}\nfusedformer works without it: calls of its ops take longer") from error
            return
        before = os.times()
        build.build_extension(library, build_dir=Path(self.build_temp).resolve())
        after = os.times()
        # Of all compilers together; wall time would tell how busy the machine is. tests/test_packaging.py reads this.
        seconds = sum(after[2:4]) - sum(before[2:4])
        size = library.stat().st_size / 1e6
        print(f"fusedformer: {library.name} has {size:.1f} MB and took its compilers {seconds:.0f} s of CPU time")


class BuildPython(build_py):
    """Puts csrc/ into the package too: installed without a CUDA device, it is what the emulated world compiles."""

    def run(self) -> None:
        """Copy the package, then csrc/; an editable install finds csrc/ in the checkout."""
        report_pure_python()
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "fusedformer", "csrc")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", target)


class Wheel(bdist_wheel):
    """One wheel for every Python: of this platform with the extension, of any without."""

    def get_tag(self) -> tuple[str, str, str]:
        """Such as py3-none-linux_x86_64."""
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    ext_modules=[] if reason else [KERNELS, EAGER],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython, "bdist_wheel": Wheel},
)
