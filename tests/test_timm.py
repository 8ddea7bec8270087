"""Equal to timm's vision transformers, random weights copied over: outputs in float32 to 1e-5."""

from typing import Any

import pytest
import torch

from fusedformer.transformer.huggingface.load import from_huggingface

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_head": {"num_classes": 0},
    "no_class_position": {"no_embed_class": True},
    "dinov2_reg": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.5, "num_classes": 0},
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False},
}


@pytest.mark.parametrize("size", [(12, 12), (8, 20)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vision_transformer(timm: Any, kind: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 12, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    arguments |= KINDS[kind]
    theirs = timm.models.vision_transformer.VisionTransformer(**arguments, mlp_ratio=1.5, dynamic_img_size=True).eval()
    for name, parameter in theirs.named_parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name and "weight" in name))
    config = {"architecture": "vit_test", "model_args": arguments, "global_pool": arguments.get("global_pool", "token")}
    ours: Any = from_huggingface(config, theirs.state_dict())
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.hidden(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)
