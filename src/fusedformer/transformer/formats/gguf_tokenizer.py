"""The tokenizer in a GGUF file's metadata, as one of the `tokenizers` library: byte-level BPE.

Source: the `tokenizer.ggml` keys of the GGUF specification; what text is split into before BPE, for each name that
llama.cpp gives to it, from the tokenizer.json published with the models (openai-community/gpt2, HuggingFaceTB/SmolLM2).
"""

from pathlib import Path
from typing import Any

from fusedformer.transformer.formats import gguf

try:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
except ImportError as error:
    raise ImportError("tokenizers come from the package of that name: pip install 'fusedformer[models]'") from error

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4  # token types: <|im_start|>, and a word that is always one token


def read(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no tokenizer, one that is not byte-level BPE, or is truncated or corrupt.
    """
    metadata = gguf.read_metadata(path)
    missing = [key for key in ("model", "tokens", "token_type", "merges") if PREFIX + key not in metadata]
    kind = metadata.get(PREFIX + "model")
    if kind not in (None, "gpt2"):
        raise ValueError(f"{path} has a tokenizer of kind {kind!r}: gpt2 (byte-level BPE) is read from GGUF")
    if missing:
        raise ValueError(f"{path} has no {', '.join(PREFIX + key for key in missing)}")
    tokens, types, merges = (metadata[PREFIX + key] for key in ("tokens", "token_type", "merges"))
    if not is_list_of(str, tokens) or not is_list_of(int, types) or not is_list_of(str, merges):
        raise ValueError(f"{path} is corrupt: its tokens and merges are no lists of text, or its types no integers")
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{path} is corrupt: {len(set(tokens))} tokens in {len(tokens)} places, {len(types)} types")
    tokenizer = Tokenizer(make_bpe(path, tokens, merges))
    tokenizer.pre_tokenizer = make_pre_tokenizer(path, metadata)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, type_ in zip(tokens, types) if type_ == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, type_ in zip(tokens, types) if type_ == USER_DEFINED])
    return tokenizer


def is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def make_bpe(path: Path, tokens: list[str], merges: list[str]) -> Any:
    if bad := [merge for merge in merges if merge.count(" ") != 1]:
        raise ValueError(f"{path} is corrupt: {bad[0]!r} is no merge of two tokens")
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    try:
        return models.BPE({token: index for index, token in enumerate(tokens)}, pairs)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is corrupt: its merges do not fit its tokens: {error}") from error


def make_pre_tokenizer(path: Path, metadata: dict[str, Any]) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(metadata.get(PREFIX + "add_space_prefix", False)))
    name = metadata.get(PREFIX + "pre")
    if name == "gpt-2":
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise ValueError(f"{path} splits text as {name!r} does: gpt-2 and smollm are read from GGUF")
