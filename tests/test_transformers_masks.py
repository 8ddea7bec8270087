"""The mask function that Hugging Face transformers is given: what its own makes, of whatever form."""

import itertools
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")

from drop_in_models import serve_everywhere
from hugging_face_models import make_model
from transformers import masking_utils

import fusedformer
from fusedformer.drop_in import transformers_hook
from fusedformer.drop_in.transformers_masks import PatternMask, make_mask

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 2]])
FUNCTIONS: dict[str, Any] = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(3),
    "sliding_both": masking_utils.sliding_window_bidirectional_mask_function(2),
    "chunked": masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.long)),
    "or": masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k < 2),
    "packed": masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function(SEGMENTS)
    ),
}
SHAPES = {  # q_length, kv_length, q_offset, kv_offset
    "square": (6, 6, 0, 0),
    "after a cache": (3, 6, 3, 0),
    "in a static cache": (3, 6, 1, 0),
    "in a sliding cache": (3, 6, 5, 2),
    "one": (1, 6, 5, 0),
    "one of static": (1, 6, torch.tensor(2), 0),
    "few of static": (2, 6, torch.tensor(2), 0),
    "ahead": (3, 6, 4, 0),
}


@pytest.fixture(params=["kernel", "pytorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute as where there is a kernel, or as where there is none."""
    if request.param == "kernel":
        serve_everywhere(monkeypatch)
    return request.param


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(  # transformers packs without a cache only
    ("function", "shape"),
    [case for case in itertools.product(FUNCTIONS, SHAPES) if case[0] != "packed" or case[1] == "square"],
)
def test_masks_are_those_of_transformers(way: str, function: str, shape: str, padded: bool) -> None:
    q_length, kv_length, q_offset, kv_offset = SHAPES[shape]
    padding = torch.arange(8) >= torch.tensor([[0], [2]]) if padded else None
    arguments = {
        "batch_size": 2, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset, "kv_offset": kv_offset,
        "mask_function": FUNCTIONS[function], "attention_mask": padding,
    }  # fmt: skip
    expected: Any = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
    mask = make_mask(**arguments, allow_is_causal_skip=shape != "one of static")
    q, k, v = (torch.randn(2, 2, length, 8) for length in (q_length, kv_length, kv_length))
    layer = make_model("llama").model.layers[0].self_attn
    out, _ = transformers_hook.attention_forward(layer, q, k, v, mask)
    if isinstance(mask, PatternMask):
        assert way == "pytorch" or not mask.is_computed
        assert torch.equal(mask & True, expected)
        again, _ = transformers_hook.attention_forward(layer, q, k, v, mask)
        torch.testing.assert_close(again, out)
    elif mask is None:
        assert q_length == 1
        assert expected.all()
    wanted = fusedformer.attention(q, k, v, layout="bhsd", mask=expected).transpose(1, 2)
    torch.testing.assert_close(out, wanted)


def test_what_is_known_needs_no_tensor() -> None:
    sizes: dict[str, Any] = {"batch_size": 2, "q_length": 6, "kv_length": 6, "attention_mask": None}
    kinds = {name: isinstance(make_mask(**sizes, mask_function=f), PatternMask) for name, f in FUNCTIONS.items()}
    assert kinds == {name: name not in ("chunked", "or") for name in FUNCTIONS}


def test_a_mask_that_a_model_writes_to_is_what_was_written(way: str) -> None:
    mask = make_mask(batch_size=1, q_length=4, kv_length=4)
    assert isinstance(mask, PatternMask)
    mask[:, :, :, 0] = False
    layer = make_model("llama").model.layers[0].self_attn
    q = torch.randn(1, 2, 4, 8)
    out, _ = transformers_hook.attention_forward(layer, q, q, q, mask)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    allowed[:, 0] = False
    torch.testing.assert_close(out, fusedformer.attention(q, q, q, layout="bhsd", mask=allowed).transpose(1, 2))


def test_a_static_mask_is_that_of_its_time() -> None:
    """A cache moves its offset on in place, after the mask was made and before somebody looks at it."""
    offset = torch.tensor(1)
    mask = make_mask(batch_size=1, q_length=2, kv_length=6, q_offset=offset)
    expected: Any = masking_utils.sdpa_mask(
        batch_size=1, q_length=2, kv_length=6, q_offset=1, allow_is_causal_skip=False
    )
    offset += 2
    assert isinstance(mask, PatternMask)
    assert torch.equal(mask.dense(), expected)
