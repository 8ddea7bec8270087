"""Launches that are replayed: the same results as calls that are not, for other tensors of the same form."""

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import emulated_world
from torch import Tensor

import fusedformer
from fusedformer.kernels import replay
from fusedformer.kernels.attention.hopper import dispatch

B = torch.bfloat16
STARTS = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window, sinks": {"window": (5, 2), "sinks": torch.tensor([0.5, -1.0])},
    "mask": {"mask": torch.ones(20, 20, dtype=torch.bool).tril(2)},
    "bias": {"bias": torch.linspace(-1, 1, 400).view(20, 20)},
    "ALiBi, softcap": {"alibi_slopes": torch.tensor([0.5, 0.25]), "softcap": 5.0},
    "dropout": {"dropout_p": 0.5, "seed": torch.tensor([3])},
    "packed": {"cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS, "causal": True},
}


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with emulated_world("attention"):
        yield


def tensors(seed: int, shape: tuple[int, ...] = (1, 20, 2, 16), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4)]


def plans() -> list[replay.Plan]:
    return [plan for known in replay._plans for plan in known.values() if isinstance(plan, replay.Plan)]


def gradients(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = call(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout)]


@pytest.mark.parametrize("name", SETTINGS)
def test_other_tensors_of_the_same_form_give_what_they_gave(name: str) -> None:
    call = functools.partial(fusedformer.attention, **SETTINGS[name])
    shape = (20, 2, 16) if name == "packed" else (1, 20, 2, 16)
    expected = gradients(call, *tensors(2, shape))
    replay.forget()
    for seed in (0, 1):  # seen, recorded
        gradients(call, *tensors(seed, shape))
    assert plans()
    with mock.patch("fusedformer.kernels.attention.launch.Problem", side_effect=AssertionError("not replayed")):
        fusedformer.attention(*tensors(2, shape)[:3], **SETTINGS[name])
    for given, wanted in zip(gradients(call, *tensors(2, shape)), expected, strict=True):
        assert torch.equal(given, wanted)


def test_the_backward_is_replayed_too() -> None:
    for seed in (0, 1):
        gradients(fusedformer.attention, *tensors(seed))
    assert len(plans()) == 2
    with mock.patch("fusedformer.kernels.attention.launch.Problem", side_effect=AssertionError("not replayed")):
        gradients(fusedformer.attention, *tensors(2))


def test_one_tensor_given_twice_is_two_the_next_time() -> None:
    x, y, z, _ = tensors(0)
    expected = fusedformer.attention(x, y, z)
    replay.forget()
    for _ in range(3):
        fusedformer.attention(x, x, x)
    assert torch.equal(fusedformer.attention(x, y, z), expected)


def test_results_do_not_share_memory() -> None:
    q, k, v, _ = tensors(0)
    outs = [fusedformer.attention(q, k, v) for _ in range(4)]
    assert len({out.data_ptr() for out in outs}) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": torch.bfloat16},
        {"shape": (1, 21, 2, 16)},
        {"shape": (2, 20, 2, 16)},
        {"shape": (1, 20, 2, 32)},
    ],
)
def test_another_form_is_not_taken_for_the_recorded_one(other: dict[str, Any]) -> None:
    for seed in (0, 1, 2):
        fusedformer.attention(*tensors(seed)[:3])
    q, k, v = (x.transpose(1, 2) for x in tensors(3, **other)[:3])
    given = fusedformer.attention(q, k, v, layout="bhsd")
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(given.double(), expected, atol=1e-2, rtol=1e-2)


def test_strides_and_alignment_are_part_of_the_form() -> None:
    q, k, v, _ = tensors(0)
    for _ in range(3):
        expected = fusedformer.attention(q, k, v)
    count = len(plans())
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    shifted = torch.cat([torch.zeros(1), q.flatten()])[1:].view(q.shape)
    for other in (strided, shifted):
        for _ in range(3):
            assert torch.equal(fusedformer.attention(other, k, v), expected)
    assert len(plans()) == count + 2


