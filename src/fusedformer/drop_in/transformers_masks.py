"""Masks of Hugging Face transformers in a form that attention needs no (B, 1, Sq, Sk) tensor for.

Legend: B sequences, Sq and Sk lengths of queries and keys. transformers describes a mask by a function of positions, a
padding mask (B, Sk) and offsets. From the functions of its own, which are taken apart here, come `causal`, windows and
packed sequences, which attention takes as such and skips tiles by; padding is read as (B, 1, 1, Sk). Whatever is not
known here, and what nobody asked attention for, becomes the tensor that transformers' own `sdpa_mask` makes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_MODULE = "transformers.masking_utils"


class Pattern(NamedTuple):
    """Which keys a query sees by where the two stand."""

    left: int | None = None  # keys before the one that it faces; None for all
    right: int | None = None  # keys after it
    sequences: Tensor | None = None  # (B, S) integers: those of the same number see each other, packed sequences


def read_pattern(mask_function: Callable[..., Any]) -> Pattern | None:
    """The pattern of a mask function of transformers; None where it is somebody else's, or has no such form."""
    if getattr(mask_function, "__module__", None) != _MODULE:
        return None
    name = mask_function.__qualname__.partition(".<locals>")[0]
    cells = getattr(mask_function, "__closure__", None) or ()
    captured = dict(zip(mask_function.__code__.co_freevars, (cell.cell_contents for cell in cells)))
    match name:
        case "causal_mask_function":
            return Pattern(right=0)
        case "bidirectional_mask_function":
            return Pattern()
        case "sliding_window_overlay":
            return Pattern(left=captured["sliding_window"] - 1)
        case "sliding_window_bidirectional_overlay":
            return Pattern(captured["sliding_window"], captured["sliding_window"])
        case "packed_sequence_mask_function":
            return Pattern(sequences=captured["packed_sequence_mask"])
        case "remap_positions_for_packed_sequence":  # distances inside a packed sequence are what they were
            return read_pattern(captured["mask_function"])
        case "and_masks":
            return _all_of([read_pattern(part) for part in captured["mask_functions"]])
        case _:
            return None


def _all_of(patterns: list[Pattern | None]) -> Pattern | None:
    """What is seen by all of them; None where one is unknown, or two pack differently."""
    known = [pattern for pattern in patterns if pattern is not None]
    packed = [pattern.sequences for pattern in known if pattern.sequences is not None]
    if len(known) < len(patterns) or len(packed) > 1:
        return None
    lefts = [pattern.left for pattern in known if pattern.left is not None]
    rights = [pattern.right for pattern in known if pattern.right is not None]
    return Pattern(min(lefts, default=None), min(rights, default=None), packed[0] if packed else None)


