"""`patch` keeps what it promises to keep, computes what the model computed, and `unpatch` takes all of it back."""

import copy
import io
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import World
from drop_in_models import Net, counts, loss_and_gradients, make_net, make_tokens, serve_everywhere
from torch import Tensor, nn

import fusedformer
from fusedformer.drop_in import (
    calls,
    hugging_face_blocks,
    hugging_face_model,
    hugging_face_rules,
    timm_rules,
    torch_rules,
)
from fusedformer.drop_in.classes import Patched
from fusedformer.drop_in.registry import RULES

N_PATCHED = 24
SERVED = {
    "add_layer_norm": 6, "attention": 5, "cross_entropy": 1, "gelu": 3, "layer_norm": 2, "log_softmax": 1,
    "rms_norm": 1, "softmax": 1,
}  # fmt: skip


@pytest.fixture(autouse=True, params=["original", "served"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each promise holds where modules compute by their own code, as on a CPU, and where our functions serve."""
    if request.param == "served":
        serve_everywhere(monkeypatch)
    return str(request.param)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, nn.GELU(), batch_first=True)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.layer(x).flatten(0, 1), torch.arange(x.shape[0] * x.shape[1], device=x.device))


def make_small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in model.modules()]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients(training: bool, path: str) -> None:
    net, tokens = make_net().train(training), make_tokens()
    expected = loss_and_gradients(net, tokens)
    report = fusedformer.patch(net)
    assert (len(report.replaced), report.left) == (N_PATCHED, ())
    assert_same(loss_and_gradients(net, tokens), expected)
    if path == "served":
        assert counts(net) == SERVED
    else:
        torch.testing.assert_close(loss_and_gradients(net, tokens), expected, rtol=0, atol=0)


def test_unpatch_restores_exactly() -> None:
    net, tokens = make_net(), make_tokens()
    before, before_attributes = classes(net), attributes(net)
    fusedformer.patch(net)
    net(tokens)
    assert classes(net) != before
    fusedformer.unpatch(net)
    assert classes(net) == before
    for mine, expected in zip(attributes(net), before_attributes, strict=True):
        assert list(mine) == list(expected)
        assert all(mine[name] is value for name, value in expected.items())
    fusedformer.unpatch(net)  # of a model that is not patched
    assert classes(net) == before


def test_parameters_state_dict_and_tying() -> None:
    net = make_net()
    parameters, state = list(net.parameters()), {name: value.clone() for name, value in net.state_dict().items()}
    fusedformer.patch(net)
    assert all(mine is expected for mine, expected in zip(net.parameters(), parameters, strict=True))
    assert net.head.weight is net.embedding.weight
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not net.load_state_dict(state).missing_keys


def test_an_optimizer_made_before_steps_the_model() -> None:
    tokens, results = make_tokens(), []
    for is_patched in (False, True):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        if is_patched:
            fusedformer.patch(net)
        for _ in range(3):
            loss_and_gradients(net, tokens)
            optimizer.step()
        results.append(list(net.parameters()))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_isinstance_names_and_repr() -> None:
    net = make_net()
    names, kinds, text = [kind.__qualname__ for kind in classes(net)], classes(net), repr(net)
    fusedformer.patch(net)
    assert [kind.__qualname__ for kind in classes(net)] == names
    assert all(isinstance(module, kind) for module, kind in zip(net.modules(), kinds, strict=True))
    assert repr(net) == text


def count_in(found: Counter[tuple[str, str]], when: str, name: str) -> Callable[..., None]:
    return lambda *_: found.update([(when, name)])


def test_hooks_run_as_often_and_see_the_same() -> None:
    tokens, seen = make_tokens(), []
    for is_patched in (False, True):
        net = make_net()
        found: Counter[tuple[str, str]] = Counter()
        for name, module in net.named_modules():
            module.register_forward_pre_hook(count_in(found, "before", name))
            module.register_forward_hook(count_in(found, "behind", name))
            if not isinstance(module, nn.Embedding):
                module.register_full_backward_hook(count_in(found, "backward", name))
        if is_patched:
            fusedformer.patch(net)
        loss_and_gradients(net, tokens)
        seen.append(found)
    assert seen[0] == seen[1]
    assert seen[0]["behind", "encoder.layers.0.norm1"] == 1


def test_a_norm_with_hooks_is_not_fused_and_says_so(path: str) -> None:
    net = make_net()
    net.encoder.layers[0].norm1.register_forward_hook(lambda *_: None)
    fusedformer.patch(net)
    net(make_tokens())
    fallbacks = {each.reason: each.calls for each in fusedformer.report(net).fallbacks}
    assert fallbacks == ({"the norm has hooks": 1} if path == "served" else {})


def test_modes_and_requires_grad_stay() -> None:
    net = make_net(dropout=0.5)
    net.encoder.eval()
    net.decoder.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    needs = [parameter.requires_grad for parameter in net.parameters()]
    fusedformer.patch(net)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == needs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(dtype: torch.dtype, path: str) -> None:
    net, tokens = make_net().to(dtype), make_tokens()
    expected = net(tokens)
    fusedformer.patch(net)
    loss = net(tokens)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, expected)
    reasons = {each.reason for each in fusedformer.report(net).fallbacks}
    assert reasons == ({"float64 is for PyTorch"} if (dtype, path) == (torch.float64, "served") else set())


def test_device_and_dtype_can_change_afterwards() -> None:
    net = make_net()
    fusedformer.patch(net)
    net.to("meta")
    assert all(parameter.is_meta for parameter in net.parameters())
    assert sum(isinstance(module, Patched) for module in net.modules()) == N_PATCHED


def test_dropout_is_drawn_while_training_only() -> None:
    net, tokens = make_net(dropout=0.3), make_tokens()
    expected = net.eval()(tokens)
    fusedformer.patch(net)
    torch.testing.assert_close(net(tokens), expected)
    assert (net.train()(tokens) - expected).abs() > 1e-4


def by_pickle(net: Net) -> Any:
    return pickle.loads(pickle.dumps(net))


def by_oldest_pickle(net: Net) -> Any:
    return pickle.loads(pickle.dumps(net, protocol=0))


def by_torch_save(net: Net) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle, by_oldest_pickle, by_torch_save])
def test_copies_are_patched_and_independent(make_copy: Callable[[Net], Any], path: str) -> None:
    net, tokens = make_net(), make_tokens()
    fusedformer.patch(net)
    expected = loss_and_gradients(net, tokens)
    other = make_copy(net)
    assert classes(other) == classes(net)
    assert other.head.weight is other.embedding.weight
    assert other.head.weight is not net.head.weight
    assert fusedformer.report(other).served == ()
    assert_same(loss_and_gradients(other, tokens), expected)
    fusedformer.unpatch(other)
    assert classes(other) == classes(make_net())
    assert isinstance(net.loss, Patched)


def test_another_process_unpickles(path: str) -> None:
    if path == "served":
        pytest.skip("the same file")
    net = nn.Sequential(nn.LayerNorm(4), nn.GELU())
    fusedformer.patch(net)
    code = "import pickle, sys; print([type(m).__mro__[1].__name__ for m in pickle.load(sys.stdin.buffer)])"
    result = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(net), capture_output=True, check=True)
    assert result.stdout.decode().strip() == "['Patched', 'Patched']"


def test_contexts_nest() -> None:
    net = make_net()
    plain = classes(net)
    with fusedformer.patch(net, attention=False, activations=False, loss=False) as outer:
        norms = classes(net)
        assert {each.kind for each in outer.replaced} >= {"LayerNorm", "RMSNorm"}
        with fusedformer.patch(net) as inner:
            assert inner.already_patched == len(outer.replaced)
            assert {each.kind for each in inner.replaced} >= {"GELU", "MultiheadAttention", "CrossEntropyLoss"}
        assert classes(net) == norms
    assert classes(net) == plain


def test_a_context_restores_after_an_error() -> None:
    net = make_net()
    with pytest.raises(KeyError), fusedformer.patch(net):
        raise KeyError
    assert classes(net) == classes(make_net())


def test_patching_twice_does_nothing_more() -> None:
    net = make_net()
    fusedformer.patch(net)
    once = classes(net)
    report = fusedformer.patch(net)
    assert (report.replaced, report.already_patched) == ((), N_PATCHED)
    assert classes(net) == once
    fusedformer.unpatch(net)
    assert classes(net) == classes(make_net())


@pytest.mark.parametrize(
    ("switch", "kinds"),
    [
        (
            "attention",
            {"MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoderLayer"},
        ),
        ("norms", {"LayerNorm", "RMSNorm", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoderLayer"}),
        ("loss", {"CrossEntropyLoss"}),
    ],
)
def test_switches(switch: str, kinds: set[str]) -> None:
    off = dict.fromkeys(("attention", "norms", "activations", "loss"), False)
    report = fusedformer.patch(make_net(), **off | {switch: True})
    assert {each.kind for each in report.replaced} == kinds


class OwnLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class OwnLayer(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        return x


class Kept(nn.LayerNorm):
    """A subclass that keeps the forward."""


def test_what_is_not_known_is_left_with_a_reason() -> None:
    overridden = nn.GELU()
    overridden.forward = lambda x: x  # type: ignore[method-assign,assignment]
    net = nn.ModuleDict({"own": OwnLayerNorm(4), "layer": OwnLayer(4, 2), "gelu": overridden, "kept": Kept(4)})
    report = fusedformer.patch(net)
    left = {each.path: each.reason for each in report.left}
    assert left == {
        "own": "its forward is not one that we know",
        "layer": "its class has a _ff_block of its own",
        "gelu": "its forward was replaced on the instance",
    }
    assert isinstance(net["kept"], Kept)
    assert "kept" in {each.path for each in report.replaced}
    assert "left 1 x OwnLayerNorm: its forward is not one that we know" in str(report)


def test_calls_that_are_not_for_us_are_left_and_counted(path: str) -> None:
    loss = nn.CrossEntropyLoss()
    fusedformer.patch(loss)
    logits, target = torch.randn(3, 5), torch.full((3, 5), 0.2)
    torch.testing.assert_close(loss(logits, target), nn.CrossEntropyLoss()(logits, target))
    (found,) = fusedformer.report(loss).fallbacks or fusedformer.report(loss).served
    assert str(found.op) == "cross_entropy"
    if path == "served":
        assert fusedformer.report(loss).fallbacks[0].reason == "class probabilities as target"
        assert "cross_entropy: 1 calls left to PyTorch: class probabilities as target" in str(fusedformer.report(loss))


def test_report_names_the_implementation() -> None:
    calls.forget([None])
    net = make_net()
    assert "no call has been counted" in str(fusedformer.report(net))
    fusedformer.patch(net)
    net(make_tokens())
    assert {each.implementation for each in fusedformer.report(net).served} == {"plain PyTorch on cpu"}
    assert "cross_entropy: 1 calls by plain PyTorch on cpu" in str(fusedformer.report(net))


def test_counts_go_with_their_module() -> None:
    net = nn.GELU()
    fusedformer.patch(net)
    net(torch.ones(2))
    key = id(net)
    assert key in calls._by_owner
    del net
    assert key not in calls._by_owner


@pytest.mark.parametrize("function", [fusedformer.patch, fusedformer.unpatch, fusedformer.report])
def test_what_is_no_module_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=f"{function.__name__}: model is dict, expected a torch.nn.Module"):
        function({})


def test_explain_shows_the_kernels_of_a_patched_model() -> None:
    net = nn.Sequential(nn.LayerNorm(16), nn.GELU())
    fusedformer.patch(net)
    steps = fusedformer.explain(net, torch.randn(2, 16), arch=90).steps
    assert [step.op for step in steps] == ["layer_norm_fwd", "gelu_fwd"]


@pytest.mark.op("add_layer_norm")
def test_through_the_device_code(world: World, path: str) -> None:
    """The same model where kernels compute: emulated, or on a GPU."""
    if not world.is_device_code or path == "original":
        pytest.skip("test_loss_and_gradients")
    net, x = make_small().to(world.device), torch.randn(2, 3, 8).to(world.device)
    expected = loss_and_gradients(net, x)
    fusedformer.patch(net)
    assert_same(loss_and_gradients(net, x), expected)
    implementations = {each.implementation for each in fusedformer.report(net).served}
    assert implementations == {"the device code, emulated"} or world.name == "gpu"
    assert counts(net) == {"add_layer_norm": 2, "attention": 1, "gelu": 1, "cross_entropy": 1}


def test_names_of_rules_are_unique() -> None:
    """Pickles go by them."""
    rules = {*torch_rules.BY_FORWARD.values(), *hugging_face_rules.BY_SOURCE.values(), *timm_rules.BY_SOURCE.values()}
    rules |= {*hugging_face_blocks.BY_SOURCE.values(), *hugging_face_model.RULES}
    assert set(RULES.values()) == rules
