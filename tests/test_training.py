"""The training loop of the examples: exact resume, parameter groups, schedule, accumulation, precision, progress."""

import csv
import importlib
import io
import itertools
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor, nn

from fusedformer import Decoder

pytest.importorskip("matplotlib", reason="examples draw by matplotlib: pip install '.[examples]'")
console = pytest.importorskip("rich.console", reason="examples show a bar by rich: pip install '.[examples]'")
EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, RATE = 12, 3e-3


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the examples do."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("training")


@pytest.fixture
def arguments(training: Any, tmp_path: Path) -> Callable[..., Namespace]:
    def parse(*given: str) -> Namespace:
        flags = training.training_flags("", name="test", steps=STEPS)
        return flags.parse_args(["--output-dir", str(tmp_path / "run"), *given])

    return parse


def new_run(stop_at: int | None = None) -> tuple[Decoder, Callable[[int], Tensor]]:
    """A model with dropout and its batches, which are random; one is interrupted."""
    model = make_model("decoder", dropout=0.2)
    torch.manual_seed(3)

    def next_loss(index: int) -> Tensor:
        if index == stop_at:
            raise KeyboardInterrupt
        return model.loss(torch.randint(19, (4, 9)))

    return model, next_loss


def reproducible(steps: list[Any]) -> list[Any]:
    return [step._replace(seconds=0) for step in steps]


@pytest.mark.parametrize("flags", [[], ["--accumulate", "2"], ["--bf16"]], ids=" ".join)
def test_a_resumed_run_is_the_same_run(
    training: Any, arguments: Callable[..., Namespace], flags: list[str], tmp_path: Path
) -> None:
    whole, next_loss = new_run()
    expected = reproducible(training.train(whole, next_loss, arguments(*flags), learning_rate=RATE))
    (tmp_path / "run" / "checkpoint.pt").unlink()
    flags = [*flags, "--checkpoint-every", "5"]
    broken, next_loss = new_run(stop_at=8 * (2 if "--accumulate" in flags else 1))
    with pytest.raises(KeyboardInterrupt):
        training.train(broken, next_loss, arguments(*flags), learning_rate=RATE)
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == 1 + 5
    resumed, next_loss = new_run()
    torch.manual_seed(99)  # what is drawn before the checkpoint is read does not matter
    resumed.token_embedding.weight.data.zero_()
    found = training.train(resumed, next_loss, arguments(*flags, "--resume"), learning_rate=RATE)
    assert reproducible(found) == expected
    for parameter, other in zip(resumed.parameters(), whole.parameters()):
        assert torch.equal(parameter, other)
    assert len({step.loss for step in found}) == STEPS


def test_nothing_to_resume_from_or_something_else(training: Any, arguments: Callable[..., Namespace]) -> None:
    model, next_loss = new_run()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*checkpoint.pt to resume from"):
        training.train(model, next_loss, arguments("--resume"), learning_rate=RATE)
    training.train(model, next_loss, arguments(), learning_rate=RATE)
    weights = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="other settings: steps 12 there, 9 now; seed 0 there, 4 now"):
        training.train(model, next_loss, arguments("--resume", "--steps", "9", "--seed", "4"), learning_rate=RATE)
    assert all(map(torch.equal, weights, model.parameters()))


