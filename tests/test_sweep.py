"""Sweeps: what is written is what is measured, and what cannot be measured is said before anything is."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedformer.benchmarks import attention, bench, sweep
from fusedformer.benchmarks.ops import TIMED_OPS
from fusedformer.benchmarks.sweep import Sweep, parse_sweep


def options(text: str, *subjects: str) -> bench.Options:
    return bench.Options(bench.Path("run"), subjects=subjects, sweep=parse_sweep(text))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["S", "D", "H", "causal", "dtype", "rows"]),
        st.lists(st.integers(1, 10**6).map(str), min_size=1, max_size=4),
        min_size=1,
    )
)
def test_a_sweep_is_read_as_it_is_written(values: dict[str, list[str]]) -> None:
    made = Sweep({name: tuple(chosen) for name, chosen in values.items()})
    assert parse_sweep(str(made)) == made
    assert parse_sweep(f"  {str(made).replace(' ', '   ')} ") == made


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([16, 32, 64, 128]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from("01"), min_size=1, max_size=2, unique=True),
)
def test_every_combination_is_a_case_of_the_same_width(lengths: list[int], dims: list[int], causal: list[str]) -> None:
    text = f"S={','.join(map(str, lengths))} D={','.join(map(str, dims))} causal={','.join(causal)} dtype=bf16"
    cases = parse_sweep(text).cases(attention.OP, "cpu")
    found = [(case.sizes["S"], case.sizes["D"], case.options["causal"]) for case in cases]
    assert sorted(found) == sorted((S, D, c == "1") for S in lengths for D in dims for c in causal)
    base = attention.OP.time_cases["cpu"][0].sizes
    for case in cases:
        assert case.dtype == torch.bfloat16
        assert case.sizes["H"] * case.sizes["D"] == base["H"] * base["D"]
        assert case.sizes["B"] == max(1, base["B"] * base["S"] // case.sizes["S"])


def test_ranges_multiply_and_units_count() -> None:
    cases = parse_sweep("S=512:128k:x2").cases(attention.OP, "cpu")
    assert [case.sizes["S"] for case in cases] == [512 * 2**power for power in range(9)]
    assert cases[-1].sizes["B"] == 1


def test_what_is_chosen_is_not_balanced() -> None:
    (case,) = parse_sweep("S=1k B=7 D=128 H=6 K=3").cases(attention.OP, "cpu")
    assert case.sizes == {"B": 7, "S": 1024, "H": 6, "K": 3, "D": 128}


def test_rows_go_by_their_usual_names() -> None:
    (case,) = parse_sweep("rows=100 N=300").cases(TIMED_OPS["cross_entropy"], "cpu")
    assert case.sizes == {"M": 100, "V": 300}
    (case,) = parse_sweep("N=2048").cases(TIMED_OPS["softmax"], "cpu")
    assert case.sizes == {"M": 4096 * 1024 // 2048, "N": 2048}
    (case,) = parse_sweep("approximate=tanh").cases(TIMED_OPS["gelu"], "cpu")
    assert case.options == {"approximate": "tanh"}
    (case,) = parse_sweep("window=64").cases(attention.OP, "cuda")
    assert case.options == {"causal": True, "window": 64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a sweep needs a term"),
        ("S", "'S' is no term of a sweep"),
        ("S=1 S=2", "has S twice"),
        ("S=1,,2", "'S=1,,2' has an empty value"),
    ],
)
def test_what_is_no_sweep_is_not_read(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("text", "subjects", "message"),
    [
        ("S=64", ["softmax"], "softmax has no S to sweep: it has M, N, dtype"),
        ("S=64 Q=1", [], "no op has all of S, Q to sweep"),
        ("S=0", ["attention"], "'0' is no length from 1"),
        ("S=8:4:x2", ["attention"], "'8:4:x2' is no range of lengths"),
        ("causal=2", ["attention"], "causal=2: choose from 0, 1"),
        ("dtype=fp8", ["attention"], "dtype=fp8: choose from bf16"),
        ("H=6 K=4", ["attention"], "H=6 query heads cannot share K=4 key heads evenly"),
        ("rows=8 M=16", ["softmax"], "names a size of softmax twice"),
        ("S=64", ["encoder"], "encoder cannot be swept"),
        ("approximate=cubic", ["gelu"], "approximate=cubic: choose from none, tanh"),
        (
            f"S={','.join(map(str, range(1, 40)))} B={','.join(map(str, range(1, 40)))}",
            ["attention"],
            "makes 1521 cases",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(text: str, subjects: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(text, *subjects).ops("cpu")


def test_without_names_a_sweep_is_of_the_ops_that_know_it() -> None:
    assert [op.name for op in options("S=64 causal=0,1").ops("cpu")] == [
        "attention",
        "attention_varlen",
        "attention_bias",
        "attention_fp8",
    ]
    assert "softmax" in [op.name for op in options("rows=64 N=128").ops("cpu")]
    assert [op.name for op in options("S=64", "attention_decode").ops("cpu")] == ["attention_decode"]
    assert len(replace(options("S=64"), sweep=None).ops("cpu")) == len(TIMED_OPS)


def test_a_sweep_fits_the_gpu_cases_too() -> None:
    (case,) = parse_sweep("S=128k D=64 causal=1 dtype=bf16").cases(attention.OP, "cuda")
    assert case.sizes == {"B": 1, "S": 2**17, "H": 32, "K": 32, "D": 64}
    dtypes = parse_sweep("dtype=fp16,bf16")
    found = [op.name for op in TIMED_OPS.values() if dtypes.suits(op, "cuda")]
    assert set(TIMED_OPS) - set(found) == {"attention_fp8"}
    sweep.check(dtypes, [TIMED_OPS[name] for name in found], "cuda")
    with pytest.raises(ValueError, match="attention_fp8 has no dtype to sweep"):
        dtypes.cases(TIMED_OPS["attention_fp8"], "cuda")
