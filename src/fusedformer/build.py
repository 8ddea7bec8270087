"""How csrc/ is compiled: every compiler command of the project is in this file.

    build_extension   nvcc, all GPU architectures in one  -> _C.so, for `pip install` (called by setup.py)
    build_eager       g++, the same ops called past the dispatcher -> the Python module _eager, for `pip install`
    build_emulated    g++, the same sources over csrc/host -> a library that runs them on the CPU, made at run time
    compile_cubin     nvcc, one file and one architecture  -> a cubin and what ptxas says of it, for the static world

Only the standard library is imported: setup.py loads this file by its path, before anything is installed. PyTorch is
needed on disk alone. No library is tied to its version (stable ABI) but _eager, which is so to Python's too.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0")  # the newest that nvcc knows also as PTX, for GPUs to come
OLDEST_TORCH = "0x020a000000000000ULL"  # 2.10, as torch/csrc/stable/version.h writes it

_STANDARD_CUDA = Path("/usr/local/cuda")

_LANGUAGE_FLAGS = ("-std=c++20", f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}")
NVCC_FLAGS = (*_LANGUAGE_FLAGS, "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
# The sources that take longest, in this order: of them alone there are variants for each type of a weight or of a mask.
_SLOWEST = ("layer_norm", "rms_norm", "add_layer_norm", "masked_softmax", "add_rms_norm")
# Kernels keep visible names, for the emulator's errors; those names are not shared between two builds in one process.
# Vectors are read through pointers to elements, as on a GPU, and fibers switch by longjmp, which fortifying forbids.
_EMULATED_FLAGS = (
    *_LANGUAGE_FLAGS,
    *("-O1", "-fPIC", "-fno-gnu-unique", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
    *("-DFUSEDFORMER_EMULATED", "-Wno-unknown-pragmas"),
)


class BuildError(RuntimeError):
    """A tool that a build needs is missing, or a compiler failed; the message carries what it printed."""


@dataclass(frozen=True)
class KernelResources:
    """What one kernel needs, as ptxas reports it."""

    name: str
    """Demangled, with template arguments and without parameters."""
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread."""
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    """Of a block, without what a launch adds."""


@dataclass(frozen=True)
class _Step:
    """One compiler command."""

    inputs: tuple[Path, ...]
    output: Path
    command: tuple[str, ...]


def find_csrc() -> Path:
    """The folder of the CUDA C++ sources: inside an installed package, at the top of a checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "csrc", package.parents[1] / "csrc")
    for folder in candidates:
        if (folder / "functions.h").is_file():
            return folder
    raise FileNotFoundError("no csrc folder with the CUDA C++ sources: looked in " + " and ".join(map(str, candidates)))


def find_nvcc() -> Path | None:
    """CUDA's compiler: of $CUDA_HOME, $CUDA_PATH, $PATH, the pip package nvidia-cuda-nvcc or CUDA's own folder."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [Path(home, "bin") for home in homes]
    folders += [Path(found).parent for found in [shutil.which("nvcc")] if found]
    folders += [site / "nvidia" / "cu13" / "bin" for site in _site_packages()]
    folders += [_STANDARD_CUDA / "bin"]
    return next((folder / "nvcc" for folder in folders if (folder / "nvcc").is_file()), None)


