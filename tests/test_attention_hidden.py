"""What attention does not see must not matter: NaN in hidden places, unwritten outputs, the rest of the batch."""

from typing import Any

import pytest
import torch
from attention_cases import DIFFERENTIABLE, Case, Inputs, make_inputs, make_tensors, run
from conftest import World, emulated_world
from torch import Tensor

from fusedformer.kernels.attention.op import attention

# The interpreter computes with NumPy, which warns of what these tests provoke.
pytestmark = [pytest.mark.op("attention"), pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]

CASE = Case(40, 70, 16, dtype=torch.bfloat16)


def results(inputs: Inputs, **settings: Any) -> Inputs:
    return run(lambda **inputs: attention(**inputs, **settings, return_lse=True), inputs)


def assert_same_where(kept: Tensor, got: Tensor, want: Tensor) -> None:
    """Equal up to rounding where `kept`, NaN or infinite elsewhere."""
    kept = kept.expand(got.shape)
    torch.testing.assert_close(got[kept], want[kept], rtol=2e-2, atol=2e-2)
    assert not got[~kept].isfinite().any()


@pytest.mark.parametrize("how", ["mask", "bias", "window"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_hidden_keys_do_not_matter(world: World, how: str, value: float) -> None:
    inputs = make_inputs(CASE, world.device)
    hidden = torch.arange(70, device=world.device) >= 45
    settings: dict[str, Any] = {}
    if how == "mask":
        inputs["mask"] = ~hidden
    elif how == "bias":
        inputs["bias"] = torch.zeros(70, device=world.device).masked_fill(hidden, -torch.inf)
    else:  # query 0 faces key 30
        hidden, settings = torch.arange(70, device=world.device) < 20, {"window": (10, -1)}
    clean = results(inputs, **settings)
    inputs["k"][:, hidden] = value
    inputs["v"][:, hidden] = value
    dirty = results(inputs, **settings)
    for name, want in clean.items():
        torch.testing.assert_close(dirty[name], want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_nan_in_a_value_reaches_the_queries_that_see_it(world: World, masked: bool) -> None:
    """Key 50 is seen by query 20 and those after it."""
    mask = torch.ones(40, 70, dtype=torch.bool, device=world.device).tril(30) if masked else None
    q, k, v = make_tensors(CASE, world.device)
    clean, clean_lse = attention(q, k, v, causal=not masked, mask=mask, return_lse=True)
    v[:, 50, :, 3] = torch.nan
    v[:, 51, :, 4] = torch.inf
    out, lse = attention(q, k, v, causal=not masked, mask=mask, return_lse=True)
    unseen = torch.ones(40, 16, dtype=torch.bool, device=world.device)
    unseen[20:, 3] = False
    unseen[21:, 4] = False
    assert_same_where(unseen[None, :, None], out, clean)
    assert out[:, 20:, :, 3].isnan().all()
    assert (out[:, 21:, :, 4] == torch.inf).all()
    torch.testing.assert_close(lse, clean_lse, rtol=1e-5, atol=1e-5)


def test_nan_in_a_key_reaches_the_queries_that_see_it(world: World) -> None:
    q, k, v = make_tensors(CASE, world.device)
    clean = results({"q": q, "k": k, "v": v}, causal=True)
    k[:, 50] = torch.nan
    dirty = results({"q": q, "k": k, "v": v}, causal=True)
    unseen = torch.arange(40, device=world.device) < 20
    assert_same_where(unseen[None, :, None, None], dirty["out"], clean["out"])
    assert_same_where(unseen[None, None], dirty["lse"], clean["lse"])
    assert_same_where(unseen[None, :, None, None], dirty["dq"], clean["dq"])


@pytest.mark.parametrize("place", ["q", "dout"])
def test_nan_in_a_query_reaches_the_keys_that_it_sees(world: World, place: str) -> None:
    """Query 15 sees keys 0 to 45, and no key after."""
    tensors = [x.requires_grad_() for x in make_tensors(CASE, world.device)]
    dout = torch.ones_like(tensors[0])

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*tensors, causal=True), tensors, dout)

    clean_dq, clean_dk, clean_dv = gradients()
    with torch.no_grad():
        (tensors[0] if place == "q" else dout)[:, 15] = torch.nan
    dq, dk, dv = gradients()
    assert_same_where((torch.arange(40, device=world.device) != 15)[None, :, None, None], dq, clean_dq)
    unseen = (torch.arange(70, device=world.device) > 45)[None, :, None, None]
    assert_same_where(unseen, dk, clean_dk)
    assert_same_where(unseen, dv, clean_dv)


WRITTEN = [
    Case(70, 40, 20),
    Case(40, 70, 20, causal=True),
    Case(70, 40, 20, causal=True, head_dim_v=8, bias="1hqk", alibi="h", sinks=True),
    Case(40, 70, 8, window=(3, 2), bias="q1", alibi="bh", dropout_p=0.5),
    Case(30, 40, 8, causal=True, alibi="bh", sinks=True, packed=((20, 0), (0, 5), (5, 30))),
]


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_every_place_is_written(world: World, poisoned_memory: None, case: Case) -> None:
    found = results(make_inputs(case, world.device), **case.settings)
    assert not [name for name, result in found.items() if result.isnan().any()]


@pytest.mark.parametrize("how", ["mask", "bias"])
def test_a_query_that_sees_no_key_gives_zeros(world: World, how: str) -> None:
    visible = torch.ones(40, 70, dtype=torch.bool, device=world.device)
    visible[[0, 17, 39]] = False
    inputs = make_inputs(CASE, world.device)
    inputs[how] = visible if how == "mask" else torch.zeros(40, 70).to(visible.device).masked_fill(~visible, -torch.inf)
    found = results(inputs)
    for rows in (found["out"][:, [0, 17, 39]], found["dq"][:, [0, 17, 39]], found.get("dbias", visible)[[0, 17, 39]]):
        assert torch.equal(rows, torch.zeros_like(rows))
    assert (found["lse"][:, :, [0, 17, 39]] == -torch.inf).all()
    assert all(result.isfinite().all() for name, result in found.items() if name != "lse")


def test_a_key_that_no_query_sees_has_no_gradient(world: World) -> None:
    inputs = make_inputs(CASE, world.device) | {"mask": torch.arange(70, device=world.device) != 31}
    found = results(inputs)
    for name in ("dk", "dv"):
        assert torch.equal(found[name][:, 31], torch.zeros_like(found[name][:, 31]))


@pytest.mark.parametrize("features", ["causal", "all"])
def test_same_bits_again_and_in_another_batch(world: World, features: str) -> None:
    more: dict[str, Any] = {"bias": "b1qk", "alibi": "bh", "softcap": 5.0} if features == "all" else {}
    case = Case(33, 70, 16, batch=3, dtype=torch.bfloat16, causal=True, **more)
    inputs = make_inputs(case, world.device)
    names = [name for name in DIFFERENTIABLE if name in inputs]

    def bits(inputs: Inputs) -> list[Tensor]:
        leaves = [inputs[name].detach().requires_grad_() for name in names]
        named: Inputs = dict(zip(names, leaves))
        out, lse = attention(**named, **case.settings, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    batch = bits(inputs)
    assert all(map(torch.equal, bits(inputs), batch))
    if world.is_device_code:  # a matmul of the CPU may sum in another order for another batch
        alone = bits({name: inputs[name][1:2] for name in names})
        assert all(torch.equal(got, want[1:2]) for got, want in zip(alone, batch, strict=True))


FAR = 2**31 + 7


@pytest.mark.parametrize("far_dim", ["batch", "row"])
def test_offsets_past_32_bits(far_dim: str) -> None:
    """Views over memory that is not there until it is written, 4 GiB wide, as if they were dense."""
    case = Case(3, 3, 8, batch=2, dtype=torch.float16, bias="b1qk", causal=True)
    dense = make_inputs(case, torch.device("cpu"))
    dense["dout"] = torch.randn((2, 3, 2, 8), generator=torch.Generator().manual_seed(1)).half()
    memory = torch.empty(FAR + 10_000, dtype=torch.float16)

    def far(index: int, x: Tensor) -> Tensor:
        strides = list(x.stride())
        if far_dim == "batch":
            strides[0] = FAR
        else:  # the last of three rows lies that far; each batch begins close by
            strides[0], strides[1 if x.shape[1] == 3 else 2] = 300, FAR // 2
        return memory.as_strided(x.shape, strides, 1000 * index).copy_(x)

    def results(inputs: Inputs) -> list[Tensor]:
        dout = inputs.pop("dout")
        leaves: Inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        out = attention(**leaves, causal=True)
        return [out, *torch.autograd.grad(out, list(leaves.values()), dout)]

    with emulated_world("attention"):
        views = {name: far(index, x) for index, (name, x) in enumerate(dense.items())}
        assert all(map(torch.equal, results(views), results(dense)))
