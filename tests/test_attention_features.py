"""Every feature of attention, alone and with every other: values and all gradients against float64."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from attention_cases import DIFFERENTIABLE, Case, check, check_inputs, make_inputs, make_tensors
from conftest import HAS_GPU, World
from torch import Tensor

from fusedformer.kernels.attention.op import attention

pytestmark = pytest.mark.op("attention")

Fields = dict[str, Any]

# Of packed sequences: empty ones, one without a key, one without a query, an unused tail.
PACKED = ((0, 0), (33, 40), (0, 3), (4, 0), (9, 2))


def packed(lengths: Sequence[tuple[int, int]], tail: int = 5) -> Fields:
    rows, keys = (sum(side) for side in zip(*lengths))
    return {"packed": tuple(lengths), "seqlen_q": rows + tail, "seqlen_k": keys + tail}


# Where the gradients of a row's scores cancel (it sees one key; the bias is the same for all keys), float32 results
# are left with the rounding of sum(dout * out), which the naive formula does not take: narrower types judge these.
HALF: Fields = {"dtype": torch.bfloat16}

# Each factor has levels, and each level sets some fields of a case, later factors last.
FEATURES: tuple[tuple[Fields, ...], ...] = (
    ({}, {"causal": True}),
    (
        {},
        *({"window": window} for window in ((7, 3), (None, 5), (9, None), (300, 300))),
        {"window": (0, 0), "sinks": True, **HALF},
    ),
    ({}, {"alibi": "h"}, {"alibi": "bh"}),
    ({}, {"softcap": 0.5}, {"softcap": 50.0}),
    ({}, {"sinks": True}),
    ({}, {"dropout_p": 0.3}),
    (
        {},
        {"mask": "qk"},
        {"bias": "qk"},
        {"bias": "b1q1", **HALF},
        {"mask": "b11k", "bias": "1h1k"},
        {"mask": "hqk", "bias": "bhqk"},
        packed(PACKED),
    ),
)
SMALL: tuple[tuple[Fields, ...], ...] = (
    tuple({"dtype": dtype} for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    ({"heads": 2, "kv_heads": 2}, {"heads": 3, "kv_heads": 1}, {"heads": 1, "kv_heads": 1, "batch": 2}),
    ({"head_dim": 16}, {"head_dim": 20, "head_dim_v": 8}, {"head_dim": 8, "head_dim_v": 24}),
    ({"seqlen_q": 33, "seqlen_k": 40}, {"seqlen_q": 70, "seqlen_k": 33}, {"seqlen_q": 1, "seqlen_k": 70, **HALF}),
)
LARGE_HEAD_DIMS = (32, 40, 59, 64, 96, 111, 128, 160, 192, 256)
LARGE_LENGTHS = (
    (1, 1), (1, 239), (3, 799), (64, 128), (113, 203), (128, 217), (108, 256), (256, 512), (512, 256), (1023, 1024),
    (1024, 1023), (2048, 2048),
)  # fmt: skip
LARGE: tuple[tuple[Fields, ...], ...] = (
    tuple({"head_dim": head_dim} for head_dim in LARGE_HEAD_DIMS),
    tuple({"seqlen_q": rows, "seqlen_k": keys} for rows, keys in LARGE_LENGTHS),
    ({}, {"head_dim_v": 128}, {"head_dim_v": 64}),
    *SMALL[:2],
)


def covering_array(factors: Sequence[Sequence[Fields]]) -> Iterator[Fields]:
    """Rows in which every two levels of different factors meet: a few, where their product is many."""
    choose = random.Random(0)

    def pairs(row: Sequence[int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
        return set(itertools.combinations(enumerate(row), 2))

    def complete(pair: Mapping[int, int]) -> list[int]:
        return [pair.get(index, choose.randrange(len(levels))) for index, levels in enumerate(factors)]

    missing = set()
    for (a, first), (b, second) in itertools.combinations(enumerate(factors), 2):
        missing |= {((a, x), (b, y)) for x in range(len(first)) for y in range(len(second))}
    while missing:
        pair = dict(min(missing))
        row = max((complete(pair) for _ in range(50)), key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield {name: value for levels, index in zip(factors, row) for name, value in levels[index].items()}


def cases(factors: Sequence[Sequence[Fields]]) -> list[Case]:
    return [Case(**row) for row in covering_array(factors)]


@pytest.mark.parametrize("case", cases((*SMALL, *FEATURES)), ids=str)
def test_features_together(world: World, case: Case) -> None:
    check(case, world.device)


BASE: Fields = {"seqlen_q": 20, "seqlen_k": 35, "head_dim": 16}
ALONE = [Case(**(BASE | level)) for levels in FEATURES for level in levels if level]


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_one_feature(world: World, case: Case) -> None:
    check(case, world.device)


@pytest.mark.parametrize("shape", ["", "k", "bh11", "1hq1", "11qk", "b1qk", "bh1k"])
def test_bias_shapes(world: World, shape: str) -> None:
    """A bias of its own dtype, of which every dimension may be broadcast, over several tiles."""
    case = Case(70, 40, 16, batch=2, dtype=torch.bfloat16, bias=shape, causal=True)
    inputs = make_inputs(case, world.device)
    check_inputs(case, inputs | {"bias": inputs["bias"].float()})


@pytest.mark.parametrize("lengths", [(40, 100), (100, 40), (70, 70)], ids=str)
@pytest.mark.parametrize("window", [(5, 2), (0, 1), (40, None), (-1, 30), (500, 500), (2**40, 0)], ids=str)
def test_windows(world: World, lengths: tuple[int, int], window: tuple[int | None, int | None]) -> None:
    """Of several tiles, of which some are not visited; `causal` narrows the right side."""
    case = Case(*lengths, 16, heads=1, dtype=torch.bfloat16, window=window)
    check(case, world.device)
    q, k, v = make_tensors(case, world.device)
    narrow = attention(q, k, v, window=(window[0], 0))
    assert torch.equal(attention(q, k, v, window=window, causal=True), narrow)


def test_window_of_one_key(world: World) -> None:
    """A weight of 1: out is the value, and the gradients of q and k cancel up to rounding.

    The backward computes the weight anew, from a product in another order: on some processors it is not quite 1.
    """
    q, k, v = (x.requires_grad_() for x in make_tensors(Case(40, 70, 16, kv_heads=2), world.device))
    out, lse = attention(q, k, v, window=(0, 0), return_lse=True)
    assert torch.equal(out, v[:, 30:])
    torch.testing.assert_close(lse, (q * k[:, 30:]).sum(-1).transpose(1, 2) / 4)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), out)
    torch.testing.assert_close(dq, torch.zeros_like(q), rtol=0, atol=1e-5)
    torch.testing.assert_close(dk, torch.zeros_like(k), rtol=0, atol=1e-5)
    torch.testing.assert_close(dv, torch.cat([torch.zeros_like(v[:, :30]), v[:, 30:]], 1), rtol=1e-5, atol=0)


def test_a_row_that_sees_the_sink_alone(world: World) -> None:
    """It gives 0, and its log-sum-exp is the sink; a sink of -inf is none, and a large one takes all weight."""
    q, k, v = make_tensors(Case(40, 20, 16), world.device)
    sinks = torch.tensor([0.3, -torch.inf], device=world.device).requires_grad_()
    out, lse = attention(q, k, v, causal=True, sinks=sinks, return_lse=True)
    assert torch.equal(out[:, :20], torch.zeros_like(out[:, :20]))
    torch.testing.assert_close(lse[:, 0, :20], torch.full_like(lse[:, 0, :20], 0.3))
    assert (lse[:, 1, :20] == -torch.inf).all()
    plain, plain_lse = attention(q, k, v, causal=True, return_lse=True)
    torch.testing.assert_close(out[:, :, 1], plain[:, :, 1])
    torch.testing.assert_close(lse[:, 1], plain_lse[:, 1])
    (dsinks,) = torch.autograd.grad(out.sum() + lse[:, 0].sum(), sinks)
    assert dsinks[0] > 20  # each row that sees nothing else has a derivative of 1
    assert dsinks[1] == 0
    large = attention(q, k, v, sinks=torch.full((2,), 1e4, device=world.device))
    assert torch.equal(large, torch.zeros_like(large))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_one_gradient_alone(world: World, name: str) -> None:
    """As among all of them."""
    case = Case(20, 35, 16, kv_heads=2, bias="1hqk", alibi="bh", sinks=True, softcap=5.0)
    inputs = make_inputs(case, world.device)
    leaves = {key: inputs[key].requires_grad_() for key in DIFFERENTIABLE}
    every = torch.autograd.grad(attention(**inputs, **case.settings).square().sum(), list(leaves.values()))
    inputs |= {key: x.detach() for key, x in leaves.items()}
    leaf = inputs[name].requires_grad_()
    (alone,) = torch.autograd.grad(attention(**inputs, **case.settings).square().sum(), leaf)
    torch.testing.assert_close(alone, every[DIFFERENTIABLE.index(name)])


@pytest.mark.parametrize("case", cases((*LARGE, *FEATURES)) if HAS_GPU else [], ids=str)
def test_large_sizes(world: World, case: Case) -> None:
    if world.name != "gpu":
        pytest.skip("large sizes: on a GPU only")
    check(case, world.device)


@pytest.mark.parametrize(
    "settings",
    [
        {"sinks": torch.linspace(-1, 1, 8)[::2]},
        {"alibi_slopes": torch.linspace(0, 1, 8).view(4, 2).T},
        {"bias": torch.linspace(-1, 1, 2 * 4 * 9 * 9).view(2, 4, 9, 9).transpose(2, 3)},
        {"bias": torch.linspace(-1, 1, 9 * 18).view(9, 18)[:, ::2]},
        {"mask": (torch.arange(9 * 4 * 2 * 9).view(9, 4, 2, 9) % 5 > 0).permute(2, 1, 0, 3)},
        {"seed": torch.arange(3)[1:2], "dropout_p": 0.5},
        {name: torch.tensor([0, 9, 9, 8, 18, 7], dtype=torch.int32)[::2] for name in ("cu_seqlens_q", "cu_seqlens_k")},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_any_strides_beside_q_k_and_v(world: World, settings: dict[str, Any]) -> None:
    settings = {name: x.to(world.device) if isinstance(x, Tensor) else x for name, x in settings.items()}
    dense: dict[str, Any] = {name: x.contiguous() if isinstance(x, Tensor) else x for name, x in settings.items()}
    shape = (18, 4, 16) if "cu_seqlens_q" in settings else (2, 9, 4, 16)
    q = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(world.device)
    assert torch.equal(attention(q, q, q, **settings), attention(q, q, q, **dense))
