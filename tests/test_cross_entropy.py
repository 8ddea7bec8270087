"""Cross entropy in every world: values, gradients, options, vocabularies, strides, special values, errors."""

import contextlib
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
from torch import Tensor

from fusedformer import cross_entropy
from fusedformer.kernels import library

pytestmark = pytest.mark.op("cross_entropy")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VOCABULARIES = [1, 2, 7, 8, 33, 127, 1000, 1024, 4097, 50257]
IGNORED = -100
Options = dict[str, Any]


def plain(logits: Tensor, target: Tensor, weight: Tensor | None = None, z_loss: float = 0.0, **options: Any) -> Tensor:
    """PyTorch's, with classes last, and z-loss by its definition."""
    weight = None if weight is None else weight.to(logits)
    rows, targets = logits.flatten(0, -2), target.flatten()
    loss = F.cross_entropy(rows, targets, weight, **options)
    if options.get("reduction") == "none":
        loss = loss.view(target.shape)
    if z_loss:
        kept = target != options.get("ignore_index", IGNORED)
        square = z_loss * logits.logsumexp(-1).square()
        loss = loss + (square.where(kept, 0.0) if options.get("reduction") == "none" else square[kept].mean())
    return loss


def make_input(world: World, shape: tuple[int, ...], dtype: torch.dtype, ignored: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets, the first `ignored` of which are to be ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[-1], shape[:-1], generator=generator)
    target.flatten()[:ignored] = IGNORED
    return logits.to(world.device, dtype), target.to(world.device)


