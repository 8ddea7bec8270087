"""Reading the config.json of a published model: sizes that must be there, and settings that we must compute."""

from collections.abc import Mapping
from typing import Any

from fusedformer.transformer.config import Activation

# Their names of activations that we have.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_sizes(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values of these fields of theirs, under our names.

    Raises:
        ValueError: if one is not there; the message lists every one.
    """
    missing = [theirs for theirs in names.values() if config.get(theirs) is None]
    if missing:
        raise ValueError(f"the configuration has no {', '.join(missing)}")
    return {ours: config[theirs] for ours, theirs in names.items()}


def check_computed(config: Mapping[str, Any], computed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError where a field asks for what we do not compute.

    Of each field, `computed` has the values that we compute; the first is what a configuration without the field means.
    """
    for name, values in computed.items():
        value = config.get(name, values[0])
        if value not in values:
            raise ValueError(f"{name} is {value!r}: only {', '.join(map(repr, values))} is computed here")


def check_equal(config: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError unless the fields, where they are, have one value, which one field of ours holds."""
    values = {name: config[name] for name in names if config.get(name) is not None}
    if len(set(values.values())) > 1:
        given = " and ".join(f"{name} {value!r}" for name, value in values.items())
        raise ValueError(f"{given}: only equal values are computed here")


def check_head_dim(name: str, head_dim: int | None, d_model: int, n_heads: int) -> None:
    """Raise ValueError unless heads are as wide as d_model divided among them."""
    if head_dim is not None and head_dim * n_heads != d_model:
        raise ValueError(
            f"{name} is {head_dim}: {n_heads} heads of a model of width {d_model} have {d_model / n_heads:g}"
        )
