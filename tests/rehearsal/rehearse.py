"""`make rehearse`: the package's CUDA path on a machine without a GPU, through the host's side alone.

PyTorch's CUDA build, Triton, csrc/ and the package are the real ones. Underneath is a stand-in for CUDA's driver and
runtime (the C++ beside this file) with an H200 that remembers, checks and computes nothing:

    memory       the host's, at addresses of its own; zeros; an address is never given out twice
    launches     held against what the driver documents (grid, block, clusters, dynamic shared memory that was asked
                 for, and, of Triton's kernels, whose cubins are read: registers, static shared memory, pointers into
                 freed memory), then left out
    descriptors  of TMA: alignment, strides, boxes, and whether they start inside an allocation
    captures     synchronising with what is captured is refused
    events       the host's clock

What it proves: the path from a public function to the launch raises nothing, asks for nothing that the driver would
refuse, and waits for nothing; and how long that path takes, beside PyTorch's own to its own kernels. What it does not:
any value, any time of a GPU, and anything of cuBLAS, cuDNN and NCCL, whose functions do nothing here. The launch itself
costs nothing either, on both sides of a ratio: on a GPU's machine ratios are nearer to 1.

    python tests/rehearsal/rehearse.py [time] [ops] [models] [commands]
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import stubs  # type: ignore[import-not-found]  # beside this file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = ("time", "ops", "models", "commands")


def main() -> int:
    """Build what is missing, run the steps, each in a process of its own; 1 if one found something."""
    parser = argparse.ArgumentParser(description="rehearse the CUDA path without a GPU")
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all by default")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout to rehearse (default: this one)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".rehearsal", help="for what is built")
    arguments = parser.parse_args()
    unknown = [step for step in arguments.steps if step not in STEPS]
    if unknown:
        parser.error(f"no step {', '.join(unknown)}: there are {', '.join(STEPS)}")
    environment = prepare(arguments.source.resolve(), arguments.folder.resolve())
    failed = []
    for step in arguments.steps or STEPS:
        print(f"== {step}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"step_{step}.py")], env=environment).returncode != 0:
            failed.append(step)
    print(f"failed: {', '.join(failed)}" if failed else "all steps passed")
    return 1 if failed else 0


def prepare(source: Path, folder: Path) -> dict[str, str]:
    """Build the stand-in, the extension over it, and a package with both; the environment in which they are used."""
    build = _load(source / "src" / "fusedformer" / "build.py")
    torch = build.find_torch()
    if torch is None:
        raise SystemExit(f"{sys.executable} has no PyTorch")
    libraries, site, objects = folder / "lib", folder / "site", folder / "build"
    includes = torch.parent / "triton" / "backends" / "nvidia" / "include"
    newest = max(
        path.stat().st_mtime for path in HERE.glob("*") if path.suffix in {".cpp", ".h"} or path.stem == "stubs"
    )
    done = libraries / "done"
    if not done.exists() or done.stat().st_mtime < newest:
        stubs.build(torch / "lib", HERE, includes, libraries)
        done.touch()
    package = site / "fusedformer"
    package.mkdir(parents=True, exist_ok=True)
    for path in package.iterdir():
        if path.is_symlink():
            path.unlink()
    for path in (source / "src" / "fusedformer").iterdir():
        if path.suffix != ".so":
            (package / path.name).symlink_to(path)
    # Kernels are compiled for the architecture that is pretended; of the library that this links, objects count alone.
    build.build_extension(objects / "static" / "_C.so", arch_list="9.0", build_dir=objects)
    link(torch, objects, libraries, package / "_C.so")
    if hasattr(build, "build_eager"):
        build.build_eager(package / f"_eager{sysconfig.get_config_var('EXT_SUFFIX')}")
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = f"{libraries}:{environment.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    environment["TRITON_LIBCUDA_PATH"] = str(libraries)
    environment["PYTHONPATH"] = f"{site}:{HERE}"
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return environment


def link(torch: Path, objects: Path, libraries: Path, output: Path) -> None:
    """Link the extension's object files with the runtime's stand-in, which takes the place of CUDA's static one."""
    command = ["g++", "-shared", *map(str, sorted(objects.glob("*.o"))), f"-L{torch / 'lib'}", f"-L{libraries}"]
    command += ["-Wl,--no-as-needed", "-ltorch_cpu", "-l:libcudart.so.13", "-ldl", "-o", str(output)]
    subprocess.run(command, check=True)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearsed_build", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"no Python module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
