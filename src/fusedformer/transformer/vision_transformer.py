"""The vision transformer: an image is a sequence of patches, and an encoder reads it.

Dimensions: B batch, C channels, I image height and width, P patch height and width, N patches, S = N + 1 positions with
a class token (N without), E d_model.
Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), section 3.1.
"""

import torch
from torch import Tensor, nn

from fusedformer.transformer.checks import FLOATS, check_tensor
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import Model, initialise
from fusedformer.transformer.parts import PositionEmbedding, Stack, pool


class VisionTransformer(Model):
    """Images in, the logits of their classes out.

    With pooling "class" a learned class token goes first and the head reads it; with "mean" there is none, and the head
    reads the mean over the patches.

    Raises:
        ValueError: if the configuration has no image_size, patch_size, n_channels or n_classes.
    """

    needs = ("image_size", "patch_size", "n_channels", "n_classes")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        n_patches = (config.image_size // config.patch_size) ** 2
        has_class_token = config.pooling == "class"
        self.patch_embedding = nn.Linear(config.n_channels * config.patch_size**2, config.d_model, bias=config.bias)
        self.class_token = nn.Parameter(torch.zeros(config.d_model)) if has_class_token else None
        self.position_embedding = PositionEmbedding(n_patches + has_class_token, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config)
        self.head = nn.Linear(config.d_model, config.n_classes, bias=config.bias)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, n_classes) of float images (B, n_channels, image_size, image_size).

        Raises:
            ValueError: the images have another shape, device or dtype than the model; under autocast, which converts
                them, their dtype may be any but float64.
        """
        return self.head(pool(self.hidden(images), self.config.pooling))

    def hidden(self, images: Tensor) -> Tensor:
        """The final vectors (B, S, E) of the class token, if there is one, and the patches in reading order."""
        self.check_images(images)
        x_BSE = self.patch_embedding(patchify(images, self.config.patch_size))
        if self.class_token is not None:
            x_BSE = torch.cat([self.class_token.expand(len(x_BSE), 1, -1), x_BSE], dim=1)
        return self.stack(self.dropout(self.position_embedding(x_BSE)))

    def check_images(self, images: Tensor) -> None:
        weight = self.patch_embedding.weight
        check_tensor("images", images, weight.device)
        shape, dtype = tuple(images.shape), images.dtype
        wanted = (self.config.n_channels, self.config.image_size, self.config.image_size)
        is_cast = torch.is_autocast_enabled(weight.device.type)
        dtypes = [dtype for dtype in FLOATS if dtype != torch.float64] if is_cast else [weight.dtype]
        if len(shape) != 4 or shape[1:] != wanted or dtype not in dtypes:
            raise ValueError(
                f"images must be {' or '.join(map(str, dtypes))} of shape (B, {', '.join(map(str, wanted))}), "
                f"got {dtype} of {shape}"
            )


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flat patches (B, N, C * P * P) in reading order; elements in the order of a convolution's weight.

    A linear layer on these is the paper's projection, and equals a convolution whose stride is its kernel size.
    """
    rows_BCRPI = images.unflatten(2, (-1, patch_size))
    grid_BCRPQP = rows_BCRPI.unflatten(4, (-1, patch_size))
    return grid_BCRPQP.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
