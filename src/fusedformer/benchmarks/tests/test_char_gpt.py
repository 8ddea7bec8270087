"""A training step of a small GPT over characters: ours beside plain PyTorch's, as `fusedformer verify` times them, too.

`pytest benchmarks -k char_gpt` prints both times.
"""

from typing import Any

import pytest
import torch

from fusedformer.benchmarks.verify.char_gpt import LENGTH, make_trainings

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("index", [0, 1], ids=["ours", "plain"])
def test_char_gpt(benchmark: Any, index: int) -> None:
    trainings = make_trainings(torch.device("cpu"), torch.float32)
    config: Any = trainings[0].model.config
    assert (config.n_layers, config.d_model, config.max_seq_len) == (4, 128, LENGTH)
    training = trainings[index]
    assert sum(parameter.numel() for parameter in training.model.parameters()) == 809_856  # of both alike
    benchmark.group = "training step of a GPT over characters"
    first = training.step()
    benchmark.pedantic(training.step, rounds=20, warmup_rounds=3)  # once, where `--benchmark-disable` is given
    assert training.step() < first
