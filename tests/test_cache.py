"""Caches of keys and values: what they return, how they grow, what stays where it is, and one graph for every step."""

from collections.abc import Callable

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from fusedformer.transformer.cache import Cache, KeyValueCache, StaticKeyValueCache

KINDS: dict[str, Callable[[int], Cache]] = {
    "growing": KeyValueCache,
    "static": lambda size: StaticKeyValueCache(size, torch.device("cpu")),
}


def keys(n: int, start: int = 0) -> Tensor:
    """Keys (2, n, 1, 3) that tell where they belong."""
    return (torch.arange(start, start + n) + torch.tensor([[0.0], [100.0]]))[:, :, None, None].expand(2, n, 1, 3)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"])
@pytest.mark.parametrize("static", [False, True])
def test_cached_logits_equal_whole_logits(static: bool, positions: str) -> None:
    model = make_model("decoder", positions=positions)
    tokens = random_tokens(3, 12)
    caches = model.stack.new_caches(12, static=static)
    pieces = [model.hidden(piece, caches=caches) for piece in tokens.split([4, 1, 3, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"])
@pytest.mark.parametrize("static", [False, True])
def test_padded_prompts_have_the_logits_of_single_runs(static: bool, positions: str) -> None:
    model = make_model("decoder", positions=positions)
    tokens = random_tokens(1, 8)
    padded, mask = torch.cat([random_tokens(1, 3), tokens], dim=1), (torch.arange(11) >= 3).unsqueeze(0)
    caches = model.stack.new_caches(11, static=static)
    pieces = [
        model.hidden(padded[:, start:end], mask if static else mask[:, :end], caches)
        for start, end in ((0, 5), (5, 6), (6, 9), (9, 11))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 3:], model.hidden(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 1, 1, 3), (2, 1, 2, 1)])
def test_a_cache_broadcasts_nothing(shape: tuple[int, ...], kind: str) -> None:
    cache = KINDS[kind](8)
    fitting = torch.zeros(2, 1, 2, 3)
    cache.append(fitting, fitting)
    for new in ((torch.zeros(shape), fitting), (fitting, torch.zeros(shape))):
        with pytest.raises(
            ValueError, match=r"a cache of \(B, K, D\) = \(2, 2, 3\) cannot hold (keys|values) of shape"
        ):
            cache.append(*new)
    assert cache.length == 1


def test_a_full_cache() -> None:
    with pytest.raises(ValueError, match="a cache of 3 positions cannot hold 4"):
        KeyValueCache(3).append(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2))


def test_growing_doubles_and_keeps_what_it_holds() -> None:
    cache = KeyValueCache(100)
    capacities = []
    for n in [3, *[1] * 97]:
        k, v = cache.append(keys(n, cache.length), -keys(n, cache.length))
        assert torch.equal(k, keys(cache.length))
        assert torch.equal(v, -keys(cache.length))
        capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [3, 6, 12, 24, 48, 96, 100]


def test_static_buffers_stay_where_they_are() -> None:
    cache = StaticKeyValueCache(9, torch.device("cpu"))
    places = set()
    for n in (3, 1, 1, 4):
        k, v = cache.append(keys(n, int(cache.length)), -keys(n, int(cache.length)))
        assert k.shape == v.shape == (2, 9, 1, 3)
        cache.select(torch.tensor([1, 0]))
        cache.select(torch.tensor([1, 0]))
        places.add((k.data_ptr(), v.data_ptr(), cache.length.data_ptr()))
    assert torch.equal(cache.keys, keys(9))
    assert len(places) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_selected_rows(kind: str) -> None:
    cache = KINDS[kind](6)
    cache.append(keys(2), -keys(2))
    cache.select(torch.tensor([1, 1, 0]))
    k, v = cache.append(torch.zeros(3, 1, 1, 3), torch.zeros(3, 1, 1, 3))
    assert k[:, :3, 0, 0].tolist() == [[100, 101, 0], [100, 101, 0], [0, 1, 0]]
    assert torch.equal(v, -k)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_every_static_step_is_one_graph(kind: str) -> None:
    """One for the prompts and one for all steps behind them, whatever was generated before."""
    eager, compiled = (make_model(kind, n_layers=1) for _ in range(2))
    counter = CompileCounter()
    compiled.advance = torch.compile(compiled.advance, backend=counter, fullgraph=True)
    tokens, mask = random_tokens(3, 4), torch.arange(4) >= torch.tensor([[0], [2], [3]])
    expected = eager.generate(tokens, 8, attention_mask=mask, temperature=0)
    for _ in range(2):
        found = compiled.generate(tokens, 8, attention_mask=mask, temperature=0, static_cache=True)
        assert torch.equal(found, expected)
        assert counter.frame_count == 2


def test_compiled_beams() -> None:
    """The batch grows by the number of beams behind the first step, and with it, that of a mask that was fixed."""
    eager, compiled = (make_model("decoder", n_layers=1) for _ in range(2))
    compiled.advance = torch.compile(compiled.advance, backend="eager", fullgraph=True)
    tokens, mask = random_tokens(3, 4), torch.arange(4) >= torch.tensor([[0], [2], [3]])
    expected = eager.beam_search(tokens, 5, 3, attention_mask=mask)
    assert torch.equal(compiled.beam_search(tokens, 5, 3, attention_mask=mask, static_cache=True), expected)
