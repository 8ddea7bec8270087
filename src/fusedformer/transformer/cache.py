"""What decoding token by token keeps: the keys and values that attention has seen so far.

Dimensions: B batch, S new positions, T positions attended to, K key and value heads, D head width.
"""

from typing import NamedTuple

from torch import Tensor


class KeyValueCache:
    """The keys and values that one attention layer has seen so far, for decoding token by token.

    The buffers have their final size from the first `append` on, so that no step copies what came before.
    """

    keys: Tensor  # (B, max_seq_len, K, D)
    values: Tensor  # (B, max_seq_len, K, D)

    def __init__(self, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.length = 0

    def append(self, k_BSKD: Tensor, v_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of S further positions; return those of all T positions so far."""
        start, end = self.length, self.length + k_BSKD.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"a cache of {self.max_seq_len} positions cannot hold {end}")
        B, _, K, D = k_BSKD.shape
        sizes = (B, K, D) if start == 0 else (len(self.keys), *self.keys.shape[2:])
        for name, new in (("keys", k_BSKD), ("values", v_BSKD)):
            if (len(new), *new.shape[2:]) != sizes:
                raise ValueError(f"a cache of (B, K, D) = {sizes} cannot hold {name} of shape {tuple(new.shape)}")
        if start == 0:
            self.keys = k_BSKD.new_empty(B, self.max_seq_len, K, D)
            self.values = v_BSKD.new_empty(B, self.max_seq_len, K, D)
        self.keys[:, start:end] = k_BSKD
        self.values[:, start:end] = v_BSKD
        self.length = end
        return self.keys[:, :end], self.values[:, :end]


class Memory(NamedTuple):
    """What one layer's cross-attention reads: the keys, values and padding mask of the encoder's output."""

    keys: Tensor  # (B, T, K, D)
    values: Tensor  # (B, T, K, D)
    mask: Tensor | None  # bool, (B, 1, 1, T)