def test_numbers_are_part_of_the_form() -> None:
    q, k, v, _ = tensors(0)
    for _ in range(3):
        fusedformer.attention(q, k, v, scale=0.1)
    assert not torch.equal(fusedformer.attention(q, k, v, scale=0.2), fusedformer.attention(q, k, v, scale=0.1))


def test_what_is_not_launches_alone_is_called_each_time() -> None:
    """The gradient of a sink is computed by PyTorch."""
    q, k, v, dout = tensors(0)
    sinks = torch.zeros(2, requires_grad=True)
    for value in (0.0, 1.0, 2.0, 3.0):
        sinks.data.fill_(value)
        out = fusedformer.attention(q.requires_grad_(), k, v, sinks=sinks)
        (given,) = torch.autograd.grad(out, sinks, dout, retain_graph=True)
        replay.forget()
        out = fusedformer.attention(q, k, v, sinks=sinks)
        torch.testing.assert_close(given, torch.autograd.grad(out, sinks, dout)[0])


def test_the_switch_of_the_hopper_tier_is_looked_at_each_time() -> None:
    q, k, v, _ = tensors(0, (1, 70, 1, 64), torch.bfloat16)
    for _ in range(3):
        fusedformer.attention(q, k, v)
    with dispatch.preferred("1"), mock.patch("fusedformer.simulator.run") as run:
        fusedformer.attention(q, k, v)
    assert run.called


def test_descriptors_are_made_anew() -> None:
    shape = (1, 70, 1, 64)
    with dispatch.preferred("1"):
        expected = fusedformer.attention(*tensors(2, shape, torch.bfloat16)[:3])
        for seed in (0, 1):
            fusedformer.attention(*tensors(seed, shape, torch.bfloat16)[:3])
        assert torch.equal(fusedformer.attention(*tensors(2, shape, torch.bfloat16)[:3]), expected)
    assert plans()


