"""Attention of float8 tensors: the definition, and the Hopper kernel in the simulator or on a GPU.

The definition has to be as close to float64 as bfloat16 allows. The kernel rounds weights to e4m3 too: its budget is
that of PyTorch with such weights.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_fp8_oracle import attention_by_tiles, dequantized
from oracle import assert_within_budget
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fusedformer
from fusedformer.kernels import emulation, replay
from fusedformer.kernels.attention.op import attention

pytestmark = pytest.mark.op("attention")

FP8 = torch.float8_e4m3fn
SEEDS = int(os.environ.get("FUSEDFORMER_HOPPER_SEEDS", "10"))


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call."""

    seqlen_q: int
    seqlen_k: int
    head_dim: int = 64
    head_dim_v: int = 64
    heads: int = 2
    kv_heads: int = 1
    batch: int = 1
    causal: bool = False
    window: tuple[int | None, int | None] | None = None

    def __str__(self) -> str:
        sizes = f"b{self.batch}-{self.seqlen_q}x{self.seqlen_k}-h{self.heads}of{self.kv_heads}"
        return (
            f"{sizes}-d{self.head_dim}v{self.head_dim_v}"
            + "-causal" * self.causal
            + f"-{self.window}" * bool(self.window)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords of `attention`."""
        return {"causal": self.causal, "window": self.window}


CASES = [
    Case(130, 200),
    Case(70, 300, 128, 128, heads=1, causal=True),
    Case(200, 70, 128, 128, heads=1, causal=True),  # the first queries see nothing
    Case(70, 140, 48, 48, heads=4, kv_heads=2, batch=2, causal=True),  # both dimensions are padded
    Case(150, 260, 128, 96, window=(40, 20)),
    Case(1, 150, 192, 128, causal=True),
    Case(129, 1, 64, 64),
    Case(140, 140, 64, 64, window=(None, 3)),
]
SMALL = Case(70, 150, causal=True)
ONE_HEAD = Case(70, 150, causal=True, heads=1)


def make_inputs(case: Case, device: torch.device, outliers: float = 0.0) -> dict[str, Any]:
    """q, k and v in bshd; a fraction `outliers` of the elements is ten times as large."""
    generator = torch.Generator().manual_seed(0)

    def normal(length: int, heads: int, head_dim: int) -> Tensor:
        x = torch.randn((case.batch, length, heads, head_dim), generator=generator)
        is_outlier = torch.rand(x.shape, generator=generator) < outliers
        return (x + is_outlier * 10 * torch.randn(x.shape, generator=generator)).to(device)

    return {
        "q": normal(case.seqlen_q, case.heads, case.head_dim),
        "k": normal(case.seqlen_k, case.kv_heads, case.head_dim),
        "v": normal(case.seqlen_k, case.kv_heads, case.head_dim_v),
    }


def quantized(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of `attention`."""
    pairs = {name: fusedformer.quantize_fp8(x) for name, x in inputs.items()}
    return {name: x for name, (x, _) in pairs.items()} | {"descale": [descale for _, descale in pairs.values()]}


def exact(
    call: dict[str, Any], case: Case, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Tensor, Tensor]:
    """out and the log-sum-exp, in float64 or another dtype."""
    tensors = [x.to(dtype) for x in dequantized(*zip((call["q"], call["k"], call["v"]), call["descale"]))]
    return attention_by_tiles(*tensors, causal=case.causal, window=case.window or (None, None), **options)


def by_definition(call: dict[str, Any]) -> Tensor:
    """The result on the CPU."""
    with emulation.emulated(False):
        return attention(**tree_map_only(Tensor, lambda x: x.cpu(), call))


# The definition, and what is checked


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition(case: Case) -> None:
    call = quantized(make_inputs(case, torch.device("cpu")))
    with emulation.emulated(False):
        out, lse = attention(**call, **case.settings, return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    out64, lse64 = exact(call, case)
    assert_within_budget("out", out, out64, out64.bfloat16())
    assert_within_budget("lse", lse, lse64, lse64.float())


def test_layouts_and_other_settings_on_the_cpu() -> None:
    call = quantized(make_inputs(SMALL, torch.device("cpu")))
    plain: dict[str, Any] = dict(
        zip("qkv", (x.float() for x in dequantized(*zip((call["q"], call["k"], call["v"]), call["descale"]))))
    )
    settings: dict[str, Any] = {
        "softcap": 3.0,
        "sinks": torch.ones(2),
        "alibi_slopes": torch.tensor([0.1, 0.2]),
        "causal": True,
    }
    expected = attention(**plain, **settings)
    torch.testing.assert_close(attention(**call, **settings), expected.bfloat16())
    heads_first: dict[str, Any] = {name: call[name].transpose(1, 2) for name in "qkv"}
    found = attention(**heads_first, descale=call["descale"], layout="bhsd", **settings)
    assert torch.equal(found.transpose(1, 2), attention(**call, **settings))


def test_a_descale_that_is_not_positive_gives_nan() -> None:
    call = quantized(make_inputs(SMALL, torch.device("cpu")))
    call["descale"][0][0, 1] = -1
    out = attention(**call)
    assert out[:, :, 1].isnan().all()
    assert out[:, :, 0].isfinite().all()


def good_call() -> dict[str, Any]:
    return quantized(make_inputs(Case(3, 5), torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 3, 2, 64)}, "q is float32, expected float8_e4m3fn where descale is given"),
        ({"descale": None}, "q is float8_e4m3fn, expected float32, float16 or bfloat16"),
        ({"descale": [torch.ones(1, 2)] * 2}, "expected three tensors: q_descale, k_descale, v_descale"),
        ({"descale": [torch.ones(1, 2)] * 3}, r"k_descale is float32 of shape \(1, 2\), expected .* \(1, 1\)"),
        ({"descale": [torch.ones(1, 2).double()] * 3}, r"q_descale is float64 of shape \(1, 2\), expected float32"),
        ({"descale": [1.0, 1.0, 1.0]}, "q_descale is float, expected a torch.Tensor"),
        ({"k": torch.ones(1, 5, 1, 32).to(FP8)}, "k has head dimension 32, q has 64"),
        ({"sinks": torch.ones(3)}, r"sinks is float32 of shape \(3,\)"),
    ],
    ids=["dtype", "no descale", "two", "heads", "double", "number", "shape", "setting"],
)  # fmt: skip
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**good_call() | change)


