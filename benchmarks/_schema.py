"""Checks results against `schema.json`, so that rows contributed by others can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def schema() -> Mapping[str, Any]:
    """Return the JSON Schema of results: a `metrics.json`, or several runs in one file."""
    found: Mapping[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text())
    return found


def check_metrics(metrics: object, source: object = "results") -> None:
    """Raise ValueError naming the first place where results break the schema."""
    _check(metrics, schema(), str(source), "")


def _check(value: object, rule: Mapping[str, Any], source: str, place: str) -> None:
    if "$ref" in rule:
        _check(value, schema()["$defs"][rule["$ref"].rpartition("/")[2]], source, place)
    if "if" in rule:
        _check(value, rule.get("then" if _holds(value, rule["if"]) else "else", {}), source, place)
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    where = f"{source}: {place.lstrip('.') or 'the file'}"
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise ValueError(f"{where} is {value!r}, not {' or '.join(kinds)}; see benchmarks/schema.json")
    if "const" in rule and value != rule["const"]:
        raise ValueError(f"{where} is {value!r}, not {rule['const']!r}; see benchmarks/schema.json")
    if isinstance(value, int | float) and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        raise ValueError(f"{where} is {value!r}, outside {rule.get('minimum')} to {rule.get('maximum')}")
    if isinstance(value, dict):
        needed = [
            name for given, names in rule.get("dependentRequired", {}).items() if given in value for name in names
        ]
        for name in [*rule.get("required", []), *needed]:
            if name not in value:
                raise ValueError(f"{where} lacks {name!r}; see benchmarks/schema.json")
        for name, part in value.items():
            inner = rule.get("properties", {}).get(name, rule.get("additionalProperties", {}))
            if isinstance(inner, dict):
                _check(part, inner, source, f"{place}.{name}")
    if isinstance(value, list):
        for i, part in enumerate(value):
            _check(part, rule.get("items", {}), source, f"{place}[{i}]")


def _holds(value: object, rule: Mapping[str, Any]) -> bool:
    try:
        _check(value, rule, "", "")
    except ValueError:
        return False
    return True


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])
