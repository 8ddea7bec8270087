"""Every public op and every form of attention: forward, backward, double backward, with the Hopper tier and without.

A case passes if nothing raises and nothing is refused, and if its second run waits for nothing and allocates nothing
that is not freed. The first run may: kernels are compiled and loaded in it.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import counts  # type: ignore[import-not-found]  # beside this file
import torch
from torch import Tensor

import fusedformer
from fusedformer.kernels.attention.hopper import dispatch

LENGTHS = (1, 64, 1000, 1024, 8192, 32768, 131072)  # of rows: each step of the ladders in csrc/ladder.h, and one off it
DTYPES = (torch.bfloat16, torch.float32)


@dataclass
class Case:
    """One call: the function, tensors to differentiate in, and what else it is given."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = True
    tiers: tuple[str, ...] = ("",)  # values of FUSEDFORMER_HOPPER
    may_wait: str = ""  # the way that waits for the GPU by its nature


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Zeros on the device that require grad."""
    return torch.zeros(shape, device="cuda", dtype=dtype, requires_grad=True)


def row_cases(columns: int, dtype: torch.dtype) -> list[Case]:
    """The ops of csrc/ on rows of this length."""
    x, r, y = (leaf(48, columns, dtype=dtype) for _ in range(3))
    w, b = leaf(columns, dtype=dtype), leaf(columns, dtype=dtype)
    target = torch.zeros(48, dtype=torch.int64, device="cuda")
    mask = torch.ones(48, columns, dtype=torch.bool, device="cuda")
    f = fusedformer
    cases = [
        Case("layer_norm", f.layer_norm, (x, w, b)), Case("layer_norm, no weight", f.layer_norm, (x,)),
        Case("rms_norm", f.rms_norm, (x, w)), Case("softmax", f.softmax, (x,)),
        Case("softmax, mask", f.softmax, (x,), {"mask": mask, "scale": 0.5}),
        Case("softmax, causal", f.softmax, (x,), {"causal": True}),
        Case("softmax, dim 0", f.softmax, (x,), {"dim": 0}),
        Case("log_softmax", f.log_softmax, (x,)), Case("gelu", f.gelu, (x,)),
        Case("gelu, tanh", f.gelu, (x,), {"approximate": "tanh"}), Case("bias_gelu", f.bias_gelu, (x, b)),
        Case("bias_relu", f.bias_relu, (x, b)), Case("swiglu", f.swiglu, (x, y)), Case("geglu", f.geglu, (x, y)),
        Case("cross_entropy", f.cross_entropy, (x,), {"target": target}),
        Case("cross_entropy, all", f.cross_entropy, (x,), {
            "target": target, "weight": torch.ones(columns, device="cuda"), "label_smoothing": 0.1, "z_loss": 1e-4,
        }),
        Case("add_layer_norm", f.add_layer_norm, (x, r, w, b)),
        Case("add_layer_norm, dropout", f.add_layer_norm, (x, r, w, b), {"dropout_p": 0.1}),
        Case("add_rms_norm", f.add_rms_norm, (x, r, w)),
        Case("add_rms_norm, dropout", f.add_rms_norm, (x, r, w), {"dropout_p": 0.1}),
        Case("layer_norm, strided", f.layer_norm, (leaf(columns, 48, dtype=dtype).mT, w, b)),
    ]  # fmt: skip
    for case in cases:
        case.name += f" {columns} {str(dtype).removeprefix('torch.')}"
    return cases


def attention_cases() -> list[Case]:
    """Each form of attention."""
    all_tiers = ("0", "1", "fused")
    f = fusedformer
    q, k, v = (leaf(2, 384, 8, 128) for _ in range(3))
    grouped = (q, leaf(2, 384, 2, 128), leaf(2, 384, 2, 128))
    narrow = tuple(leaf(2, 384, 8, 64) for _ in range(3))
    packed = tuple(leaf(768, 8, 128) for _ in range(3))
    starts = torch.tensor([0, 300, 768], dtype=torch.int32, device="cuda")
    slopes, sinks, bias = leaf(8, dtype=torch.float32), leaf(8), leaf(2, 8, 384, 384)
    forms: list[tuple[str, tuple[Tensor, ...], dict[str, Any]]] = [
        ("dense", (q, k, v), {}), ("causal", (q, k, v), {"causal": True}), ("grouped", grouped, {"causal": True}),
        ("width 64", narrow, {"causal": True}), ("window", (q, k, v), {"window": (64, 0)}),
        ("softcap", (q, k, v), {"softcap": 30.0}), ("ALiBi", (q, k, v), {"alibi_slopes": slopes, "causal": True}),
        ("dropout", (q, k, v), {"dropout_p": 0.1}), ("sinks", (q, k, v), {"sinks": sinks}),
        ("bias", (q, k, v), {"bias": bias}),
        ("packed", packed, {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "causal": True}),
        ("bhsd", tuple(leaf(2, 8, 384, 128) for _ in range(3)), {"layout": "bhsd"}),
        ("width 256", tuple(leaf(1, 200, 4, 256) for _ in range(3)), {}),
        ("float32", tuple(leaf(1, 200, 4, 64, dtype=torch.float32) for _ in range(3)), {}),
        ("empty", tuple(leaf(2, 0, 8, 128) for _ in range(3)), {}),
    ]  # fmt: skip
    cases = [Case(f"attention, {name}", f.attention, xs, settings, tiers=all_tiers) for name, xs, settings in forms]
    for case in cases:
        if "packed" in case.name:
            case.may_wait = "double backward"  # by the definition, in plain PyTorch, which cuts at the lengths
    quantized = [f.quantize_fp8(x.detach()) for x in (q, k, v)]
    eighths = tuple(x for x, _ in quantized)
    settings = {"descale": [scale for _, scale in quantized], "causal": True}
    cases.append(Case("attention, float8", f.attention, eighths, settings, differentiable=False, tiers=("0", "1")))
    pages = torch.zeros(2, 4, dtype=torch.int32, device="cuda")
    lengths = torch.full((2,), 100, dtype=torch.int32, device="cuda")
    step, cache, paged = (torch.zeros(n, m, 8, 128, device="cuda", dtype=torch.bfloat16)
                          for n, m in ((2, 1), (2, 512), (8, 64)))  # fmt: skip
    decode = f.flash_attn_with_kvcache
    cases += [
        Case("decode", decode, (step, cache, cache.clone()), {"cache_seqlens": lengths}, differentiable=False),
        Case("decode, append", decode, (step, cache, cache.clone(), step, step),
             {"cache_seqlens": lengths, "causal": True}, differentiable=False),
        Case("decode, pages", decode, (step, paged, paged.clone()),
             {"cache_seqlens": lengths, "block_table": pages}, differentiable=False),
    ]  # fmt: skip
    return cases


def ways(case: Case) -> dict[str, Callable[[], object]]:
    """Of a case: forward, backward, double backward, as far as it has them."""

    def forward() -> Any:
        out = case.function(*case.inputs, **case.settings)
        return out if isinstance(out, Tensor) else out[0]

    def without_gradients() -> None:
        with torch.no_grad():
            forward()

    def gradients(create_graph: bool = False) -> tuple[Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, case.inputs, torch.ones_like(out), create_graph=create_graph)

    def double() -> None:
        once = gradients(create_graph=True)
        if any(grad.requires_grad for grad in once):
            total = torch.stack([grad.float().sum() for grad in once]).sum()
            torch.autograd.grad(total, case.inputs, allow_unused=True)

    found: dict[str, Callable[[], object]] = {"forward": without_gradients}
    return found | {"backward": gradients, "double backward": double} if case.differentiable else found


def problem_of(call: Callable[[], object], may_wait: bool) -> str:
    """What is wrong with a call that is made twice; empty for nothing."""
    start = counts.read()
    try:
        call()
        gc.collect()
        held = torch.cuda.memory_allocated()
        before = counts.read()
        call()
    except Exception as error:
        where = next(
            (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "fusedformer" in f.filename), None
        )
        place = f" ({where.filename.rpartition('fusedformer/')[2]}:{where.lineno})" if where else ""
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}"
    after = counts.read()
    if after["refusals"] > start["refusals"]:
        return "a call was refused"
    if after["synchronisations"] > before["synchronisations"] and not may_wait:
        return f"waits {after['synchronisations'] - before['synchronisations']} times for the GPU"
    gc.collect()
    leaked = torch.cuda.memory_allocated() - held
    return f"{leaked} B more are held after a second call" if leaked > 0 else ""


def check(case: Case) -> int:
    """Print what is wrong; how much it is."""
    problems = 0
    for tier in case.tiers:
        start = time.monotonic()
        with dispatch.preferred(tier):
            for way, call in ways(case).items():
                problem = problem_of(call, way == case.may_wait)
                problems += bool(problem)
                if problem:
                    print(f"PROBLEM {case.name}, tier {tier or 'default'}, {way}: {problem}", flush=True)
        if time.monotonic() - start > 5 or "-v" in sys.argv:
            print(f"  {case.name}, tier {tier or 'default'}: {time.monotonic() - start:.0f} s", flush=True)
    return problems


def main(words: list[str]) -> int:
    """Check the cases whose names hold one of `words`; 1 if something is wrong."""
    torch.set_num_threads(1)
    cases = [case for columns in LENGTHS for dtype in DTYPES for case in row_cases(columns, dtype)] + attention_cases()
    cases = [case for case in cases if not words or any(word in case.name for word in words)]
    gc.freeze()  # collections are many, and modules are large
    problems = sum(map(check, cases))
    print(f"{len(cases)} cases, {problems} problems; {dict(counts.read())}")
    sys.stdout.flush()
    return 1 if problems else 0


if __name__ == "__main__":
    code = main([word for word in sys.argv[1:] if word != "-v"])
    os._exit(code)
