"""Turns pydantic's errors into problems: where, what was expected, what was found, and never a secret (sans-I/O)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from gateway.config.document import Document, Path, Problem

Schema = Mapping[str, Any]

_SHOWN = 60  # characters of a value

# What is missing or unknown is told with help of the schema, and the sections' own errors bring their text along.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "path_type": "the path of a file",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_type": "text (in quotes, if it looks like something else)",
    "string_unicode": "text of Unicode characters",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
    "expected": "{what}",
}
_STRUCTURES = frozenset({"dict_type", "model_type", "tuple_type"})


def explain(document: Document, schema: Schema, error: ErrorDetails) -> Problem:
    """Say what was expected and found at the place of one error."""
    path = tuple(step for step in error["loc"] if step != "[key]")
    line = document.line(path)
    what = error["type"]
    if what == "missing":
        return Problem(line, path, f"expected a value ({_purpose(schema, path)}), got nothing")
    if what == "extra_forbidden":
        return Problem(line, path, _unknown_key(schema, path))
    expected = _EXPECTED[what].format(**error.get("ctx", {}))
    if "[key]" in error["loc"]:
        return Problem(line, path, f"expected as name {expected}, got another")
    found = _kind(error["input"]) if what in _STRUCTURES else _found(document, schema, path, error["input"])
    return Problem(line, path, f"expected {expected}, got {found}")


def _purpose(schema: Schema, path: Path) -> str:
    nodes = list(_nodes(schema, path))
    return str(nodes[-1].get("description", "required")).rstrip(".").split(";")[0].split(":")[0]


def _unknown_key(schema: Schema, path: Path) -> str:
    *_, parent = _nodes(schema, path[:-1])
    keys = [key for option in _options(schema, parent) for key in option.get("properties", ())]
    close = get_close_matches(str(path[-1]), keys, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"expected one of {', '.join(keys)}, got an unknown key{hint}"


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
    return "text"


def _found(document: Document, schema: Schema, path: Path, value: object) -> str:
    """Show a scalar as it is written in the file: before substitution, so that no variable's value is shown."""
    if any(option.get("writeOnly") for node in _nodes(schema, path) for option in _options(schema, node)):
        return "a value that is kept secret"
    while path and path not in document.written and path not in document.lines:
        path = path[:-1]  # an item of a list that was written as one text
    if path not in document.written:
        return _kind(value)
    written = document.written[path]
    if written == "" and value is None:
        return "nothing"
    shown = written if len(written) <= _SHOWN else written[:_SHOWN] + "…"
    # User names and passwords do not belong into URLs, which is why such a URL may be the very mistake.
    return repr(re.sub(r"(?<=//)[^/]*@", "…@", shown))


def _nodes(schema: Schema, path: Path) -> Iterator[Schema]:
    """Walk a JSON schema along a path; what the schema says nothing of is empty."""
    node = _resolved(schema, schema)
    yield node
    for step in path:
        found = filter(None, (_child(option, step) for option in _options(schema, node)))
        node = _resolved(schema, next(found, {}))
        yield node


def _child(node: Schema, step: str | int) -> Schema | None:
    if isinstance(step, int):
        items = node.get("items")
        return items if isinstance(items, Mapping) else None
    patterns = node.get("patternProperties", {})
    inner = node.get("properties", {}).get(step) or next(iter(patterns.values()), node.get("additionalProperties"))
    return inner if isinstance(inner, Mapping) else None


def _options(schema: Schema, node: Schema) -> list[Schema]:
    return [node, *(_resolved(schema, option) for option in node.get("anyOf", ()))]


def _resolved(schema: Schema, node: Schema) -> Schema:
    if "$ref" in node:
        target = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
        return {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node