def test_refuses_packed_sequences() -> None:
    call = good_call()
    starts = torch.tensor([0, 3], dtype=torch.int32)
    packed = {name: call[name][0] for name in "qkv"}
    with pytest.raises(ValueError, match="descale is given for packed sequences"):
        attention(**packed, descale=call["descale"], cu_seqlens_q=starts, cu_seqlens_k=starts)


@pytest.mark.parametrize("name", ["q", "v_descale", "bias"])
def test_refuses_gradients(name: str) -> None:
    call = good_call() | {"bias": torch.zeros(5)}
    tensor = call["descale"][2] if name == "v_descale" else call[name]
    tensor.requires_grad_()
    with pytest.raises(NotImplementedError, match="attention_fp8_fwd has no derivative: train in bfloat16"):
        attention(**call)
    with torch.no_grad():
        assert attention(**call).isfinite().all()


def test_op_passes_opcheck() -> None:
    from fusedformer.kernels.attention.op import _ATTENTION, prepare

    call = good_call()
    settings = prepare(_ATTENTION, call["q"], call["k"], causal=True)
    op = torch.ops.fusedformer.attention_fp8_fwd.default
    # No test_schema: it multiplies the arguments, which PyTorch does not do in float8.
    arguments = (call["q"], call["k"], call["v"], *call["descale"], *settings)
    torch.library.opcheck(op, arguments, test_utils="test_faketensor")


# The Hopper kernel


