"""The vision transformer: an image is a sequence of patches, and an encoder reads it.

Dimensions: B batch, C channels, I and J image height and width, P patch height and width, N patches, R registers,
S = 1 + R + N positions with a class token (R + N without), E d_model.
Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), section 3.1; layer scale as in
DINOv2 (Oquab et al. 2023, arXiv:2304.07193); registers of Darcet et al. 2024 (arXiv:2309.16588).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.blocks import Stack
from fusedformer.transformer.checks import check_input_dtype, check_tensor
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import Model, initialise
from fusedformer.transformer.outputs import pool


class VisionTransformer(Model):
    """Images in, the logits of their classes out; without classes, one vector per image.

    With pooling "class" a learned class token goes first and the head reads it; with "mean" there is none, and the head
    reads the mean over the patches. Registers, which no head reads, stand between the class token and the patches.

    Raises:
        ValueError: if the configuration has no image_size, patch_size or n_channels, or positions are neither "learned"
            nor "none".
    """

    needs = ("image_size", "patch_size", "n_channels")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.positions not in ("learned", "none"):
            raise ValueError(f"VisionTransformer has positions 'learned' or 'none', got {config.positions!r}")
        E = config.d_model
        has_class_token = config.pooling == "class"
        n_positions = (config.image_size // config.patch_size) ** 2 + has_class_token
        self.patch_embedding = nn.Linear(config.n_channels * config.patch_size**2, E, bias=config.bias)
        self.class_token = nn.Parameter(torch.zeros(1, E)) if has_class_token else None
        self.registers = nn.Parameter(torch.zeros(config.n_registers, E)) if config.n_registers else None
        self.position_embedding = nn.Embedding(n_positions, E) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config)
        self.head = nn.Linear(E, config.n_classes, bias=config.bias) if config.n_classes else None
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, n_classes), or without classes vectors (B, E), of float images (B, n_channels, I, J).

        I and J are multiples of patch_size. Where they are not image_size, the table of positions is interpolated.

        Raises:
            ValueError: the images have another shape, device or dtype than the model; under autocast, which converts
                them, their dtype may be any but float64.
        """
        hidden_BSE = self.hidden(images)
        if self.config.pooling == "mean":
            hidden_BSE = hidden_BSE[:, self.config.n_registers :]
        pooled_BE = pool(hidden_BSE, self.config.pooling)
        return pooled_BE if self.head is None else self.head(pooled_BE)

    def hidden(self, images: Tensor) -> Tensor:
        """The final vectors (B, S, E): of the class token, if there is one, registers, and patches in reading order."""
        self.check_images(images)
        patches_BNE = self.patch_embedding(patchify(images, self.config.patch_size))
        parts = [patches_BNE]
        if self.class_token is not None:
            parts.insert(0, self.class_token.expand(len(images), 1, -1))
        x_BSE = torch.cat(parts, dim=1)
        if self.position_embedding is not None:
            x_BSE = x_BSE + self.interpolate(self.position_embedding.weight, *images.shape[2:])
        if self.registers is not None:  # they have no position
            registers_BRE = self.registers.expand(len(images), -1, -1)
            n_before = x_BSE.shape[1] - patches_BNE.shape[1]
            x_BSE = torch.cat([x_BSE[:, :n_before], registers_BRE, x_BSE[:, n_before:]], dim=1)
        return self.stack(self.dropout(x_BSE))

    def interpolate(self, table: Tensor, height: int, width: int) -> Tensor:
        """The table of positions for images of this size, (S - R, E): bicubic between those of the grid it is for."""
        grid, P = self.config.image_size // self.config.patch_size, self.config.patch_size
        rows, columns = height // P, width // P
        if (rows, columns) == (grid, grid):
            return table
        of_class, of_patches = table.split([len(table) - grid**2, grid**2])
        grid_1EGG = of_patches.T.unflatten(1, (grid, grid)).unsqueeze(0).to(accumulate_dtype(table.dtype))
        antialias = self.config.antialias_positions
        resized_1EGG = F.interpolate(grid_1EGG, (rows, columns), mode="bicubic", antialias=antialias)
        return torch.cat([of_class, resized_1EGG.to(table.dtype).squeeze(0).flatten(1).T])

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless these are images that the model reads."""
        weight, P, C = self.patch_embedding.weight, self.config.patch_size, self.config.n_channels
        check_tensor("images", images, weight.device)
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != C or not all(size and size % P == 0 for size in shape[2:]):
            raise ValueError(
                f"images must be of shape (B, {C}, height, width), both positive multiples of {P}, got {shape}"
            )
        check_input_dtype("images", images, weight)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flat patches (B, N, C * P * P) in reading order; elements in the order of a convolution's weight.

    A linear layer on these is the paper's projection, and equals a convolution whose stride is its kernel size.
    """
    rows_BCRPJ = images.unflatten(2, (-1, patch_size))
    grid_BCRPQP = rows_BCRPJ.unflatten(4, (-1, patch_size))
    return grid_BCRPQP.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