def find_torch() -> Path | None:
    """The folder of the installed PyTorch, which is not imported; found under pip's build isolation too."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [site / "torch" for site in _site_packages()]
    headers = Path("include", "torch", "csrc", "stable", "library.h")
    return next((folder for folder in folders if (folder / headers).is_file()), None)


def arch_flags(arch_list: str) -> list[str]:
    """The nvcc flags for `arch_list`, written as in TORCH_CUDA_ARCH_LIST: "8.0 9.0a 12.0+PTX".

    Raises:
        ValueError: an entry is not a compute capability.
    """
    flags = []
    for entry in re.split(r"[\s;,]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST is {arch_list!r}: {entry!r} is not like 9.0, 9.0a or 9.0+PTX")
        number = "".join(match.group(1, 2, 3))
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(4):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def build_extension(
    output: Path, *, arch_list: str | None = None, jobs: int | None = None, build_dir: Path | None = None
) -> None:
    """Compile csrc/ for CUDA into the library `output`, through ninja where it is installed.

    Args:
        output: replaced only when all has been compiled.
        arch_list: GPU architectures; $TORCH_CUDA_ARCH_LIST by default, or else those of DEFAULT_ARCHS that nvcc has.
        jobs: compilers at a time; $MAX_JOBS by default, or else one per CPU.
        build_dir: keeps object files, so that a second build compiles only what changed.

    Raises:
        BuildError: nvcc or PyTorch was not found, or a compiler failed.
        ValueError: `arch_list` cannot be read.
    """
    nvcc, torch, csrc = _require_nvcc(), _require_torch(), find_csrc()
    architectures = arch_flags(arch_list or os.environ.get("TORCH_CUDA_ARCH_LIST") or _known_architectures(nvcc))
    architectures += _compression(nvcc)
    jobs = jobs or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        folder = (build_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        compiles = []
        for source in sources_of(csrc):
            object_file = folder / f"{source.name}.o"
            command = (str(nvcc), *NVCC_FLAGS, *architectures, f"-I{csrc}", f"-isystem={torch / 'include'}")
            # In quotes, for nvcc hands them to a shell, and folders have spaces.
            command += tuple(f'-Xcompiler="{flag}"' for flag in _without_paths(csrc, torch))
            command += ("-MD", "-MF", f"{object_file}.d", "-c", str(source), "-o", str(object_file))
            compiles.append(_Step((source,), object_file, command))
        library, objects = folder / output.name, tuple(step.output for step in compiles)
        command = (str(nvcc), "-shared", "-cudart=static", f"-L{nvcc.parents[1] / 'lib'}", *map(str, objects))
        command += ("-Xlinker=--exclude-libs=ALL,--strip-all", *_link_torch(torch, "-Xlinker="), "-o", str(library))
        _run(compiles, _Step(objects, library, command), folder, jobs)
        _publish(library, output)


def build_eager(output: Path) -> None:
    """Compile csrc/eager.cpp with g++ into the Python module `output`, for this PyTorch and Python, or BuildError."""
    csrc, torch, compiler = find_csrc(), _require_torch(), _require_host_compiler()
    includes = (f"-I{csrc}", "-isystem", str(torch / "include"), "-isystem", sysconfig.get_path("include"))
    flags = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wno-attributes", *_without_paths(csrc, torch))
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / output.name
        link = ("-shared", "-Wl,--strip-all", *_link_torch(torch, "-Wl,"), "-ltorch_python", "-lc10")
        _execute((*compiler, *flags, *includes, str(csrc / "eager.cpp"), *link, "-o", str(library)))
        _publish(library, output)


def build_emulated(csrc: Path | None = None, cache_dir: Path | None = None) -> Path:
    """Compile csrc/ with g++ over csrc/host into a library for torch.ops.load_library, unless that was done before.

    Args:
        csrc: the sources; the package's own by default.
        cache_dir: where libraries are kept, one for each state of the sources, the compiler and PyTorch; by default
            `fusedformer/emulated` under $XDG_CACHE_HOME or ~/.cache.

    Returns:
        The library. It registers the ops of csrc/ for CPU tensors in the namespace fusedformer_emulated.

    Raises:
        BuildError: no C++20 compiler or no PyTorch was found, or the compiler failed.
    """
    csrc, torch, compiler = (csrc or find_csrc()).resolve(), _require_torch(), _require_host_compiler()
    cache_dir = cache_dir or cache_home() / "emulated"
    cache_dir.mkdir(parents=True, exist_ok=True)
    library = cache_dir / f"{_fingerprint(csrc, compiler, torch)}.so"
    with _locked(cache_dir / "lock"):
        if not library.is_file():
            compile_emulated(sources_of(csrc), library, csrc=csrc)
    return library


def compile_emulated(
    sources: Sequence[Path], output: Path, *, csrc: Path | None = None, flags: Sequence[str] = ()
) -> None:
    """Compile .cu and .cpp files with g++ over csrc/host, and link them with the emulator into the library `output`.

    Args:
        sources: the files; they may include the headers of csrc/, and PyTorch's.
        output: appears only when it is complete.
        csrc: the folder with the headers and the emulator; the package's own by default.
        flags: further ones, for compiling and for linking.

    Raises:
        BuildError: no C++20 compiler or no PyTorch was found, or the compiler failed.
    """
    compiler, torch, csrc = _require_host_compiler(), _require_torch(), (csrc or find_csrc()).resolve()
    includes = (f"-I{csrc / 'host'}", f"-I{csrc}", "-isystem", str(torch / "include"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compiles = []
        for source in (*sources, csrc / "host" / "emulator.cpp"):
            object_file = folder / f"{source.name}.o"
            command = (*compiler, *_EMULATED_FLAGS, *flags, *_without_paths(csrc, torch), *includes, "-x", "c++", "-c")
            compiles.append(_Step((source,), object_file, (*command, str(source), "-o", str(object_file))))
        library, objects = folder / output.name, tuple(step.output for step in compiles)
        link = (*compiler, *flags, "-shared", *map(str, objects), *_link_torch(torch, "-Wl,"), "-o", str(library))
        _run_directly(compiles, _Step(objects, library, link), jobs=2)
        _publish(library, output)


def sources_of(csrc: Path) -> tuple[Path, ...]:
    """What the extension is made of, what takes longest to compile first: a compiler that ends last ends alone."""
    places = {stem: place for place, stem in enumerate(_SLOWEST)}
    kernels = sorted(csrc.glob("*.cu"), key=lambda path: (places.get(path.stem, len(places)), path.stem))
    return (*kernels, *sorted(csrc.glob("functions_*.cpp")), csrc / "register.cpp")


def compile_cubin(source: Path, arch: int | str, output: Path) -> list[KernelResources]:
    """Compile one .cu file for one GPU architecture with the flags of the extension.

    Args:
        source: the file; it may include the headers of csrc/.
        arch: the number in `sm_`, such as 90 or "90a".
        output: the cubin.

    Returns:
        The resources of each kernel in it.

    Raises:
        BuildError: nvcc was not found, or it failed.
    """
    command = (str(_require_nvcc()), *NVCC_FLAGS, f"-arch=sm_{arch}", f"-I{find_csrc()}", "-cubin", "-Xptxas=-v")
    return parse_ptxas(_execute((*command, str(source), "-o", str(output))))


def parse_ptxas(report: str) -> list[KernelResources]:
    """Read what `ptxas -v` printed."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\S+)' for .*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    matches = list(pattern.finditer(report))
    names = demangle([match["name"] for match in matches])
    return [
        KernelResources(
            name=name,
            registers=int(match["registers"]),
            stack_bytes=int(match["stack"]),
            spill_store_bytes=int(match["stores"]),
            spill_load_bytes=int(match["loads"]),
            shared_bytes=int(shared[1]) if (shared := re.search(r"(\d+) bytes smem", match["rest"])) else 0,
        )
        for name, match in zip(names, matches, strict=True)
    ]


