"""The README's examples with other libraries run, and our kernels serve them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fusedformer.drop_in import calls
from fusedformer.kernels import emulation

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL)


def run(word: str) -> dict[str, Any]:
    """The names that the example with `word` in it leaves behind."""
    (example,) = (example for example in EXAMPLES if word in example)
    names: dict[str, Any] = {}
    exec(example, names)
    return names


def test_all_are_run_here() -> None:
    assert len(EXAMPLES) == 7


def test_patched_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = run("TransformerEncoderLayer")["encoder"]
    assert "2 x MultiheadAttention -> multihead_attention" in capsys.readouterr().out
    assert calls.of(encoder.modules()).count("transformer_encoder_layer") == 2


def test_patched_bert() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    names = run("BertForMaskedLM")
    assert names["patched"].left == ()
    assert calls.of(names["bert"].modules()).count("attention") == 2
    assert names["bert"].config._attn_implementation == "sdpa"


def test_patched_vit(timm: Any) -> None:
    found = calls.of(run("fusedformer.patch(vit)")["vit"].modules())
    assert [found.count(op) for op in ("attention", "gelu", "layer_norm")] == [2, 2, 5]


def test_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    names = run("register_transformers")
    assert names["longer"].shape == (2, 24)
    assert calls.of(names["model"].modules()).count("attention") == 2 * (1 + 8)
    assert not calls.of(names["model"].modules()).fallbacks


@pytest.mark.op("attention")
def test_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.forget([None])
    run("register_torch")
    assert calls.of([None]).count("attention") == 0  # the example's tensors are on the CPU
    with emulation.emulated():
        run("register_torch")
    assert calls.of([None]).count("attention") == 1
    calls.forget([None])


def test_timm(timm: Any) -> None:
    model = run("timm_layers")["model"].eval()
    model.blocks = model.blocks[:1]
    model(torch.randn(1, 3, 224, 224))
    found = calls.of(model.modules())
    assert [found.count(op) for op in ("attention", "gelu", "layer_norm")] == [1, 1, 3]


def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("kernels", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    norms = run("kernelize")["norms"]
    norms(torch.randn(2, 64))
    assert calls.of(norms.modules()).count("rms_norm") == 2
    assert (tmp_path / "hub" / "fusedformer" / "build").is_dir()
