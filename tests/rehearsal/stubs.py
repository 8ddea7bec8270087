"""The libraries that PyTorch's CUDA build is linked with, each with every name that PyTorch wants from it.

What the C++ beside this file does not define becomes a function that does nothing and returns 0, which all of them call
success; of the CUDA runtime it returns "not supported" instead, and says so, for there a false success would hide much.
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp|c10|c10_cuda|torch\w*|shm|cuda)\.so|ld-linux")
# Names without a version, by how they start.
_OWNERS = {
    "nccl": "libnccl.so.2",
    "cusparseLt": "libcusparseLt.so.0",
    "cuFile": "libcufile.so.0",
    "curand": "libcurand.so.10",
    "nvshmem": "libnvshmem_host.so.3",
}


def build(torch_lib: Path, sources: Path, includes: Path, folder: Path) -> None:
    """Compile the stand-ins for all libraries that those in `torch_lib` need into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = ("g++", "-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-fvisibility=hidden", f"-isystem{includes}")
    driver = [str(sources / name) for name in ("device.cpp", "cubin.cpp", "driver.cpp")]
    _run(*compiler, *driver, "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"))
    own = {
        "libcudart.so.13": ("runtime.cpp", "streams.cpp"),
        "libcublas.so.13": ("blas.cpp",),
        "libnvrtc.so.13": ("nvrtc.cpp",),
    }
    own["libcublasLt.so.13"] = own["libcublas.so.13"]
    for library, names in _wanted(torch_lib).items():
        parts = [str(sources / name) for name in own.get(library, ())]
        objects = []
        for part in parts:
            objects.append(str(folder / f"{library}.{Path(part).stem}.o"))
            _run(*(flag for flag in compiler if flag != "-shared"), "-c", part, "-o", objects[-1])
        defined = set(_run("nm", "--defined-only", *objects).split()) if objects else set()
        stubs, script = folder / f"{library}.c", folder / f"{library}.map"
        stubs.write_text(_stubs(library, sorted({name for name, _ in names} - defined)))
        script.write_text(_versions(library, names))
        link = (f"-Wl,-soname,{library}", f"-Wl,--version-script={script}", f"-L{folder}", "-l:libcuda.so.1")
        _run("gcc", "-O1", "-fPIC", "-w", "-c", str(stubs), "-o", f"{stubs}.o")
        _run("g++", "-shared", *objects, f"{stubs}.o", *link, "-o", str(folder / library))


def _wanted(torch_lib: Path) -> dict[str, set[tuple[str, str]]]:
    """Of each library the names that are wanted from it, with their versions (or "")."""
    wanted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for library in torch_lib.glob("lib*.so"):
        needed = re.findall(r"NEEDED.*\[(.+)\]", _run("readelf", "-d", str(library)))
        needed = [name for name in needed if not _SYSTEM.match(name)]
        for name in needed:
            wanted[name]
        for name, version in re.findall(r" [Uw] (\w+)(?:@(\S+))?$", _run("nm", "-D", str(library)), re.MULTILINE):
            owner = version if version in needed else next((_OWNERS[k] for k in _OWNERS if name.startswith(k)), "")
            if owner in needed:
                wanted[owner].add((name, version))
    return wanted


def _stubs(library: str, names: list[str]) -> str:
    if not library.startswith("libcudart"):
        return "".join(f"long {name}() {{ return 0; }}\n" for name in names)
    body = '{{ fprintf(stderr, "rehearsal: {0} is not pretended\\n"); return 801; }}\n'
    return "#include <stdio.h>\n" + "".join(f"int {name}() {body.format(name)}" for name in names)


def _versions(library: str, names: set[tuple[str, str]]) -> str:
    """A version script: PyTorch names most functions with the version of the library they are in."""
    versions: dict[str, list[str]] = {library: ["*"]}
    for name, version in sorted(names):
        versions.setdefault(version or library, []).append(name)
    nodes = {version: " ".join(f"{member};" for member in members) for version, members in versions.items()}
    return "".join(f"{version} {{ global: {members} }};\n" for version, members in nodes.items())


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
