"""A training step of a small GPT over characters: ours beside the same model in plain PyTorch, with the same weights.

`pytest benchmarks -k char_gpt` prints both times; `fusedformer verify --model char-gpt` their ratio, interleaved.
"""

from typing import Any

import pytest
import torch

from fusedformer.benchmarks.verify import char_gpt

pytest.importorskip("pytest_benchmark")
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["ours", "plain"])
def test_char_gpt(benchmark: Any, name: str) -> None:
    pair = char_gpt.make_pair(CPU)
    tokens = torch.randint(char_gpt.VOCABULARY, (char_gpt.BATCH, char_gpt.LENGTH + 1))
    gradients = [char_gpt.gradients(model, tokens, torch.float32) for model in pair]
    assert gradients[0].numel() == 809_856
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    step = char_gpt.training(pair[name == "plain"], tokens, torch.float32)
    first = step()
    benchmark.group = "training step of a GPT over characters"
    benchmark.pedantic(step, rounds=20, warmup_rounds=3)  # once, where `--benchmark-disable` is given
    assert step() < first
