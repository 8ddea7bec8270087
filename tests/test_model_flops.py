"""FLOPs of models: as the ledger and PyTorch's own counter have them, and as one works them out by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusedformer.benchmarks import models, patched
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict
from fusedformer.benchmarks.harness.implementation import OURS
from fusedformer.benchmarks.harness.instruments import Instruments, Prepared
from fusedformer.benchmarks.harness.model_flops import model_work
from fusedformer.benchmarks.harness.timing import Plan
from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.models import ARCHITECTURES, DECODE, PREFILL, TRAINING_STEP
from fusedformer.benchmarks.ops import PATCHED
from fusedformer.transformer.ledger import ledger

CPU = torch.device("cpu")


def flops(name: str, direction: str) -> float:
    architecture = ARCHITECTURES[name]
    found = models._Family(architecture, architecture.cases["cpu"], CPU, 0).work(direction).flops
    assert found is not None
    return found


def test_a_decoder_has_those_of_its_ledger() -> None:
    case = ARCHITECTURES["decoder"].cases["cpu"]
    B, S, config = case.batch_size, case.config.max_seq_len, case.config
    table = ledger(config)
    by_name = {row.name: row.flops for row in table.rows}
    head = by_name["unembedding"]
    of_attention = by_name["attention scores"] + by_name["attention, weighted"]
    assert flops("decoder", TRAINING_STEP) == B * S * table.training_flops
    assert flops("decoder", PREFILL) == B * S * (table.flops - head) + B * head
    # The last token sees all S keys, on average it is (S + 1) / 2.
    assert flops("decoder", DECODE) == B * (table.flops - of_attention + of_attention * 2 * S / (S + 1))


@pytest.mark.parametrize("name", ["encoder", "vision_transformer"])
def test_others_have_those_of_pytorchs_counter(name: str) -> None:
    """On torch.nn's model, whose attention is plain products on the meta device."""
    architecture = ARCHITECTURES[name]
    case = architecture.cases["cpu"]
    with torch.device("meta"):
        theirs = architecture.theirs(case.config).train()  # else it takes a fast path that is not counted
    batch = architecture.make_batch(case, torch.Generator()).to(case.dtype, torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(*batch.inputs)
    assert flops(name, "forward") == counter.get_total_flops()
    assert flops(name, TRAINING_STEP) == 3 * counter.get_total_flops()


def test_an_encoder_decoder_by_hand() -> None:
    case = ARCHITECTURES["encoder_decoder"].cases["cpu"]
    B, S, E, F = case.batch_size, case.config.max_seq_len, case.config.d_model, case.config.d_ff
    feed_forward, self_products, cross_products = 2 * S * 2 * E * F, 2 * S * 4 * E * E, 2 * S * 4 * E * E
    every_key, causal = 2 * 2 * S * S * E, 2 * S * (S + 1) * E
    encoder = self_products + every_key + feed_forward
    decoder = self_products + causal + cross_products + every_key + feed_forward
    head = 2 * S * E * case.config.vocab_size
    assert flops("encoder_decoder", "forward") == B * (case.config.n_layers * (encoder + decoder) + head)


def test_a_patched_model_by_hand() -> None:
    """Llama: keys that the causal mask hides are not counted, though its library's attention is PyTorch's."""
    pytest.importorskip("transformers")
    model = PATCHED["patched_llama"]
    widths, sizes = model.widths["cpu"], model.sizes["cpu"]
    B, S, V = sizes["B"], sizes["S"], widths["vocab_size"]
    E, F, L = widths["hidden_size"], widths["intermediate_size"], widths["num_hidden_layers"]
    K = E // widths["num_attention_heads"] * widths["num_key_value_heads"]
    token = L * (2 * E * E + 2 * E * K + 3 * E * F) + V * E
    # Transformers takes angles for the rotary embedding by a product of frequencies and positions, once.
    angles = E // widths["num_attention_heads"] // 2
    by_hand = 3 * (2 * B * S * token + L * B * 2 * S * (S + 1) * E + 2 * S * angles)
    assert patched._Bench(model, CPU, torch.float32, 0).work().flops == pytest.approx(by_hand, rel=1e-3)


def test_products_are_counted_in_inference_mode_too() -> None:
    x, w = torch.zeros(5, 3, device="meta"), torch.zeros(7, 3, device="meta")
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            work = model_work(lambda: torch.nn.functional.linear(x, w).relu())
        assert (work.flops, work.unit) == (2 * 5 * 3 * 7, "TFLOP")


def test_rows_of_models_have_rates_and_shares_of_the_peak() -> None:
    (comparison,) = (c for c in models.comparisons(ARCHITECTURES["encoder"], CPU, 0) if c.direction == "forward")
    work = flops("encoder", "forward")
    comparison = Comparison(
        **{**vars(comparison), "contenders": {OURS: Contender(Verdict, lambda: Prepared(lambda: sum(range(1000))))}}
    )
    peaks = Machine("here", matrix_flops=2e12, vector_flops=1e12, bandwidth=1e9, memory=1, arch=None)
    (row,) = comparison.measured(Instruments.of(CPU, peaks), lambda: Plan(seconds=0.01, limit_seconds=1.0))
    assert row.time_p50_s is not None
    assert row.flops == work
    assert row.rate == pytest.approx(work / 1e12 / row.time_p50_s)
    assert (row.rate_unit, row.peak_share) == ("TFLOP/s", pytest.approx(row.rate))


def test_a_count_that_fails_costs_the_rates_alone() -> None:
    def count() -> object:
        raise ImportError("no such library")

    contender = Contender(Verdict, lambda: Prepared(lambda: sum(range(1000))))
    comparison = Comparison("m", "B=1", "float32", "reference", "forward", {OURS: contender}, count=count)  # type: ignore[arg-type]
    (row,) = comparison.measured(Instruments.of(CPU), lambda: Plan(seconds=0.01, limit_seconds=1.0))
    assert (row.status, row.flops, row.rate) == ("ok", None, None)
    assert row.time_p50_s is not None
