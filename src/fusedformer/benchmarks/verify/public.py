"""Public implementations of the models of `verify`, around the same weights: Hugging Face transformers, and timm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.libraries import load_library
from fusedformer.benchmarks.verify import inputs
from fusedformer.transformer.pretrained import read_weights
from fusedformer.transformer.vision_transformer import VisionTransformer

# What generation needs is no part of a model's configuration there.
_NOT_OF_THE_CONFIG = ("suppress_tokens", "begin_suppress_tokens", "alignment_heads", "pooling")
# Names of DINOv2's tensors, Hugging Face's and timm's, replaced in this order.
_TIMM_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "attention.attention.": "attn.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def load_hugging_face(family: str, name: str, package: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Hugging Face's model of this class.

    Raises:
        MissingError: transformers is not installed.
    """
    inputs.require("transformers")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    fields, tensors = read_weights(package)
    # Whisper's table of sines: our model computes it, and so does theirs where the file's, in float16, is not given.
    tensors.pop("model.encoder.embed_positions.weight", None)
    known = getattr(transformers, f"{family}Config")
    config = known(**{key: value for key, value in fields.items() if key not in _NOT_OF_THE_CONFIG})
    model = getattr(transformers, name).from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    return model.to(device).eval()


def writing(model: Any, given: Mapping[str, Tensor], **settings: Any) -> Callable[[], Tensor]:
    """Greedy generation by Hugging Face's `generate` with its cache, which no token ends unless settings name one."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return lambda: model.generate(**given, do_sample=False, **settings)


def transcribing(
    model: Any, mels: Callable[[], Tensor], prompt: Tensor, n_tokens: int, suppressed: Mapping[str, Sequence[int]]
) -> Callable[[], Tensor]:
    """So many tokens behind the prompt, by Hugging Face's greedy search with its cache.

    That of every model, not Whisper's own `generate`, which would look for the language and for timestamps first.
    """
    from transformers import GenerationMixin

    generate: Any = GenerationMixin.generate

    def run() -> Tensor:
        written = generate(
            model, input_features=mels(), decoder_input_ids=prompt, max_new_tokens=n_tokens, do_sample=False,
            **suppressed,
        )  # fmt: skip
        return written[:, prompt.shape[1] :]

    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return run


def load_timm(package: str, ours: VisionTransformer, images: Tensor) -> Any:
    """timm's vision transformer with the weights of a DINOv2, for images of this size, device and dtype.

    Raises:
        MissingError: timm is not installed, or what it imports besides torchvision is not.
    """
    try:
        load_library("timm")
    except ImportError as error:
        raise inputs.MissingError("pip install numpy pyyaml && pip install --no-deps timm") from error
    return make_timm(*read_weights(package), ours, images).to(images).eval()


def make_timm(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], ours: VisionTransformer, images: Tensor) -> Any:
    """timm's vision transformer of a DINOv2's configuration and tensors, by Hugging Face's names.

    The table of positions is that of `ours` for images of this size: timm would smooth the one of another size on the
    way (antialias), which DINOv2 does not.
    """
    from timm.models.vision_transformer import VisionTransformer as Theirs

    height, width = images.shape[2:]
    model = Theirs(
        img_size=(height, width),
        patch_size=fields["patch_size"],
        embed_dim=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp_ratio=fields.get("mlp_ratio", 4),
        init_values=1.0,  # which the file's take the place of
        num_classes=0,
    )
    positions = ours.interpolate(ours.get_parameter("position_embedding.weight"), height, width)
    model.load_state_dict(as_timm({**tensors, "embeddings.position_embeddings": positions.unsqueeze(0)}))
    return model


def as_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DINOv2's tensors by timm's names; query, key and value are one there."""
    named = renamed(tensors, _TIMM_NAMES)
    named.pop("embeddings.mask_token", None)  # of its training
    for name in [name for name in named if ".query." in name]:
        parts = [named.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        named[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return named


def renamed(tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors by their names with these parts replaced, one after the other."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in parts.items():
            name = name.replace(old, new)
        named[name] = tensor
    return named
