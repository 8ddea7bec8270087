"""What `explain` says of a call, for the device of its tensors and for GPUs that are not there."""

import pytest
import torch

from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention.hopper import dispatch
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.explain import explain
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.softmax import softmax

Q = torch.zeros(2, 64, 4, 80, dtype=torch.bfloat16)


def test_a_cpu_tensor_has_no_kernel() -> None:
    (step,) = explain(softmax, Q).steps
    assert (step.op, step.implementation) == ("softmax_fwd", "plain PyTorch on cpu")
    assert step.notes == ("there is no kernel for cpu: a CUDA tensor would get one",)


def test_every_op_of_a_function_is_a_step() -> None:
    explanation = explain(lambda x: gelu(softmax(x)), Q)
    assert [step.op for step in explanation.steps] == ["softmax_fwd", "gelu_fwd"]
    assert str(explain(torch.relu, Q)) == "no op of fusedformer"


def test_attention_names_kernel_tile_and_what_is_slow() -> None:
    text = str(explain(attention, Q, Q, Q, causal=True, mask=torch.ones(64, 64, dtype=torch.bool), arch=89))
    for part in (
        "attention_fwd: Triton kernel for sm_89",
        "tile of 64 queries by 32 keys, 8 warps",
        "sm_89 has no tiles of its own: those of sm_120 serve",
        "head dimension 80 of q is computed as 128",
        "the mask is read in every tile",
        "a second launch looks for NaN",
    ):
        assert part in text


def test_a_simple_call_has_little_to_say() -> None:
    q = torch.zeros(1, 64, 4, 128, dtype=torch.float16)
    (step,) = explain(attention, q, q, q, arch=80).steps
    assert len(step.notes) == 2
    evidence = tuning.row_of("fwd", 80, q.dtype, 128).evidence
    assert step.notes[1] == f"evidence of the tile: {evidence} (compiled, not timed)"
    (step,) = explain(attention, q, q, q, softcap=1.0, arch=90).steps
    assert step.notes[1] == "evidence of the tile: static (compiled, not timed)"


@pytest.mark.parametrize(
    ("preference", "implementation", "notes"),
    [
        (
            "1",
            "Gluon kernel for sm_90, products in float8",
            ["v is transposed before", "predicted 1299 to 1919 TFLOP/s"],
        ),
        ("0", "Triton kernel for sm_90", ["no products in float8: FUSEDFORMER_HOPPER=0", "copied to bfloat16"]),
    ],
)
def test_float8(preference: str, implementation: str, notes: list[str]) -> None:
    q = torch.zeros(1, 64, 4, 128).to(torch.float8_e4m3fn)
    with dispatch.preferred(preference):
        (step,) = explain(attention, q, q, q, descale=[torch.ones(1, 4)] * 3, causal=True, arch=90).steps
    assert (step.op, step.implementation) == ("attention_fp8_fwd", implementation)
    assert all(any(note in text for text in step.notes) for note in notes)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "note"),
    [
        (torch.float32, 64, "float32 without tensor cores"),
        (torch.float32, 512, "elementwise sums, much slower"),
    ],
)
def test_float32_is_slow(dtype: torch.dtype, head_dim: int, note: str) -> None:
    q = torch.zeros(1, 4, 1, head_dim, dtype=dtype)
    assert note in str(explain(attention, q, q, q, arch=90))


def test_strides_that_loads_do_not_like() -> None:
    q = torch.zeros(1, 4, 128, 2, dtype=torch.float16).transpose(2, 3)
    assert "q has strides (1024, 256, 1, 2)" in str(explain(attention, q, q, q, arch=90))


def test_nothing_is_computed_and_arguments_are_checked() -> None:
    huge = torch.empty(1, 2**20, 64, 128, dtype=torch.float16, device="meta")
    assert explain(attention, huge, huge, huge).steps[0].op == "attention_fwd"
    with pytest.raises(ValueError, match="layout is 'x'"):
        explain(attention, Q, Q, Q, layout="x")
