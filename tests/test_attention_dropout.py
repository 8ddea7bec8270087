"""Attention's dropout: Philox 4x32-10 of the seed and the element's index, the same in every world."""

import pytest
import torch
import triton
import triton.language as tl
from attention_cases import SEED, Case, make_inputs
from conftest import World, emulated_world
from torch import Tensor

from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.philox import philox

pytestmark = pytest.mark.op("attention")

MASK = 2**32 - 1


def textbook_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10 as its paper writes it, in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = right >> 32 ^ c1 ^ k0, right & MASK, left >> 32 ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


# The known answers of Random123, kat_vectors: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known[0][:8])
def test_known_answers(known: tuple[str, str, str]) -> None:
    counter, key, result = (tuple(int(word, 16) for word in words.split()) for words in known)
    assert textbook_philox(counter, (key[0], key[1])) == result


@triton.jit
def first_word_kernel(seed_ptr, c0_ptr, c1_ptr, c2_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    c0, c1, c2 = tl.load(c0_ptr + at), tl.load(c1_ptr + at), tl.load(c2_ptr + at)
    word, _, _, _ = tl.philox(tl.load(seed_ptr), c0, c1, c2, 0)
    tl.store(out_ptr + at, word.to(tl.int64))


@pytest.mark.parametrize("seed", [0, SEED, -1, 2**62 + 7])
def test_all_worlds_draw_the_numbers_of_the_paper(world: World, seed: int) -> None:
    counters = torch.randint(2**31, (3, 16), generator=torch.Generator().manual_seed(0))
    counters[:, 0] = 0
    wanted = [textbook_philox((*row, 0), (seed & MASK, seed >> 32 & MASK))[0] for row in counters.T.tolist()]
    seeds = torch.tensor([seed], device=world.device)
    counters = counters.to(world.device)
    out = torch.empty_like(counters[0])
    if world.is_device_code:
        first_word_kernel[(1,)](seeds, *counters.int(), out, BLOCK=16)
    else:
        out = philox(seeds, *counters)
    assert (out & MASK).tolist() == wanted


def kept(case: Case, world: World, seed: int = SEED) -> Tensor:
    """Which weights are kept, (B, H, Sq, Sk): equal scores and values of 1 in one dimension each show them."""
    inputs = make_inputs(case, world.device)
    inputs["seed"] = torch.tensor([seed], device=world.device)
    inputs["q"] = torch.zeros_like(inputs["q"])
    keys = torch.eye(case.seqlen_k, device=world.device)[None, :, None]
    inputs["v"] = keys.expand(case.batch, -1, case.kv_heads, -1).to(case.dtype)
    out = attention(**inputs, **case.settings).transpose(1, 2)
    weight = 1 / case.seqlen_k / (1 - case.dropout_p)
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], weight))
    return out != 0


CASE = Case(70, 48, 16, heads=4, kv_heads=2, batch=2, dropout_p=0.3)


def test_the_seed_and_the_index_choose_what_is_dropped(world: World) -> None:
    pairs = torch.arange(8, device=world.device).view(2, 4, 1, 1)
    i, j = torch.arange(70, device=world.device)[:, None], torch.arange(48, device=world.device)
    drawn = philox(torch.tensor([SEED], device=world.device), j, i, pairs) >> 8
    mask = kept(CASE, world)
    assert torch.equal(mask, drawn.double() / 2**24 >= torch.tensor(0.3).double())
    assert abs(mask.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / mask.numel()) ** 0.5
    assert len({row.cpu().numpy().tobytes() for row in mask.flatten(0, 1)}) == 8


def test_scores_and_batches_do_not_choose() -> None:
    with emulated_world("attention") as world:
        assert torch.equal(kept(Case(40, 16, 16, batch=2, dropout_p=0.5), world)[:1, :, :, :],
                           kept(Case(40, 16, 16, dropout_p=0.5), world))  # fmt: skip


def test_a_seed_repeats_and_another_does_not(world: World) -> None:
    case = Case(20, 16, 16, dropout_p=0.5)
    assert torch.equal(kept(case, world), kept(case, world))
    assert not torch.equal(kept(case, world), kept(case, world, SEED + 1))
    assert not torch.equal(kept(case, world), kept(case, world, SEED + 2**32))


def test_the_generator_of_pytorch_gives_the_seed(world: World) -> None:
    inputs = make_inputs(Case(20, 30, 16), world.device)

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return attention(**inputs, dropout_p=0.5), attention(**inputs, dropout_p=0.5)

    first, second = drawn(5)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, drawn(5), (first, second)))
    assert not torch.equal(drawn(6)[0], first)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    attention(**inputs, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_backward_drops_what_the_forward_dropped(world: World) -> None:
    """Without a seed of the caller's: a row that lost all of its weights has no gradient."""
    inputs = make_inputs(Case(64, 3, 16, heads=1), world.device)
    v = inputs["v"].requires_grad_()
    out = attention(**(inputs | {"v": v}), dropout_p=0.6)
    lost = (out == 0).all(-1, keepdim=True)
    assert 0 < lost.sum() < 64
    (dv,) = torch.autograd.grad(out, v, lost.expand(out.shape).to(out.dtype))
    assert torch.equal(dv, torch.zeros_like(dv))


def test_no_weight_is_dropped_at_the_lowest_probability(world: World) -> None:
    inputs = make_inputs(Case(20, 30, 16), world.device)
    torch.testing.assert_close(attention(**inputs, dropout_p=1e-12), attention(**inputs))
