"""ONNX: DINOv2's names, matrices and sizes, of a graph written here as PyTorch's exporter writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import check_damaged, check_truncated

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import helper, numpy_helper  # noqa: E402

from fusedformer.transformer.formats import onnx_dinov2  # noqa: E402

D_MODEL, D_FF, N_HEADS, PATCH, GRID = 12, 48, 3, 2, 4
DENSE = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")


class Exporter:
    """Collects what a graph holds, under the names that PyTorch's exporter would give."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(0)
        self.initializers: list[Any] = []
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}  # under Hugging Face's names

    def initializer(self, name: str, values: Any) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def kept(self, name: str, *shape: int) -> None:
        """A weight that keeps its name."""
        self.weights[name] = self.draw.standard_normal(shape).astype(np.float32)
        self.initializer(f"backbone.{name}", self.weights[name])

    def matrix(self, module: str, n_out: int, n_in: int) -> None:
        """A weight that is transposed, and called after the node that reads it."""
        self.weights[f"{module}.weight"] = values = self.draw.standard_normal((n_out, n_in)).astype(np.float32)
        name = self.initializer(f"onnx::MatMul_{len(self.nodes)}", np.ascontiguousarray(values.T))
        self.node("MatMul", module, "x", name)
        self.kept(f"{module}.bias", n_out)

    def node(self, op: str, module: str, *inputs: str, **attributes: Any) -> str:
        name = f"/backbone/{module}/{op}".replace(".", "/").replace("layer/", "layer.")
        output = f"{name}_output_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{name}", **attributes))
        return output

    def constant(self, module: str, value: Any) -> str:
        return self.node("Constant", module, value=numpy_helper.from_array(np.asarray(value)))

    def save(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, "g", [], [], self.initializers)
        path.write_bytes(helper.make_model(graph).SerializeToString())


def make_dinov2(*, eps: float = 1e-6, heads: int = N_HEADS, fused_norm: bool = False) -> Exporter:
    made = Exporter()
    made.kept("embeddings.cls_token", 1, 1, D_MODEL)
    made.kept("embeddings.patch_embeddings.projection.weight", D_MODEL, 3, PATCH, PATCH)
    made.kept("embeddings.patch_embeddings.projection.bias", D_MODEL)
    positions = made.draw.standard_normal((1, 1 + GRID**2, D_MODEL)).astype(np.float32)
    made.weights["embeddings.position_embeddings"] = positions
    first = made.initializer("onnx::Concat_7", positions[:, :1])
    made.node("Concat", "embeddings", first, made.initializer("onnx::Reshape_8", positions[:, 1:]))
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for norm in ("norm1", "norm2"):
            made.kept(f"{layer}.{norm}.weight", D_MODEL)
            made.kept(f"{layer}.{norm}.bias", D_MODEL)
            if fused_norm:
                made.node("LayerNormalization", f"{layer}.{norm}", "x", epsilon=eps)
            else:
                made.node("Add", f"{layer}.{norm}", "variance", made.constant(f"{layer}.{norm}", np.float32(eps)))
        sizes = [made.constant(f"{layer}.attention.attention", np.array([n])) for n in (heads, D_MODEL // N_HEADS)]
        made.node("Concat", f"{layer}.attention.attention", "batch", "length", *sizes)
        for module in DENSE:
            made.matrix(f"{layer}.{module}", D_MODEL, D_MODEL)
        made.matrix(f"{layer}.mlp.fc1", D_FF, D_MODEL)
        made.matrix(f"{layer}.mlp.fc2", D_MODEL, D_FF)
    made.initializer("decoder.weight", np.ones((2, 2), np.float32))  # of what reads the backbone
    return made


@pytest.mark.parametrize("fused_norm", [False, True])
def test_names_and_configuration(tmp_path: Path, fused_norm: bool) -> None:
    made = make_dinov2(eps=1e-5, fused_norm=fused_norm)
    made.save(tmp_path / "m.onnx")
    config, tensors = onnx_dinov2.read(tmp_path / "m.onnx")
    expected: dict[str, float] = {"hidden_size": D_MODEL, "num_hidden_layers": 2, "num_attention_heads": N_HEADS}
    expected |= {
        "mlp_ratio": 4,
        "layer_norm_eps": 1e-5,
        "image_size": PATCH * GRID,
        "patch_size": PATCH,
        "num_channels": 3,
    }
    assert {name: config[name] for name in expected} == expected
    assert tensors.keys() == made.weights.keys()
    for name, values in made.weights.items():
        assert torch.equal(tensors[name], torch.from_numpy(values)), name


def test_graphs_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    Exporter().save(path)
    with pytest.raises(ValueError, match=r"m has 0 weights that end in embeddings.patch_embeddings"):
        onnx_dinov2.read(path)
    make_dinov2(heads=5).save(path)
    with pytest.raises(ValueError, match="m does not say how many heads share 12 dimensions"):
        onnx_dinov2.read(path)
    made = make_dinov2()
    made.initializers = [tensor for tensor in made.initializers if tensor.name != "onnx::Concat_7"]
    made.save(path)
    with pytest.raises(ValueError, match=r"m has no embeddings.position_embeddings: rows of shapes \[\(1, 16, 12\)\]"):
        onnx_dinov2.read(path)
    made = make_dinov2()
    made.initializers[0].data_location = onnx.TensorProto.EXTERNAL
    made.save(path)
    with pytest.raises(ValueError, match=r"m keeps backbone.embeddings.cls_token in other files"):
        onnx_dinov2.read(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        onnx_dinov2.read(tmp_path / "none")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    make_dinov2().save(path)
    check_truncated(path, lambda: onnx_dinov2.read(path))
    check_damaged(path, lambda: onnx_dinov2.read(path), within=len(path.read_bytes()))
