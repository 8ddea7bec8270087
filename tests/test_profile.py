"""`fusedformer profile`: its options, models of time, curves, crossovers, components and files, and whole runs."""

import csv
import json
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import profile_models
import pytest
import torch
from typer.testing import CliRunner, Result

from fusedformer.benchmarks import commands, machines
from fusedformer.benchmarks.profile import cells, components, crossover, curves, exports, options, times
from fusedformer.benchmarks.profile.breakdown import ATTENTION_BACKWARD, ATTENTION_FORWARD, Times, breakdown, by_line
from fusedformer.benchmarks.profile.cells import MODELLED
from fusedformer.benchmarks.profile.components import LOGITS, LOSS, MLP, NORMS, OPTIMIZER, QKV, SOFTMAX
from fusedformer.benchmarks.profile.contenders import MATH, OURS
from fusedformer.benchmarks.profile.family import SHALLOW, sheet_of
from fusedformer.benchmarks.profile.measure import Measurement
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.roofline import bound_seconds, model_seconds, predicted_rate
from fusedformer.benchmarks.profile.steps import TRAIN
from fusedformer.benchmarks.profile.subjects import Built, Subject

MODELS = Path(profile_models.__file__)
OURS_OF_2 = Subject("ours", lambda context, depth: Built(profile_models.ours(context, 2)), n_layers=None)


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(commands.app, ["profile", *arguments])


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512", [512]),
        ("1k:8k:x2", [1024, 2048, 4096, 8192]),
        ("4k,1K,4k", [1024, 4096]),
        ("1k:1m:x1024", [1024, 2**20]),
    ],
)
def test_contexts(text: str, lengths: list[int]) -> None:
    assert options.parse_contexts(text) == lengths


