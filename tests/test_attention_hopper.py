"""The Hopper tier: its kernels in the simulator, or on an sm_90 GPU; when it serves, and what it says when it does not.

The feature matrix is held against float64 by the error budget, under the schedules of several seeds; results must not
depend on the schedule by a single bit.
"""

import os

import pytest
import torch
from attention_cases import Case, check, check_inputs, make_inputs, run
from conftest import emulated_world
from torch import Tensor

pytest.importorskip("triton")

from fusedformer.kernels.attention import launch
from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.hopper import dispatch, tuning
from fusedformer.kernels.attention.hopper.spreading_kernel import spread
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.attention.packing_kernel import pack
from fusedformer.kernels.explain import explain

pytestmark = pytest.mark.op("attention")

H, B = torch.float16, torch.bfloat16
SEEDS = int(os.environ.get("FUSEDFORMER_HOPPER_SEEDS", "10"))
ALL, FWD = {"fwd", "dq", "dkdv"}, {"fwd"}
CASES = [
    (Case(130, 200, 64, dtype=B), ALL),
    (Case(70, 140, 64, dtype=H, heads=4, kv_heads=2, batch=2, causal=True), ALL),
    (Case(200, 70, 128, dtype=B, heads=1, causal=True), ALL),  # the first queries see nothing
    (Case(70, 300, 128, dtype=H, heads=1), ALL),
    (Case(1, 150, 96, dtype=B, causal=True), ALL),
    (Case(129, 1, 64, dtype=H), ALL),
    (Case(150, 260, 64, dtype=B, heads=1, window=(40, 20), sinks=True), ALL),  # no query sees the first keys
    (Case(300, 140, 128, dtype=H, window=(30, None)), ALL),
    (Case(140, 140, 64, dtype=H, heads=1, window=(None, 3)), ALL),
    (Case(70, 140, 192, dtype=B, heads=1, head_dim_v=128, causal=True), ALL),
    (Case(200, 70, 256, dtype=H, heads=2, causal=True, sinks=True), ALL),
    (Case(130, 70, 160, dtype=B, heads=1), ALL),
    (Case(150, 200, 256, dtype=B, heads=1, head_dim_v=80, window=(20, 40)), ALL),
    (Case(150, 260, 64, dtype=B, heads=1, window=(40, 20), sinks=True, softcap=2.0), FWD),
    (Case(70, 140, 96, dtype=H, heads=4, kv_heads=2, causal=True, softcap=30.0), FWD),
    (Case(130, 70, 192, dtype=H, heads=1, head_dim_v=128, causal=True, softcap=0.5), FWD),  # some see nothing
    (Case(70, 150, 64, dtype=H, kv_heads=2, causal=True, alibi="h"), FWD),
    (Case(70, 200, 96, dtype=B, heads=1, alibi="h"), FWD),
    (Case(70, 150, 96, dtype=H, heads=1, window=(70, 20), sinks=True, alibi="h"), FWD),
    # Heads that share a tile of queries
    (Case(1, 150, 64, dtype=B, heads=8, batch=2, kv_heads=2), ALL),
    (Case(5, 140, 128, dtype=H, heads=7, causal=True), ALL),
    (Case(37, 20, 64, dtype=H, heads=6, kv_heads=2, batch=2, causal=True, sinks=True, alibi="bh"), FWD),
    (Case(40, 150, 96, dtype=B, heads=4, window=(60, 3), softcap=3.0), FWD),
]
PACKED = ((70, 100), (0, 9), (3, 0), (130, 129))  # of queries and keys; and a tail of 7 rows that is nobody's
PACKED_CASES = [
    (Case(210, 245, 64, dtype=H, heads=2, causal=True, packed=PACKED), ALL),
    (Case(210, 245, 96, dtype=B, heads=1, sinks=True, packed=PACKED), ALL),
    (Case(210, 245, 64, dtype=H, heads=1, window=(30, 5), packed=PACKED), ALL),
    (Case(210, 245, 96, dtype=B, heads=2, kv_heads=1, window=(30, None), packed=PACKED), ALL),
    (Case(78, 140, 192, dtype=B, heads=1, head_dim_v=128, causal=True, packed=((1, 70), (77, 70))), {"fwd", "dq"}),
]
SMALL = Case(70, 130, 64, dtype=H, heads=1, causal=True)
TAILS = Case(70, 130, 96, dtype=H, heads=1, causal=True)
GROUPED = Case(20, 70, 64, dtype=H, heads=3, causal=True)


