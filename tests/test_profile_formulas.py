"""FLOPs and bytes by formula: against cases counted by hand, against a mask, and against PyTorch's flop counter."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusedformer.benchmarks.harness.op import BACKWARD, FORWARD, Case
from fusedformer.benchmarks.ops import TIMED_OPS
from fusedformer.benchmarks.profile import formulas
from fusedformer.benchmarks.profile.contenders import MATH, OURS, SDPA, Attention
from fusedformer.benchmarks.profile.formulas import Work
from fusedformer.benchmarks.profile.tracing import Trace, Tracer
from fusedformer.kernels.attention.op import attention


def pairs_of_mask(Sq: int, Sk: int, left: int | None, right: int | None, bottom_right: bool) -> int:
    i, j = torch.arange(Sq)[:, None], torch.arange(Sk)[None, :]
    face = i + (Sk - Sq if bottom_right else 0)
    seen = torch.ones(Sq, Sk, dtype=torch.bool)
    if left is not None:
        seen &= j >= face - left
    if right is not None:
        seen &= j <= face + right
    return int(seen.sum())


@pytest.mark.parametrize(
    ("Sq", "Sk", "window", "pairs"),
    [
        (4, 4, {}, 16),
        (4, 4, {"right": 0}, 10),  # 1 + 2 + 3 + 4
        (3, 5, {"right": 0}, 12),  # 3 + 4 + 5
        (5, 3, {"right": 0}, 6),  # 0 + 0 + 1 + 2 + 3
        (1, 1000, {"right": 0}, 1000),  # decoding
        (4, 4, {"left": 1, "right": 0}, 7),  # 1 + 2 + 2 + 2
        (3, 5, {"right": 0, "bottom_right": False}, 6),  # 1 + 2 + 3
        (0, 5, {"right": 0}, 0),
    ],
)
def test_pairs_counted_by_hand(Sq: int, Sk: int, window: dict[str, int], pairs: int) -> None:
    assert formulas.visible_pairs(Sq, Sk, **window) == pairs  # type: ignore[arg-type]


@pytest.mark.parametrize("bottom_right", [True, False])
@pytest.mark.parametrize(("Sq", "Sk"), [(1, 1), (5, 5), (3, 8), (8, 3), (1, 7), (7, 1)])
def test_pairs_are_those_of_the_mask(Sq: int, Sk: int, bottom_right: bool) -> None:
    sides = (None, -2, 0, 1, 4, 20)
    for left, right in itertools.product(sides, sides):
        found = formulas.visible_pairs(Sq, Sk, left=left, right=right, bottom_right=bottom_right)
        assert found == pairs_of_mask(Sq, Sk, left, right, bottom_right), (left, right)


def test_packed_sequences_are_their_sum() -> None:
    assert formulas.packed_pairs([(2, 2), (0, 3), (3, 5)], right=0) == 3 + 0 + 12


def test_attention_counted_by_hand() -> None:
    # 2 heads over 1 key head, 3 queries, 4 keys, 9 pairs: QK^T is 9 * 2 * 8 multiply-adds, PV 9 * 2 * 16.
    forward = formulas.attention_forward(9, 3, 4, H=2, K=1, D=8, Dv=16, itemsize=2)
    assert forward == Work(2 * 9 * 2 * 24, 2 * (3 * 2 * 24 + 4 * 24) + 4 * 3 * 2)
    backward = formulas.attention_backward(9, 3, 4, H=2, K=1, D=8, Dv=16, itemsize=2)
    read, written = 3 * 2 * (8 + 16 + 16) + 4 * 24, 3 * 2 * 8 + 4 * 24
    assert backward == Work(2 * 9 * 2 * (3 * 8 + 2 * 16), 2 * (read + written) + 4 * 3 * 2)


def test_a_step_of_adamw_counted_by_hand() -> None:
    assert formulas.adamw(10, itemsize=2) == Work(140, 140)


def counted(run: object) -> int:
    with FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize(("Sq", "Sk"), [(16, 16), (5, 24)])
def test_attention_is_what_the_flop_counter_counts(Sq: int, Sk: int, heads: tuple[int, int]) -> None:
    """Of PyTorch's math attention, which computes and counts every pair."""
    H, K, D = *heads, 8
    q, k, v = (torch.randn(2, h, S, D, requires_grad=True) for h, S in ((H, Sq), (K, Sk), (K, Sk)))

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            F.scaled_dot_product_attention(q, k, v, enable_gqa=H != K).sum().backward()

    sizes = {"H": H, "K": K, "D": D, "Dv": D, "itemsize": 4}
    forward = formulas.attention_forward(2 * Sq * Sk, 2 * Sq, 2 * Sk, **sizes).flops
    # Scores are stored there, so their product is not computed again in the backward: 4 products for 5.
    backward = formulas.attention_backward(2 * Sq * Sk, 2 * Sq, 2 * Sk, **sizes).flops * 4 / 5
    assert counted(run) == forward + backward


def test_traced_products_are_what_the_flop_counter_counts() -> None:
    linear, norm = torch.nn.Linear(32, 48), torch.nn.LayerNorm(32)
    convolution = torch.nn.Conv1d(32, 16, 3, padding=1)
    x = torch.randn(2, 10, 32, requires_grad=True)

    def run() -> None:
        (linear(norm(x)).sum() + convolution(x.transpose(1, 2)).sum()).backward()

    model = torch.nn.ModuleList([linear, norm, convolution])
    with Tracer(model) as tracer:
        run()
    products = [op for op in tracer.trace.ops if op.name in ("mm", "addmm", "convolution", "convolution_backward")]
    biases = 2 * 10 * 48  # which the counter leaves out
    assert sum(op.work.flops for op in products) - biases == counted(run)


