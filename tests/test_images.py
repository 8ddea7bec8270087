"""Pictures as DINOv2 reads them, against Hugging Face's image processor."""

from typing import Any

import pytest
import torch

from fusedformer.transformer.images import preprocess


def picture(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.arange(height)[:, None, None], torch.arange(width)[None, :, None]
    waves = torch.sin(rows / 17) + torch.cos(columns / torch.tensor([11.0, 23.0, 40.0]))
    return ((waves + 2) * 63).to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(300, 451), (512, 256), (100, 90)])
def test_is_hugging_faces(height: int, width: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("PIL", reason="pillow is not installed")
    pixels = picture(height, width)
    theirs = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    expected = torch.as_tensor(theirs(pixels.numpy(), return_tensors="pt")["pixel_values"])
    # Pillow rounds to bytes between its two passes and behind them.
    torch.testing.assert_close(preprocess(pixels), expected, rtol=0, atol=3 / 255 / 0.224)


def test_a_constant_picture_and_sizes() -> None:
    grey = torch.full((30, 40, 3), 51, dtype=torch.uint8)
    square = preprocess(grey, resize=28, crop=14)
    assert square.shape == (1, 3, 14, 14)
    expected = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(square, expected.view(1, 3, 1, 1).expand_as(square), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pixels", "sizes", "message"),
    [
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8),
            {},
            r"must be uint8 \(height, width, 3\), got torch.uint8 of \(3, 4, 4\)",
        ),
        (torch.zeros(4, 4, 3), {}, "got torch.float32"),
        (torch.zeros(0, 4, 3, dtype=torch.uint8), {}, r"of \(0, 4, 3\)"),
        (picture(4, 4), {"resize": 14, "crop": 28}, "a square of 28 pixels cannot be cut from a shorter side of 14"),
    ],
)
def test_pictures_that_are_none(pixels: torch.Tensor, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(pixels, **sizes)
