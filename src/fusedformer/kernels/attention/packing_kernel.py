"""Which tile of which packed sequence each program takes, worked out on the device: lengths never reach the host.

Legend: B sequences; a slot is a pair (sequence, tile within it), or (-1, 0) where there are more slots than tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedformer.kernels import replay

CHUNK = 128


@triton.jit(do_not_specialize=["sequences", "slots"])
def attention_packing_kernel(
    starts_ptr,  # (B + 1,) int32
    slots_ptr,  # (slots, 2) int32
    sequences,
    slots,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program b writes the slots of sequence b, and the last one those that stay free."""
    program = tl.program_id(0)
    first = 0
    for start in tl.range(0, program, CHUNK):
        before = start + tl.arange(0, CHUNK)
        inside = before < program
        begins = tl.load(starts_ptr + before, mask=inside, other=0)
        ends = tl.load(starts_ptr + before + 1, mask=inside, other=0)
        first += tl.sum((ends - begins + BLOCK - 1) // BLOCK, 0)
    if program < sequences:
        begin = tl.load(starts_ptr + program)
        count = tl.cdiv(tl.load(starts_ptr + program + 1) - begin, BLOCK)
        sequence = program
    else:
        count = slots - first
        sequence = -1
    for start in tl.range(0, count, CHUNK):
        tiles = start + tl.arange(0, CHUNK)
        inside = tiles < count
        pair_ptrs = slots_ptr + 2 * (first + tiles)
        tl.store(pair_ptrs, tl.zeros([CHUNK], tl.int32) + sequence, mask=inside)
        tl.store(pair_ptrs + 1, tl.where(sequence < 0, 0, tiles), mask=inside)


def pack(starts: Tensor, length: int, block: int) -> Tensor:
    """The slots, (slots, 2) int32, of sequences whose rows, in tiles of `block`, begin at `starts` out of `length`."""
    sequences = starts.numel() - 1
    slots = torch.empty((length // block + sequences, 2), dtype=torch.int32, device=starts.device)
    args = (starts, slots, sequences, len(slots))
    replay.launch(attention_packing_kernel, sequences + 1, args, BLOCK=block, CHUNK=CHUNK)
    return slots
