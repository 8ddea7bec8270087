"""Attention to a cache of keys in every world: each feature alone and with others, append, pages, splits, bad input."""

import dataclasses
from typing import Any

import pytest
import torch
from attention_decode_cases import Case, check, make, naive
from conftest import World, emulated_world
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fusedformer.kernels.attention.decode import inputs, launch
from fusedformer.kernels.attention.decode.launch import MAX_SPLITS, SHORTEST_SPLIT, split_count
from fusedformer.kernels.attention.decode.op import flash_attn_with_kvcache

# The interpreter computes with NumPy, which warns of what these tests provoke.
pytestmark = [
    pytest.mark.op("attention"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.usefixtures("poisoned_memory"),
]

BF16 = torch.bfloat16
ALL = Case(
    seqlen_q=5, new=5, page_size=16, leftpad=(3, 40), rotary_dim=16,
    causal=True, window=(20, 0), softcap=2.0, alibi=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(seqlen_q=3),
        Case(seqlen_q=3, causal=True),
        Case(seqlen_q=3, window=(9, 1)),
        Case(seqlen_q=3, window=(-1, 0)),
        Case(window=(40, -1)),
        Case(softcap=1.5),
        Case(alibi=True),
        Case(seqlen_q=3, alibi=True, causal=True),
        Case(leftpad=(5, 70)),
        Case(rows=(2, 0)),
        Case(page_size=16),
        Case(page_size=7),
        Case(page_size=1),
        Case(new=1),
        Case(new=4, page_size=7),
        Case(new=3, rows=(3, 1)),
        Case(seqlen_q=2, new=2, rotary_dim=24),
        Case(seqlen_q=2, new=2, rotary_dim=10, interleaved=False),
        Case(seqlen_q=3, new=2, rotary_dim=24, interleaved=False, causal=True),
        Case(seqlen_q=3, new=1, rotary_dim=6, window=(30, -1)),
        Case(heads=6, kv_heads=1, seqlen_q=7),
        Case(seqlen_q=11, causal=True),  # two tiles of rows
        Case(seqlen_q=11, window=(6, 2)),
        Case(head_dim=40, head_dim_v=12, new=2),
        Case(lengths=(1,)),
        Case(lengths=(2, 40), seqlen_q=5, causal=True),
    ],
    ids=str,
)
def test_features(world: World, case: Case) -> None:
    check(case, world.device)


@pytest.mark.parametrize(
    "case",
    [
        ALL,
        dataclasses.replace(ALL, dtype=BF16),
        dataclasses.replace(ALL, dtype=torch.float32, page_size=0, rows=(1, 3), splits=2),
        dataclasses.replace(ALL, interleaved=False, seqlen_q=2, window=(-1, 3), causal=False, splits=3),
        dataclasses.replace(ALL, lengths=(0, 3), leftpad=None, head_dim_v=40),
    ],
    ids=str,
)
def test_features_together(world: World, case: Case) -> None:
    check(case, world.device)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [1, 64, 130, 300])
def test_sizes(world: World, head_dim: int, dtype: torch.dtype) -> None:
    check(Case((45,), 3, head_dim=head_dim, head_dim_v=head_dim, new=1, page_size=8, dtype=dtype), world.device)


@pytest.mark.parametrize("splits", [1, 3, 20])
@pytest.mark.parametrize("seqlen_q", [1, 2])
def test_splits(world: World, splits: int, seqlen_q: int) -> None:
    """Some of them see nothing."""
    check(Case((0, 70), seqlen_q, heads=2, kv_heads=1, causal=True, new=seqlen_q, splits=splits), world.device)


def test_splits_by_the_shape(world: World) -> None:
    check(Case((600,), heads=1, kv_heads=1, capacity=700), world.device)


@pytest.mark.parametrize("splits", [1, 3])
def test_no_keys(world: World, splits: int) -> None:
    problem = make(Case((0, 70), 2, leftpad=(0, 90), splits=splits), world.device)
    out, lse = problem.run()
    assert torch.equal(out, torch.zeros_like(problem.q))
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("seqlens", [None, 37])
def test_one_length_for_all(world: World, seqlens: int | None) -> None:
    problem = make(Case((37, 37), capacity=37), world.device)
    want, want_lse = problem.run()
    problem.keywords["cache_seqlens"] = seqlens
    out, lse = problem.run()
    assert torch.equal(out, want)
    assert torch.equal(lse, want_lse)


