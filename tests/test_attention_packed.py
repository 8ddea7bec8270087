"""Packed sequences: each one as if it were alone, whatever lies beside it."""

from collections.abc import Sequence

import pytest
import torch
from attention_cases import DIFFERENTIABLE, Case, Inputs, check, make_inputs, run
from conftest import World, emulated_world
from torch import Tensor

from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.attention.packing_kernel import pack

# The interpreter computes with NumPy, which warns of the NaN put in here.
pytestmark = [pytest.mark.op("attention"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

Lengths = Sequence[tuple[int, int]]


def case_of(lengths: Lengths, tail: int = 0, **fields: object) -> Case:
    rows, keys = (sum(side) + tail for side in zip(*lengths))
    return Case(rows, keys, 16, dtype=torch.bfloat16, packed=tuple(lengths), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("lengths", "tail"),
    [
        (((40, 70),), 0),
        (((70, 40),), 7),
        (((0, 0), (0, 0)), 0),
        (((0, 0),), 9),
        (((5, 0), (0, 5), (3, 3)), 0),
        (((1, 1),) * 10, 3),
        (((64, 64), (1, 1), (63, 65)), 0),
    ],
    ids=["one", "one-and-tail", "empty", "tail-alone", "half-empty", "many", "tiles"],
)
def test_lengths(world: World, lengths: Lengths, tail: int, causal: bool) -> None:
    case = case_of(lengths, tail, causal=causal, heads=1, window=None if causal else (4, 2))
    check(case, world.device)


def test_every_tile_of_many_sequences_has_a_slot() -> None:
    """More sequences than the kernel counts in one go, and one of more tiles than it writes in one go."""
    with emulated_world("attention") as world:
        lengths = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(0))
        lengths[[7, 200]] = torch.tensor([2 * 150 - 1, 0])
        starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().to(world.device)
        slots = pack(starts, int(starts[-1]) + 8, 2)
    wanted = [[index, tile] for index, length in enumerate(lengths.tolist()) for tile in range(-(-length // 2))]
    assert slots.tolist() == wanted + [[-1, 0]] * (len(slots) - len(wanted))


def results(inputs: Inputs, case: Case) -> Inputs:
    return run(lambda **inputs: attention(**inputs, **case.settings, return_lse=True), inputs)


def of_one(inputs: Inputs, index: int) -> tuple[Inputs, slice, slice]:
    """Sequence `index` as a dense batch of one, and its rows of queries and of keys."""
    rows, keys = (slice(*inputs[f"cu_seqlens_{side}"][index : index + 2].tolist()) for side in "qk")
    own = {name: x for name, x in inputs.items() if not name.startswith("cu_seqlens")}
    own |= {"q": inputs["q"][None, rows], "k": inputs["k"][None, keys], "v": inputs["v"][None, keys]}
    if "alibi_slopes" in own:
        own["alibi_slopes"] = inputs["alibi_slopes"][index : index + 1]
    return own, rows, keys


@pytest.mark.parametrize("features", ["plain", "all"])
def test_each_sequence_is_as_if_alone(world: World, features: str) -> None:
    """The tiles of the interpreter and of a GPU begin with the sequence, so not a bit changes; a matmul's may."""
    more = {"window": (20, 3), "alibi": "bh", "sinks": True, "softcap": 5.0} if features == "all" else {}
    case = case_of(((33, 40), (0, 3), (9, 2), (65, 50)), 4, causal=True, heads=2, **more)
    inputs = make_inputs(case, world.device)
    leaves = {name: x.requires_grad_() for name, x in inputs.items() if name in DIFFERENTIABLE}
    out = attention(**inputs, **case.settings)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), dout)))
    same = torch.equal if world.is_device_code else _close
    for index in range(4):
        own, rows, keys = of_one({name: x.detach() for name, x in inputs.items()}, index)
        own_leaves = {name: own[name].requires_grad_() for name in "qkv"}
        own_out = attention(**own, **case.settings)
        own_grads = torch.autograd.grad(own_out, list(own_leaves.values()), dout[None, rows])
        assert same(own_out[0], out[rows])
        for name, got in zip("qkv", own_grads, strict=True):
            assert same(got[0], grads[name][rows if name == "q" else keys])
    assert torch.equal(out[107:], torch.zeros_like(out[107:]))
    assert all(torch.equal(grads[name][-4:], torch.zeros_like(grads[name][-4:])) for name in "qkv")


def _close(got: Tensor, want: Tensor) -> bool:
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    return True


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_nan_in_a_neighbour_does_not_leak(world: World, causal: bool) -> None:
    """Neither in one of both sides, nor in the unused tail."""
    case = case_of(((20, 24), (30, 34), (10, 12)), 6, causal=causal, sinks=causal)
    inputs = make_inputs(case, world.device)
    inputs.pop("sinks", None)  # the gradient of a sink sums over all sequences
    clean = results(inputs, case)
    for name, (first, last) in {"q": (20, 50), "k": (24, 58), "v": (24, 58)}.items():
        for rows in (slice(None, first), slice(last, None)):
            inputs[name][rows] = torch.nan
    dirty = results(inputs, case)
    for name in ("out", "dq"):
        assert torch.equal(dirty[name][20:50], clean[name][20:50]), name
    for name in ("dk", "dv"):
        assert torch.equal(dirty[name][24:58], clean[name][24:58]), name
    assert torch.equal(dirty["lse"][:, 20:50], clean["lse"][:, 20:50])
    assert torch.equal(dirty["out"][60:], torch.zeros_like(dirty["out"][60:]))