def demangle(names: Sequence[str]) -> list[str]:
    """The names of kernels as written in csrc: no return type, no parameters, no namespaces."""
    if not any(name.startswith("_Z") for name in names):
        return list(names)
    plain = _execute(("c++filt", *names)).replace("(anonymous namespace)::", "").splitlines()
    return [re.sub(r"\w+::", "", re.sub(r"\(.*", "", name).removeprefix("void ")) for name in plain]


def _site_packages() -> list[Path]:
    return [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]


def _require_nvcc() -> Path:
    nvcc = find_nvcc()
    if nvcc is None:
        places = f"$CUDA_HOME/bin, $CUDA_PATH/bin, $PATH, pip's nvidia-cuda-nvcc or {_STANDARD_CUDA}/bin"
        raise BuildError(f"nvcc was not found in {places}")
    return nvcc


def _require_torch() -> Path:
    torch = find_torch()
    if torch is None:
        raise BuildError(f"PyTorch 2.10 or newer, for its headers, was not found by {sys.executable}")
    return torch


def _require_host_compiler() -> tuple[str, ...]:
    compiler = tuple(shlex.split(os.environ.get("CXX") or "g++"))
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"{compiler[0]}, by which C++ is compiled, was not found ($CXX names another)")
    return compiler


def _known_architectures(nvcc: Path) -> str:
    known, wanted = _execute((str(nvcc), "--list-gpu-arch")).split(), " ".join(DEFAULT_ARCHS)
    usable = [arch for arch in DEFAULT_ARCHS if f"compute_{arch.replace('.', '')}" in known]
    if not usable:
        raise BuildError(f"{nvcc} knows {' '.join(known)}, and none of {wanted}: TORCH_CUDA_ARCH_LIST may name another")
    return " ".join(usable) + "+PTX"


