"""`F.scaled_dot_product_attention` by our kernels while registered, and PyTorch's before, after and where we refuse.

On the CPU PyTorch's own attention stays, so the emulated world is where the CPU takes the hook.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import World
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fusedformer
from fusedformer.drop_in import calls, torch_hook

pytestmark = pytest.mark.op("attention")
LISTED = hasattr(torch.nn.attention, "current_flash_attention_impl")


@pytest.fixture
def hooked(world: World) -> Iterator[World]:
    """A world whose tensors the hook serves."""
    if not world.is_device_code:
        pytest.skip("reference world: CPU tensors stay with PyTorch")
    calls.forget([None])
    with fusedformer.register_torch():
        yield world
    calls.forget([None])


def served() -> int:
    return calls.of([None]).count("attention")


def reasons() -> list[str]:
    return [reason for _, reason in calls.of([None]).fallbacks]


def qkv(world: World, *, n_kv_heads: int = 2, length: int = 5, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(0)
    heads = (2, n_kv_heads, n_kv_heads)
    shapes = [(2, n, size, 8) for n, size in zip(heads, (length, 7, 7))]
    return [torch.randn(shape, generator=generator).to(world.device, dtype).requires_grad_() for shape in shapes]


def results(tensors: Any, **settings: Any) -> list[Tensor]:
    out = F.scaled_dot_product_attention(*tensors, **settings)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},  # top-left: 5 queries, 7 keys
    "scale": {"scale": 0.5},
    "gqa": {"enable_gqa": True},
    "bool mask": {"attn_mask": torch.arange(7) < 4 + torch.arange(5)[:, None]},
    "bias": {"attn_mask": torch.linspace(-1, 1, 70).view(1, 2, 5, 7)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_function_is_served(hooked: World, case: str) -> None:
    settings = {name: x.to(hooked.device) if isinstance(x, Tensor) else x for name, x in CASES[case].items()}
    tensors = qkv(hooked, n_kv_heads=1 if case == "gqa" else 2)
    found = results(tensors, **settings)
    assert served() == 1
    fusedformer.unregister_torch()
    for ours, theirs in zip(found, results(tensors, **settings)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert served() == 1
    assert not reasons()


def test_modules_that_call_it_are_served(hooked: World) -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True).to(hooked.device)
    x = torch.randn(2, 5, 16, device=hooked.device)
    padding = torch.zeros(2, 5, dtype=torch.bool, device=hooked.device)
    padding[1, 3:] = True
    out = layer(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    assert served() == 1
    fusedformer.unregister_torch()
    torch.testing.assert_close(out, layer(x, x, x, key_padding_mask=padding, need_weights=False)[0])


def test_a_model_of_transformers_is_served(hooked: World) -> None:
    models = pytest.importorskip("hugging_face_models")
    model = models.make_model("llama").to(hooked.device)
    model.set_attn_implementation("sdpa")
    tokens = models.random_tokens().to(hooked.device)
    out = model(tokens).logits
    assert served() == 2
    fusedformer.unregister_torch()
    torch.testing.assert_close(out, model(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_modes_of_pytorch(hooked: World) -> None:
    tensors: Any = [x.detach() for x in qkv(hooked)]
    with torch.inference_mode():
        F.scaled_dot_product_attention(*[x.clone() for x in tensors])
    assert served() == 1
    with torch.autocast(hooked.device.type, torch.bfloat16):
        assert F.scaled_dot_product_attention(*tensors).dtype == torch.bfloat16
    assert served() == 2
    assert F.scaled_dot_product_attention(*[x[0, 0] for x in tensors]).shape == (5, 8)
    assert served() == 3
    gradient = torch.func.grad(lambda q: F.scaled_dot_product_attention(q, *tensors[1:]).sum())(tensors[0])
    assert gradient.shape == tensors[0].shape
    assert served() == 4


def test_compiles(hooked: World) -> None:
    tensors = qkv(hooked)
    ops: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        ops.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(F.scaled_dot_product_attention, backend=_aot(backend), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), F.scaled_dot_product_attention(*tensors))
    assert any("fusedformer.attention_fwd" in op for op in ops)


def _aot(compiler: Any) -> Any:
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


def test_refusals_are_pytorchs_and_counted(hooked: World) -> None:
    tensors = qkv(hooked)
    doubles: Any = [x.detach().double() for x in tensors]
    with sdpa_kernel(SDPBackend.MATH):
        switched_off = F.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(switched_off.double(), F.scaled_dot_product_attention(*doubles), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError):  # PyTorch's own error
        F.scaled_dot_product_attention(tensors[0], tensors[1][:, :1], tensors[2][..., :3, :])
    assert served() == 0
    off, dtype, shapes = reasons()
    assert off.startswith("flash attention is switched off")
    assert "query is float64, expected float32, float16 or bfloat16" in dtype
    assert "value has length 3, key has 7: they must be equal" in shapes


def test_a_subclass_of_tensor_is_left_to_pytorch(hooked: World) -> None:
    class Mine(Tensor):
        pass

    tensors = qkv(hooked)
    with torch._C.DisableTorchFunctionSubclass():
        F.scaled_dot_product_attention(tensors[0].as_subclass(Mine), *tensors[1:])
    assert reasons() == ["Mine is not a plain tensor"]


def test_it_is_off_unless_asked_for_and_undone(world: World) -> None:
    before = torch._C._dispatch_dump("aten::scaled_dot_product_attention")
    registration = fusedformer.register_torch()
    try:
        assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") != before
        assert not LISTED or torch.nn.attention.current_flash_attention_impl() == "fusedformer"
        with fusedformer.register_torch():  # the second call began nothing, so its end ends nothing
            pass
        assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") != before
    finally:
        with registration:
            pass
    assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") == before
    assert not LISTED or torch.nn.attention.current_flash_attention_impl() is None
    fusedformer.unregister_torch()  # nothing to undo


def test_cpu_tensors_stay_with_pytorch() -> None:
    calls.forget([None])
    q = torch.randn(1, 2, 3, 8)
    expected = F.scaled_dot_product_attention(q, q, q)
    with fusedformer.register_torch():
        assert torch.equal(F.scaled_dot_product_attention(q, q, q), expected)
    assert served() == 0


@pytest.mark.skipif(not LISTED, reason="PyTorch lists flash attention implementations from 2.13 on")
def test_pytorchs_own_way_to_restore() -> None:
    before = torch._C._dispatch_dump("aten::scaled_dot_product_attention")
    fusedformer.register_torch()
    assert "fusedformer" in torch.nn.attention.list_flash_attention_impls()
    torch.nn.attention.restore_flash_attention_impl()
    assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") == before
    fusedformer.register_torch()  # begins anew
    assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") != before
    fusedformer.unregister_torch()
    assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") == before


@pytest.mark.skipif(not LISTED, reason="PyTorch lists flash attention implementations from 2.13 on")
def test_what_was_active_before_is_again_afterwards() -> None:
    class Other:
        def remove(self) -> None:
            pass

    torch.nn.attention.register_flash_attention_impl("other", register_fn=Other)
    torch.nn.attention.activate_flash_attention_impl("other")
    try:
        with fusedformer.register_torch():
            assert torch.nn.attention.current_flash_attention_impl() == "fusedformer"
        assert torch.nn.attention.current_flash_attention_impl() == "other"
    finally:
        torch.nn.attention.restore_flash_attention_impl()


def test_without_pytorchs_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PyTorch 2.10."""
    before = torch._C._dispatch_dump("aten::scaled_dot_product_attention")
    monkeypatch.setattr(torch_hook, "_listed", False)
    with fusedformer.register_torch():
        assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") != before
        fusedformer.register_torch()
    assert torch._C._dispatch_dump("aten::scaled_dot_product_attention") == before