def test_length_as_a_number_with_new_keys(world: World) -> None:
    case = Case((20, 20), 2, new=2, rotary_dim=8, causal=True)
    want, problem = make(case, world.device), make(case, world.device)
    problem.keywords["cache_seqlens"] = 20
    assert torch.equal(problem.run()[0], want.run()[0])
    torch.testing.assert_close(problem.k_cache, want.k_cache, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "case", [Case(seqlen_q=6, causal=True), Case(seqlen_q=6, window=(3, 3), splits=2, heads=2)], ids=str
)
def test_nan_reaches_the_queries_that_see_it(world: World, case: Case) -> None:
    problem = make(case, world.device)
    clean, clean_lse = problem.run()
    problem.v_cache[1, 68, :, 3] = torch.nan
    out, lse = problem.run()
    faced = torch.arange(6) + 70 - 6
    sees = (faced >= 68 if case.causal else (faced - 68).abs() <= 3).to(world.device)
    assert out[1, sees, :, 3].isnan().all()
    torch.testing.assert_close(out[1, ~sees], clean[1, ~sees], rtol=2e-3, atol=2e-3)
    assert torch.equal(out[0], clean[0])
    torch.testing.assert_close(lse, clean_lse)


def test_positions_past_the_angles_give_nan(world: World) -> None:
    problem = make(Case((10, 30), 1, new=1, rotary_dim=8), world.device)
    for name in ("rotary_cos", "rotary_sin"):
        problem.keywords[name] = problem.keywords[name][:20]
    out, _ = problem.run()
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("splits", [0, 3])
def test_same_bits_again_and_in_another_batch(world: World, splits: int) -> None:
    case = dataclasses.replace(
        ALL, lengths=(70, 9, 33), seqlen_q=2, new=2, leftpad=(3, 0, 0), heads=2, kv_heads=1, splits=splits
    )
    out, lse = make(case, world.device).run()
    again, again_lse = make(case, world.device).run()
    alone = make(dataclasses.replace(case, lengths=case.lengths[:1], leftpad=(3,)), world.device).run()
    assert torch.equal(out, again)
    assert torch.equal(lse, again_lse)
    assert torch.equal(out[:1], alone[0])
    assert torch.equal(lse[:1], alone[1])


def test_any_strides(world: World) -> None:
    """Caches and new keys that are views: heads first, dimensions apart, between other values."""
    case = Case(seqlen_q=2, new=2, rotary_dim=8, causal=True)
    want, problem = make(case, world.device), make(case, world.device)
    problem.q = problem.q.transpose(1, 3).contiguous().transpose(1, 3)
    problem.k_cache = problem.k_cache.transpose(1, 2).contiguous().transpose(1, 2)
    wide = problem.v_cache.new_full((*problem.v_cache.shape[:-1], 50), 7.0)
    wide[..., 1:49:2] = problem.v_cache
    problem.v_cache = wide[..., 1:49:2]
    for name in ("k", "v"):
        problem.keywords[name] = problem.keywords[name].transpose(0, 3).contiguous().transpose(0, 3)
    problem.keywords["cache_seqlens"] = problem.keywords["cache_seqlens"].repeat_interleave(2)[::2]
    out, lse = problem.run()
    want_out, want_lse = want.run()
    torch.testing.assert_close(out, want_out)
    torch.testing.assert_close(lse, want_lse)
    for got, cache in ((problem.k_cache, want.k_cache), (problem.v_cache, want.v_cache)):
        torch.testing.assert_close(got, cache, rtol=0, atol=0, equal_nan=True)
    assert (wide[..., ::2] == 7.0).all()


FAR = 2**31 + 7


