"""The tokenizer that belongs to pretrained weights, and the form in which a model of dialogue expects one.

Tokenizers are those of the `tokenizers` library: `encode(text).ids`, `decode(ids)`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusedformer.transformer.formats import folder
from fusedformer.transformer.formats.locate import find_weights

try:
    from tokenizers import Tokenizer
except ImportError as error:
    raise ImportError("tokenizers come from the package of that name: pip install 'fusedformer[models]'") from error

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(path_or_package: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer beside a model's weights: tokenizer.json, or the metadata of a GGUF file.

    It neither pads nor truncates, whatever the file says: padding is the batch's affair, and of a text that is too long
    the model says so.

    Args:
        path_or_package: as for `from_pretrained`.

    Raises:
        FileNotFoundError: if there is no such model, or it has no tokenizer.
        ValueError: if the tokenizer is corrupt, or of a kind that is not read from GGUF.
    """
    weights = find_weights(path_or_package)
    if weights.suffix == ".gguf":
        from fusedformer.transformer.formats import gguf_tokenizer  # an extra

        return gguf_tokenizer.read(weights)
    path = weights.with_name(TOKENIZER)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class ChatTemplate:
    """Turns a dialogue into the text that a model was trained on, by the Jinja template that comes with the weights.

    A template is a program; it runs in Jinja's sandbox, which has no files, no imports and no attributes of Python.

    Args:
        source: the template.
        **variables: what it may use besides the messages, such as `bos_token`.

    Raises:
        ValueError: if the template is malformed.
    """

    def __init__(self, source: str, **variables: Any) -> None:
        from jinja2 import TemplateError  # a dependency of PyTorch
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals |= variables | {"raise_exception": raise_exception}
        try:
            self.template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template is malformed: {error}") from error

    def __call__(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text of a dialogue, up to where the model's next answer begins.

        Args:
            messages: each with a "role" ("system", "user" or "assistant") and its "content".
            add_generation_prompt: end with the beginning of an answer.

        Raises:
            ValueError: if the template refuses these messages.
        """
        try:
            return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # whatever a stranger's program raises
            raise ValueError(f"the chat template refuses {messages!r}: {error}") from error


def load_chat_template(path_or_package: str | os.PathLike[str]) -> ChatTemplate:
    """The chat template beside a model's weights: in tokenizer_config.json, or in the metadata of a GGUF file.

    Args:
        path_or_package: as for `from_pretrained`.

    Raises:
        FileNotFoundError: if there is no such model, or no tokenizer_config.json beside it.
        ValueError: if it has no chat template, or a malformed one.
    """
    weights = find_weights(path_or_package)
    if weights.suffix == ".gguf":
        source, variables = read_gguf_template(weights)
    else:
        config = folder.read_json(weights.with_name(TOKENIZER_CONFIG))
        source = config.get("chat_template")
        variables = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    if not isinstance(source, str):
        raise ValueError(f"{weights} has no chat template")
    return ChatTemplate(source, **variables)


def read_gguf_template(path: Path) -> tuple[Any, dict[str, str]]:
    from fusedformer.transformer.formats import gguf  # an extra

    metadata = gguf.read_metadata(path)
    tokens, variables = metadata.get("tokenizer.ggml.tokens", []), {}
    for kind in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if isinstance(index, int) and index < len(tokens):
            variables[f"{kind}_token"] = tokens[index]
    return metadata.get("tokenizer.chat_template"), variables