@pytest.mark.parametrize(("case", "kernels"), CASES + PACKED_CASES, ids=[str(case) for case, _ in CASES + PACKED_CASES])
def test_values_and_gradients(case: Case, kernels: set[str], hopper_device: torch.device, served: list[str]) -> None:
    check(case, hopper_device)
    assert set(served) == kernels


@pytest.mark.parametrize(
    "case",
    [
        Case(70, 140, 96, dtype=B, heads=2, causal=True),
        Case(130, 70, 64, dtype=H, heads=1),
        Case(75, 145, 64, dtype=H, heads=2, causal=True, packed=((66, 70), (3, 0), (5, 72))),
        Case(200, 140, 128, dtype=H, heads=1, window=(40, 20)),
    ],
    ids=str,
)
def test_fused_gradients(case: Case, hopper_device: torch.device, served: list[str]) -> None:
    with dispatch.preferred("fused"):
        check(case, hopper_device)
    assert set(served) == {"fwd", "fused"}


def test_what_spills_is_not_served(hopper_device: torch.device, served: list[str]) -> None:
    with dispatch.preferred("fused"):
        run(
            lambda **tensors: attention(**tensors, return_lse=True),
            make_inputs(Case(1, 1, 128, dtype=B), hopper_device),
        )
    assert set(served) == ALL


def test_wide_heads_are_not_fused(hopper_device: torch.device, served: list[str]) -> None:
    with dispatch.preferred("fused"):
        check(Case(70, 70, 256, dtype=B, heads=1), hopper_device)
    assert set(served) == ALL


def test_rounded_weights_of_wide_heads_are_within_the_budget(hopper_device: torch.device, served: list[str]) -> None:
    """The kernel of dK and dV rounds P before it forms dS: near-uniform weights all have about the same error."""
    case = Case(130, 200, 256, dtype=H, heads=1)
    inputs = make_inputs(case, hopper_device)
    inputs["q"] *= 0.01
    check_inputs(case, inputs)
    assert set(served) == ALL


