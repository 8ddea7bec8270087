"""Row-wise kernels on every rung of the ladder, clusters included: small rows sent there by force, in the emulator.

An op that is written over csrc/row.cuh adds itself to OPS. The ladder itself is tested in test_ladder.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import emulated_world
from oracle import check_op
from torch import Tensor

from fusedformer import add_layer_norm, cross_entropy, layer_norm, log_softmax, rms_norm, softmax

DTYPES = [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16]
Run = Callable[[Tensor], None]
Options = dict[str, Any]


def check_softmax(x: Tensor) -> None:
    check_op(softmax, lambda x: F.softmax(x, dim=-1), [x])


def check_log_softmax(x: Tensor) -> None:
    check_op(log_softmax, lambda x: F.log_softmax(x, dim=-1), [x])


def check_masked_softmax(x: Tensor) -> None:
    """Causal, with an unaligned boolean mask and with an additive one in x's dtype and in float32."""
    rows, n = x.shape
    seen = torch.rand(rows * n + 1, generator=torch.Generator().manual_seed(2)) < 0.7
    seen = seen[1:].view(rows, n).index_fill(1, torch.zeros(1, dtype=torch.int64), True)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(3)).bfloat16()

    def plain(x: Tensor) -> Tensor:
        future = torch.ones_like(seen).triu(n - rows + 1)
        return F.softmax((0.7 * x + bias.to(x)).masked_fill(future, -torch.inf), dim=-1).nan_to_num(0.0)

    check_op(lambda x: softmax(x, mask=seen), lambda x: F.softmax(x.masked_fill(~seen, -torch.inf), dim=-1), [x])
    check_op(lambda x: softmax(x, mask=bias.to(x.dtype), scale=0.7, causal=True), plain, [x])
    check_op(lambda x: softmax(x, mask=bias.float(), scale=0.7, causal=True), plain, [x])


def check_layer_norm(x: Tensor) -> None:
    """With unaligned weights in x's dtype, with float32 weights and with none."""
    n = x.shape[-1]
    parameters = 1 + 0.1 * torch.randn(2 * n + 1, generator=torch.Generator().manual_seed(2))
    weight, bias = parameters.to(x.dtype)[1:].view(2, n)
    names = ["dx", "dweight", "dbias"]
    check_op(layer_norm, lambda x, w, b: F.layer_norm(x, (n,), w, b), [x, weight, bias], names=names)
    check_op(layer_norm, lambda x, w, b: F.layer_norm(x, (n,), w, b), [x, weight.float(), bias.float()], names=names)
    check_op(layer_norm, lambda x: F.layer_norm(x, (n,)), [x], names=names[:1])


def check_rms_norm(x: Tensor) -> None:
    """With an unaligned weight in x's dtype and with none."""
    n = x.shape[-1]
    weight = 1 + 0.1 * torch.randn(n + 1, generator=torch.Generator().manual_seed(2)).to(x.dtype)[1:]
    check_op(rms_norm, lambda x, w: F.rms_norm(x, (n,), w), [x, weight], names=["dx", "dweight"])
    check_op(rms_norm, lambda x: F.rms_norm(x, (n,)), [x], names=["dx"])


def check_add_layer_norm(x: Tensor) -> None:
    """Both outputs side by side; dropout is in test_add_norm.py."""
    n, generator = x.shape[-1], torch.Generator().manual_seed(2)
    residual = torch.randn(x.numel() + 1, generator=generator).to(x.dtype)[1:].view(x.shape)
    weight, bias = (1 + 0.1 * torch.randn(2, n, generator=generator)).to(x.dtype)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        s = x + residual
        return torch.cat((F.layer_norm(s, (n,), weight, bias), s), -1)

    names = ["dx", "dresidual", "dweight", "dbias"]
    check_op(lambda *inputs: torch.cat(add_layer_norm(*inputs), -1), plain, [x, residual, weight, bias], names=names)


def check_cross_entropy(x: Tensor) -> None:
    """With and without smoothing; its backward has no rungs."""
    target = torch.randint(x.shape[-1], x.shape[:-1], generator=torch.Generator().manual_seed(2))
    for smoothing in (0.0, 0.1):
        # Of one class, loss and gradient are 0 but for rounding, and there is nothing to judge by.
        options: Options = {"reduction": "none", "label_smoothing": smoothing if x.shape[-1] > 1 else 0.0}
        check_op(partial(cross_entropy, **options), partial(F.cross_entropy, **options), [x, target])