def traced_attention(contender: str, Sq: int, Sk: int, **settings: Any) -> Trace:
    q, k, v = (torch.randn(1, S, h, 8, device="meta", requires_grad=True) for S, h in ((Sq, 4), (Sk, 2), (Sk, 2)))
    with Tracer(torch.nn.Identity()) as tracer, Attention(contender, "cuda", tracer.scope):
        attention(q, k, v, **settings).sum().backward()
    return tracer.trace


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [({}, 12 * 16), ({"causal": True}, sum(range(5, 17))), ({"causal": True, "window": (2, 0)}, 12 * 3)],
)
def test_a_traced_call_of_ours_has_the_work_of_its_formula(settings: dict[str, Any], pairs: int) -> None:
    sizes = {"H": 4, "K": 2, "D": 8, "Dv": 8, "itemsize": 4}
    works = {op.name: op.work for op in traced_attention(OURS, 12, 16, **settings).ops if "attention" in op.name}
    assert works == {
        "attention_fwd": formulas.attention_forward(pairs, 12, 16, **sizes),
        "attention_bwd": formulas.attention_backward(pairs, 12, 16, **sizes),
    }


def test_contenders_compute_the_same_products_where_all_is_seen() -> None:
    def products(contender: str) -> float:
        ops = traced_attention(contender, 12, 12).ops
        return sum(op.work.flops for op in ops if op.name == "bmm" or "attention" in op.name)

    # Math keeps the scores, so 4 products of 5 in the backward: 6 of 7 in all.
    assert products(OURS) == products(SDPA) == products(MATH) * 7 / 6


ROWS = {"M": 3, "N": 5}  # 15 elements, 30 bytes of bfloat16: each of the tensors counted below


@pytest.mark.parametrize(
    ("name", "sizes", "options", "forward", "backward"),
    [
        # FLOPs and bytes. Forward: x; y. Squares, their sum, two factors. Backward: dy, x; dx.
        ("rms_norm", ROWS, {}, (15 * 4, 60), (15 * 9, 90)),
        # Forward: x, residual; s, y. An addition, and the norm's 8 or 4. Backward: dy, s; dx, which is the residual's.
        ("add_layer_norm", ROWS, {}, (15 * 9, 120), (15 * 13, 90)),
        ("add_rms_norm", ROWS, {}, (15 * 5, 120), (15 * 9, 90)),
        # Maximum, difference, exp, sum, difference. Backward: dy, y; dx. Sum, exp, product, difference.
        ("log_softmax", ROWS, {}, (15 * 5, 60), (15 * 4, 90)),
        # A factor more each way.
        ("masked_softmax", {"H": 3, "Q": 1, "N": 5}, {}, (15 * 6, 60), (15 * 5, 90)),
        # Forward: logits. Maximum, difference, exp, sum. Backward: logits; their gradient. Difference, exp, 2 factors.
        ("cross_entropy", {"M": 3, "V": 5}, {}, (15 * 4, 30), (15 * 4, 60)),
        # An addition and ReLU's comparison; a choice and a term of dbias. GELU by erf 5, and 11.
        ("bias_activation", ROWS, {"activation": "relu"}, (15 * 2, 60), (15 * 2, 90)),
        ("bias_activation", ROWS, {"activation": "gelu"}, (15 * 6, 60), (15 * 12, 90)),
        # Forward: gate, up; y. SiLU 4, a product. Backward: gate, up, dy; two gradients. SiLU 4, its own 8, 2 products.
        ("glu", ROWS, {"function": "swiglu"}, (15 * 5, 90), (15 * 14, 150)),
        # 2 queries see 8 keys each: 16 pairs of 4 heads, two products of 16 multiply-adds. q and out are 2 * 4 * 16
        # elements of 2 bytes each, k and v 16 * 2 * 16 each, and there are 8 log-sum-exps of 4 bytes.
        ("attention_decode", {"B": 2, "S": 8, "H": 4, "K": 2, "D": 16}, {}, (4096, 2 * (256 + 1024) + 32), None),
        # Sequences of 2 and 4: 3 + 10 pairs of 2 heads, two products of 8 multiply-adds, backward five. q and out are
        # 6 * 2 * 8 = 96 elements each, k and v 48 each, 12 log-sum-exps. Backward: q, out, dout, k, v; dq, dk, dv.
        (
            "attention_varlen", {"B": 2, "S": 4, "H": 2, "K": 1, "D": 8}, {"causal": True},
            (13 * 2 * 16 * 2, 2 * (192 + 96) + 48), (13 * 2 * 40 * 2, 2 * (288 + 96 + 96 + 96) + 48),
        ),
        # 2 * 16 pairs of 2 heads as above, an addition for each, backward two. q, k, v and out are 128 elements each,
        # 16 log-sum-exps; the bias, whose gradient is as large, is 2 * 4 * 4 elements.
        (
            "attention_bias", {"B": 2, "S": 4, "H": 2, "K": 2, "D": 8}, {"causal": False},
            (32 * 2 * 16 * 2 + 64, 2 * (4 * 128 + 32) + 64), (32 * 2 * 40 * 2 + 128, 2 * (8 * 128 + 2 * 32) + 64),
        ),
    ],
)  # fmt: skip
def test_ops_counted_by_hand(
    name: str,
    sizes: dict[str, int],
    options: dict[str, Any],
    forward: tuple[float, float],
    backward: tuple[float, float] | None,
) -> None:
    op, case = TIMED_OPS[name], Case(sizes, torch.bfloat16, options)
    counted = {FORWARD: forward, BACKWARD: backward}
    for direction in (direction for direction in op.directions if direction in counted):
        work = op.work(case, direction)
        assert (work.flops, work.n_bytes) == counted[direction], direction
    assert (BACKWARD in op.directions) == (backward is not None)
