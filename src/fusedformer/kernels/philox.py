"""Random bits as a function of a seed and a counter, in plain PyTorch: the numbers that Triton's `tl.philox` gives.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011: Philox 4x32, 10 rounds.
"""

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """First of the four words that `philox_words` gives."""
    return philox_words(seed, c0, c1, c2)[0]


def philox_words(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words of the counter (c0, c1, c2, 0), as int64.

    Args:
        seed: int64, of one element.
        c0: integers of 32 bits in int64; c0, c1 and c2 broadcast.
        c1: as c0.
        c2: as c0.
    """
    key = [seed & _LOW, (seed >> 32) & _LOW]
    c3 = torch.zeros_like(c2)
    for _ in range(10):
        high_0, low_0 = _multiply(_MULTIPLIERS[0], c0)
        high_1, low_1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ key[0], low_1, high_0 ^ c3 ^ key[1], low_0
        key = [(part + step) & _LOW for part, step in zip(key, _KEY_STEPS)]
    return c0, c1, c2, c3


def _multiply(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers, by halves, which stay within int64."""
    upper, lower = (x >> 16) * factor, (x & 0xFFFF) * factor
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle << 16) | (lower & 0xFFFF)) & _LOW
