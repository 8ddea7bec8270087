"""Real models on real input: what they are published to do, and what the original implementations compute.

The weights are packages of `weights.txt`; a test whose package is not installed is skipped.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedformer import Decoder, Encoder, EncoderDecoder, TransformerConfig, VisionTransformer, from_pretrained
from fusedformer.benchmarks.verify import inputs
from fusedformer.benchmarks.verify.inputs import DINOV2, MINILM, OPENING, QUESTION, SENTENCES, SMOLLM2, WHISPER, words
from fusedformer.transformer.formats.locate import find_weights
from fusedformer.transformer.images import preprocess


def require(*names: str) -> None:
    try:
        inputs.require(*names)
    except inputs.MissingError as missing:
        pytest.skip(f"not installed: {missing}")


def load_tokenizer(package: str) -> Any:
    from fusedformer.transformer import tokenizer  # an extra

    return tokenizer.load_tokenizer(package)


def test_the_command_asks_for_the_versions_that_are_pinned() -> None:
    text = (Path(__file__).parents[1] / "weights.txt").read_text()
    assert dict(re.findall(r"^([\w-]+)==([\d.]+)", text, re.MULTILINE)) == inputs.VERSIONS
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)) == len(inputs.VERSIONS)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    require(MINILM, "safetensors", "tokenizers")
    return Encoder.from_pretrained(MINILM)


@pytest.fixture(scope="module")
def smollm2() -> Decoder:
    require(SMOLLM2, "gguf", "tokenizers")
    return Decoder.from_pretrained(SMOLLM2)


@pytest.fixture(scope="module")
def whisper() -> EncoderDecoder:
    require(WHISPER, inputs.WHISPER_REST, "tokenizers")
    return EncoderDecoder.from_pretrained(WHISPER, dtype=torch.float32)


@pytest.fixture(scope="module")
def dinov2() -> VisionTransformer:
    require(DINOV2, "onnx")
    return VisionTransformer.from_pretrained(DINOV2)


def embed_together_packed_and_alone(model: Encoder, sentences: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    rows = [torch.tensor(encoding.ids) for encoding in load_tokenizer(MINILM).encode_batch(sentences)]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    packed, cu_seqlens = Encoder.pack(rows)
    alone = torch.cat([model.embed(row.unsqueeze(0)) for row in rows])
    return model.embed(tokens, mask), model.embed(packed, cu_seqlens=cu_seqlens), alone


def test_minilm_has_the_cosines_of_the_original(minilm: Encoder) -> None:
    assert minilm.config == TransformerConfig.preset("minilm-l6")
    together, packed, alone = embed_together_packed_and_alone(minilm, SENTENCES)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-6)
    # By sentence-transformers, to four places.
    expected = torch.tensor([0.6946, 0.9429, 0.2569])
    torch.testing.assert_close(together[0] @ together[1:].T, expected, rtol=0, atol=1e-4)


def test_minilm_is_hugging_faces(minilm: Encoder) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.BertModel.from_pretrained(find_weights(MINILM).parent).eval()
    sentences = [*SENTENCES, OPENING, "Hm."]
    _, packed, _ = embed_together_packed_and_alone(minilm, sentences)
    means = []
    for encoding in load_tokenizer(MINILM).encode_batch(sentences):
        means.append(theirs(torch.tensor([encoding.ids])).last_hidden_state.mean(dim=1))
    expected = torch.nn.functional.normalize(torch.cat(means), dim=-1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)


def test_smollm2_loads_fast() -> None:
    require(SMOLLM2, "gguf", "tokenizers")
    before = time.process_time()  # not the clock: others may use the machine
    model = from_pretrained(SMOLLM2)
    assert time.process_time() - before < 10
    assert model.config == TransformerConfig.preset("smollm2-135m")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_smollm2_knows_how_a_novel_opens(smollm2: Decoder) -> None:
    tokens = torch.tensor([load_tokenizer(SMOLLM2).encode(OPENING).ids])
    assert tokens.shape == (1, 73)
    assert smollm2.loss(tokens).item() == pytest.approx(1.5427, abs=0.002)


def test_smollm2_answers(smollm2: Decoder) -> None:
    from fusedformer.transformer.tokenizer import load_chat_template

    tokenizer = load_tokenizer(SMOLLM2)
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.encode(load_chat_template(SMOLLM2)(question)).ids
    end = tokenizer.token_to_id("<|im_end|>")
    answer = smollm2.generate(torch.tensor([prompt]), 12, temperature=0, eos_token_id=end)[0, len(prompt) :]
    assert "Paris" in tokenizer.decode(answer.tolist())


def test_whisper_hears_the_opening_word_for_word(whisper: EncoderDecoder) -> None:
    from fusedformer.transformer.transcription import transcribe

    require(inputs.RECORDING)
    text = transcribe(whisper, load_tokenizer(WHISPER), inputs.load_recording())
    expected = words(OPENING)
    assert words(text)[: len(expected)] == expected
    assert len(words(text)) > len(expected)


def test_dinov2_is_onnxruntimes_on_photos(dinov2: VisionTransformer) -> None:
    from fusedformer.benchmarks.verify.subjects import run_graph

    require("onnxruntime", "sklearn", "skimage")
    images = torch.cat([preprocess(photo) for photo in inputs.load_photos().values()])
    torch.testing.assert_close(dinov2.hidden(images), run_graph(images), rtol=0, atol=1e-4)


def test_timms_dinov2_is_ours_on_images_of_another_size_than_its_table(dinov2: VisionTransformer, timm: Any) -> None:
    from fusedformer.benchmarks.verify.public import load_timm

    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert dinov2.config.image_size != 224
    theirs = load_timm(DINOV2, dinov2, images)
    torch.testing.assert_close(dinov2.hidden(images), theirs.forward_features(images), rtol=0, atol=1e-3)