def make_weight(world: World, classes: int) -> Tensor:
    """From 0.5 to 1.5, in numbers that bfloat16 has too."""
    values = torch.rand(classes, generator=torch.Generator().manual_seed(1)) + 0.5
    return values.bfloat16().float().to(world.device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_losses_and_gradient_are_within_budget(world: World, vocabulary: int, dtype: torch.dtype) -> None:
    inputs = make_input(world, (5, vocabulary), dtype, ignored=1)
    # The gradient of a single class is 0; of the rounding of 1 - s + s there is nothing to judge by.
    for smoothing in (0.0, 0.1) if vocabulary > 1 else (0.0,):
        options: Options = {"label_smoothing": smoothing, "reduction": "none"}
        check_op(partial(cross_entropy, **options), partial(plain, **options), inputs)


@pytest.mark.parametrize("vocabulary", [262_144, 300_001])
def test_large_vocabularies(world: World, vocabulary: int) -> None:
    options: Options = {"label_smoothing": 0.1, "reduction": "none"}
    inputs = make_input(world, (1, vocabulary), torch.bfloat16)
    check_op(partial(cross_entropy, **options), partial(plain, **options), inputs)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), dtype=st.sampled_from(DTYPES))
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with emulated_world("cross_entropy") as world:
        inputs = make_input(world, shape, dtype)
        check_op(partial(cross_entropy, reduction="none"), partial(plain, reduction="none"), inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_options_together(world: World, weighted: bool, smoothing: float, z_loss: float, reduction: str) -> None:
    options: Options = {"label_smoothing": smoothing, "reduction": reduction, "z_loss": z_loss}
    options["weight"] = make_weight(world, 131) if weighted else None
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_input(world, (6, 7, 131), dtype, ignored=9)
        check_op(partial(cross_entropy, **options), partial(plain, **options), inputs)


def test_sum_and_another_ignored_index(world: World) -> None:
    logits, target = make_input(world, (40, 11), torch.float32)
    options: Options = {"ignore_index": 3, "reduction": "sum"}
    check_op(partial(cross_entropy, **options), partial(plain, **options), [logits, target])
    assert cross_entropy(logits, target.int(), **options) == cross_entropy(logits, target, **options)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    op, plain_op = partial(cross_entropy, reduction="none"), partial(plain, reduction="none")
    storage, _ = make_input(world, (4, 5, 6, 45), torch.bfloat16)
    _, target = make_input(world, (4, 5, 6, 40), torch.bfloat16)
    check_op(op, plain_op, [storage[..., offset : offset + 40], target])
    check_op(op, plain_op, [storage[:, 1:, ::2, offset : offset + 40], target[:, 1:, ::2]])
    check_op(op, plain_op, [storage.movedim(0, 2)[..., offset : offset + 40], target.movedim(0, 2)])
    check_op(op, plain_op, [storage[..., 0, :40].transpose(1, 2), target[:, 0].repeat(1, 7)[:, :40] % 5])


def test_rows_are_read_in_place(world: World) -> None:
    """Logits of all tokens but the last, as of a language model: no copy of them, and two numbers a row are kept."""
    if not world.is_device_code:
        pytest.skip("PyTorch copies as it likes")
    storage, target = make_input(world, (3, 9, 512), torch.float32)
    logits, kept_bytes = storage[:, :-1].requires_grad_(), []

    def note(tensor: Tensor) -> Tensor:
        kept_bytes.append(tensor.nbytes if tensor.data_ptr() != logits.data_ptr() else 0)
        return tensor

    target, profiler = target[:, 1:].contiguous(), torch.autograd.profiler.profile(record_shapes=True)
    with profiler as profile, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        cross_entropy(logits, target).backward()
    copied = [event.input_shapes[0] for event in profile.function_events if event.name == "aten::copy_"]
    assert [3, 8, 512] not in copied
    assert max(kept_bytes) <= target.nbytes


def test_logits_are_not_written_to(world: World) -> None:
    logits, target = make_input(world, (4, 100), torch.float32)
    before, version = logits.clone(), logits._version
    cross_entropy(logits.requires_grad_(), target).backward()
    assert torch.equal(logits, before)
    assert logits._version == version


def test_ignored_rows_hide_what_they_hold(world: World) -> None:
    logits, target = make_input(world, (4, 50), torch.float32, ignored=2)
    logits[0], logits[1, 3] = torch.nan, torch.inf
    logits.requires_grad_()
    loss = cross_entropy(logits, target, label_smoothing=0.1, z_loss=1e-3, reduction="none")
    (dlogits,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(loss[:2], torch.zeros_like(loss[:2]))
    assert torch.equal(dlogits[:2], torch.zeros_like(dlogits[:2]))
    assert loss[2:].isfinite().all()
    assert dlogits[2:].isfinite().all()


def test_special_values_stay_in_their_row(world: World) -> None:
    logits, target = make_input(world, (6, 50), torch.float32)
    clean = cross_entropy(logits, target, reduction="none")
    other = (target + 1) % 50
    rows = torch.arange(6, device=world.device)
    logits[0, other[0]], logits[1, other[1]], logits[2, other[2]] = torch.nan, torch.inf, -torch.inf
    logits[3] = -torch.inf
    logits[rows[4], target[4]] = -torch.inf
    loss = cross_entropy(logits, target, reduction="none")
    assert loss[[0, 1, 3]].isnan().all()
    assert loss[2] < clean[2]
    assert loss[4] == torch.inf
    assert loss[5] == clean[5]
    assert cross_entropy(logits[4:5], target[4:5], label_smoothing=0.1) == torch.inf


def test_large_logits_lose_no_digits(world: World) -> None:
    logits, target = make_input(world, (3, 100), torch.float32)
    options: Options = {"label_smoothing": 0.1, "reduction": "none"}
    check_op(partial(cross_entropy, **options), partial(plain, **options), [(logits + 1e4), target])
    check_op(partial(cross_entropy, **options), partial(plain, **options), [logits * 1e4, target])


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_a_target_that_is_no_class(world: World, wrong: int) -> None:
    """On the CPU an error; NaN from device code, in its own row, and nothing is read out there."""
    logits, target = make_input(world, (5, 50), torch.float32)
    clean, weight = cross_entropy(logits, target, reduction="none"), make_weight(world, 50)
    target[2] = wrong
    if not world.is_device_code:
        with pytest.raises(ValueError, match=rf"target has {wrong}, expected 0 to 49, or -100 of rows to ignore"):
            cross_entropy(logits, target)
        return
    loss = cross_entropy(logits.requires_grad_(), target, reduction="none")
    (dlogits,) = torch.autograd.grad(loss.sum(), logits)
    others = [0, 1, 3, 4]
    assert loss[2].isnan()
    assert dlogits[2].isnan().all()
    assert torch.equal(loss[others], clean[others])
    assert dlogits[others].isfinite().all()
    assert cross_entropy(logits, target, weight=weight).isnan()


def test_empty_and_all_ignored(world: World) -> None:
    logits, target = torch.ones(0, 5, device=world.device), torch.ones(0, dtype=torch.int64, device=world.device)
    assert cross_entropy(logits, target, reduction="none").shape == (0,)
    assert cross_entropy(logits, target, reduction="sum") == 0
    assert cross_entropy(logits, target).isnan()
    logits, target = make_input(world, (3, 5), torch.float32, ignored=3)
    assert cross_entropy(logits, target).isnan()
    assert cross_entropy(logits, target, reduction="sum") == 0


def reduced(logits: Tensor, target: Tensor, reduction: str, weight: list[float]) -> Tensor:
    """With z-loss of 1e-6, row by row."""
    kept = target != IGNORED
    lse, weights = logits.logsumexp(-1)[kept], torch.tensor(weight, dtype=torch.float64)[target[kept]]
    loss = (weights * (lse - logits[kept].gather(-1, target[kept, None]).squeeze(-1))).sum()
    penalty = 1e-6 * lse.square().sum()
    return loss + penalty if reduction == "sum" else loss / weights.sum() + penalty / kept.sum()


# One block of the kernel that sums; two; three, the last row ignored; more than the second stage has threads; more rows
# than as many blocks as it goes through have.
@pytest.mark.parametrize("rows", [513, 4097, 8200, 512 * 4096 + 1, 1024 * 4096 + 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_of_many_rows(world: World, rows: int, weighted: bool) -> None:
    if world.name == "emulated" and rows > 10_000:
        pytest.skip("takes minutes in the emulator")
    generator = torch.Generator().manual_seed(rows)
    large, target = 10 * torch.rand(rows, generator=generator), torch.randint(3, (rows,), generator=generator)
    target[::7] = target[-1] = IGNORED
    logits = torch.stack([torch.zeros(rows), large, -large], -1).to(world.device)
    target = target.to(world.device)
    weight = torch.tensor([0.25, 1.0, 3.0], device=world.device) if weighted else None
    for reduction in ("mean", "sum"):
        options: Options = {"weight": weight, "z_loss": 1e-6, "reduction": reduction}
        got = cross_entropy(logits, target, **options)
        expected = reduced(logits.cpu().double(), target.cpu(), reduction, [0.25, 1.0, 3.0] if weighted else [1.0] * 3)
        torch.testing.assert_close(got.cpu().double(), expected, rtol=2e-6, atol=0.0)
        assert torch.equal(cross_entropy(logits, target, **options), got)


def test_a_target_of_another_shape_is_not_read(world: World) -> None:
    logits, target = make_input(world, (4, 6, 5), torch.float32)
    for wrong in (target.T, target.flatten(), target[:3], target[:1], target[None]):
        for computed_by in (contextlib.nullcontext, library.by_definition):
            with computed_by(), pytest.raises(ValueError, match=r"logits have shape \(4, 6, 5\), target"):
                cross_entropy(logits, wrong)


def test_one_row(world: World) -> None:
    logits, target = make_input(world, (7,), torch.float32)
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target))


def test_same_bits_again_and_in_another_batch(world: World) -> None:
    logits, target = make_input(world, (70, 333), torch.bfloat16)
    loss = cross_entropy(logits, target, reduction="none")
    assert torch.equal(cross_entropy(logits, target, reduction="none"), loss)
    assert torch.equal(cross_entropy(logits[31:32], target[31:32], reduction="none"), loss[31:32])


def test_dtypes_as_in_pytorch(world: World) -> None:
    logits, target = make_input(world, (3, 8), torch.bfloat16)
    assert cross_entropy(logits, target).dtype == F.cross_entropy(logits, target).dtype == torch.bfloat16
    with torch.autocast(world.device.type, torch.bfloat16):
        assert cross_entropy(logits, target).dtype == F.cross_entropy(logits, target).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_double_backward(smoothing: float, reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, generator=generator, dtype=torch.float64)
    options: Options = {"weight": weight, "label_smoothing": smoothing, "z_loss": 0.1, "reduction": reduction}

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, torch.tensor([4, IGNORED, 0]), **options)

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradgradcheck(loss, (logits,))


def test_opcheck(world: World) -> None:
    logits, target = make_input(world, (4, 3, 16), torch.float32)
    logits.requires_grad_()
    weight = make_weight(world, 16)
    ops = torch.ops.fusedformer
    torch.library.opcheck(ops.cross_entropy_fwd.default, (logits, target, weight, IGNORED, 0.1))
    loss, _, maximum, total = (out.detach() for out in ops.cross_entropy_fwd(logits, target, weight, IGNORED, 0.1))
    torch.library.opcheck(ops.cross_entropy_reduced_fwd.default, (logits, target, weight, IGNORED, 0.1, 1e-3, True))
    arguments = (loss.requires_grad_(), None, logits, target, weight, maximum, total, IGNORED, 0.1)
    torch.library.opcheck(ops.cross_entropy_bwd.default, arguments)


def test_compiles_without_a_graph_break(world: World) -> None:
    logits, target = make_input(world, (4, 16), torch.float32)
    compiled = torch.compile(partial(cross_entropy, z_loss=1e-3), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target), cross_entropy(logits, target, z_loss=1e-3))