OPS = [
    pytest.param(check_softmax, marks=pytest.mark.op("softmax"), id="softmax"),
    pytest.param(check_log_softmax, marks=pytest.mark.op("log_softmax"), id="log_softmax"),
    pytest.param(check_masked_softmax, marks=pytest.mark.op("masked_softmax"), id="masked_softmax"),
    pytest.param(check_layer_norm, marks=pytest.mark.op("layer_norm"), id="layer_norm"),
    pytest.param(check_rms_norm, marks=pytest.mark.op("rms_norm"), id="rms_norm"),
    pytest.param(check_add_layer_norm, marks=pytest.mark.op("add_layer_norm"), id="add_layer_norm"),
    pytest.param(check_cross_entropy, marks=pytest.mark.op("cross_entropy"), id="cross_entropy"),
]
# Threads (of one block), vectors held by each and blocks; 0 blocks are lanes of a warp, 0 vectors are streaming.
RUNGS = [
    (8, 1, 0),
    (8, 4, 0),
    (16, 4, 0),
    (32, 1, 0),
    (32, 4, 0),
    (32, 8, 0),
    (64, 4, 1),
    (96, 8, 1),
    (64, 0, 1),
    (32, 4, 2),
    (64, 8, 4),
    (32, 4, 8),
    (32, 4, 16),
    (32, 0, 3),
    (64, 0, 8),
]


def name_of(rung: tuple[int, int, int]) -> str:
    threads, held, blocks = rung
    team = f"{threads}-lanes" if blocks == 0 else f"{blocks}-blocks-of-{threads}"
    return f"{team}-{f'hold-{held}' if held else 'stream'}"


def make_rows(n: int, dtype: torch.dtype, offset: int, rows: int = 0) -> Tensor:
    """(rows, n), of which the first one begins `offset` elements past an aligned address; many rows if they are short.

    Of few elements, PyTorch's error may by chance be so small that twice as much is no measure.
    """
    rows = rows or 3 + 600 // n
    values = 2 * torch.randn(offset + rows * n, generator=torch.Generator().manual_seed(0)) + 0.5
    return values.to(dtype)[offset:].view(rows, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
@pytest.mark.parametrize("check", OPS)
def test_every_rung(
    check: Run, rung: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a row that the team nearly all misses to the longest one it holds, at every alignment."""
    threads, held, blocks = rung
    width = 16 // dtype.itemsize
    longest = threads * (held or 3) * max(blocks, 1) * width
    monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", f"{threads} {held} {blocks}")
    with emulated_world("softmax"):
        for n, offset in [(1, 0), (width + 3, 1), (longest // 2 + 1, 3), (longest, 0), (longest, 1)]:
            check(make_rows(n, dtype, offset))


@pytest.mark.parametrize("check", OPS)
def test_more_rows_than_teams(check: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A team goes on to further rows; lanes of one warp have rows or none."""
    for rung in ("8 1 0", "16 4 0", "32 4 1", "32 4 4"):
        monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", rung)
        with emulated_world("softmax"):
            check(make_rows(21, torch.float32, 0, rows=101))


@pytest.mark.parametrize("gpu", ["80 108 1", "90 132 16", "90 132 8"])
@pytest.mark.parametrize("check", OPS)
def test_the_ladder_of_each_gpu(check: Run, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row too long for a block: streamed on sm_80, held by a cluster on sm_90, of 16 blocks unless it is refused.

    Of a multiple of 16 bytes too, where gradients of parameters are summed on the way.
    """
    monkeypatch.setenv("FUSEDFORMER_EMULATED_GPU", gpu)
    with emulated_world("softmax"):
        check(make_rows(20_003, torch.float32, 0, rows=2))
        check(make_rows(20_000, torch.float32, 0, rows=2))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["90 132 16", "90 132 8"])
def test_a_cluster_of_16_or_what_stands_for_it(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDFORMER_EMULATED_GPU", gpu)
    with emulated_world("softmax"):
        check_softmax(make_rows(140_001, torch.float32, 0, rows=1))
        check_rms_norm(make_rows(140_000, torch.bfloat16, 0, rows=1))


def test_a_row_longer_than_its_rung_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", "8 1 0")
    with emulated_world("softmax"), pytest.raises(RuntimeError, match="invalid argument"):
        softmax(torch.ones(2, 8 * 4 + 1))


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_special_values_on_every_rung(rung: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of -inf gives 0 though all that its team merges is the identity; NaN and +inf stay in their row."""
    threads, held, blocks = rung
    monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", f"{threads} {held} {blocks}")
    with emulated_world("softmax"):
        x = make_rows(29, torch.float32, 0, rows=6)
        clean = softmax(x)
        x = x.clone()
        x[1], x[2, 28], x[4, 0] = -torch.inf, torch.nan, torch.inf
        y = softmax(x)
    assert torch.equal(y[1], torch.zeros(29))
    assert y[[2, 4]].isnan().all()
    torch.testing.assert_close(y[[0, 3, 5]], clean[[0, 3, 5]], rtol=0, atol=0)
