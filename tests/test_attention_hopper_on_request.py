"""The forward's rows on request, a persistent grid and three consumers: what they do not serve, the table's rows do."""

import math
from typing import Any

import pytest
import torch
from attention_cases import Case, check, make_inputs, run
from torch import Tensor

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

from planted_gluon import CASES as LAUNCHES
from planted_gluon import edited
from planted_gluon_runs import outcome

from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.hopper import dispatch, tuning
from fusedformer.kernels.attention.launch import Problem
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.explain import explain

pytestmark = pytest.mark.op("attention")

H, B = torch.float16, torch.bfloat16
SEEDS = range(10)
CASES = [
    Case(300, 200, 64, dtype=B, heads=2),
    Case(270, 340, 64, dtype=H, heads=4, kv_heads=2, batch=2, causal=True),
    Case(260, 70, 64, dtype=B, heads=2, causal=True),  # the first queries see nothing
    Case(150, 260, 64, dtype=B, heads=1, batch=2, window=(40, 20), sinks=True),
]
PERSISTENT_CASES = [
    Case(129, 300, 128, dtype=H, heads=3, batch=2),
    Case(400, 400, 128, dtype=B, heads=2, kv_heads=1, causal=True, softcap=20.0),
    Case(130, 140, 224, dtype=B, heads=3, head_dim_v=128, causal=True),
    Case(200, 70, 256, dtype=H, heads=2, head_dim_v=104, window=(30, 10), sinks=True),
]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched, in order."""
    from fusedformer.kernels.attention.hopper import launch

    names: list[str] = []
    start = launch._start

    def noted(row: tuning.Row, *args: Any) -> None:
        names.append(f"{row.built_as}, {row.consumers} consumers")
        start(row, *args)

    monkeypatch.setattr(launch, "_start", noted)
    return names


@pytest.mark.parametrize("case", CASES + PERSISTENT_CASES, ids=str)
def test_a_persistent_grid(case: Case, hopper_device: torch.device, kernels: list[str]) -> None:
    with dispatch.preferred("persistent"):
        check(case, hopper_device)
    assert kernels[0] == "fwd_persistent, 2 consumers"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_consumers(case: Case, hopper_device: torch.device, kernels: list[str]) -> None:
    with dispatch.preferred("three"):
        check(case, hopper_device)
    assert kernels[0] == "fwd, 3 consumers"


@pytest.mark.parametrize("request_", tuning.ON_REQUEST)
def test_what_is_hidden_does_not_leak(request_: str, hopper_device: torch.device, kernels: list[str]) -> None:
    inputs = make_inputs(Case(270, 270, 64, dtype=H, heads=2, batch=2, causal=True), hopper_device)

    def results() -> dict[str, Tensor]:
        with dispatch.preferred(request_):
            return run(lambda **tensors: attention(**tensors, causal=True, return_lse=True), inputs)

    clean = results()
    for name in "kv":
        inputs[name][:, -1] = math.nan  # the last query alone sees it
    found = results()
    torch.testing.assert_close(found["out"][:, :-1], clean["out"][:, :-1], atol=2e-3, rtol=2e-3)
    assert found["out"][:, -1].isnan().all()
    assert "fwd, 2 consumers" not in kernels


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAUNCHES if name.startswith(("persistent", "three"))])
def test_no_schedule_makes_a_difference(name: str) -> None:
    with edited(()) as modules:
        assert {outcome(modules, LAUNCHES[name], seed) for seed in SEEDS} == {"right"}


def _row(request_: str, head_dim: int = 64, head_dim_v: int = 64, seqlen_q: int = 256, **settings: Any) -> tuning.Row:
    q = torch.zeros(1, seqlen_q, 4, head_dim, dtype=H)
    k, v = torch.zeros(1, 256, 2, head_dim, dtype=H), torch.zeros(1, 256, 2, head_dim_v, dtype=H)
    given: dict[str, Any] = {"slopes": None, "starts": None, "softcap": 0.0, "left": None, "right": None} | settings
    extras = Extras(
        None, None, given["slopes"], None, None, given["starts"], given["starts"], 0.125, given["softcap"], 0.0,
        given["left"], given["right"], True,
    )  # fmt: skip
    with dispatch.preferred(request_):
        row = dispatch.row_for("fwd", Problem(q, k, v, extras, 90))
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("request_", "settings", "built_as"),
    [
        ("persistent", {}, "persistent"),
        ("persistent", {"right": 0, "softcap": 3.0}, "persistent"),
        ("persistent", {"head_dim": 224, "head_dim_v": 128, "left": 3}, "persistent"),
        ("persistent", {"head_dim": 192, "head_dim_v": 192}, "plain"),  # O has no room beside Q
        ("persistent", {"slopes": torch.ones(1, 4)}, "plain"),
        ("persistent", {"starts": torch.tensor([0, 256])}, "plain"),
        ("persistent", {"seqlen_q": 1}, "plain"),  # heads share a tile
        ("three", {}, "three by 128"),
        ("three", {"right": 0}, "three by 64"),
        ("three", {"right": 0, "softcap": 3.0}, "plain"),
        ("three", {"head_dim": 128, "head_dim_v": 128}, "plain"),
        ("1", {}, "plain"),
        ("fused", {}, "plain"),
    ],
    ids=str,
)
def test_what_is_not_served_is_the_tables(request_: str, settings: dict[str, Any], built_as: str) -> None:
    row = _row(request_, **settings)
    kind = "persistent" if row.persistent else f"three by {row.block}" if row.consumers == 3 else "plain"
    assert kind == built_as
    assert (row in tuning.TABLE) == (built_as == "plain")


def test_it_is_said() -> None:
    q = torch.zeros(1, 256, 2, 64, dtype=H)
    texts = {}
    for request_ in tuning.ON_REQUEST:
        with dispatch.preferred(request_):
            texts[request_] = str(explain(attention, q, q, q, arch=90)), dispatch.status()
    assert (
        "tile of 128 queries by 128 keys, 2 consumer warpgroups, 2 stages, a persistent grid" in texts["persistent"][0]
    )
    assert "tile of 192 queries by 128 keys, 3 consumer warpgroups, 2 stages" in texts["three"][0]
    assert texts["three"][1] == "on: FUSEDFORMER_HOPPER=three"


def test_the_registers_of_a_program_are_there() -> None:
    rows = [*tuning.TABLE, *(row for rows in tuning.ON_REQUEST.values() for row in rows)]
    for row in rows:
        assert row.registers * row.threads <= 65_536
        assert 128 * (row.consumers * row.consumer_registers + row.producer_registers) <= 65_536
    assert {row.registers for row in rows} == {168, 128}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"consumers": 4}, "4 consumers in fwd, expected 2, or 3 in fwd"),
        ({"kernel": "dq", "consumers": 3}, "3 consumers in dq"),
        ({"consumers": 3, "persistent": True}, "3 consumers in a persistent fwd"),
        ({"kernel": "dq", "persistent": True}, "persistent dq, 64 columns of v, expected fwd, 128 or fewer"),
        ({"head_dim_v": 256, "persistent": True}, "persistent fwd, 256 columns of v"),
        ({"head_dim": 96, "persistent": True}, "persistent fwd of 96/64, expected powers of 2"),
    ],
    ids=str,
)
def test_a_row_of_no_kernel_is_refused(change: dict[str, Any], error: str) -> None:
    settings: dict[str, Any] = {"kernel": "fwd", "head_dim": 64, "head_dim_v": 64, "block": 64, "stages": 2}
    with pytest.raises(ValueError, match=error):
        tuning.Row(**(settings | {"evidence": tuning.UNKNOWN} | change))
