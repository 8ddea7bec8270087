"""Functions of other libraries that we know by what their source says.

Libraries repeat the same forward in a hundred classes, and change it in one of them. A digest of the source, without
comments, annotations and docstring, tells whether a forward is one that we know, whatever its class is called.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def digest(function: Callable[..., Any]) -> str | None:
    """Twelve hexadecimal digits of a function's source; None where it has none, or is not what it says.

    `print(digest(LlamaRMSNorm.forward))` gives what a table of rules names a forward by.
    """
    while _is_transparent(function):
        function = function.__wrapped__  # type: ignore[attr-defined]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0]
    if len(tree.body) != 1 or not isinstance(definition, ast.FunctionDef):
        return None
    if hasattr(function, "__wrapped__") and not definition.decorator_list:
        return None  # wrapped by somebody else, whose code the source does not show
    return hashlib.sha256(ast.unparse(_bare(definition)).encode()).hexdigest()[:12]


def _is_transparent(function: Callable[..., Any]) -> bool:
    """Whether it is what Hugging Face wraps the forward of each layer in, subclasses' too: activation checkpointing."""
    namespace = getattr(function, "__globals__", {})
    return namespace.get("__name__") == "transformers.modeling_layers" and hasattr(function, "__wrapped__")


def _bare(definition: ast.FunctionDef) -> ast.FunctionDef:
    """The definition without annotations and docstring."""
    definition.returns = None
    for node in ast.walk(definition.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    return definition