@pytest.mark.parametrize("case", [SMALL, Case(70, 130, 256, dtype=H, heads=1, causal=True), TAILS], ids=str)
def test_no_bit_depends_on_the_schedule(
    case: Case, hopper_device: torch.device, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(case, hopper_device)

    def results(seed: int) -> dict[str, Tensor]:
        monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", str(seed))
        return run(lambda **tensors: attention(**tensors, causal=True, return_lse=True), inputs)

    first = results(1)
    for seed in range(2, SEEDS + 1):
        again = results(seed)
        assert all(torch.equal(again[name], first[name]) for name in first)
    assert set(served) == ALL


def test_strides_are_read_in_place(hopper_device: torch.device, served: list[str]) -> None:
    inputs = make_inputs(SMALL, hopper_device)
    q, k, v = (inputs[name] for name in "qkv")
    wide = torch.randn(k.shape[0], k.shape[2], k.shape[1], 2 * k.shape[3], device=hopper_device).to(k.dtype)
    strided = {"q": q.transpose(1, 2).contiguous().transpose(1, 2), "k": wide[..., :64].transpose(1, 2), "v": v}
    check_inputs(SMALL, strided)
    assert set(served) == ALL


@pytest.mark.parametrize("case", [SMALL, GROUPED], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_hidden_does_not_leak(value: float, case: Case, hopper_device: torch.device, served: list[str]) -> None:
    inputs = make_inputs(case, hopper_device)
    clean = _last_rows(inputs, hopper_device)
    for name in "kv":
        inputs[name][:, -1] = value  # the last query alone sees it
    found = _last_rows(inputs, hopper_device)
    for name in ("out", "lse", "dq"):  # what was repaired is summed in another order
        torch.testing.assert_close(found[name][..., :-1, :], clean[name][..., :-1, :], atol=2e-3, rtol=2e-3)
    assert set(served) == ALL


def test_what_is_hidden_does_not_leak_into_a_tail(hopper_device: torch.device, served: list[str]) -> None:
    inputs = make_inputs(TAILS, hopper_device)
    clean = _last_rows(inputs, hopper_device)
    inputs["v"][:, -1, :, -1] = torch.nan  # a column of the tail; the last query alone sees it
    found = _last_rows(inputs, hopper_device)
    for name in ("out", "lse", "dq"):
        torch.testing.assert_close(found[name][..., :-1, :], clean[name][..., :-1, :], atol=2e-3, rtol=2e-3)
    assert found["out"][..., -1, -1].isnan().all()
    assert set(served) == ALL


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_neighbour_does_not_leak(causal: bool, hopper_device: torch.device, served: list[str]) -> None:
    """Packed sequences: neither what it holds nor, causal, the repair of it."""
    case = Case(81, 93, 64, dtype=B, heads=1, causal=causal, packed=((3, 4), (70, 80), (2, 3)))
    inputs = make_inputs(case, hopper_device)

    def results() -> dict[str, Tensor]:
        found = run(lambda **tensors: attention(**tensors, causal=causal, return_lse=True), inputs)
        own = {name: x[3:73] if name in ("out", "dq") else x[4:84] for name, x in found.items() if name != "lse"}
        return own | {"lse": found["lse"][:, 3:73], "tail": found["out"][75:]}

    clean = results()
    for name, rows in (("q", slice(3, 73)), ("k", slice(4, 84)), ("v", slice(4, 84))):
        own = inputs[name][rows].clone()
        inputs[name].fill_(torch.nan)[rows] = own
    dirty = results()
    assert all(torch.equal(dirty[name], clean[name]) for name in clean)
    assert clean["tail"].count_nonzero() == 0
    assert set(served) == ALL


def test_numbers_of_packed_queries_have_room_after_each_sequence() -> None:
    with emulated_world("attention"):
        lengths = torch.tensor([70, 0, 64, 5])
        starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
        delta, shift = torch.randn(2, 1, 3, 150).unbind()  # 11 of which are nobody's
        delta[..., 139:] = shift[..., 139:] = torch.nan
        for x, spread_out in zip((delta, shift), spread(delta, shift, starts, pack(starts, 150, 64), 64)):
            for sequence, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist())):
                tiles = spread_out[..., start + 64 * sequence :][..., : -(-length // 64) * 64]
                assert torch.equal(tiles[..., :length], x[..., start : start + length])
                assert tiles[..., length:].count_nonzero() == 0
            assert spread_out.shape[2] % 4 == 0


def test_a_leak_of_a_packed_sequence_is_mended(hopper_device: torch.device, served: list[str]) -> None:
    """What a later key of its own holds does not reach a query, in one tile of queries of several."""
    case = Case(150, 210, 64, dtype=H, heads=2, kv_heads=1, causal=True, packed=((20, 70), (130, 140)))
    inputs = make_inputs(case, hopper_device)
    clean, _ = attention(**inputs, causal=True, return_lse=True)
    inputs["k"][-1] = inputs["v"][-1] = torch.nan
    dirty, _ = attention(**inputs, causal=True, return_lse=True)
    assert torch.equal(dirty[:20], clean[:20])
    torch.testing.assert_close(dirty[:-1], clean[:-1], atol=2e-3, rtol=2e-3)
    assert dirty[-1].isnan().all()


@pytest.mark.parametrize("head_dim", [64, 96, 256])
def test_a_query_spoils_no_key_that_it_does_not_see(
    head_dim: int, hopper_device: torch.device, served: list[str]
) -> None:
    case = Case(70, 130, head_dim, dtype=H, heads=1, causal=True)
    inputs = make_inputs(case, hopper_device)

    def gradients() -> list[Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        out = attention(**leaves, causal=True)
        return list(torch.autograd.grad(out, [leaves["k"], leaves["v"]], torch.ones_like(out)))

    clean = gradients()
    inputs["q"][:, 0] = float("nan")  # it sees the first 61 keys
    for found, expected in zip(gradients(), clean):
        assert found[:, :61].isnan().all()
        assert not found[:, 61:].isnan().any()
        torch.testing.assert_close(found[:, 61:], expected[:, 61:], atol=2e-3, rtol=2e-3)
    assert set(served) == ALL


def _last_rows(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Results by query, the queries in the last dimension but one; gradients of all but the last query's output."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, lse = attention(**leaves, causal=True, return_lse=True)
    dout = torch.ones_like(out)
    dout[:, -1] = 0
    (dq,) = torch.autograd.grad(out, [leaves["q"]], dout)
    return {"out": out.transpose(1, 2), "lse": lse[..., None], "dq": dq.transpose(1, 2)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"softcap": 5000.0}, "it does not take a softcap outside of 1/1024 to 1024"),
        ({"alibi_slopes": torch.ones(2), "softcap": 5.0}, "it does not take ALiBi and a softcap together"),
        ({"alibi_slopes": torch.ones(2), "scale": 1e-30}, "it does not take ALiBi beside a scale under 1e-20"),
        (
            {"alibi_slopes": torch.ones(2), "window": (3, 0)},
            "registers do not suffice for fwd of head dimension 64, window alibi",
        ),
        ({"scale": -1.0}, "a scale that is not positive"),
        ({"q": torch.zeros(1, 8, 2, 64)}, "float16 and bfloat16, not torch.float32"),
        ({"q": torch.zeros(1, 8, 2, 32, dtype=H)}, "no tile for head dimensions 32 and 32"),
        ({"q": torch.zeros(1, 8, 2, 68, dtype=H)[..., 4:]}, "not strides (1088, 136, 68, 1) at byte 8"),
        ({"q": torch.zeros(1, 1, 1, 64, dtype=H).expand(1, 8, 2, 64)}, "not strides"),
    ],
    ids=str,
)
def test_what_it_does_not_serve_is_said(change: dict[str, object], reason: str) -> None:
    settings = {"q": torch.zeros(1, 8, 2, 64, dtype=H)} | change
    q = settings.pop("q")
    with dispatch.preferred("1"):
        (step,) = explain(attention, q, q, q, arch=90, **settings).steps
    assert step.implementation == "Triton kernel for sm_90"
    assert step.notes[-1].startswith("not the Hopper tier: ")
    assert reason in step.notes[-1]


def test_packed_sequences_have_limits() -> None:
    starts = torch.zeros(2, dtype=torch.int32, device="meta")
    rows = 2**30 + 1
    long = torch.empty(rows, 1, 64, dtype=H, device="meta")
    with dispatch.preferred("1"):
        (step,) = explain(attention, long, long, long, cu_seqlens_q=starts, cu_seqlens_k=starts, arch=90).steps
        assert f"it packs {2**30} rows, not {rows}" in step.notes[-1]
        (step,) = explain(
            attention, long[:9], long[:9], long[:9], cu_seqlens_q=starts, cu_seqlens_k=starts, arch=90
        ).steps
    assert step.implementation == "Gluon kernel for sm_90"


def test_gradients_of_packed_sequences_are_those_of_plain_triton_where_heads_are_wide() -> None:
    starts = torch.tensor([0, 3, 8], dtype=torch.int32)
    with dispatch.preferred("fused"):
        for kernel in ("dq", "dkdv", "fused"):
            assert _problem(128, starts, left=2).hopper_refusal(kernel) is None
        wide = _problem(192, starts, left=2)
        assert wide.hopper_refusal("fwd") is None
        assert (
            wide.hopper_refusal("dkdv")
            == "it does not take packed sequences, in the gradients of k and v of wide heads"
        )
        reason = "registers do not suffice for dq of head dimension 192, window packed"
        assert wide.hopper_refusal("dq") == reason


def _problem(head_dim: int, starts: Tensor | None = None, left: int | None = None) -> launch.Problem:
    q = torch.zeros(1, 8, 2, head_dim, dtype=H)
    extras = Extras(None, None, None, None, None, starts, starts, 0.125, 0.0, 0.0, left, None, True)
    return launch.Problem(q, q, q, extras, 90)


def test_it_is_for_one_architecture() -> None:
    q = torch.zeros(1, 8, 2, 64, dtype=H)
    with dispatch.preferred("1"):
        for arch in (80, 100, 120):
            (step,) = explain(attention, q, q, q, arch=arch).steps
            assert step.implementation == f"Triton kernel for sm_{arch}"


def test_it_serves_on_request_alone_until_it_is_recorded() -> None:
    q = torch.zeros(1, 8, 2, 64, dtype=H)
    texts = {}
    for preference in ("1", "0", ""):
        with dispatch.preferred(preference):
            texts[preference] = str(explain(attention, q, q, q, arch=90)), dispatch.status()
    assert "Gluon kernel for sm_90" in texts["1"][0]
    assert "128 queries by 128 keys" in texts["1"][0]
    assert "FUSEDFORMER_HOPPER=0" in texts["0"][0]
    assert "FUSEDFORMER_HOPPER=1 turns it on" in texts[""][0]
    assert texts["1"][1].startswith("on: ")
    assert texts["0"][1].startswith("off: ")


@pytest.mark.parametrize(
    ("kernel", "sizes", "features", "expected"),
    [
        ("fwd", (65, 65), (), (96, 96)),
        ("fwd", (64, 96), ("causal",), (96, 96)),
        ("fwd", (96, 97), (), (128, 128)),
        ("fwd", (96, 96), ("window", "alibi"), (128, 128)),
        ("fwd", (64, 64), ("window", "alibi"), (64, 64)),  # no row of the same tiles
        ("fwd", (192, 128), (), (192, 128)),
        ("fwd", (193, 128), (), (256, 128)),
        ("dq", (160, 96), ("packed",), (192, 128)),
        ("dkdv", (129, 129), (), (256, 256)),
        ("fused", (97, 96), (), (128, 128)),
    ],
)
def test_the_smallest_tile_that_fits_serves(
    kernel: str, sizes: tuple[int, int], features: tuple[str, ...], expected: tuple[int, int]
) -> None:
    row = tuning.row_of(kernel, *sizes, features)
    assert row is not None
    assert (row.head_dim, row.head_dim_v) == expected


def test_a_tile_has_a_tail_where_its_columns_are_no_power_of_2() -> None:
    found = {(row.head_dim, row.head_dim_v): (row.tiles, row.tails) for row in tuning.TABLE}
    assert found[96, 96] == ((128, 128), (32, 32))
    assert found[192, 128] == ((256, 128), (64, 0))
    assert found[256, 128] == ((256, 128), (0, 0))


@pytest.mark.parametrize(
    ("group", "seqlen_q", "heads"),
    [(1, 1, 1), (2, 1, 2), (3, 40, 4), (8, 32, 8), (5, 64, 8), (4, 100, 1), (4, 500, 1), (64, 1, 64), (65, 1, 1)],
)
def test_heads_share_a_tile_where_that_takes_fewer_programs(group: int, seqlen_q: int, heads: int) -> None:
    assert tuning.heads_of_tile(group, seqlen_q) == heads
    k = torch.zeros(1, 128, 1, 64, dtype=H)
    with dispatch.preferred("1"):
        text = str(explain(attention, k[:, :1].expand(1, seqlen_q, group, 64).contiguous(), k, k, arch=90))
    assert (f"those of {group} heads share a tile (of {heads})" in text) == (heads > 1)


@pytest.mark.parametrize(
    ("settings", "tflops"),
    [({"softcap": 30.0}, "302 to 326"), ({"alibi_slopes": torch.ones(2)}, "614 to 864")],
    ids=str,
)
def test_the_rate_is_that_of_the_scores(settings: dict[str, object], tflops: str) -> None:
    q = torch.zeros(1, 8, 2, 64, dtype=H)
    with dispatch.preferred("1"):
        assert f"predicted {tflops} TFLOP/s" in str(explain(attention, q, q, q, arch=90, **settings))


def test_a_wrong_setting_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="FUSEDFORMER_HOPPER is 'yes', expected 0, 1, fused, persistent or three"),
        dispatch.preferred("yes"),
    ):
        pass


def test_a_triton_without_gluon_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(64)
    monkeypatch.setattr(dispatch, "KERNELS", "fusedformer.kernels.attention.hopper.no_such_module")
    dispatch.missing.cache_clear()
    try:
        with dispatch.preferred("1"):
            assert "Triton's Gluon lacks what it needs" in str(problem.hopper_refusal("fwd"))
            assert dispatch.status().startswith("off: Triton's Gluon lacks")
    finally:
        dispatch.missing.cache_clear()