def test_vmap() -> None:
    logits, target = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 1, 0, 2])
    got = torch.vmap(lambda x: cross_entropy(x, target))(logits)
    torch.testing.assert_close(got, torch.stack([cross_entropy(x, target) for x in logits]))


LOGITS, TARGET = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, TARGET), "logits is float, expected a torch.Tensor"),
        ((LOGITS, 1), "target is int, expected a torch.Tensor"),
        ((LOGITS, LOGITS), "target is float32, expected integers: class probabilities are not supported"),
        ((LOGITS, TARGET == 0), "target is bool, expected integers"),
        ((LOGITS, TARGET[:1]), r"logits have shape \(2, 8\), target \(1,\)"),
        ((torch.zeros(()), TARGET), r"logits have shape \(\), target \(2,\)"),
        ((LOGITS[:, :0], TARGET), "logits have 0 classes"),
        ((LOGITS.int(), TARGET), "logits is int32"),
    ],
)
def test_bad_tensors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(7)}, r"weight has shape \(7,\), logits have 8 classes"),
        ({"weight": torch.ones(8, requires_grad=True)}, "weight requires a gradient"),
        ({"ignore_index": 1.0}, "ignore_index is 1.0, expected an int"),
        ({"label_smoothing": 1.1}, "label_smoothing is 1.1, expected 0 to 1"),
        ({"z_loss": math.inf}, "z_loss is inf, expected a finite number"),
        ({"z_loss": -1.0}, "z_loss is -1.0"),
        ({"reduction": "max"}, "reduction is 'max', expected one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_entropy(LOGITS, TARGET, **options)