class PatternMask(Tensor):
    """A boolean mask (B, 1, Sq, Sk), True takes part, that is computed only if somebody but attention looks at it.

    Then it is what it was computed to be, for whoever looks at it may also write to it: `is_computed`.

    Attributes:
        window: (left, right), the last query facing key number `n_keys` - 1.
        n_keys: keys from there on are hidden.
        padding: (B, Sk) bool, True for a key that is a token; None where all are.
        starts: (sequences + 1,) int32 of packed sequences, of the B rows one after the other; else None.
    """

    window: tuple[int | None, int | None]
    n_keys: int
    padding: Tensor | None
    starts: Tensor | None
    _compute: Callable[[], Tensor]
    _dense: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], device: torch.device, compute: Callable[[], Tensor], **attributes: Any
    ) -> "PatternMask":
        """A mask of that shape whose tensor `compute` makes."""
        mask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask._compute, mask._dense = compute, None
        vars(mask).update(attributes)
        return mask

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Any operation on it is one on its tensor."""
        args, kwargs = tree_map_only(PatternMask, PatternMask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def is_computed(self) -> bool:
        """Whether somebody has looked, so that the attributes may no longer be the whole truth."""
        return self._dense is not None

    def dense(self) -> Tensor:
        """The tensor itself."""
        if self._dense is None:
            self._dense = self._compute()
        return self._dense


def make_mask(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    *,
    cache_position: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **settings: Any,
) -> Tensor | None:
    """The mask function of transformers' AttentionMaskInterface: its arguments, of version 4 (`cache_position`) or 5.

    A padding mask is looked at once a forward, to find out whether it hides anything at all: on a CUDA device that
    waits for the device, as transformers' own masks do; without a padding mask nothing waits. Inside `torch.compile`
    nothing is looked at.

    Returns:
        None where one query sees every key, else a `PatternMask` or a bool tensor (B, 1, Sq, Sk).
    """
    from transformers import masking_utils

    mask_function = mask_function or masking_utils.causal_mask_function
    given = {"mask_function": mask_function, "attention_mask": attention_mask, **settings}
    if cache_position is None:
        assert q_length is not None  # version 5 gives it
        given |= {"q_length": q_length, "q_offset": q_offset}
    else:
        q_length, given["cache_position"] = cache_position.shape[0], cache_position

    def compute(**exact: Any) -> Tensor:
        sizes = {"batch_size": batch_size, "kv_length": kv_length, "kv_offset": kv_offset}
        mask = masking_utils.sdpa_mask(**(given | sizes | exact), allow_is_causal_skip=False)
        assert mask is not None  # that is what is not allowed here
        return mask

    if torch.compiler.is_compiling():
        is_causal = (
            allow_is_causal_skip and mask_function is masking_utils.causal_mask_function and q_length == kv_length
        )
        # Version 4 has no such function, and does not ask either.
        is_all = allow_is_bidirectional_skip and mask_function is masking_utils.bidirectional_mask_function
        return None if attention_mask is None and (is_causal or is_all) else compute()
    pattern = read_pattern(mask_function)
    # A cache of fixed size in decoding: how much of it is filled, only the device knows.
    is_one_of_static = q_length == 1 and not allow_is_causal_skip and pattern is not None and pattern.right == 0
    if pattern is None or is_one_of_static or (attention_mask is not None and attention_mask.dim() != 2):
        return compute()
    first, kv_first = _first_query(q_length, kv_length, q_offset, cache_position), _read(kv_offset)
    n_keys = _n_keys(pattern, q_length, kv_length, first, kv_first)
    if n_keys is None or kv_first is None:
        return compute()
    padding = _padding(attention_mask, kv_first, n_keys)
    left = None if pattern.left is None or pattern.left >= n_keys - 1 else pattern.left
    starts = None
    if pattern.sequences is not None:
        if padding is not None or not (q_length == kv_length == n_keys and _is_readable(pattern.sequences)):
            return compute()
        starts = _starts(pattern.sequences.expand(batch_size, -1))
    elif q_length == 1 and padding is None and left is None and n_keys == kv_length:
        return None
    # The offsets as numbers: a cache moves its own on, and it may be asked for the tensor only then.
    exact = {"kv_offset": kv_first} | ({"q_offset": first} if cache_position is None else {})
    device = settings.get("device", "cpu") if cache_position is None else cache_position.device
    return PatternMask(
        (batch_size, 1, q_length, kv_length), torch.device(device), functools.partial(compute, **exact),
        window=(left, pattern.right), n_keys=n_keys, padding=padding, starts=starts,
    )  # fmt: skip


def _is_readable(x: Tensor) -> bool:
    """Whether the host may look at what x holds: not while something is traced or a CUDA graph is captured."""
    if type(x) is not Tensor or torch.jit.is_tracing():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _read(offset: int | Tensor) -> int | None:
    if not isinstance(offset, Tensor):
        return offset
    return int(offset) if _is_readable(offset) else None


def _first_query(
    q_length: int, kv_length: int, q_offset: int | Tensor, cache_position: Tensor | None
) -> int | None:  # fmt: skip
    """The position of the first query; None where it cannot be known."""
    if cache_position is None:
        return _read(q_offset)
    if q_length == kv_length:
        return 0  # nothing came before
    return _read(cache_position[0])


def _n_keys(pattern: Pattern, q_length: int, kv_length: int, first: int | None, kv_first: int | None) -> int | None:
    """The number of the key that the last query faces, plus one; None where attention cannot put it there."""
    if pattern.left is None and pattern.right is None:
        return kv_length
    if first is None or kv_first is None:
        return None
    n_keys = first + q_length - kv_first
    # Keys after it may be left out where no query sees them.
    fits = 0 < n_keys <= kv_length if pattern.right == 0 else n_keys == kv_length
    return n_keys if fits else None


def _padding(attention_mask: Tensor | None, kv_first: int, n_keys: int) -> Tensor | None:
    """(B, n_keys) bool of the keys from `kv_first` on; None where it is known to hide none."""
    if attention_mask is None:
        return None
    end = kv_first + n_keys
    padding = attention_mask.to(torch.bool)
    if padding.shape[1] < end:
        padding = torch.nn.functional.pad(padding, (0, end - padding.shape[1]))
    padding = padding[:, kv_first:end]
    return None if _is_readable(padding) and bool(padding.all()) else padding


def _starts(sequences: Tensor) -> Tensor | None:
    """(n + 1,) int32, where the sequences of the B rows, one after the other, start; None for one a row."""
    is_first = torch.ones_like(sequences, dtype=torch.bool)
    is_first[:, 1:] = sequences[:, 1:] != sequences[:, :-1]
    starts = is_first.flatten().nonzero().squeeze(1)
    if len(starts) == len(sequences):
        return None
    return torch.cat([starts, starts.new_tensor([sequences.numel()])]).int()
