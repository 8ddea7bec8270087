"""From a picture to what a vision transformer reads, as DINOv2 was evaluated.

Source: Oquab et al. 2023, "DINOv2" (arXiv:2304.07193), and the code they released: the shorter side to 256 pixels, the
middle 224 x 224, normalised by the mean and standard deviation of ImageNet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel: red, green, blue


def preprocess(picture: Tensor, *, resize: int = 256, crop: int = 224) -> Tensor:
    """An image (1, 3, crop, crop), float32, for a model that was trained as DINOv2 was.

    Args:
        picture: uint8, (height, width, 3), red first.
        resize: pixels of the shorter side before cropping; at least `crop`.
        crop: height and width of the square that is cut from the middle.

    Raises:
        ValueError: if the picture has another shape or dtype, or `resize` is less than `crop`.
    """
    if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture must be uint8 (height, width, 3), got {picture.dtype} of {tuple(picture.shape)}")
    if not 1 <= crop <= resize:
        raise ValueError(f"a square of {crop} pixels cannot be cut from a shorter side of {resize}")
    pixels = picture.permute(2, 0, 1).unsqueeze(0).float() / 255
    height, width = pixels.shape[2:]
    shorter = min(height, width)
    size = [height * resize // shorter, width * resize // shorter]
    # Bicubic interpolation overshoots at edges; a picture does not.
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    square = pixels[:, :, top : top + crop, left : left + crop]
    mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (square - mean) / std