@pytest.mark.parametrize(("text", "n_bytes"), [("141GiB", 141 * 2**30), ("80GB", 80e9), ("1.5 GiB", 1.5 * 2**30)])
def test_memory(text: str, n_bytes: float) -> None:
    assert options.parse_memory(text) == n_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "gpt5"),
            "no model 'gpt5': choose from gpt2, llama-8b, vit-l, whisper, or name a FILE.py:FUNCTION",
        ),
        (("--model", "no/such/file.py:build"), "there is no file no/such/file.py"),
        (("--model", f"{MODELS}:rebuild"), "has no function 'rebuild'"),
        (
            ("--model", f"{MODELS}:nothing", "--context", "64"),
            "expected a model of fusedformer, or (nn.Module, tensors)",
        ),
        (("--context", "1k:8k"), "'1k:8k' is no range of lengths: write one such as 1k:1m:x2"),
        (("--context", "8k:1k:x2"), "'8k:1k:x2' is no range of lengths"),
        (("--context", "0"), "'0' is no length from 1 to"),
        (("--mode", "train,sleep"), "unknown mode 'sleep': choose from train, prefill, decode"),
        (("--attention", "flash"), "unknown attention 'flash': choose from ours, sdpa, math"),
        (("--memory", "lots"), "'lots' is no size of memory: write one such as 141GiB or 80GB"),
        (("--measure-upto", "-1"), "'-1' is no length"),
    ],
)
def test_a_bad_option_is_named_and_exits_with_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_without_a_gpu_says_of_each_figure_how_it_was_obtained(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(
        "--model", f"{MODELS}:gpt", "--context", "64,128", "--memory", "64MiB", "--mode", "prefill,decode",
        "--attention", "ours,math", "--output", str(folder),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = read(folder)
    assert all(row["obtained"] in ("measured", "modelled", "predicted") for row in rows if row["value"])
    assert all(row["machine"] for row in rows if row["value"])
    assert all(row["reason"] for row in rows if not row["value"])
    if not torch.cuda.is_available():
        assert {row["obtained"] for row in rows if row["quantity"] == cells.TIME and row["value"]} == {"modelled"}
        assert {row["machine"] for row in rows if row["value"]} == {"NVIDIA H200"}
    assert {row["section"] for row in rows} == {"breakdown", "fit", "crossover", "extrapolate"}
    pictures = {path.name for path in (folder / "plots").iterdir()}
    drawn = {f"{name}-{mode}.png" for name in ("breakdown", "memory", "roofline") for mode in ("prefill", "decode")}
    assert pictures == drawn | {"decode.png"}
    results = json.loads((folder / "results.json").read_text())
    assert json.loads((folder / "env.json").read_text()) == results["environment"]
    assert "## Fit" in (folder / "summary.md").read_text()
    assert (folder / f"prefill-{exports.TIMELINE}").is_file()


def test_a_run_measures_what_it_is_told_to_and_predicts_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = invoke(
        "--model", f"{MODELS}:gpt", "--context", "8:128:x2", "--measure-upto", "64", "--mode", "decode",
        "--attention", "ours", "--output", str(folder),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    steps = {
        (row["attention"], int(row["context"])): row
        for row in read(folder)
        if (row["section"], row["quantity"], row["component"]) == ("breakdown", cells.TIME, cells.STEP)
    }
    for attention in ("ours",):
        ways = [steps[attention, context]["obtained"] for context in (8, 16, 32, 64, 128)]
        assert ways == ["measured"] * 4 + ["predicted"]
        assert all(float(steps[attention, context]["value"]) > 0 for context in (8, 16, 32, 64, 128))
    curve = [row for row in read(folder) if row["section"] == "extrapolate" and row["attention"] == "ours"]
    assert [row["component"] for row in curve[:3]] == ["a", "b", "c"]
    assert {row["component"] for row in curve if row["context"] == "128"} == {"step", "low", "high"}
    assert {row["obtained"] for row in read(folder) if row["quantity"] == cells.PEAK} == {"measured", "predicted"}
    process, *events = json.loads((folder / f"decode-{exports.TIMELINE}").read_text())["traceEvents"]
    assert "context 64" in process["args"]["name"]
    assert process["args"]["name"].endswith("times measured")
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["args"]["obtained"] for span in spans} == {"measured"}
    assert 1e-6 * sum(span["dur"] for span in spans) == pytest.approx(float(steps["ours", 64]["value"]))


def test_the_timeline_of_some_blocks_says_which_slices_were_measured() -> None:
    """As where a GPU's memory holds three blocks of six: an inner one takes what the middle one took."""
    subject = Subject("ours", lambda context, depth: Built(profile_models.ours(context, depth or 6)), n_layers=6)
    setting = Setting(subject, TRAIN, OURS)
    ran, whole = setting.trace(64, SHALLOW).ops, sheet_of(setting.trace(64, 6))
    measured = Measurement(ran, np.array([float(index) for index in range(len(ran))]), None, SHALLOW, 1)
    seconds, obtained = measured.seconds_of(whole), measured.obtained_of(whole)
    by_block = {
        block: [second for op, second in zip(whole.ops, seconds, strict=True) if op.block == block]
        for block in range(6)
    }
    assert by_block[1] == by_block[3] == by_block[5] != by_block[0]
    ways = {(op.block, way) for op, way in zip(whole.ops, obtained, strict=True)}
    expected = {(block, "measured" if block < SHALLOW else "predicted") for block in range(6)}
    assert ways == expected | {(None, "predicted")}
    assert set(replace(measured, n_blocks=None).obtained_of(whole)) == {"measured"}


@pytest.mark.filterwarnings("error")
def test_a_single_context_is_drawn_without_a_warning(tmp_path: Path) -> None:
    pictures = pytest.importorskip("fusedformer.benchmarks.profile.pictures")
    setting = Setting(OURS_OF_2, "decode", OURS)
    family = setting.family(64, 64)
    found = list(breakdown(setting, 64, family.at(64), times.Modelled(family, machines.H200).at(64)))
    found.append(setting.cell(
        cells.BREAKDOWN, context=64, quantity=cells.PEAK, unit="B", value=1e6, obtained="predicted"
    ))  # fmt: skip
    assert len(pictures.draw(found, machines.H200, 2.0**30, tmp_path)) == 4
    axes = pictures.draw_breakdown(found).axes[0]
    assert len(axes.collections) > 2
    low, high = axes.get_xlim()
    assert low < 64 < high


def test_shares_add_up_and_nothing_is_above_its_roofline() -> None:
    setting = Setting(OURS_OF_2, TRAIN, MATH)
    family = setting.family(64, 512)
    found = list(breakdown(setting, 256, family.at(256), times.Modelled(family, machines.H200).at(256)))
    shares = {c.component: c.value or 0.0 for c in found if c.quantity == cells.SHARE}
    assert shares.pop(cells.STEP) == pytest.approx(1)
    assert sum(shares.values()) == pytest.approx(1)
    assert {ATTENTION_FORWARD, ATTENTION_BACKWARD, SOFTMAX, QKV, MLP, NORMS, LOGITS, LOSS, OPTIMIZER} <= set(shares)
    assert all(0 < (c.value or 0.0) <= 1 for c in found if c.quantity == cells.ROOFLINE and c.component == cells.STEP)


def test_the_model_of_time_by_hand() -> None:
    machine = machines.Machine("toy", 1e12, 1e11, 1e9, 1e9, None, compute_share=0.5, memory_share=0.5)
    built = Subject(
        "linear", lambda context, _: Built(torch.nn.Linear(64, 64, bias=False), (torch.zeros(context, 64),)), None
    )
    sheet = sheet_of(Setting(built, "prefill", OURS).trace(1024, None))
    (seconds,), (bound,) = model_seconds(sheet, machine), bound_seconds(sheet, machine)
    moved = 2 * (2 * 1024 * 64 + 64 * 64)
    assert (seconds, bound) == pytest.approx((moved / 0.5e9, moved / 1e9))


def test_rates_of_ours_are_those_of_the_static_world() -> None:
    assert predicted_rate("attention_fwd", 90, 128) == 653e12
    backward = predicted_rate("attention_bwd", 90, 128)
    assert backward == pytest.approx(5 / (3 / 742e12 + 4 / 621e12))
    assert predicted_rate("attention_fwd", 120, 128) is None


@pytest.mark.parametrize(
    ("op", "path", "component"),
    [
        ("mm", ("stack", "blocks", "3", "attention", "qkv"), QKV),
        ("addmm", ("model", "layers", "0", "self_attn", "o_proj"), components.ATTENTION_OUT),
        ("addmm", ("transformer", "h", "0", "mlp", "c_fc"), MLP),
        ("mm", ("lm_head",), LOGITS),
        ("native_layer_norm", ("ln_f",), NORMS),
        ("attention_bwd", ("stack", "blocks", "3", "attention"), components.ATTENTION),
        ("_safe_softmax", ("a", "@attention"), SOFTMAX),
        ("bmm", ("a", "@attention"), components.ATTENTION),
        ("gelu_fwd", ("feed_forward", "activation"), components.ACTIVATION),
        ("embedding", ("wte",), components.EMBEDDING),
        ("_fused_adamw_", ("@optimizer",), OPTIMIZER),
        ("mm", ("@loss",), LOGITS),
        ("nll_loss_forward", (), LOSS),
        ("add", ("stack", "blocks", "3"), components.RESIDUAL),
    ],
)
def test_components(op: str, path: tuple[str, ...], component: str) -> None:
    assert components.component(op, path) == component


def test_a_curve_finds_its_coefficients_and_its_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    lengths = [2.0**k for k in range(10, 18)]
    truth = [1e-3 + 2e-7 * s + 3e-12 * s * s for s in lengths]
    exact = curves.fit_curve(lengths, truth)
    assert exact.coefficients == pytest.approx((1e-3, 2e-7, 3e-12), rel=1e-6)
    assert curves.held_out_error(lengths, truth) == pytest.approx(0, abs=1e-6)
    inside = 0
    for _ in range(300):
        noisy = [t * (1 + 0.02 * rng.standard_normal()) for t in truth[:-1]]
        curve = curves.fit_curve(lengths[:-1], noisy)
        half = curve.half_width(lengths[-1]) or 0.0
        inside += abs(curve.at(lengths[-1]) - truth[-1] * (1 + 0.02 * rng.standard_normal())) <= half
    assert 0.91 <= inside / 300 <= 0.98  # 95%, give or take what 300 tries leave open
    assert curves.fit_curve(lengths[:3], truth[:3]).half_width(2**20) is None
    with pytest.raises(ValueError, match="needs as many lengths, got 2"):
        curves.fit_curve(lengths[:2], truth[:2])


def test_a_curve_never_falls() -> None:
    lengths = [16.0, 32.0, 64.0, 128.0, 256.0]
    curve = curves.fit_curve(lengths, [5.0, 4.9, 4.8, 4.6, 4.5])
    assert min(curve.coefficients) >= 0
    assert curve.coefficients[0] == pytest.approx(4.75, rel=0.02)
    assert curve.at(4096) == pytest.approx(curve.at(16))


def test_the_first_context_from_which_it_holds() -> None:
    assert crossover.first_context(lambda s: s >= 5000) == pytest.approx(5000, rel=0.01)
    assert crossover.first_context(lambda s: True) == crossover.SHORTEST
    assert crossover.first_context(lambda s: False) is None


def test_attention_takes_half_where_its_share_says_so() -> None:
    def at(context: int) -> Times:
        return Times({ATTENTION_FORWARD: 1e-9 * context**2, MLP: 1e-5 * context}, MODELLED, machines.H200)

    class Fixed:
        def at(self, context: int) -> Times:
            return at(context)

    found = list(crossover.crossovers({OURS: Setting(OURS_OF_2, TRAIN, OURS)}, {OURS: Fixed()}, "toy"))
    assert found[0].value == pytest.approx(10_000, rel=0.01)
    assert found[0].obtained == "modelled"


def test_files_for_other_tools(tmp_path: Path) -> None:
    trace = Setting(OURS_OF_2, TRAIN, OURS).trace(64, None)
    seconds = model_seconds(sheet_of(trace), machines.H200)
    exports.write_timeline(tmp_path / exports.TIMELINE, trace, seconds, ["modelled"] * len(seconds), "ours")
    events = json.loads((tmp_path / exports.TIMELINE).read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(trace.ops)
    assert sum(event["dur"] for event in spans) == pytest.approx(1e6 * seconds.sum())
    exports.write_snapshot(tmp_path / exports.SNAPSHOT, trace, seconds)
    snapshot = pickle.loads((tmp_path / exports.SNAPSHOT).read_bytes())
    live = peak = 0
    for event in snapshot["device_traces"][0]:
        live += {"alloc": 1, "free_completed": -1}.get(event["action"], 0) * event["size"]
        peak = max(peak, live)
    workspace = max(op.workspace for op in trace.ops)
    assert max(trace.live_bytes()) - workspace <= peak <= max(trace.live_bytes())


def test_lines_of_a_sheet_add_up() -> None:
    sheet = sheet_of(Setting(OURS_OF_2, TRAIN, OURS).trace(64, None))
    assert sum(by_line(sheet, sheet.flops).values()) == pytest.approx(sheet.flops.sum())


def test_peaks_of_this_machine_are_measured() -> None:
    found = machines.measured(torch.device("cpu"))
    assert found.source == "measured here"
    assert min(found.matrix_flops, found.vector_flops, found.bandwidth, found.memory) > 0
    assert machines.datasheet("NVIDIA H200") is machines.H200
    assert machines.datasheet("Voodoo 2") is None


def test_a_busy_cpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machines.os, "getloadavg", lambda: (3.25, 1.0, 1.0))
    assert machines.load_by_others(torch.device("cpu")) == "load 3.2 on 4 cores"
    assert machines.load_by_others(torch.device("cuda")) == ""
    monkeypatch.setattr(machines.os, "getloadavg", lambda: (1.9, 9.0, 9.0))
    assert machines.load_by_others(torch.device("cpu")) == ""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is measured, which takes what it takes")
def test_a_million_tokens_of_llama_take_less_than_a_minute(tmp_path: Path) -> None:
    """Of CPU time, imports and pictures included: what runs beside it on this machine does not count."""
    pytest.importorskip("matplotlib")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["profile", "--model", "llama-8b", "--context", "1k:1m:x2", "--output", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-m", "fusedformer", *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert {int(row["context"]) for row in read(tmp_path / "run")} >= {2**exponent for exponent in range(10, 21)}
