"""Values of `--set` and `--grid`: numbers, words, and the package's own strategies such as `Adaptive(k=1.0)`."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import sam2_keyframe
from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.bank import compression
from sam2_keyframe.rules import filters

_STRATEGIES = {
    name: value
    for module in (filters, compression, sam2_keyframe)
    for name, value in vars(module).items()
    if dataclasses.is_dataclass(value) and not name.startswith("_")
}
_OPERATORS = {ast.BitAnd: "__and__", ast.BitOr: "__or__"}


def parse_value(text: str) -> Any:
    """Return the value that a text stands for: a literal, a public strategy of `sam2_keyframe`, or the word itself.

    >>> parse_value("0.2"), parse_value("rank"), parse_value("Visible() & Quality(0.5)")
    (0.2, 'rank', Visible() & Quality(0.5))

    Raises:
        ValueError: It is none of these.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name) and node.id not in ("inf", "nan"):
            return text.strip()
        return _value(node)
    except (SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read the value {text!r}: {error}") from error


def parse_pair(text: str) -> tuple[str, Any]:
    """Return name and value of `name=value`.

    Raises:
        ValueError: There is no `=`, or the value cannot be read.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"{text!r} is not name=value, as in keep=0.2")
    return name.strip(), parse_value(value)


def split_values(text: str) -> list[str]:
    """Return the parts between commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]]]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        kind = _STRATEGIES.get(node.func.id)
        if kind is None:
            raise ValueError(f"sam2_keyframe has no strategy {node.func.id}{did_you_mean(node.func.id, _STRATEGIES)}")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("arguments behind ** are not read; name each one")
        keywords = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        return kind(*(_value(argument) for argument in node.args), **keywords)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return getattr(_value(node.left), _OPERATORS[type(node.op)])(_value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_value(node.operand)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(part) for part in node.elts)
    return ast.literal_eval(node)
