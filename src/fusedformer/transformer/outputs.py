"""What is made of a model's last hidden vectors: one vector per sequence, or a loss.

Dimensions: B batch, S sequence, N tokens of packed sequences, E d_model, V vocabulary.
"""

import torch
from torch import Tensor

from fusedformer.kernels.cross_entropy import cross_entropy_fwd
from fusedformer.kernels.reference import accumulate_dtype

IGNORED = -100  # a label that does not count; what PyTorch's cross-entropy ignores by default


def pool(hidden_BSE: Tensor, how: str, mask_BS: Tensor | None = None) -> Tensor:
    """One vector (B, E) per sequence: that of its first token ("class"), or the mean of those of its tokens ("mean").

    Positions that are False in the mask do not take part, whatever they hold; a row of these alone gives zeros.
    """
    if mask_BS is None:
        return hidden_BSE[:, 0] if how == "class" else hidden_BSE.mean(dim=1)
    hidden_BSE = hidden_BSE.masked_fill(~mask_BS.unsqueeze(-1), 0)
    if how == "class":
        first_B11 = mask_BS.int().argmax(dim=1)[:, None, None]
        return hidden_BSE.take_along_dim(first_B11, dim=1).squeeze(1)
    total_BE = hidden_BSE.sum(dim=1, dtype=accumulate_dtype(hidden_BSE.dtype))
    return (total_BE / mask_BS.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_BSE.dtype)


def pool_packed(hidden_NE: Tensor, how: str, cu_seqlens: Tensor) -> Tensor:
    """`pool` of packed sequences; one without tokens gives zeros."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    if how == "class":
        padded_NE = torch.cat([hidden_NE, hidden_NE.new_zeros(1, hidden_NE.shape[1])])
        return padded_NE[starts.where(lengths > 0, len(hidden_NE))]
    wide_NE = hidden_NE.to(accumulate_dtype(hidden_NE.dtype))
    # Each sum in one order, where adding rows by index would take any.
    total_BE = torch.segment_reduce(wide_NE, "sum", lengths=lengths, axis=0, initial=0.0, unsafe=True)
    return (total_BE / lengths.clamp(min=1).unsqueeze(1)).to(hidden_NE.dtype)


def mean_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats, float32 (float64 for float64), of the labels that are True in the mask.

    Where there is none, the loss is 0, and so are its gradients.
    """
    if mask_BS is None:
        loss = cross_entropy_fwd.natively(logits_BSV, labels_BS, None, IGNORED, 0.0, "mean")
        if loss is not None:
            return loss
    counts_BS = torch.ones_like(labels_BS, dtype=torch.bool) if mask_BS is None else mask_BS
    labels_BS = labels_BS.long().masked_fill(~counts_BS, IGNORED)
    # The op below the public function: that one rounds its result to the dtype of the logits.
    losses, *_ = cross_entropy_fwd(logits_BSV.flatten(0, 1), labels_BS.flatten(), None, IGNORED, 0.0)
    return losses.sum() / counts_BS.sum().clamp(min=1)
