"""Calls past the dispatcher: the same bits as through it, forward, backward and beyond, and nobody overlooked."""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import HAS_GPU, World, emulated_world
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fusedformer
from fusedformer.kernels import eager, emulation, library

pytestmark = [
    pytest.mark.op("softmax"),
    pytest.mark.skipif(eager.status() != "loaded", reason=f"eager calls are {eager.status()}"),
]

ROWS, FEATURES = 5, 24
Call = Callable[..., Any]

# By name: the function of csrc/eager.cpp, and a call of the public one with (x, residual, weight, bias).
CALLS: dict[str, tuple[str, Call]] = {
    "gelu": ("gelu", lambda x, r, w, b: fusedformer.gelu(x)),
    "gelu tanh": ("gelu", lambda x, r, w, b: fusedformer.gelu(x, "tanh")),
    "bias_gelu": ("bias_activation", lambda x, r, w, b: fusedformer.bias_gelu(x, b)),
    "bias_relu": ("bias_activation", lambda x, r, w, b: fusedformer.bias_relu(x, b)),
    "swiglu": ("glu", lambda x, r, w, b: fusedformer.swiglu(x)),
    "geglu of two": ("glu", lambda x, r, w, b: fusedformer.geglu(x, r)),
    "softmax": ("softmax", lambda x, r, w, b: fusedformer.softmax(x)),
    "log_softmax": ("log_softmax", lambda x, r, w, b: fusedformer.log_softmax(x)),
    "masked_softmax": ("masked_softmax", lambda x, r, w, b: fusedformer.softmax(x, mask=r > -1, scale=0.5)),
    "causal softmax": ("masked_softmax", lambda x, r, w, b: fusedformer.softmax(x, causal=True)),
    "additive mask": ("masked_softmax", lambda x, r, w, b: fusedformer.softmax(x, mask=r, scale=0.5)),
    "layer_norm": ("layer_norm", lambda x, r, w, b: fusedformer.layer_norm(x, w, b)),
    "layer_norm without weight": ("layer_norm", lambda x, r, w, b: fusedformer.layer_norm(x)),
    "rms_norm": ("rms_norm", lambda x, r, w, b: fusedformer.rms_norm(x, w)),
    "add_layer_norm": ("add_layer_norm", lambda x, r, w, b: fusedformer.add_layer_norm(x, r, w, b)),
    "add_layer_norm, its sum alone": ("add_layer_norm", lambda x, r, w, b: fusedformer.add_layer_norm(x, r, w, b)[1]),
    "add_layer_norm, its norm alone": ("add_layer_norm", lambda x, r, w, b: fusedformer.add_layer_norm(x, r, w, b)[0]),
    "add_rms_norm": ("add_rms_norm", lambda x, r, w, b: fusedformer.add_rms_norm(x, r, w)),
    "add_rms_norm with dropout": (
        "add_rms_norm",
        lambda x, r, w, b: fusedformer.add_rms_norm(x, r, w, dropout_p=0.5, seed=seed_on(x)),
    ),
    "cross_entropy": ("cross_entropy", lambda x, r, w, b: fusedformer.cross_entropy(x, classes_on(x))),
    "cross_entropy, sum": (
        "cross_entropy",
        lambda x, r, w, b: fusedformer.cross_entropy(
            x, classes_on(x), reduction="sum", label_smoothing=0.1, z_loss=1e-2, ignore_index=3
        ),
    ),
}


def seed_on(x: Tensor) -> Tensor:
    return torch.tensor([11], device=x.device)


def classes_on(x: Tensor) -> Tensor:
    return torch.arange(ROWS, device=x.device)


