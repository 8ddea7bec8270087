"""Tokenizers beside weights, and chat templates, which are programs of strangers."""

import json
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from fusedformer.transformer.tokenizer import ChatTemplate, load_chat_template, load_tokenizer  # noqa: E402

DIALOGUE = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with a tokenizer that its file asks to pad and to truncate."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_tokenizers_neither_pad_nor_truncate(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a").ids == [0]
    assert tokenizer.encode("a b c").ids == [0, 1, 2]


def test_tokenizers_that_are_none(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*tokenizer.json"):
        load_tokenizer(folder)


def test_chat_template_of_a_folder(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*tokenizer_config.json"):
        load_chat_template(folder)
    config = {"chat_template": "{{ bos_token }}{{ messages[0]['content'] }}", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_chat_template(folder)(DIALOGUE) == "<s>hi"
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.safetensors has no chat template"):
        load_chat_template(folder)


def test_chat_templates() -> None:
    template = ChatTemplate("{% for m in messages %}\n{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}\n"
                            "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    assert template(DIALOGUE) == "user: hi\nassistant:"
    assert template(DIALOGUE, add_generation_prompt=False) == "user: hi\n"
    with pytest.raises(ValueError, match="the chat template is malformed"):
        ChatTemplate("{% for")
    with pytest.raises(ValueError, match=r"refuses .*: no system here"):
        ChatTemplate("{{ raise_exception('no system here') }}")(DIALOGUE)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses"):
        ChatTemplate(source)(DIALOGUE)
