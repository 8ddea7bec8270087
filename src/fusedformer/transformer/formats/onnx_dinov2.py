"""A DINOv2 backbone in an ONNX graph that PyTorch exported: its tensors as Hugging Face's Dinov2Model has them.

The exporter keeps the names of most weights, but transposes the matrices and calls them onnx::MatMul_1966; the name of
the node that multiplies by one says whose it is. Sizes that no weight has the shape of are constants of the graph.
Source: the ONNX specification, https://github.com/onnx/onnx/blob/main/docs/IR.md.
"""

from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedformer.transformer.formats.binary import as_written

try:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper
except ImportError as error:
    raise ImportError("weights in ONNX need the onnx package: pip install 'fusedformer[models]'") from error

PATCHES = "embeddings.patch_embeddings.projection.weight"
POSITIONS = "embeddings.position_embeddings"
FIRST_LAYER = "encoder.layer.0."


class Graph:
    """The weights and constants of one scope of a graph, such as "backbone."."""

    def __init__(self, path: Path, graph: Any) -> None:
        self.path = path
        names = [tensor.name for tensor in graph.initializer]
        names += [name for node in graph.node for name in (node.name, *node.input, *node.output)]
        if not all(isinstance(name, str) for name in names):  # what is not UTF-8 comes as bytes
            raise ValueError(f"{path} is corrupt: not all of its names are text")
        if outside := [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]:
            raise ValueError(f"{path} keeps {', '.join(outside)} in other files: weights inside the file are read")
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = {node.name: node for node in graph.node}
        prefixes = [name.removesuffix(PATCHES) for name in self.initializers if name.endswith(PATCHES)]
        if len(prefixes) != 1:
            raise ValueError(f"{path} has {len(prefixes)} weights that end in {PATCHES}: one DINOv2 is read from ONNX")
        self.prefix = prefixes[0]
        self.constants = {
            node.output[0]: node.attribute[0].t
            for node in graph.node
            if node.op_type == "Constant" and len(node.output) == len(node.attribute) == 1
        }

    def weight(self, name: str) -> Tensor:
        return to_tensor(self.path, self.initializers[name])

    def scope(self, module: str) -> Iterator[Any]:
        """The nodes inside a module such as "encoder.layer.0."."""
        start = "/" + (self.prefix + module).replace(".", "/").replace("layer/", "layer.")
        return (node for name, node in self.nodes.items() if name.startswith(start))

    def scalars(self, module: str, op: str) -> list[list[float]]:
        """The constants of one element among the inputs of each node of an operator in a module."""
        found = []
        for node in self.scope(module):
            if node.op_type == op:
                tensors = [to_tensor(self.path, self.constants[name]) for name in node.input if name in self.constants]
                found.append([tensor.item() for tensor in tensors if tensor.numel() == 1])
        return found


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of config.json and tensors under Hugging Face's names. What the graph computes from the backbone is left.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no ONNX graph of a DINOv2, or is truncated or corrupt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file, or is truncated or corrupt: {error}") from error
    graph = Graph(path, model.graph)
    tensors = read_tensors(graph)
    return read_config(graph, tensors), tensors


def read_tensors(graph: Graph) -> dict[str, Tensor]:
    prefix = graph.prefix
    tensors = {name.removeprefix(prefix): graph.weight(name) for name in graph.initializers if name.startswith(prefix)}
    for node in graph.scope(""):
        if node.op_type == "MatMul" and node.input[1] in graph.initializers:
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{module.removeprefix(prefix)}.weight"] = graph.weight(node.input[1]).T.contiguous()
    return tensors if POSITIONS in tensors else tensors | {POSITIONS: read_positions(graph, tensors[PATCHES].shape[0])}


def read_positions(graph: Graph, width: int) -> Tensor:
    """The position table (1, 1 + patches, width), which the exporter cuts into the class token's row and the others."""
    names = [name for node in graph.scope("embeddings.") for name in node.input if name in graph.initializers]
    pieces = [graph.weight(name) for name in dict.fromkeys(names) if not name.startswith(graph.prefix)]
    rows = sorted((p for p in pieces if p.dim() == 3 and p.shape[::2] == (1, width)), key=lambda p: p.shape[1])
    if len(rows) != 2 or rows[0].shape[1] != 1 or isqrt(rows[1].shape[1]) ** 2 != rows[1].shape[1]:
        raise ValueError(f"{graph.path} has no {POSITIONS}: rows of shapes {[tuple(p.shape) for p in pieces]}")
    return torch.cat(rows, dim=1)


def read_config(graph: Graph, tensors: dict[str, Tensor]) -> dict[str, Any]:
    up = tensors.get(f"{FIRST_LAYER}mlp.fc1.weight")
    if up is None or tensors[PATCHES].dim() != 4 or tensors[POSITIONS].dim() != 3:
        raise ValueError(f"{graph.path} has no {FIRST_LAYER}mlp.fc1.weight, or {PATCHES} of another rank than 4")
    width, channels, patch_size, _ = tensors[PATCHES].shape
    return {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        "num_attention_heads": read_heads(graph, width),
        "mlp_ratio": up.shape[0] // width,
        "hidden_act": "gelu",
        "layer_norm_eps": read_eps(graph),
        "image_size": isqrt(tensors[POSITIONS].shape[1] - 1) * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "qkv_bias": f"{FIRST_LAYER}attention.attention.query.bias" in tensors,
        "use_swiglu_ffn": False,
    }


def read_heads(graph: Graph, width: int) -> int:
    """Attention splits the width into heads by a shape that ends in their number and width."""
    for *_, heads, head_dim in (s for s in graph.scalars(f"{FIRST_LAYER}attention.", "Concat") if len(s) >= 2):
        if heads * head_dim == width:
            return int(heads)
    raise ValueError(f"{graph.path} does not say how many heads share {width} dimensions")


def read_eps(graph: Graph) -> float:
    for node in graph.scope(f"{FIRST_LAYER}norm1"):
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                return as_written(attribute.f)
    added = [scalar for scalars in graph.scalars(f"{FIRST_LAYER}norm1", "Add") for scalar in scalars]
    if len(added) != 1:
        raise ValueError(f"{graph.path} adds {added} to a variance, and not one epsilon")
    return as_written(added[0])


def to_tensor(path: Path, proto: Any) -> Tensor:
    try:
        return torch.from_numpy(numpy_helper.to_array(proto).copy())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is corrupt: {proto.name}: {error}") from error