def test_every_step_is_in_the_csv(training: Any, arguments: Callable[..., Namespace], tmp_path: Path) -> None:
    steps = training.train(*new_run(), arguments("--steps", "5"), learning_rate=RATE)
    with (tmp_path / "run" / "loss.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "loss", "learning_rate", "gradient_norm", "seconds", "held_out"]
    found = [[float(value) if value else None for value in row] for row in rows]
    assert found == [[n, *step] for n, step in enumerate(steps, start=1)]


def test_evaluations_change_nothing_and_end_it(training: Any, arguments: Callable[..., Namespace]) -> None:
    plain = reproducible(training.train(*new_run(), arguments(), learning_rate=RATE))
    held_out = itertools.chain([3.0, 2.0, 1.0, 0.5])
    evaluation = training.Evaluation(lambda: next(held_out), every=5)
    steps = reproducible(training.train(*new_run(), arguments(), learning_rate=RATE, evaluation=evaluation))
    assert [step.held_out for step in steps] == [None] * 4 + [3.0] + [None] * 4 + [2.0] + [None] + [1.0]
    assert [step._replace(held_out=None) for step in steps] == plain
    losses = iter([3.0, 2.0, 1.0])
    evaluation = training.Evaluation(lambda: next(losses), every=2, target=2.0)
    model, next_loss = new_run()
    ended = reproducible(training.train(model, next_loss, arguments(), learning_rate=RATE, evaluation=evaluation))
    assert [step._replace(held_out=None) for step in ended] == plain[:4]
    assert len((arguments().output_dir / "loss.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder", "vision_transformer"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_of_linear_layers_decay(training: Any, kind: str, tied: bool) -> None:
    model = make_model(kind, tie_embeddings=tied)
    decayed, others = training.parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(id(p) for group in (decayed, others) for p in group["params"]) == sorted(names)
    for parameter in decayed["params"]:
        assert parameter.dim() == 2
        assert names[id(parameter)].endswith("weight")
    kept = " ".join(names[id(parameter)] for parameter in others["params"])
    assert all(part in kept for part in ("norm.weight", "out.bias", "embedding"))
    assert "qkv.weight" not in kept


def test_warm_up_and_cosine(training: Any) -> None:
    settings = training.Settings(steps=200, learning_rate=2.0)
    rates = [training.scheduled_rate(step, settings) for step in range(200)]
    assert rates[0] == pytest.approx(2.0 / 20)
    assert rates[19] == rates[20] == max(rates) == 2.0
    assert rates[110] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[-1] == pytest.approx(0.02, rel=0.02)
    rising = [later > earlier for earlier, later in itertools.pairwise(rates)]
    assert rising == [True] * 19 + [False] * 180
    assert training.scheduled_rate(0, training.Settings(steps=1, learning_rate=2.0)) == 2.0


def one_update(training: Any, batches: list[Tensor], **settings: Any) -> tuple[Decoder, Any]:
    model = make_model("decoder")
    optimizer = torch.optim.SGD(model.parameters())
    chosen = training.Settings(steps=1, learning_rate=1.0, **settings)
    return model, training.update(model, optimizer, lambda index: model.loss(batches[index]), 0, chosen)


def test_accumulated_gradients_are_those_of_the_whole_batch(training: Any) -> None:
    tokens = random_tokens(6, 9)
    whole, one = one_update(training, [tokens])
    parts, three = one_update(training, list(tokens.split(2)), accumulate=3)
    assert three.loss == pytest.approx(one.loss, rel=1e-6)
    for parameter, other in zip(parts.parameters(), whole.parameters()):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped(training: Any) -> None:
    model, step = one_update(training, [random_tokens(6, 9)])
    start = make_model("decoder")
    moved = sum((p - q).square().sum().item() for p, q in zip(model.parameters(), start.parameters()))
    assert step.gradient_norm > 1.5
    assert math.sqrt(moved) == pytest.approx(1.0, rel=1e-3)


def test_bf16_is_what_is_computed_in_and_not_what_is_kept(training: Any) -> None:
    dtypes = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: dtypes.add(out.dtype) if isinstance(module, nn.Linear) else None
    )
    model, rounded = one_update(training, [random_tokens(6, 9)], bf16=True)
    handle.remove()
    _, exact = one_update(training, [random_tokens(6, 9)])
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
    assert rounded.loss != exact.loss


def test_compiled(training: Any, arguments: Callable[..., Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = training.train(*new_run(), arguments("--steps", "2"), learning_rate=RATE)
    compiled: list[nn.Module] = []
    original = nn.Module.compile

    def spy(model: nn.Module) -> None:
        compiled.append(model)
        original(model, backend="eager")  # not the code generator, which takes minutes

    monkeypatch.setattr(nn.Module, "compile", spy)
    found = training.train(*new_run(), arguments("--steps", "2", "--compile"), learning_rate=RATE)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-5)
    assert len(compiled) == 1


def test_a_bar_on_a_terminal_and_lines_elsewhere(training: Any, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    terminal = console.Console(file=screen, force_terminal=True, width=100)
    with training.reporting(40, 10, terminal) as report:
        for step in range(11, 41):
            report(step, 1 / step)
    assert "40/40" in screen.getvalue()
    assert "loss 0.0250" in screen.getvalue()
    assert capsys.readouterr().out == ""
    with training.reporting(40, 10, console.Console(file=io.StringIO())) as report:
        for step in range(11, 41):
            report(step, 1 / step)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/40" for step in range(12, 41, 4)]