HOPPER: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], dict[str, Any]]] = {
    "heads share a tile": ((20, 3, 64), (70, 1, 64), {}),
    "packed": ((40, 1, 64), (70, 1, 64), {
        "cu_seqlens_q": torch.tensor([0, 9, 40], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 20, 70], dtype=torch.int32),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", HOPPER)
def test_what_pytorch_writes_between_launches_is_replayed(name: str) -> None:
    """What is hidden here is not finite in the last call alone, which a repair has to notice."""
    queries, keys, settings = HOPPER[name]

    def call(seed: int, hidden: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(shape, generator=generator).half() for shape in (queries, keys, keys))
        k[-1], v[-1] = hidden, hidden  # which the last query alone sees
        if name != "packed":
            q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        return fusedformer.attention(q, k, v, causal=True, **settings)

    with dispatch.preferred("1"):
        expected = call(2, torch.nan)
        replay.forget()
        call(0)
        call(1)
        assert plans()
        with mock.patch("fusedformer.kernels.attention.launch.Problem", side_effect=AssertionError("not replayed")):
            given = call(2, torch.nan)
    rows = given if name == "packed" else given[0]
    assert rows[:-1].isfinite().all()
    assert rows[-1].isnan().all()
    assert torch.equal(rows[:-1], expected.view(rows.shape)[:-1])


def test_a_replay_has_the_schedule_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    with dispatch.preferred("1"), mock.patch("fusedformer.simulator.run") as run:
        for seed in ("1", "2", "3"):
            monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", seed)
            fusedformer.attention(*tensors(0, (1, 70, 1, 64), B)[:3])
    assert [call.kwargs["seed"] for call in run.call_args_list] == [1, 2, 3]
    assert plans()


def test_a_gradient_by_sums_is_replayed() -> None:
    def call(seed: int) -> list[Tensor]:
        return gradients(functools.partial(fusedformer.attention, causal=True), *tensors(seed, (1, 70, 1, 64), B))

    with dispatch.preferred("fused"):
        expected = call(2)
        replay.forget()
        call(0)
        call(1)
        assert len(plans()) == 2
        with mock.patch("fusedformer.kernels.attention.launch.Problem", side_effect=AssertionError("not replayed")):
            given = call(2)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)  # sums of atomics: the last bits differ


class TestWrites:
    """Ops of PyTorch's among launches."""

    def replayed(self, op: Callable[..., Any]) -> list[Any]:
        """The results of calls for 1, 2, 3: called, recorded, and called or replayed."""
        calls = []

        def noted(x: Tensor) -> Tensor:
            calls.append(x)
            return op(x)

        wrapped = replay.replayed(lambda *_: ())(noted)
        results = [wrapped(torch.tensor([[3.0, -1.0], [2.0, 5.0]]) * seed) for seed in (1.0, 2.0, 3.0)]
        return [len(calls), *results]

    def test_they_keep_their_place_and_see_what_changes(self) -> None:
        def op(x: Tensor) -> Tensor:
            work, least = torch.empty_like(x), x.new_empty(2)
            replay.launch_by(lambda source, to: to.copy_(source + 1), (x, work))
            torch.amin(work, 0, out=least)
            work.zero_()
            replay.launch_by(lambda source, to: to.add_(source), (x, work))
            work[1].copy_(least.mul_(0.5))
            return work

        count, *results = self.replayed(op)
        assert count == 2
        for seed, given in enumerate(results, 1):
            x = torch.tensor([[3.0, -1.0], [2.0, 5.0]]) * seed
            assert torch.equal(given, torch.stack([x[0], (x + 1).amin(0) / 2]))

    @pytest.mark.parametrize(
        "op",
        [lambda x: torch.empty_like(x).copy_(x + 1), lambda x: x.amin(0)],
        ids=["a sum", "a result of its own"],
    )
    def test_what_makes_a_tensor_of_values_is_not_recorded(self, op: Callable[..., Any]) -> None:
        count, *results = self.replayed(op)
        assert count == 3
        assert not torch.equal(results[1], results[2])


def test_a_plan_keeps_no_tensor_alive() -> None:
    def references() -> list[weakref.ref[Tensor]]:
        q, k, v, _ = tensors(0)
        outs = [fusedformer.attention(q, k, v) for _ in range(3)]
        return [weakref.ref(x) for x in (q, k, v, *outs)]

    kept = references()
    assert plans()
    gc.collect()
    assert [reference() for reference in kept] == [None] * 6


def test_forms_that_do_not_come_again_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_FORMS", 3)
    for length in range(4, 12):
        fusedformer.attention(*tensors(0, (1, length, 1, 16))[:3])
    assert max(map(len, replay._plans)) <= 3
    assert not plans()


class TestLauncher:
    """`replay.launcher`, by a kernel as Triton's compiler leaves it."""

    @pytest.fixture
    def compiled(self) -> Any:
        compiled = mock.MagicMock(function="function", packed_metadata="metadata")
        with mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda index: f"stream {index}", create=True):
            yield compiled

    def test_it_launches_on_the_current_stream(self, compiled: Any) -> None:
        replay.launcher(compiled, 7, torch.device("cuda", 1))("x", 3)
        compiled.run.assert_called_once_with(
            7, 1, 1, "stream 1", "function", "metadata", None, None, None, "x", 3
        )  # fmt: skip

    @pytest.mark.parametrize("hook", [mock.Mock(), SimpleNamespace(calls=[mock.Mock()])], ids=["function", "chain"])
    def test_hooks_are_called(self, compiled: Any, hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        launch = replay.launcher(compiled, 7, torch.device("cuda", 0))
        monkeypatch.setattr("triton.knobs.runtime.launch_enter_hook", hook)
        launch("x")
        assert not compiled.run.called
        compiled[7, 1, 1].assert_called_once_with("x")