@pytest.fixture(params=["emulated", "gpu"] if HAS_GPU else ["emulated"])
def inputs(request: pytest.FixtureRequest) -> Iterator[list[Tensor]]:
    """x, residual, weight and bias: leaves that require a gradient, in a world with kernels."""
    on_gpu = contextlib.nullcontext(World("gpu", torch.device("cuda")))
    with emulated_world("softmax") if request.param == "emulated" else on_gpu as world:
        fusedformer.softmax(torch.ones(1, 1, device=world.device))  # loads the emulated kernels
        shapes = (ROWS, FEATURES), (ROWS, FEATURES), (FEATURES,), (FEATURES,)
        generator = torch.Generator().manual_seed(0)
        yield [torch.randn(shape, generator=generator).to(world.device).requires_grad_() for shape in shapes]


def outputs(call: Call, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    result = call(*inputs)
    return result if isinstance(result, tuple) else (result,)


def derivatives(call: Call, inputs: list[Tensor]) -> list[Tensor | None]:
    """Outputs, gradients, and gradients of a function of those."""
    out = outputs(call, inputs)
    loss = torch.stack([((index + 1) * y.sin()).sum() for index, y in enumerate(out)]).sum()
    first = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    norm = torch.stack([gradient.square().sum() for gradient in first if gradient is not None]).sum()
    second = torch.autograd.grad(norm, inputs, allow_unused=True)
    return [*out, *first, *second]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """By function of eager.py: whether each of its calls was answered."""
    answered: dict[str, list[bool]] = {}

    def count(name: str) -> Call:
        function = getattr(eager, name)

        def counting(*args: Any) -> Any:
            result = function(*args)
            answered.setdefault(name, []).append(result is not None)
            return result

        return counting

    for name in {name for name, _ in CALLS.values()}:
        monkeypatch.setattr(eager, name, count(name))
    return answered


@pytest.mark.parametrize("name", CALLS)
def test_it_answers_with_the_bits_of_the_dispatchers_way(
    name: str, inputs: list[Tensor], counted: dict[str, list[bool]]
) -> None:
    function, call = CALLS[name]
    got = derivatives(call, inputs)
    assert counted[function][0]
    with eager.off():
        expected = derivatives(call, inputs)
    assert [tensor is None for tensor in got] == [tensor is None for tensor in expected]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_without_gradients(name: str, inputs: list[Tensor], counted: dict[str, list[bool]]) -> None:
    function, call = CALLS[name]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            got = outputs(call, inputs)
            with eager.off():
                expected = outputs(call, inputs)
        assert not any(y.requires_grad for y in got)
        assert all(map(torch.equal, got, expected))
    assert counted[function][0]


@pytest.mark.parametrize("needs", ["x---", "--w-", "-r-b"])
def test_gradients_of_some_inputs(needs: str, inputs: list[Tensor]) -> None:
    leaves = [x.detach().requires_grad_(need != "-") for x, need in zip(inputs, needs, strict=True)]

    def gradients() -> list[Tensor | None]:
        y, s = fusedformer.add_layer_norm(*leaves)
        (y.sin() + s.cos()).sum().backward()
        return [leaf.grad for leaf in leaves]

    got = gradients()
    for leaf in leaves:
        leaf.grad = None
    with eager.off():
        expected = gradients()
    assert [gradient is not None for gradient in got] == [need != "-" for need in needs]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_it_answers_under_autocast(inputs: list[Tensor]) -> None:
    """Which does not change what these ops compute; but the loss of logits in bfloat16 stays float32."""
    x = inputs[0].detach().bfloat16().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        assert eager.gelu(x, False) is not None
        assert fusedformer.gelu(x).dtype == torch.bfloat16
        assert fusedformer.cross_entropy(x, classes_on(x)).dtype == torch.float32
    assert fusedformer.cross_entropy(x, classes_on(x)).dtype == torch.bfloat16


class _FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Subclass(Tensor):
    pass


MODES: dict[str, Callable[[], Any]] = {
    "a mode of functions": _FunctionMode,
    "a mode of ops": _DispatchMode,
    "a profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "switched off": eager.off,
}


@pytest.mark.parametrize("mode", MODES)
def test_it_declines_where_somebody_else_has_a_say(mode: str, inputs: list[Tensor]) -> None:
    x = inputs[0]
    assert eager.gelu(x, False) is not None
    with MODES[mode]():
        assert eager.gelu(x, False) is None
        y = fusedformer.gelu(x)
    torch.testing.assert_close(y, torch.nn.functional.gelu(x), check_dtype=False, rtol=1e-2, atol=1e-2)
    assert eager.gelu(x, False) is not None


def test_it_declines_what_it_does_not_know(inputs: list[Tensor]) -> None:
    x = inputs[0]
    assert eager.gelu(x.detach().as_subclass(_Subclass), False) is None
    assert eager.gelu(x.to("meta"), False) is None
    assert eager.gelu(x.detach().double(), False) is None
    assert eager.gelu(x.detach().to_sparse(), False) is None
    assert eager.gelu(torch.randn(3, dtype=torch.complex64, device=x.device).conj(), False) is None
    for arguments in ((), (x,), (x, 1), (None, False), ("x", False), (x, False, None)):
        assert eager.gelu(*arguments) is None
    assert eager.bias_activation(x, inputs[2], 2**70) is None
    assert eager.bias_activation(x, inputs[2], 17) is None
    assert eager.layer_norm(x, inputs[2][1:], None, 1e-5) is None
    assert eager.layer_norm(x, inputs[2], None, "eps") is None
    assert eager.layer_norm(x, inputs[2], None, float("nan")) is None
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        assert eager.gelu(dual, False) is None
    seen: list[Any] = []

    def look(row: Tensor) -> Tensor:
        seen.append(eager.gelu(row, False))
        return row

    torch.func.vmap(look)(x.detach())
    assert seen == [None]


def test_what_is_saved_is_saved_as_autograd_does(inputs: list[Tensor]) -> None:
    x, *_ = inputs
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = fusedformer.gelu(x)
    assert [tensor.data_ptr() for tensor in packed] == [x.data_ptr()]
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    changed = x.detach().clone().requires_grad_()
    middle = changed * 1
    out = fusedformer.gelu(middle)
    with torch.no_grad():
        middle.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_backward_under_vmap(inputs: list[Tensor]) -> None:
    """Batched gradients take the way through the dispatcher."""
    x = inputs[0]
    y = fusedformer.softmax(x)
    grads = torch.stack([torch.eye(ROWS, FEATURES, device=x.device), torch.ones_like(x)])
    (batched,) = torch.autograd.grad(y, x, grads, retain_graph=True, is_grads_batched=True)
    for grad, expected in zip(grads, batched, strict=True):
        torch.testing.assert_close(torch.autograd.grad(y, x, grad, retain_graph=True)[0], expected)


def test_the_graph_frees_its_tensors(inputs: list[Tensor]) -> None:
    """A result that is saved for its own backward is not kept alive by it."""
    y = fusedformer.softmax(inputs[0])
    freed = weakref.ref(y)
    del y
    assert freed() is None


def test_definitions_are_computed_in_place_of_kernels(inputs: list[Tensor]) -> None:
    x = inputs[0]
    with library.by_definition():
        assert eager.gelu(x, False) is None
    assert eager.gelu(x, False) is not None


def test_it_serves_no_cpu_tensor_outside_of_the_emulated_world() -> None:
    with emulation.emulated(False):
        assert eager.gelu(torch.ones(3), False) is None


def test_a_build_for_another_pytorch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    module, status = eager._load()
    assert module is None
    assert "2.99.0+cpu" in status
    monkeypatch.setenv("FUSEDFORMER_EAGER", "0")
    assert eager._load() == (None, "off: FUSEDFORMER_EAGER is 0")


def test_a_library_of_other_sources_is_refused() -> None:
    other = ctypes.c_size_t(1)
    with pytest.raises(ValueError, match="different sources"):
        eager._connect["cuda"](ctypes.addressof(other))


def test_without_it_every_call_takes_the_dispatchers_way() -> None:
    with mock.patch.object(eager, "_module", None):
        assert eager._function("gelu")(torch.ones(1), False) is None
