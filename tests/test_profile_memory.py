"""Predicted memory: against what PyTorch's allocator hands out, against whole traces, and with changes to a model."""

import math

import numpy as np
import profile_models
import pytest
import torch

from fusedformer.benchmarks.profile import changes, fit, measure
from fusedformer.benchmarks.profile.changes import CHANGES, CHECKPOINTING, CHUNKED_LOSS, CHUNKED_MLP
from fusedformer.benchmarks.profile.contenders import CONTENDERS, MATH, OURS, SDPA
from fusedformer.benchmarks.profile.family import COLUMNS, Family, IrregularError, sheet_of
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.steps import DECODE, PREFILL, TRAIN, NobodyObserves, NoSuchStepError, make_step
from fusedformer.benchmarks.profile.subjects import Built, Subject, build_on, find_subject
from fusedformer.benchmarks.profile.tracing import Tracer

CPU = torch.device("cpu")
PLAIN = Subject("plain", lambda context, _: Built(*profile_models.plain(context)), n_layers=None)
GPT = Subject("gpt", lambda context, _: Built(profile_models.gpt(context)), n_layers=None)
OURS_OF_6 = Subject("ours", lambda context, depth: Built(profile_models.ours(context, depth or 6)), n_layers=6)


@pytest.mark.parametrize(
    ("subject", "mode", "attention"),
    [
        (PLAIN, TRAIN, SDPA), (PLAIN, TRAIN, MATH), (PLAIN, PREFILL, SDPA), (PLAIN, PREFILL, MATH),
        (GPT, TRAIN, OURS), (GPT, TRAIN, MATH), (GPT, PREFILL, OURS), (GPT, DECODE, MATH),
    ],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_predicted_memory_is_what_pytorch_allocates(subject: Subject, mode: str, attention: str) -> None:
    """Within 3%. The allocator's own records, from PyTorch's profiler, know nothing of traces."""
    torch.manual_seed(0)
    setting, context = Setting(subject, mode, attention, "cpu"), 256
    predicted = max(setting.trace(context, None).live_bytes())
    step = make_step(build_on(CPU, subject, context, None), mode, context, CPU)
    assert predicted == pytest.approx(measure.allocated_peak(step, setting, CPU), rel=0.03)


def test_a_real_run_has_the_memory_of_the_trace_without_data() -> None:
    step = make_step(build_on(CPU, GPT, 64, None), TRAIN, 64, CPU)
    with Tracer(step.model, device_type="cpu") as tracer:
        for kind, held in step.held.items():
            tracer.hold(kind, held)
        step.run(tracer)
    expected = Setting(GPT, TRAIN, OURS, "cpu").trace(64, None)
    assert max(tracer.trace.live_bytes()) == pytest.approx(max(expected.live_bytes()), rel=0.001)


@pytest.mark.parametrize("attention", CONTENDERS)
@pytest.mark.parametrize("mode", [TRAIN, PREFILL, DECODE])
def test_a_family_is_the_trace_of_every_length_and_depth(mode: str, attention: str) -> None:
    """From traces of 3 and 4 blocks at other lengths, the whole model of 6 blocks at this one: to the last byte."""
    setting, context = Setting(OURS_OF_6, mode, attention), 200
    found = setting.family(64, 512).at(context)
    whole = sheet_of(setting.trace(context, 6))
    assert found.peak == pytest.approx(whole.peak, rel=1e-9)
    for name in COLUMNS[:-1]:
        total = (getattr(found, name) * found.weights).sum()
        assert total == pytest.approx(getattr(whole, name).sum(), rel=1e-9)


def test_what_is_held_at_the_peak_adds_up_to_it() -> None:
    setting = Setting(OURS_OF_6, TRAIN, MATH)
    family, context = setting.family(64, 512), 512
    held = family.held_at_peak(context)
    sheet = family.traced(context)
    workspace = sheet.ops[sheet.peak_index].workspace
    assert sum(item.n_bytes for item in held) + workspace == pytest.approx(sheet.peak, rel=1e-9)
    scores = [item for item in held if "512, 512) float32 of _safe_softmax" in item.what]
    assert scores[0].count == 6
    assert scores[0].n_bytes == 6 * 4 * 512 * 512 * 4


def test_what_is_no_polynomial_is_refused() -> None:
    def build(context: int, _: int | None) -> Built:
        return Built(torch.nn.Sequential(torch.nn.Linear(8, 8)), (torch.zeros(2 ** (context // 64), 8),))

    setting = Setting(Subject("odd", build, n_layers=None), PREFILL, OURS)
    with pytest.raises(IrregularError, match="no polynomial"):
        setting.family(64, 1024)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_computes_the_same_gradients(change: str) -> None:
    gradients = []
    for chosen in (frozenset[str](), frozenset({change})):
        torch.manual_seed(0)
        built = Built(profile_models.ours(64, 2))
        seen: list[torch.Tensor] = []

        class Observer(NobodyObserves):
            def hold(self, kind: str, held: object, seen: list[torch.Tensor] = seen) -> None:
                seen.extend(x.clone() for x in held)  # type: ignore[attr-defined]

        make_step(built, TRAIN, 64, CPU, chosen).run(Observer())
        gradients.append(seen)
    for plain, changed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, changed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", CONTENDERS)
def test_changes_keep_the_contender_when_they_recompute(attention: str) -> None:
    trace = Setting(OURS_OF_6, TRAIN, attention, changes=frozenset({CHECKPOINTING})).trace(64, 2)
    names = {OURS: "attention_fwd", SDPA: "_scaled_dot_product_flash_attention", MATH: "_safe_softmax"}
    counts = {name: sum(op.name == name for op in trace.ops) for name in names.values()}
    assert counts == {name: 4 if name == names[attention] else 0 for name in counts}  # 2 blocks, twice


def test_changes_save_what_they_are_for() -> None:
    def family(*chosen: str) -> Family:
        return Setting(OURS_OF_6, TRAIN, SDPA, changes=frozenset(chosen)).family(256, 4096)

    peaks = {change: family(change).at(4096).peak for change in CHANGES}
    plain = family().at(4096).peak
    assert peaks[CHECKPOINTING] < 0.5 * plain
    assert peaks[CHUNKED_MLP] < plain
    assert peaks[CHUNKED_LOSS] < plain


def test_the_largest_context_fits_and_one_more_does_not() -> None:
    family, memory = Setting(OURS_OF_6, TRAIN, OURS).family(64, 4096), 2.0**28
    largest = fit.largest_context(OURS_OF_6, family, memory)
    assert family.traced(largest).peak <= memory < family.traced(largest + 1).peak


def test_fit_names_changes_and_the_degree_that_doubles() -> None:
    setting = Setting(OURS_OF_6, TRAIN, OURS)
    found = list(fit.fit(setting, setting.family(64, 4096), 2.0**28, 64, 4096, "here"))
    by_name = {cell.component: cell for cell in found if cell.quantity == fit.LARGEST}
    largest = by_name[fit.LARGEST].value or 0
    for name in (CHECKPOINTING, CHUNKED_MLP, CHUNKED_LOSS):
        value = by_name[name].value or 0
        assert by_name[name].reason == f"{'reaches' if value >= 2 * largest else 'misses'} {2 * largest:.0f}"
    degrees = [name for name in by_name if name.startswith(fit.DEGREE)]
    assert degrees in ([f"{fit.DEGREE} 2"], [f"{fit.DEGREE} 4"])
    assert all(cell.obtained == "predicted" for cell in found)


def test_keys_and_values_of_a_layer() -> None:
    assert fit.kv_bytes(OURS_OF_6) == 2 * 2 * 16 * 2  # k and v, 2 heads of 16, 2 bytes
    assert fit.kv_bytes(PLAIN) == 0


def test_an_encoder_decoder_is_traced_whole() -> None:
    family = Setting(find_subject("whisper"), TRAIN, OURS).family(256, 1024)
    assert family.n_layers is None
    assert math.isfinite(family.at(512).peak)


def test_models_say_which_steps_they_have_not() -> None:
    with pytest.raises(NoSuchStepError, match="VisionTransformer does not decode"):
        Setting(find_subject("vit-l"), DECODE, OURS).trace(64, 1)
    with pytest.raises(NoSuchStepError, match="VisionTransformer has no loss over the sequence"):
        Setting(find_subject("vit-l"), TRAIN, OURS, changes=frozenset({CHUNKED_LOSS})).trace(64, 1)
    with pytest.raises(ValueError, match="chunked MLP: Sequential has no ModuleList 'blocks'"):
        changes.apply_changes(torch.nn.Sequential(), frozenset({CHUNKED_MLP}))


def test_weights_are_alike_but_for_the_middle_block() -> None:
    weights = Setting(OURS_OF_6, PREFILL, OURS).family(64, 512).at(128).weights
    assert set(np.unique(weights)) == {1.0, 3.0}
