"""Caches of keys to test with, and the naive formula that attention to them is held against.

Whatever no sequence has in a cache is NaN: unused rows and pages, what follows a sequence and its left padding. Entries
of a block table that no sequence needs are far out of range.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from oracle import assert_within_budget
from torch import Tensor

from fusedformer.kernels.attention.decode.op import flash_attn_with_kvcache

CAPACITY = 100
NOT_A_PAGE = 10**6


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call; `lengths` are those before `new` keys are appended."""

    lengths: tuple[int, ...] = (37, 70)
    seqlen_q: int = 1
    new: int = 0
    page_size: int = 0  # 0: no pages
    leftpad: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    rotary_dim: int = 0
    interleaved: bool = True
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    splits: int = 0
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 24
    head_dim_v: int = 24
    dtype: torch.dtype = torch.float16
    capacity: int = CAPACITY

    def __str__(self) -> str:
        """A test's name: what differs from the default."""
        default = Case()
        return "-".join(f"{name}={value}" for name, value in vars(self).items() if value != getattr(default, name))


@dataclass
class Problem:
    """The tensors of a case: what is passed, and beside it the keys and values that each sequence has."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    keywords: dict[str, Any]
    keys: list[Tensor]  # (length, Hkv, D), left padding included
    values: list[Tensor]

    def run(self) -> tuple[Tensor, Tensor]:
        """out and log-sum-exp; the caches are written to."""
        return flash_attn_with_kvcache(self.q, self.k_cache, self.v_cache, **self.keywords, return_softmax_lse=True)


def make(case: Case, device: torch.device) -> Problem:
    """Random tensors; each sequence has the same ones whatever the others are."""
    samples = [_sequence(case, index) for index in range(len(case.lengths))]
    q, k, v = (torch.stack([sample[name] for sample in samples]).to(device) for name in ("q", "k", "v"))
    keys, values = ([sample[name].to(device) for sample in samples] for name in ("keys", "values"))
    k_cache, v_cache, keywords = _cache(case, keys, values, device)
    if case.new:
        keywords |= {"k": k, "v": v}
    if case.rotary_dim:
        angles = torch.arange(CAPACITY + 20)[:, None] * 0.7 ** torch.arange(case.rotary_dim // 2)
        keywords |= {
            "rotary_cos": angles.cos().to(device, case.dtype),
            "rotary_sin": angles.sin().to(device, case.dtype),
        }
        keywords["rotary_interleaved"] = case.interleaved
    if case.alibi:
        keywords["alibi_slopes"] = (torch.arange(case.heads, device=device) + 1) / 16
    keywords |= {"causal": case.causal, "window_size": case.window, "softcap": case.softcap, "num_splits": case.splits}
    return Problem(q, k_cache, v_cache, keywords, keys, values)


def _sequence(case: Case, index: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)

    def normal(length: int, heads: int, head_dim: int) -> Tensor:
        return torch.randn((length, heads, head_dim), generator=generator).to(case.dtype)

    return {
        "q": normal(case.seqlen_q, case.heads, case.head_dim),
        "k": normal(case.new, case.kv_heads, case.head_dim),
        "v": normal(case.new, case.kv_heads, case.head_dim_v),
        "keys": normal(case.lengths[index], case.kv_heads, case.head_dim),
        "values": normal(case.lengths[index], case.kv_heads, case.head_dim_v),
    }


def _cache(
    case: Case, keys: list[Tensor], values: list[Tensor], device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    def index(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    batch, size = len(case.lengths), case.page_size or case.capacity
    keywords: dict[str, Any] = {"cache_seqlens": index(case.lengths)}
    places = list(case.rows or range(batch))
    pages = max(places) + 2
    if case.page_size:
        wide = -(-case.capacity // size)
        pages = batch * wide + 1
        table = torch.randperm(pages, generator=torch.Generator().manual_seed(9))[: batch * wide].reshape(batch, wide)
        for row, length in zip(table, case.lengths):
            row[-(-(length + case.new) // size) :] = NOT_A_PAGE
        keywords["block_table"] = index(table.tolist())
    if case.rows is not None:
        keywords["cache_batch_idx"] = index(case.rows)
    if case.leftpad is not None:
        keywords["cache_leftpad"] = index(case.leftpad)
    k_cache, v_cache = (
        torch.full((pages, size, case.kv_heads, dim), torch.nan, dtype=case.dtype, device=device)
        for dim in (case.head_dim, case.head_dim_v)
    )
    for sequence, length in enumerate(case.lengths):
        for j in range(0 if case.leftpad is None else case.leftpad[sequence], length):
            page = table[sequence, j // size] if case.page_size else places[sequence]
            k_cache[page, j % size], v_cache[page, j % size] = keys[sequence][j], values[sequence][j]
    return k_cache, v_cache, keywords


def check(case: Case, device: torch.device) -> Problem:
    """Hold out, log-sum-exp and what was appended against float64, and see that nothing else was written."""
    problem = make(case, device)
    before = problem.k_cache.clone(), problem.v_cache.clone()
    out, lse = problem.run()
    exact, exact_lse, exact_keys = naive(case, problem, torch.float64)
    plain, _, plain_keys = naive(case, problem, case.dtype)
    # Scores are float32 whatever the dtype, but of queries and keys that were rounded after they were rotated.
    plain_lse = naive(case, problem, case.dtype if case.rotary_dim else torch.float32)[1]
    assert (out.dtype, lse.dtype) == (case.dtype, torch.float32)
    assert_within_budget("out", out, exact, plain)
    assert_within_budget("lse", lse, exact_lse, plain_lse)
    for sequence in range(len(case.lengths) if case.new else 0):
        for i in range(case.new):
            place = _place(case, problem, sequence, case.lengths[sequence] + i)
            got = problem.k_cache[place], exact_keys[sequence][-case.new + i], plain_keys[sequence][-case.new + i]
            assert_within_budget("appended", *got)
            assert torch.equal(problem.v_cache[place], problem.keywords["v"][sequence, i])
            before[0][place], before[1][place] = problem.k_cache[place], problem.v_cache[place]
    torch.testing.assert_close((problem.k_cache, problem.v_cache), before, rtol=0, atol=0, equal_nan=True)
    return problem


def _place(case: Case, problem: Problem, sequence: int, j: int) -> tuple[int, int]:
    if case.page_size:
        return int(problem.keywords["block_table"][sequence, j // case.page_size]), j % case.page_size
    return (case.rows or range(len(case.lengths)))[sequence], j


def naive(case: Case, problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    """out (B, Sq, H, Dv), log-sum-exp (B, H, Sq) and all keys of each sequence, computed in `dtype`."""
    results = [_naive_sequence(case, problem, sequence, dtype) for sequence in range(len(case.lengths))]
    outs, lses, keys = zip(*results)
    return torch.stack(outs), torch.stack(lses), list(keys)


def _naive_sequence(case: Case, problem: Problem, sequence: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, keys, values = (x.to(dtype) for x in (problem.q[sequence], problem.keys[sequence], problem.values[sequence]))
    if case.new:
        k, v = (problem.keywords[name][sequence].to(dtype) for name in ("k", "v"))
        if case.rotary_dim:
            at = torch.arange(case.new) + case.lengths[sequence]
            k = _turn(k, at, problem.keywords, dtype)
            advance = case.causal or case.window != (-1, -1)
            at = torch.arange(case.seqlen_q) * advance + case.lengths[sequence]
            q = _turn(q, at, problem.keywords, dtype)
        keys, values = torch.cat([keys, k]), torch.cat([values, v])
    group = case.heads // case.kv_heads
    wide_keys, wide_values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
    scores = q.transpose(0, 1) @ wide_keys.mT / math.sqrt(case.head_dim)
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    j = torch.arange(len(keys), device=q.device)
    faced = torch.arange(case.seqlen_q, device=q.device)[:, None] + len(keys) - case.seqlen_q
    if case.alibi:
        scores = scores - problem.keywords["alibi_slopes"][:, None, None].to(dtype) * (faced - j).abs()
    left, right = case.window
    visible = torch.ones_like(scores[0], dtype=torch.bool)
    visible &= j >= (0 if case.leftpad is None else case.leftpad[sequence])
    visible &= (j >= faced - left) | (left == -1)
    visible &= (j <= faced + right) | (right == -1)
    visible &= (j <= faced) | (not case.causal)
    scores = scores.masked_fill(~visible, -math.inf)
    weights = torch.softmax(scores, -1).masked_fill(~visible, 0)
    return (weights @ wide_values).transpose(0, 1), scores.logsumexp(-1), keys


def _turn(x: Tensor, positions: Tensor, keywords: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """x (S, H, D) rotated, dimension by dimension."""
    cos, sin = (keywords[name][positions.to(x.device)].to(dtype)[:, None] for name in ("rotary_cos", "rotary_sin"))
    pairs = cos.shape[-1]
    out = x.clone()
    for pair in range(pairs):
        a, b = (2 * pair, 2 * pair + 1) if keywords["rotary_interleaved"] else (pair, pair + pairs)
        c, s = cos[..., pair], sin[..., pair]
        out[..., a], out[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
    return out
