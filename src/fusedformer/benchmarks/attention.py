"""Attention of S queries over S keys: B batch, H query heads, K key and value heads, D head dimension.

`window` is how many keys before its own a query sees. Contenders: ours, also held to each of its tiers, PyTorch's
attention held to each of its kernels, FlashAttention 2 to 4, FlexAttention, xFormers, Triton as the paper reads, and
plain products as they are and compiled.
"""

import torch
from torch import Tensor

from fusedformer.benchmarks.contenders import flash_attn, flex, tutorial, xformers
from fusedformer.benchmarks.contenders.plain import BLOCK, eager, in_blocks
from fusedformer.benchmarks.contenders.sdpa import pinned, sdpa
from fusedformer.benchmarks.contenders.tiers import tiers
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Case, Inputs, Op, Work, randn
from fusedformer.benchmarks.profile import formulas
from fusedformer.kernels.attention.op import attention

# More S has less B, and more D fewer heads, so that the number of tokens and their width stay (Dao 2023, section 4.1).
BALANCE = {"S": ("B",), "D": ("H", "K")}


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q (B, S, H, D), k and v (B, S, K, D)."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    return tuple(randn((B, S, heads, D), case, generator) for heads in (H, K, K))


def work(case: Case, direction: str) -> Work:
    """FLOPs of the matrix products over the pairs that are visible, and bytes of every operand once."""
    B, S = case.sizes["B"], case.sizes["S"]
    right = 0 if case.options["causal"] else None
    return work_of(
        case, B * formulas.visible_pairs(S, S, left=case.options.get("window"), right=right), B * S, direction
    )


def work_of(case: Case, pairs: int, rows: int, direction: str) -> Work:
    """Of so many visible pairs of a query and a key, and rows of each, in all sequences."""
    H, K, D = (case.sizes[name] for name in "HKD")
    parts = {FORWARD: formulas.attention_forward, BACKWARD: formulas.attention_backward}
    done = [
        formula(pairs, rows, rows, H=H, K=K, D=D, Dv=D, itemsize=case.dtype.itemsize)
        for name, formula in parts.items()
        if direction in (name, BOTH)
    ]
    return Work(sum(part.flops for part in done), sum(part.n_bytes for part in done), "TFLOP")


def parts(case: Case, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key head with its query heads, of (B, S, heads, D): they do not see the others.

    float64 of every head would take long.
    """
    group = tensor.shape[2] // case.sizes["K"]
    return tensor[:1, :, :group], tensor[-1:, :, -group:]


def ours(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Tensor:
    """Ours."""
    return attention(q, k, v, window=None if window is None else (window, None), causal=causal)


def plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Tensor:
    """PyTorch's, by the kernel that it chooses; in float64, where that keeps all scores, in blocks if they are many."""
    function = in_blocks if q.dtype == torch.float64 and q.shape[1] > BLOCK else sdpa
    return function(q, k, v, causal=causal, window=window)


def make_case(
    B: int, S: int, H: int, K: int, D: int, dtype: torch.dtype, causal: bool, window: int | None = None
) -> Case:
    """Of attention over as many keys as queries; `window` is the keys that a query sees to its left."""
    options = {"causal": causal} | ({} if window is None else {"window": window})
    return Case({"B": B, "S": S, "H": H, "K": K, "D": D}, dtype, options)


def _on_gpu(S: int, D: int, causal: bool, share: int = 1, window: int | None = None) -> Case:
    """16k tokens of width 2,048 whatever the length, as Dao 2023 measures; `share` query heads for each key head."""
    H = 2048 // D
    return make_case(max(1, 2**14 // S), S, H, H // share, D, torch.bfloat16, causal, window)


OP = Op(
    name="attention",
    input_names=("q", "k", "v"),
    make_inputs=make_inputs,
    work=work,
    contenders={
        "ours": ours,
        **tiers(ours),
        **pinned(sdpa),
        "flash-attn 3": flash_attn.dense(3),
        "flash-attn 2": flash_attn.dense(2),
        "flash-attn 4": flash_attn.dense(4),
        "FlexAttention": flex.DENSE,
        "xFormers": xformers.DENSE,
        "Triton tutorial": tutorial.TUTORIAL,
        "eager": eager,
        "torch.compile": compiled(eager),
    },
    plain=plain,
    error_cases=(
        make_case(2, 65, 2, 2, 32, torch.float32, causal=False),
        make_case(1, 130, 2, 1, 64, torch.float16, causal=True),
        make_case(1, 96, 4, 2, 40, torch.bfloat16, causal=True),
    ),
    time_cases={
        "cpu": (make_case(2, 512, 8, 8, 64, torch.float32, causal=True),),
        "cuda": (
            *(
                _on_gpu(S, D, causal)
                for D in (128, 64)
                for S in (4096, 16384, 1024, 32768, 2048, 8192)
                for causal in (True, False)
            ),
            *(_on_gpu(S, 128, causal=True, share=4) for S in (4096, 16384)),
            *(_on_gpu(S, 128, causal=True, window=1024) for S in (4096, 16384)),
        ),
    },
    directions=(FORWARD, BACKWARD, BOTH),
    balance=BALANCE,
    parts=parts,
)
