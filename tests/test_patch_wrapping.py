"""A patched model under torch.compile, FSDP and DistributedDataParallel, and one that is patched within them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drop_in_models import counts, loss_and_gradients, make_net, make_tokens
from test_patch import N_PATCHED, SERVED, assert_same, classes, make_small, path  # noqa: F401  (a fixture)
from torch import Tensor, nn

import fusedformer
from fusedformer.drop_in.classes import Patched


@pytest.mark.parametrize("patch_first", [True, False])
def test_compile_makes_one_graph(patch_first: bool) -> None:
    net, tokens = make_small(), torch.randn(2, 3, 8)
    before = classes(net)
    expected = loss_and_gradients(net, tokens)
    torch._dynamo.reset()
    if patch_first:
        fusedformer.patch(net)
    compiled: Any = torch.compile(net, backend="eager", fullgraph=True)
    if not patch_first:
        compiled(tokens)
        fusedformer.patch(compiled)
    assert_same(loss_and_gradients(compiled, tokens), expected)
    assert counts(net) == {}
    fusedformer.unpatch(compiled)
    assert classes(net) == before
    assert_same(loss_and_gradients(compiled, tokens), expected)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_fsdp(path: str) -> None:  # noqa: F811
    from torch.distributed.fsdp import fully_shard

    net, tokens = make_net(), make_tokens()
    expected = loss_and_gradients(net, tokens)
    fusedformer.patch(net)
    for layer in net.encoder.layers:
        fully_shard(layer)
    fully_shard(net)
    loss, *_ = loss_and_gradients_of_shards(net, tokens)
    torch.testing.assert_close(loss, expected[0])
    assert path == "original" or counts(net)["add_layer_norm"] == SERVED["add_layer_norm"]
    with pytest.raises(ValueError, match="FSDPTransformerEncoderLayer were derived from patched classes"):
        fusedformer.unpatch(net)
    assert isinstance(net.loss, Patched)


@pytest.mark.usefixtures("process_group")
def test_patch_after_fsdp_and_ddp() -> None:
    from torch.distributed.fsdp import fully_shard

    net, tokens = make_net(), make_tokens()
    expected = net(tokens)
    fully_shard(net.encoder.layers[0].norm1)
    fully_shard(net)
    before = classes(net)
    with fusedformer.patch(net) as report:
        assert len(report.replaced) == N_PATCHED
        torch.testing.assert_close(net(tokens), expected)
    assert classes(net) == before
    net = make_net()
    fusedformer.patch(net)
    wrapped = nn.parallel.DistributedDataParallel(net)
    assert_same(loss_and_gradients(wrapped, tokens), loss_and_gradients(net, tokens))


def loss_and_gradients_of_shards(net: nn.Module, tokens: Tensor) -> list[Tensor]:
    loss = net(tokens)
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    return [loss.detach()]