def check(case: Case, device: torch.device, inputs: dict[str, Tensor]) -> None:
    """Hold out and the log-sum-exp against float64."""
    call = quantized(inputs)
    out, lse = attention(**call, **case.settings, return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    out64, lse64 = exact(call, case)
    assert_within_budget("out", out.cpu(), out64, exact(call, case, rounded=True)[0].bfloat16())
    assert_within_budget("lse", lse.cpu(), lse64, exact(call, case, dtype=torch.float32)[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case: Case, hopper_device: torch.device, served: list[str]) -> None:
    check(case, hopper_device, make_inputs(case, hopper_device))
    assert served == ["fwd_fp8"]


def test_kernel_with_outliers(hopper_device: torch.device, served: list[str]) -> None:
    case = Case(130, 200, 128, 128, heads=1)
    check(case, hopper_device, make_inputs(case, hopper_device, outliers=0.01))
    assert served == ["fwd_fp8"]


def test_no_bit_depends_on_the_schedule(
    hopper_device: torch.device, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = quantized(make_inputs(ONE_HEAD, hopper_device))

    def results(seed: int) -> tuple[Tensor, ...]:
        monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", str(seed))
        return attention(**call, causal=True, return_lse=True)

    first = results(1)
    for seed in range(2, SEEDS + 1):
        assert all(torch.equal(x, y) for x, y in zip(results(seed), first))
    assert served == ["fwd_fp8"] * SEEDS


def test_strides_are_read_in_place(hopper_device: torch.device, served: list[str]) -> None:
    call = quantized(make_inputs(SMALL, hopper_device))
    expected = attention(**call)
    wide = torch.zeros(1, 150, 1, 160, device=hopper_device).to(FP8)
    wide[..., 48:112] = call["k"]
    call["k"] = wide[..., 48:112]
    call["q"] = call["q"].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attention(**call), expected)
    assert served == ["fwd_fp8"] * 2


def test_a_result_that_tma_cannot_write_is_computed_in_bfloat16(hopper_device: torch.device, served: list[str]) -> None:
    """Its rows are 72 bytes apart, where those of q, k and v are at multiples of 16."""
    call = quantized(make_inputs(Case(40, 70, head_dim_v=48), hopper_device))
    call["v"] = call["v"][..., :36]
    torch.testing.assert_close(attention(**call).cpu(), by_definition(call), atol=2e-2, rtol=2e-2)
    assert served == []


def test_nan_reaches_those_who_see_it(hopper_device: torch.device, served: list[str]) -> None:
    """Of v, in its column; of k, in all; not those from whom it is hidden."""
    call = quantized(make_inputs(SMALL, hopper_device))
    clean = attention(**call, causal=True)
    call["v"][:, 100, :, 7] = math.nan
    call["k"][:, 140] = math.nan
    out = attention(**call, causal=True)
    is_nan = torch.zeros_like(out, dtype=torch.bool)
    is_nan[:, 100 - 80 :, :, 7] = True  # query i faces key i + 80
    is_nan[:, 140 - 80 :] = True
    assert torch.equal(out.isnan(), is_nan)
    assert torch.equal(out[~is_nan], clean[~is_nan])
    assert served == ["fwd_fp8"] * 2


def test_a_descale_that_is_not_positive_gives_nan_on_the_device(hopper_device: torch.device, served: list[str]) -> None:
    call = quantized(make_inputs(SMALL, hopper_device))
    call["descale"][0][0, 1] = 0
    out, lse = attention(**call, causal=True, return_lse=True)
    assert out[:, :, 1].isnan().all()
    assert lse[:, 1].isnan().all()
    assert out[:, :, 0].isfinite().all()
    call = quantized(make_inputs(SMALL, hopper_device))
    call["descale"][2].neg_()
    assert attention(**call).isnan().all()
    assert served == ["fwd_fp8"] * 2


@pytest.mark.parametrize("settings", [{"softcap": 3.0}, {"sinks": torch.ones(2)}], ids=["softcap", "sinks"])
def test_what_the_kernel_lacks_is_computed_in_bfloat16(
    settings: dict[str, Any], hopper_device: torch.device, served: list[str]
) -> None:
    case = Case(40, 70)
    call = quantized(make_inputs(case, hopper_device))
    settings = {name: x.to(hopper_device) if isinstance(x, Tensor) else x for name, x in settings.items()}
    out = attention(**call, **settings)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.cpu(), by_definition(call | settings), atol=2e-2, rtol=2e-2)
    assert "fwd_fp8" not in served  # in bfloat16 there are sinks


# Its accuracy

README = Path(__file__).parents[1] / "README.md"
ACCURACY = re.compile(r"^\| (normal.*?) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", re.MULTILINE)
OUTLIERS = {
    "normal": 0.0,
    "normal, one of 1,000 ten times as wide": 0.001,
    "normal, one of 100 ten times as wide": 0.01,
}


def errors(outliers: float, device: torch.device) -> tuple[float, float, float]:
    """In percent of the root mean square of the result: the error of bfloat16, of float8, and of its rounded inputs."""
    case = Case(512, 512, 128, 128, heads=1)
    inputs = {name: x.bfloat16() for name, x in make_inputs(case, device, outliers).items()}
    call = quantized(inputs)
    expected, _ = attention_by_tiles(*(x.double().cpu() for x in inputs.values()))

    def error(out: Tensor) -> float:
        difference = out.double().cpu() - expected
        return 100 * (difference.square().mean() / expected.square().mean()).sqrt().item()

    return error(attention(**inputs)), error(attention(**call)), error(exact(call, case)[0])


def test_accuracy_is_as_the_readme_says(hopper_device: torch.device, served: list[str]) -> None:
    """`pytest tests/test_attention_fp8.py -k accuracy -s` prints the table."""
    stated = {name: tuple(map(float, figures)) for name, *figures in ACCURACY.findall(README.read_text("utf-8"))}
    assert list(stated) == list(OUTLIERS)
    for name, outliers in OUTLIERS.items():
        replay.forget()  # `served` notes launches that are made
        found = errors(outliers, hopper_device)
        print(f"| {name} | " + " | ".join(f"{error:.2g} %" for error in found) + " |")
        assert found == pytest.approx(stated[name], rel=0.06)
    assert served == ["fwd", "fwd_fp8"] * len(OUTLIERS)
