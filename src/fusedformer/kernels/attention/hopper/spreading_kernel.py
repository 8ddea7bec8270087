"""The numbers of packed queries with a gap after each sequence: TMA reads whole tiles of them, and what it reads past
the end of a sequence must be 0. Rows, which take 16 bytes and more, have descriptors for that, see packing.py.

Legend: B sequences, H heads. Memory: the numbers twice, 1 / 32 of a row of head dimension 64 each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedformer.kernels import replay


@triton.jit(do_not_specialize=["slots", "total", "length"])
def attention_hopper_spreading_kernel(
    delta_ptr,  # (H, total) float32
    shift_ptr,  # (H, total) float32
    spread_ptr,  # (2, H, length) float32
    starts_ptr,  # (B + 1,) int32
    tiles_ptr,  # (slots, 2) int32: sequence, or -1 for none, and tile within it
    heads,
    slots,
    total,
    length,
    BLOCK: tl.constexpr,
):
    """One program writes a tile of one head."""
    slot = tl.program_id(0) % slots
    head = (tl.program_id(0) // slots).to(tl.int64)
    sequence = tl.load(tiles_ptr + 2 * slot)
    if sequence < 0:
        return
    first = tl.load(starts_ptr + sequence)
    row = first + tl.load(tiles_ptr + (2 * slot + 1)) * BLOCK + tl.arange(0, BLOCK)
    inside = row < tl.load(starts_ptr + (sequence + 1))
    place = head * length + (row + sequence * BLOCK)
    tl.store(spread_ptr + place, tl.load(delta_ptr + (head * total + row), mask=inside, other=0.0))
    shift = tl.load(shift_ptr + (head * total + row), mask=inside, other=0.0)
    tl.store(spread_ptr + (heads.to(tl.int64) * length + place), shift)


def spread(delta: Tensor, shift: Tensor, starts: Tensor, slots: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(1, H, total) float32 numbers with `block` places of room after each sequence, which are 0 to the end of a tile.

    `slots`: of tiles of `block` rows, as `pack` gives them. Sequence b begins b * block places later than before.
    """
    _, heads, total = delta.shape
    length = total + (len(starts) - 1) * block
    length += -length % 4  # each head at a multiple of 16 bytes
    spread_out = torch.empty((2, 1, heads, length), dtype=torch.float32, device=delta.device)
    args = (delta, shift, spread_out, starts, slots, heads, len(slots), total, length)
    replay.launch(attention_hopper_spreading_kernel, len(slots) * heads, args, BLOCK=block)
    return spread_out[0], spread_out[1]
