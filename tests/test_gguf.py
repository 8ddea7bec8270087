"""GGUF: header, quantised tensors, Llama's names and rotary order, and the tokenizer, of files that `gguf` wrote."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import check_damaged, check_truncated

library = pytest.importorskip("gguf", reason="gguf is not installed")

from fusedformer.transformer.formats import gguf, gguf_llama, gguf_tokenizer  # noqa: E402
from fusedformer.transformer.tokenizer import load_chat_template, load_tokenizer  # noqa: E402

KINDS = library.GGMLQuantizationType
D_MODEL, N_HEADS, N_KV_HEADS, D_FF, VOCAB = 64, 4, 2, 96, 40
HEAD_DIM = D_MODEL // N_HEADS
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def make_tensors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, D_MODEL), "output_norm.weight": (D_MODEL,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (D_MODEL,),
            f"blk.{layer}.attn_q.weight": (D_MODEL, D_MODEL),
            f"blk.{layer}.attn_k.weight": (N_KV_HEADS * HEAD_DIM, D_MODEL),
            f"blk.{layer}.attn_v.weight": (N_KV_HEADS * HEAD_DIM, D_MODEL),
            f"blk.{layer}.attn_output.weight": (D_MODEL, D_MODEL),
            f"blk.{layer}.ffn_norm.weight": (D_MODEL,),
            f"blk.{layer}.ffn_gate.weight": (D_FF, D_MODEL),
            f"blk.{layer}.ffn_up.weight": (D_FF, D_MODEL),
            f"blk.{layer}.ffn_down.weight": (D_MODEL, D_FF),
        }
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


TOKENS = ["<s>", *"abcdefghijklmnopqrstuvwxyz0123456789Ġ", "ab", "Ġab"]


def write_gguf(path: Path, kinds: dict[str, Any] | None = None, **changes: Any) -> dict[str, np.ndarray]:
    """A tiny Llama; `kinds` gives the quantisation of the tensors whose names end so, `changes` other metadata."""
    writer = library.GGUFWriter(path, changes.pop("architecture", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(32)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(changes.pop("heads", N_HEADS))
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    for name, value in changes.items():
        getattr(writer, name)(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    tensors = make_tensors()
    for name, values in tensors.items():
        kind = next((kind for ending, kind in (kinds or {}).items() if name.endswith(ending)), KINDS.F32)
        writer.add_tensor(name, library.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    kinds = {"attn_v.weight": KINDS.Q4_1, "token_embd.weight": KINDS.Q8_0, "ffn_up.weight": KINDS.F16}
    expected = write_gguf(tmp_path / "m.gguf", kinds)
    _, found = gguf.read(tmp_path / "m.gguf")
    assert list(found) == list(expected)
    for name, values in expected.items():
        steps = {KINDS.Q4_1: 15, KINDS.Q8_0: 127, KINDS.F16: 1024}  # of the range of a block
        kind = next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)
        assert found[name].dtype == torch.float32
        error = (found[name] - torch.from_numpy(values)).abs().max().item()
        assert error == 0 if kind is None else 0 < error <= 1.01 * np.ptp(values) / steps[kind] / 2


def test_metadata(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    metadata = gguf.read_metadata(tmp_path / "m.gguf")
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.attention.head_count"] == N_HEADS
    assert metadata["tokenizer.ggml.tokens"] == TOKENS
    assert metadata["tokenizer.ggml.token_type"][:2] == [3, 1]


def test_llama_names_and_configuration(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "m.gguf")
    config, tensors = gguf_llama.read(tmp_path / "m.gguf")
    assert config["hidden_size"] == D_MODEL
    assert config["vocab_size"] == VOCAB
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, HEAD_DIM)
    assert config["rope_theta"] == 5000
    assert config["rope_scaling"] is None
    assert config["tie_word_embeddings"] is True
    assert len(tensors) == len(expected)
    down = torch.from_numpy(expected["blk.1.ffn_down.weight"])
    assert torch.equal(tensors["model.layers.1.mlp.down_proj.weight"], down)
    # What llama.cpp's converter does to the rows of a head: the halves become neighbours.
    for name, theirs, heads in (("q", "attn_q", N_HEADS), ("k", "attn_k", N_KV_HEADS)):
        ours = tensors[f"model.layers.0.self_attn.{name}_proj.weight"].numpy()
        permuted = ours.reshape(heads, 2, -1, D_MODEL).swapaxes(1, 2).reshape(ours.shape)
        assert np.array_equal(permuted, expected[f"blk.0.{theirs}.weight"])
        assert not np.array_equal(ours, permuted)


def test_scaled_rotary_positions(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m", add_rope_scaling_type=library.RopeScalingType.LINEAR, add_rope_scaling_factor=4.0)
    assert gguf_llama.read(tmp_path / "m")[0]["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    write_gguf(tmp_path / "n", add_rope_scaling_type=library.RopeScalingType.YARN)
    with pytest.raises(ValueError, match="n scales its rotary positions by 'yarn': none and linear"):
        gguf_llama.read(tmp_path / "n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "m holds a model of architecture 'mamba': llama is read from GGUF"),
        ({"heads": 3}, "m is corrupt: blk.0.attn_q.weight has 64 rows, no 3 heads of even width"),
        ({"add_rope_dimension_count": 8}, "m rotates 8 of 16 dimensions"),
    ],
)
def test_models_that_are_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=message):
        gguf_llama.read(tmp_path / "m")


def test_a_kind_that_cannot_be_dequantised(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m")
    data = bytearray((tmp_path / "m").read_bytes())
    name = b"token_embd.weight"
    kind_at = data.index(name) + len(name) + 4 + 2 * 8
    for kind, message in [(99, "token_embd.weight has tensor type 99"), (24, "quantised as I8: Dequantization for I8")]:
        data[kind_at : kind_at + 4] = struct.pack("<I", kind)
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(ValueError, match=f"m.* {message}"):
            gguf.read(tmp_path / "m")


def test_overlapping_tensors(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m")
    data = bytearray((tmp_path / "m").read_bytes())
    name = b"output_norm.weight"
    start_at = data.index(name) + len(name) + 4 + 8 + 4
    data[start_at : start_at + 8] = struct.pack("<Q", 64)
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ValueError, match=r"m is corrupt: output_norm.weight at .* lies over the tensor before it"):
        gguf.read(tmp_path / "m")


def test_tokenizer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<s>ab ab12").ids
    assert [tokenizer.id_to_token(token) for token in ids] == ["<s>", "ab", "Ġab", "1", "2"]
    assert tokenizer.decode(ids) == "ab ab12"
    dialogue = [{"role": "user", "content": "hi"}]
    assert load_chat_template(tmp_path)(dialogue) == "<s>[user]hi"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_tokenizer_model": "llama"}, "m has a tokenizer of kind 'llama': gpt2"),
        ({"add_tokenizer_pre": "qwen2"}, "m splits text as 'qwen2' does"),
        ({"add_token_merges": ["a b c"]}, "m is corrupt: 'a b c' is no merge of two tokens"),
        ({"add_token_merges": ["a z"]}, "m is corrupt: its merges do not fit its tokens"),
    ],
)
def test_tokenizers_that_are_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    writer = library.GGUFWriter(tmp_path / "m", "llama")
    base = {"add_tokenizer_model": "gpt2", "add_tokenizer_pre": "smollm", "add_token_merges": ["a b"]}
    for name, value in {**base, **changes}.items():
        getattr(writer, name)(value)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * len(TOKENS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.read(tmp_path / "m")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_gguf(path)

    def read() -> None:
        gguf_llama.read(path)
        gguf_tokenizer.read(path)

    check_truncated(path, read)
    header_size = path.read_bytes().index(b"blk.1.ffn_down.weight")
    check_damaged(path, read, header_size)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.gguf"):
        gguf_llama.read(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_embedding_length": 0}, "m is corrupt: llama.embedding_length is 0, no positive int"),
        ({"add_layer_norm_rms_eps": float("nan")}, "llama.attention.layer_norm_rms_epsilon is nan, no positive float"),
        ({"add_context_length": "x"}, "llama.context_length is 'x', no positive int"),
    ],
)
def test_metadata_that_is_no_size(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    writer = library.GGUFWriter(tmp_path / "m", "llama")
    sizes = dict.fromkeys(("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"), 4)
    values = {f"add_{name}": size for name, size in sizes.items()} | {"add_layer_norm_rms_eps": 1e-5} | change
    for name, value in values.items():
        if isinstance(value, str):
            writer.add_string(f"llama.{name.removeprefix('add_')}", value)
        else:
            getattr(writer, name)(value)
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=message):
        gguf_llama.read(tmp_path / "m")
