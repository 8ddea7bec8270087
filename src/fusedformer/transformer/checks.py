"""What a user hands to a model, held against what it computes: every mistake is a ValueError with the values in it.

Dimensions: B batch, S sequence, T positions attended to.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name: str, value: object, device: torch.device) -> None:
    """Raise ValueError unless `value` is a tensor on this device, where the weights are."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, where the weights are, got {value.device}")


def check_tokens(name: str, tokens_BS: Tensor, vocab_size: int, device: torch.device) -> None:
    """Raise ValueError unless these are (B, S) indices, S at least 1, into a vocabulary of this size."""
    check_tensor(name, tokens_BS, device)
    shape, dtype = tuple(tokens_BS.shape), tokens_BS.dtype
    if dtype not in (torch.int32, torch.int64) or len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name} must be int32 or int64 of shape (B, S), S at least 1, got {dtype} of {shape}")
    # Reading values back from a GPU would stall it, and cannot be traced: there PyTorch's own device check remains.
    if device.type == "cpu" and tokens_BS.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in tokens_BS.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{name} hold values from {low} to {high}, outside a vocabulary of {vocab_size}")


def check_mask(name: str, mask_BT: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raise ValueError unless this is a bool mask of this shape."""
    check_tensor(name, mask_BT, device)
    if mask_BT.dtype != torch.bool or mask_BT.shape != tuple(shape):
        raise ValueError(
            f"{name} must be bool of the tokens' shape {tuple(shape)}, got {mask_BT.dtype} of {tuple(mask_BT.shape)}"
        )


def check_cu_seqlens(cu_seqlens: Tensor, n_tokens: int, max_seq_len: int, device: torch.device) -> None:
    """Raise ValueError unless these are the starts of packed sequences and, last, their number of tokens."""
    check_tensor("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must be int32 of shape (B + 1,), B at least 1, "
            f"got {cu_seqlens.dtype} of {tuple(cu_seqlens.shape)}"
        )
    if device.type != "cpu" or torch.compiler.is_compiling():  # as for tokens
        return
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != n_tokens or (lengths < 0).any():
        raise ValueError(f"cu_seqlens must rise from 0 to the {n_tokens} tokens, got {cu_seqlens.tolist()}")
    if lengths.max() > max_seq_len:
        raise ValueError(f"a sequence of {lengths.max()} positions is longer than max_seq_len {max_seq_len}")


def check_input_dtype(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless x has the weight's dtype, or one that autocast, where it is on, converts."""
    is_cast = torch.is_autocast_enabled(weight.device.type)
    dtypes = [dtype for dtype in FLOATS if dtype != torch.float64] if is_cast else [weight.dtype]
    if x.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, got {x.dtype}")


def check_room(prompt: int, max_new_tokens: int, max_seq_len: int) -> None:
    """Raise ValueError unless `max_new_tokens` fit into the context behind a prompt of that many tokens."""
    check_integer("max_new_tokens", max_new_tokens, least=0)
    if prompt + max_new_tokens > max_seq_len:
        raise ValueError(
            f"a prompt of {prompt} tokens and {max_new_tokens} new ones overflow the context of {max_seq_len}"
        )


def check_eos(eos_token_id: int | None, vocab_size: int) -> None:
    """Raise ValueError unless this is None or a token of the vocabulary."""
    if eos_token_id is None:
        return
    check_integer("eos_token_id", eos_token_id, least=0)
    if eos_token_id >= vocab_size:
        raise ValueError(f"eos_token_id {eos_token_id} is outside a vocabulary of {vocab_size}")


def check_integer(name: str, value: object, *, least: int) -> None:
    """Raise ValueError unless this is an integer, and not less than `least`."""
    if type(value) is not int or value < least:  # not isinstance: True is an int, and top_k=True a slip of the pen
        raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")


def check_temperature(value: object) -> None:
    """Raise ValueError unless this is a finite number that is not negative."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"temperature must be a finite number, at least 0, got {value!r}")


def check_generator(generator: object, device: torch.device) -> None:
    """Raise ValueError unless this is None or a generator for this device."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {generator!r}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator must be on {device}, where the weights are, got {generator.device}")


def check_dtype(dtype: object) -> None:
    """Raise ValueError unless this is None or a dtype that models compute in."""
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be None or one of {', '.join(map(str, FLOATS))}, got {dtype!r}")
