"""OpenAPI documents of backends: read, checked, and gone through object by object (sans-I/O).

Theory of operation. OpenAPI mixes objects, whose keys mean something, with maps, whose keys are anybody's names, and with
examples, in which nothing means anything. `rebuilt` knows which is which, and all else is a change that it applies to each
object: so a property that is called `$ref`, or an example with one in it, is left alone. What is checked is what it takes
to make the document part of another one: its references, its paths and its operations, not each keyword of each schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import yaml

Json = dict[str, Any]
Change = Callable[[Json], Json]

MAX_BYTES: Final = 4 << 20
MAX_VALUES: Final = 200_000
MAX_DEPTH: Final = 64
METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

_VERSION: Final = re.compile(r"3\.[01]\.[0-9]+(?:-.*)?")
_COMPONENTS: Final = "#/components/"
_SHORTEST: Final = 3  # steps: components, kind, name
_MAX_SHOWN: Final = 200
_TOO_MUCH: Final = f"expected at most {MAX_VALUES} values, {MAX_DEPTH} levels deep, got more"
# Maps by anybody's names (OpenAPI 3.1, section 4.8; JSON Schema 2020-12).
_NAMED: Final = frozenset((
    "$defs", "callbacks", "content", "definitions", "dependentSchemas", "encoding", "examples", "headers", "links", "mapping",
    "parameters", "pathItems", "paths", "patternProperties", "properties", "requestBodies", "responses", "schemas", "scopes",
    "securitySchemes", "variables", "webhooks",
))  # fmt: skip
_LITERAL: Final = frozenset(("const", "default", "enum", "example", "value"))


class DocumentInvalid(ValueError):
    """A document cannot be used; the text says what was expected, and what was there."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml, where PyYAML has it: ten times as fast
    """Reads YAML as OpenAPI means it: what is no number, true, false or null in JSON is text, such as dates, `on` and `no`."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", "-0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def parse(data: bytes) -> Json:
    """Read a document in JSON or YAML; raises DocumentInvalid."""
    if len(data) > MAX_BYTES:
        raise DocumentInvalid(f"expected a document of at most {MAX_BYTES} bytes, got more")
    document: Any = _Plain().value(_loaded(data), 0)
    version = document.get("openapi") if isinstance(document, dict) else None
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise DocumentInvalid("expected an OpenAPI document (`openapi: 3.0.…` or `3.1.…`), got something else")
    if not isinstance(document.get("paths"), dict):
        raise DocumentInvalid("expected an OpenAPI document with paths, got one without")
    _check_components(document.get("components", {}))
    rebuilt(document, lambda node: _check_reference(node, document))
    _check_paths(document)
    try:
        msgspec.json.encode(document)
    except UnicodeEncodeError:  # which only PyYAML without libyaml lets pass
        raise DocumentInvalid("expected characters, got halves of some") from None
    whole: Json = document
    return whole


def _loaded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # so it has to be YAML
    try:
        _check_depth(data)
        return yaml.load(data, _Loader)  # noqa: S506  # a safe loader
    except DocumentInvalid:
        raise
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DocumentInvalid("expected a document in JSON or YAML, got a file that is neither") from None


def _check_depth(data: bytes) -> None:
    """Look how deep it is before it is loaded: PyYAML's C code descends without a bound of its own, until the stack ends."""
    depth = 0
    for event in yaml.parse(data, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise DocumentInvalid(_TOO_MUCH)


class _Plain:
    """Copies what was read into plain values, each place its own, so that YAML's aliases cannot be more than they seem."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def value(self, given: Any, depth: int) -> Any:
        """Return the copy."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise DocumentInvalid(_TOO_MUCH)
        if isinstance(given, dict):
            return {_key(key): self.value(item, depth + 1) for key, item in given.items()}
        if isinstance(given, list):
            return [self.value(item, depth + 1) for item in given]
        if given is None or isinstance(given, (str, int)) or (isinstance(given, float) and math.isfinite(given)):
            return given
        raise DocumentInvalid("expected values as JSON has them, got others")


def _key(key: Any) -> str:
    """Return a key as text: statuses come as numbers."""
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise DocumentInvalid("expected keys that are texts, got others")
    return str(key)


def _check_components(components: Any) -> None:
    sections = components.values() if isinstance(components, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise DocumentInvalid("expected components by kind and name, got something else")


def _check_reference(node: Json, document: Json) -> Json:
    if "$ref" not in node:
        return node
    reference = node["$ref"]
    shown = str(reference)[:_MAX_SHOWN]
    if component(reference) is None:
        raise DocumentInvalid(f"expected references to components of the document itself, got {shown}")
    if not _leads(document, reference):
        raise DocumentInvalid(f"expected references to what is there, got {shown}")
    return node


def _check_paths(document: Json) -> None:
    seen: set[str] = set()
    for path, given in document["paths"].items():
        if path[:2] == "x-":
            continue
        item = resolved(document, given) if isinstance(given, dict) else None
        if path[:1] != "/" or item is None:
            raise DocumentInvalid(f"expected paths from / on, each with its operations, got {path[:_MAX_SHOWN]}")
        for holder in (item, *operations(item).values()):
            _check_parameters(document, holder, path)
        for operation in operations(item).values():
            name = operation.get("operationId")
            if name is not None and (not isinstance(name, str) or name in seen):
                raise DocumentInvalid(f"expected each operationId once, as text, got {str(name)[:_MAX_SHOWN]} again")
            seen.update([name] if name is not None else [])


def _check_parameters(document: Json, holder: Any, path: str) -> None:
    given = holder.get("parameters", []) if isinstance(holder, dict) else None
    if not isinstance(given, list) or not all(_is_parameter(document, each) for each in given):
        expected = "expected operations whose parameters have a name and a place"
        raise DocumentInvalid(f"{expected}, got others at {path[:_MAX_SHOWN]}")


def _is_parameter(document: Json, given: Any) -> bool:
    meant = resolved(document, given) if isinstance(given, dict) else None
    return meant is not None and isinstance(meant.get("name"), str) and isinstance(meant.get("in"), str)


def operations(item: Json) -> dict[str, Any]:
    """Return the operations of a path, by method."""
    return {method: item[method] for method in METHODS if method in item}


def rebuilt(node: Any, change: Change, *, named: bool = False) -> Any:
    """Return a copy with a change applied to each object, from the outside in; `named`: it is a map by names."""
    if isinstance(node, list):
        return [rebuilt(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    if named:
        return {name: rebuilt(item, change) for name, item in node.items()}
    changed = change(node).items()
    return {key: item if _is_literal(key, item) else rebuilt(item, change, named=key in _NAMED) for key, item in changed}


def _is_literal(key: str, item: Any) -> bool:
    return key in _LITERAL or key[:2] == "x-" or (key == "examples" and isinstance(item, list))


def resolved(document: Json, node: Json) -> Json | None:
    """Return the object that a reference leads to, over further ones; None if it leads nowhere."""
    for _ in range(MAX_DEPTH):
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        try:
            found = _followed(document, reference)
        except LookupError:
            return None
        if not isinstance(found, dict):
            return None
        node = found
    return None


def _leads(document: Json, reference: str) -> bool:
    try:
        _followed(document, reference)
    except LookupError:
        return False
    return True


def _followed(document: Json, reference: str) -> Any:
    found: Any = document
    for step in pointer(reference):
        if isinstance(found, list) and step.isdecimal():
            found = found[int(step)]
        elif isinstance(found, dict):
            found = found[step]
        else:
            raise LookupError
    return found


def pointer(reference: str) -> list[str]:
    """Split a reference into the steps that lead to what it means (RFC 6901, section 6)."""
    return [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference.removeprefix("#/").split("/")]


def component(reference: object) -> tuple[str, str] | None:
    """Return the kind and the name of the component that a reference is to, or into; None if it is to none."""
    if not isinstance(reference, str) or not reference.startswith(_COMPONENTS):
        return None
    steps = pointer(reference)
    return (steps[1], steps[2]) if len(steps) >= _SHORTEST else None


def references(node: Any) -> list[tuple[str, str]]:
    """Return the kind and the name of each component that a part of a document refers to."""
    found: dict[tuple[str, str], None] = {}

    def note(each: Json) -> Json:
        mapping = each.get("mapping")
        for text in (each.get("$ref"), *(mapping.values() if isinstance(mapping, dict) else ())):
            if isinstance(text, str):  # a discriminator may also give the schema's name alone
                found[component(text) or ("schemas", text)] = None
        return each

    rebuilt(node, note)
    return list(found)
