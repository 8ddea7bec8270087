"""The vision transformer: patches equal to a convolution, blocks equal to torch.nn, both poolings."""

import re

import pytest
import torch
from models import IMAGE, make_model, torch_layers
from torch import nn

from fusedformer import TransformerConfig, VisionTransformer
from fusedformer.transformer.vision_transformer import patchify


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, 8, 2), (3, 12, 4), (2, 6, 6)])
def test_patches_equal_a_convolution(channels: int, size: int, patch: int) -> None:
    images = torch.randn(2, channels, size, size)
    convolution = nn.Conv2d(channels, 5, kernel_size=patch, stride=patch)
    expected = convolution(images).flatten(2).transpose(1, 2)
    projected = nn.functional.linear(patchify(images, patch), convolution.weight.flatten(1), convolution.bias)
    torch.testing.assert_close(projected, expected)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_equals_torch(norm_position: str, pooling: str) -> None:
    model = make_model("vision_transformer", norm_position=norm_position, pooling=pooling)
    theirs = torch_layers(model.stack, model.config)
    images = torch.randn(3, 2, 8, 8)
    embedded = model.patch_embedding(patchify(images, 4))
    if pooling == "class":
        embedded = torch.cat([model.class_token.expand(3, 1, 32), embedded], dim=1)
    hidden = theirs(embedded + model.position_embedding.weight)
    expected = model.head(hidden[:, 0] if pooling == "class" else hidden.mean(dim=1))
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_every_pixel_and_every_position_matters() -> None:
    model = make_model("vision_transformer")
    images = torch.randn(1, 2, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    assert (gradient != 0).all()
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)
    assert not torch.allclose(model(swapped), model(images), atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8, 6), (2, 8, 8), (2, 2, 0, 8)])
def test_bad_input(shape: tuple[int, ...]) -> None:
    message = rf"of shape \(B, 2, height, width\), both positive multiples of 4, got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        make_model("vision_transformer")(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtype_than_the_weights(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"images must be torch.float32, got {dtype}"):
        make_model("vision_transformer")(torch.zeros(1, 2, 8, 8, dtype=dtype))


def test_what_is_no_tensor_or_elsewhere() -> None:
    model = make_model("vision_transformer")
    with pytest.raises(ValueError, match="images must be a tensor, got ndarray"):
        model(torch.zeros(1, 2, 8, 8).numpy())
    with pytest.raises(ValueError, match="images must be on cpu, where the weights are, got meta"):
        model(torch.zeros(1, 2, 8, 8, device="meta"))


def test_autocast_converts_the_images() -> None:
    model = make_model("vision_transformer")
    images = torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(images).float(), model(images.bfloat16()).float(), rtol=0, atol=0.1)
        with pytest.raises(ValueError, match=r"images must be torch.float32 or .* got torch.float64"):
            model(images.double())


def test_whole_number_pixels() -> None:
    with pytest.raises(ValueError, match=r"images must be torch.float32, got torch.uint8"):
        make_model("vision_transformer")(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_registers_take_part_but_are_not_read(pooling: str) -> None:
    model = make_model("vision_transformer", pooling=pooling, n_registers=3, n_layers=1)
    images = torch.randn(2, 2, 8, 8)
    hidden = model.hidden(images)
    first = 3 + (pooling == "class")
    assert hidden.shape == (2, first + 4, 32)
    pooled = hidden[:, 0] if pooling == "class" else hidden[:, first:].mean(dim=1)
    torch.testing.assert_close(model(images), model.head(pooled))
    with torch.no_grad():
        model.registers.neg_()
    assert not torch.allclose(model.hidden(images)[:, first:], hidden[:, first:], atol=1e-3)


def test_registers_start_different_from_each_other() -> None:
    config = TransformerConfig(**IMAGE, n_registers=4)
    assert len(VisionTransformer(config).registers.unique(dim=0)) == 4  # type: ignore[union-attr]


def test_without_classes_the_pooled_vector_comes_out() -> None:
    model = make_model("vision_transformer", n_classes=0)
    images = torch.randn(2, 2, 8, 8)
    assert model.head is None
    assert torch.equal(model(images), model.hidden(images)[:, 0])


def test_positions_for_other_image_sizes() -> None:
    """What grows along the rows of the table still does; at its own size it is as it was. Figures: test_huggingface."""
    model = make_model("vision_transformer", image_size=32)  # 8 x 8 patches
    rows = torch.arange(8.0).repeat_interleave(8)[:, None].expand(64, 32)
    table = torch.cat([torch.full((1, 32), -5.0), rows])
    assert model.interpolate(table, 32, 32) is table
    larger = model.interpolate(table, 64, 32)
    grid = larger[1:].unflatten(0, (16, 8))
    assert (larger[0] == -5).all()
    assert (grid.diff(dim=0) > 0).all()
    torch.testing.assert_close(grid, grid[:, :1].expand(16, 8, 32))
    torch.testing.assert_close(grid.mean(), torch.tensor(3.5))
    assert model(torch.randn(1, 2, 64, 32)).shape == (1, 5)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "relative"])
def test_positions_that_images_do_not_have(positions: str) -> None:
    with pytest.raises(ValueError, match=f"VisionTransformer has positions 'learned' or 'none', got '{positions}'"):
        make_model("vision_transformer", positions=positions)


def test_no_positions() -> None:
    model = make_model("vision_transformer", positions="none")
    images = torch.randn(1, 2, 8, 8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)
    torch.testing.assert_close(model(swapped), model(images))