@pytest.mark.parametrize("paged", [False, True])
def test_offsets_past_32_bits(paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views over memory that is not there until it is written, the last page that many elements after the first."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    case = Case((5,), new=1, heads=2, head_dim=8, head_dim_v=8, rotary_dim=4, capacity=8)
    case = dataclasses.replace(case, page_size=4) if paged else dataclasses.replace(case, rows=(2,))
    want, problem = make(case, torch.device("cpu")), make(case, torch.device("cpu"))
    memory = torch.empty(FAR + 10_000, dtype=case.dtype)

    def far(x: Tensor, first: int) -> Tensor:
        return memory.as_strided(x.shape, (FAR // (len(x) - 1), *x.stride()[1:]), first).copy_(x)

    with emulated_world("attention"):
        problem.k_cache, problem.v_cache = far(problem.k_cache, 0), far(problem.v_cache, 1000)
        assert torch.equal(problem.run()[0], want.run()[0])
        torch.testing.assert_close(problem.k_cache, want.k_cache, rtol=0, atol=0, equal_nan=True)


def test_empty_batch(world: World) -> None:
    cache = torch.zeros(3, 8, 2, 16, device=world.device)
    out, lse = flash_attn_with_kvcache(cache[:0, :1], cache, cache, return_softmax_lse=True)
    assert (out.shape, lse.shape) == ((0, 1, 2, 16), (0, 2, 1))


def test_float64_is_the_naive_formula() -> None:
    case = dataclasses.replace(ALL, dtype=torch.float64)
    problem = make(case, torch.device("cpu"))
    out, lse = problem.run()
    exact, exact_lse, _ = naive(case, problem, torch.float64)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(lse, exact_lse)


def test_opcheck(world: World) -> None:
    problem = make(dataclasses.replace(ALL, leftpad=None), world.device)
    given = problem.keywords
    where = (given["cache_seqlens"], 0, None, None, given["block_table"])
    rotary = (given["rotary_cos"], given["rotary_sin"], True, True)
    caches = problem.k_cache.nan_to_num(), problem.v_cache.nan_to_num()  # opcheck compares, and NaN is not NaN
    ops = torch.ops.fusedformer
    torch.library.opcheck(ops.attention_append.default, (problem.q, *caches, given["k"], given["v"], *rotary, *where))
    torch.library.opcheck(ops.attention_decode.default, (problem.q, *caches, None, 0.3, 0.0, 9, 0, 2, *where))


@pytest.mark.parametrize("case", [ALL, Case(new=1), Case()], ids=["all", "append", "plain"])
def test_compile(world: World, case: Case) -> None:
    want, problem = make(case, world.device), make(case, world.device)
    compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager")
    out = compiled(problem.q, problem.k_cache, problem.v_cache, **problem.keywords)
    assert torch.equal(out, want.run()[0])
    torch.testing.assert_close(problem.k_cache, want.k_cache, rtol=0, atol=0, equal_nan=True)


def test_compile_of_growing_lengths(world: World) -> None:
    """Lengths as numbers, one more at each step, are compiled once as what varies."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend=counter)
    problem, want = (make(Case((20, 20), new=1), world.device) for _ in range(2))
    for length in range(20, 25):
        problem.keywords["cache_seqlens"] = want.keywords["cache_seqlens"] = length
        out = compiled(problem.q, problem.k_cache, problem.v_cache, **problem.keywords)
        assert torch.equal(out, want.run()[0])
    assert counter.frame_count <= 2


def test_append_counts_as_a_change(world: World) -> None:
    """So that autograd refuses a gradient that would need what was overwritten."""
    problem = make(Case(new=1), world.device)
    before = problem.k_cache._version
    problem.run()
    assert problem.k_cache._version > before


def test_inference_mode(world: World) -> None:
    case = Case(new=1)
    with torch.inference_mode():
        out, _ = make(case, world.device).run()
    assert torch.equal(out, make(case, world.device).run()[0])


def test_no_gradients() -> None:
    problem = make(Case(new=1), torch.device("cpu"))
    problem.q.requires_grad_()
    with pytest.raises(ValueError, match=r"q requires grad, but the cache is for inference only: use attention\(\)"):
        problem.run()
    with torch.no_grad():
        problem.run()
    with pytest.raises(NotImplementedError, match=r"attention_decode has no derivative: use attention\(\)"):
        torch.ops.fusedformer.attention_decode(
            problem.q, problem.k_cache, problem.v_cache, None, 1.0, 0.0, None, None, 1, None, 5, None, None, None
        )


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def index(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


NEW = zeros(2, 1, 3, 16)
ANGLES = zeros(20, 8)
APPEND: dict[str, Any] = {"k": NEW, "v": NEW, "cache_seqlens": 3}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"q": zeros(1, 6, 16)}, r"q has shape \(1, 6, 16\), expected 4 dimensions"),
        ({"q": zeros(2, 1, 5, 16)}, "q has 5 heads, k_cache has 3"),
        ({"q": zeros(2, 1, 6, 8)}, "k_cache has head dimension 16, q has 8"),
        ({"q": zeros(2, 1, 6, 16, dtype=torch.float16)}, "q is float16, k_cache is float32"),
        ({"q": zeros(4, 1, 6, 16)}, "k_cache has 3 rows, q has batch size 4"),
        ({"v_cache": zeros(2, 10, 3, 16)}, "k_cache has 3 rows or pages, v_cache has 2"),
        ({"v_cache": zeros(3, 9, 3, 16)}, "v_cache has length 9, k_cache has 10"),
        ({"k": NEW}, "v is None, expected both of k and v"),
        (
            APPEND | {"v": zeros(2, 2, 3, 16)},
            r"v is float32 of shape \(2, 2, 3, 16\), expected float32 of shape \(2, 1",
        ),
        (APPEND | {"cache_seqlens": None}, "cache_seqlens is None"),
        (APPEND | {"cache_seqlens": 10}, "cache_seqlens is 10 with 1 new keys, the cache holds 10"),
        ({"cache_seqlens": -1}, "cache_seqlens is -1"),
        ({"cache_seqlens": True}, "cache_seqlens is True, expected a number or an int32 tensor"),
        ({"cache_seqlens": index(1, 2, 3)}, r"cache_seqlens is int32 of shape \(3,\), expected int32 of shape \(2,\)"),
        ({"cache_seqlens": index(1, 2).long()}, "cache_seqlens is int64"),
        ({"cache_seqlens": index(1, 11)}, "sequence 1 has 11 keys and 0 new ones, the cache holds 10"),
        (APPEND | {"cache_seqlens": index(10, 1)}, "sequence 0 has 10 keys and 1 new ones, the cache holds 10"),
        ({"cache_batch_idx": index(0, 3)}, r"cache_batch_idx\[1\] is 3, the cache has 3 rows"),
        ({"cache_leftpad": index(1)}, r"cache_leftpad is int32 of shape \(1,\), expected int32 of shape \(2,\)"),
        ({"block_table": index(0, 1)}, r"block_table is int32 of shape \(2,\), expected int32 of shape \(2, pages\)"),
        ({"block_table": index([0], [3])}, r"block_table\[1\] has page 3 of 3 pages"),
        ({"block_table": index([0], [1]), "cache_batch_idx": index(0, 1)}, "cache_batch_idx is given with block_table"),
        ({"rotary_cos": ANGLES, "rotary_sin": ANGLES}, "rotary_cos and rotary_sin are given without k and v"),
        (APPEND | {"rotary_cos": ANGLES}, "rotary_sin is None"),
        (APPEND | {"rotary_cos": zeros(20, 9), "rotary_sin": zeros(20, 9)}, r"rotary_cos is .* \(positions, 1 to 8\)"),
        (APPEND | {"rotary_cos": ANGLES, "rotary_sin": zeros(19, 8)}, r"rotary_sin is float32 of shape \(19, 8\)"),
        ({"num_splits": -1}, "num_splits is -1, expected 0"),
        ({"num_splits": MAX_SPLITS + 1}, "num_splits is 129"),
        ({"softmax_scale": float("nan")}, "softmax_scale is nan"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"alibi_slopes": zeros(3)}, r"alibi_slopes is float32 of shape \(3,\), expected .* \(6,\) or \(2, 6\)"),
        ({"window_size": (1, -2)}, r"window is \(1, -2\)"),
    ],
)
def test_bad_input(keywords: dict[str, Any], message: str) -> None:
    cache = zeros(3, 10, 3, 16)
    with pytest.raises(ValueError, match=message):
        flash_attn_with_kvcache(**{"q": zeros(2, 1, 6, 16), "k_cache": cache, "v_cache": cache} | keywords)


def test_checks_of_values_can_be_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; on the CPU they are always on."""
    monkeypatch.setattr(inputs, "CHECKS_VALUES", True)
    problem = make(Case((37, 70), page_size=16), world.device)
    problem.keywords["block_table"][1, 0] = -1
    with pytest.raises(ValueError, match=r"block_table\[1\] has page -1"):
        problem.run()


def test_number_of_splits() -> None:
    """Enough programs for one sequence, no split too short, and none where the queries fill the GPU."""
    assert split_count(8, 1, 32768, 132) == 66
    assert split_count(1, 1, 32768, 132) == MAX_SPLITS
    assert split_count(8, 1, 1024, 132) == 1024 // SHORTEST_SPLIT
    assert split_count(8, 64, 32768, 132) == 2
    assert split_count(8, 128, 32768, 132) == 1
    assert split_count(8, 1, 0, 132) == split_count(0, 1, 100, 132) == split_count(8, 0, 100, 132) == 1


@pytest.mark.parametrize("arch", [80, 86, 87, 89, 90, 100, 103, 120, 121])
def test_every_gpu_dtype_and_head_dimension_has_a_tile(arch: int) -> None:
    for dtype, longest in ((BF16, 512), (torch.float16, 512), (torch.float32, 256)):
        for head_dim in range(1, longest + 1):
            for rows in (0, 1, 17, 1000):
                for is_paged in (False, True):
                    tile = launch.decode_tile(arch, dtype, head_dim, rows, is_paged)
                    assert {tile.block_m, tile.block_n} <= {16, 32, 64, 128}
