"""What a family of published models is to us: an architecture, and its tensors under the family's own names.

Dimensions: E d_model, N positions, C channels, P patch height and width.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import Model, check_weights


class Layout(NamedTuple):
    """How a tensor of theirs is shaped, given the shape of ours, and how it becomes ours."""

    their_shape: Callable[[torch.Size, TransformerConfig], tuple[int, ...]]
    to_ours: Callable[[Tensor], Tensor]


SAME = Layout(lambda shape, config: shape, lambda tensor: tensor)
TRANSPOSED = Layout(lambda shape, config: shape[::-1], lambda tensor: tensor.T.contiguous())  # of TensorFlow's dense
BATCHED = Layout(lambda shape, config: (1, *shape), lambda tensor: tensor.squeeze(0))  # of what is broadcast to a batch
PATCHES = Layout(  # the convolution that embeds patches: (E, C, P, P)
    lambda shape, config: (shape[0], config.n_channels, config.patch_size, config.patch_size),
    lambda tensor: tensor.flatten(1),
)


Names = str | tuple[str | None, ...]


@dataclass(frozen=True)
class Family:
    """How models of one family become ours.

    Attributes:
        model: our architecture.
        configure: our configuration, from the fields of theirs and, where these do not say it all, the tensors.
        names: what our tensors are called there. The key is one of our tensors, or a module of ours whose weight and
            bias are a module's of theirs; the value is one name or several, whose tensors, one below the other, are
            ours. {} is the number of the block; None stands for zeros.
        gated_names: what takes the place of `names` where the feed-forward has a gate.
        layouts: of our tensors that are shaped otherwise there; the key as in `names`, in full.
        spellings: what other names, of older versions or inside larger models, become: pairs of a regular expression
            and its replacement, all applied in order.
        unused: regular expressions of whole names, spelt as in `names`, that nothing here reads.
        prepare: what else is to be done to their tensors, spelt as in `names`.
    """

    model: type[Model]
    configure: Callable[[Mapping[str, Any], Mapping[str, Tensor]], TransformerConfig]
    names: Mapping[str, Names]
    gated_names: Mapping[str, Names] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict

    def to_ours(self, config: TransformerConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of our model.

        Raises:
            ValueError: a tensor is missing, extra, mis-shaped or not floating point; the message lists every one.
        """
        shapes = {name: tensor.shape for name, tensor in self.model.skeleton(config).state_dict().items()}
        pieces = {name: self.pieces(name, shape, config) for name, shape in shapes.items()}
        theirs = self.prepare(self.respell(tensors, has_head="head.weight" in shapes))
        expected = {piece.name: piece.shape for of_one in pieces.values() for piece in of_one if piece.name is not None}
        check_weights(expected, theirs)
        return {name: join(of_one, theirs) for name, of_one in pieces.items()}

    def pieces(self, name: str, shape: torch.Size, config: TransformerConfig) -> list["Piece"]:
        """What our tensor of this name and shape is made of."""
        pattern, names = self.their_names(name, config)
        layout = self.layouts.get(pattern, SAME)
        our_shapes = [torch.Size((rows, *shape[1:])) for rows in split_rows(shape[0], len(names), config)]
        return [
            Piece(theirs, torch.Size(layout.their_shape(ours, config)), layout.to_ours)
            for theirs, ours in zip(names, our_shapes, strict=True)
        ]

    def their_names(self, name: str, config: TransformerConfig) -> tuple[str, tuple[str | None, ...]]:
        """Our name with {} for the number of the block, and the names there of the tensors that it is made of."""
        block = re.search(r"\.blocks\.(\d+)\.", name)
        index = block[1] if block else ""
        pattern = name.replace(f".blocks.{index}.", ".blocks.{}.")
        module, _, kind = pattern.rpartition(".")
        known = {**self.names, **self.gated_names} if config.gated else self.names
        found, suffix = (known[pattern], "") if pattern in known else (known[module], f".{kind}")
        found = (found,) if isinstance(found, str) else found
        return pattern, tuple(None if theirs is None else theirs.format(index) + suffix for theirs in found)

    def respell(self, tensors: Mapping[str, Tensor], *, has_head: bool) -> dict[str, Tensor]:
        """Their tensors as `names` spells them, without those that nothing reads."""
        unused = [*self.unused]
        if "head" in self.names and not has_head:  # tied: a copy of the table, that some files have
            unused.append(re.escape(f"{self.names['head']}.weight"))
        result: dict[str, Tensor] = {}
        for old, tensor in tensors.items():
            name = old
            for expression, replacement in self.spellings:
                name = re.sub(expression, replacement, name)
            if any(re.fullmatch(expression, name) for expression in unused):
                continue
            if name in result:
                raise ValueError(f"the weights have {name} twice, once as {old}")
            result[name] = tensor
        return result


class Piece(NamedTuple):
    """One tensor of theirs that ours is made of."""

    name: str | None  # None for zeros
    shape: torch.Size
    to_ours: Callable[[Tensor], Tensor]


def split_rows(rows: int, n_pieces: int, config: TransformerConfig) -> list[int]:
    """How many rows of our tensor each of its pieces has: equally many, but for queries beside fewer keys."""
    if n_pieces == 3:  # queries, keys, values
        n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
        return [heads * config.head_dim for heads in (config.n_heads, n_kv_heads, n_kv_heads)]
    return [rows // n_pieces] * n_pieces


def join(pieces: list[Piece], tensors: Mapping[str, Tensor]) -> Tensor:
    """Our tensor of its pieces; of a single one, nothing is copied."""
    given = [piece.to_ours(tensors[piece.name]) for piece in pieces if piece.name is not None]
    if len(pieces) == 1:
        return given[0]
    found = iter(given)
    return torch.cat([given[0].new_zeros(piece.shape) if piece.name is None else next(found) for piece in pieces])
