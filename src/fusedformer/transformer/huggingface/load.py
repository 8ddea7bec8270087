"""`from_huggingface`: a model of ours from the configuration and the tensors of a published one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.huggingface import bert, dinov2, gpt2, llama, t5, timm_vit, vit, whisper
from fusedformer.transformer.huggingface.family import Family
from fusedformer.transformer.model import Model

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "bert": bert.FAMILY,
    "t5": t5.FAMILY,
    "whisper": whisper.FAMILY,
    "vit": vit.FAMILY,
    "dinov2": dinov2.FAMILY,
    "dinov2_with_registers": dinov2.FAMILY,
}


def from_huggingface(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """Build our model of a published one, in evaluation mode.

    Dropout on attention probabilities, which matters in training alone, is not read: there is none here.

    Args:
        config: the fields of its config.json; `model_type` names the family, timm's have an `architecture` instead.
        tensors: its weights under the names of any version of the library, with a head or, where ours has none,
            without. They become the parameters of the model, in their dtypes, on their devices; what is not joined to
            another tensor is not copied.

    Returns:
        A Decoder (gpt2, llama), Encoder (bert), EncoderDecoder (t5, whisper) or VisionTransformer (vit, dinov2, and
        the vision transformers of timm).

    Raises:
        ValueError: the family is none of these, the configuration asks for what we do not compute, or tensors are
            missing, extra, mis-shaped or not floating point: the message lists every one, as the family's table of
            names spells it.
    """
    family = find_family(config)
    ours = family.configure(config, tensors)
    return family.model.from_state_dict(ours, family.to_ours(ours, tensors)).eval()


def find_family(config: Mapping[str, Any]) -> Family:
    """The family that a configuration belongs to."""
    if str(config.get("architecture")).startswith("vit_"):
        return timm_vit.FAMILY
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type is {kind!r}: only {', '.join(FAMILIES)} and timm's vit_* can be read")
    return FAMILIES[kind]