def _compression(nvcc: Path) -> list[str]:
    """The flag that halves the binary, if every driver for what this nvcc compiles can read it."""
    release = re.search(r"release (\d+)", _execute((str(nvcc), "--version")))
    return ["-compress-mode=size"] if release and int(release[1]) >= 13 else []


def _link_torch(torch: Path, prefix: str) -> tuple[str, ...]:
    # PyTorch loads its libraries out of sight of others; a library that needs one must say so to be given its symbols.
    return (f"-L{torch / 'lib'}", f"{prefix}--no-as-needed", "-ltorch_cpu", "-ldl")


def _without_paths(csrc: Path, torch: Path) -> tuple[str, ...]:
    """Flags for g++ that keep this machine's folders out of error messages, and builds alike wherever they are made."""
    return f"-ffile-prefix-map={csrc}=csrc", f"-ffile-prefix-map={torch.parent}/="


def _fingerprint(csrc: Path, compiler: Sequence[str], torch: Path) -> str:
    digest = hashlib.sha256()
    for part in (*_EMULATED_FLAGS, _execute((*compiler, "--version")), (torch / "version.py").read_text()):
        digest.update(part.encode() + b"\0")
    for path in sorted(path for path in csrc.rglob("*") if path.is_file() and path.stem != "eager"):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def cache_home() -> Path:
    """The folder for everything that can be computed again: `fusedformer` under $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedformer"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: the others wait, then find the work done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(built: Path, output: Path) -> None:
    """Put a finished file in its place in one step, so that nobody ever reads half of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copyfile(built, beside)
    beside.replace(output)


def _run(compiles: Sequence[_Step], link: _Step, folder: Path, jobs: int) -> None:
    ninja = _find_ninja()
    if ninja is None:
        _run_directly(compiles, link, jobs)
        return
    command = "  command = $command"
    lines = ["rule compile", command, "  depfile = $out.d", "  deps = gcc", "rule link", command]
    for rule, step in [("compile", step) for step in compiles] + [("link", link)]:
        inputs = " ".join(_ninja_path(path) for path in step.inputs)
        lines.append(f"build {_ninja_path(step.output)}: {rule} {inputs}")
        lines.append("  command = " + shlex.join(step.command).replace("$", "$$"))
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    _execute((*ninja, "-C", str(folder), "-j", str(jobs)))


def _find_ninja() -> tuple[str, ...] | None:
    on_path = shutil.which("ninja")
    return (sys.executable, "-m", "ninja") if importlib.util.find_spec("ninja") else (on_path,) if on_path else None


def _ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _run_directly(compiles: Sequence[_Step], link: _Step, jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda step: _execute(step.command), compiles))
    _execute(link.command)


def _execute(command: Sequence[str]) -> str:
    """Run a tool; what it printed, on either stream."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\nexited with status {result.returncode}:\n{result.stdout}")
    return result.stdout
