"""The file of API keys: a mapping of ids to entries in YAML, as under `api_keys.keys` in the configuration (sans-I/O)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from gateway.auth.apikeys import ApiKey, entry
from gateway.auth.keys import Parsed

MAX_BYTES: Final = 1 << 20
_HEAD: Final = "# API keys of the gateway, by their hashes. `gateway keys` writes this file; comments do not last.\n"
_TAG: Final = "tag:yaml.org,2002:"
_PLAIN: Final = frozenset(_TAG + name for name in ("null", "bool", "int", "float"))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # which one, only the platform knows
    """PyYAML's safe loader, ten times as fast where it is in C; dates stay text, and no key comes twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the base class has it so
        first: [pair for pair in pairs if pair[0] in _PLAIN] for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse what YAML takes silently: of two entries of one name, whoever wrote the first would never know."""
        names = [key.value for key, _ in node.value]
        if len(set(map(str, names))) < len(names):
            raise yaml.constructor.ConstructorError(problem="a key comes twice", problem_mark=node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_entries(data: bytes) -> dict[str, Any]:
    """Return what is in the file, by id; ValueError where it is no mapping in YAML."""
    try:
        document = yaml.load(data, _Loader)  # noqa: S506  # a subclass of the safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}: {getattr(error, 'problem', '')})" if mark is not None else ""
        raise ValueError(f"expected YAML{where}") from error
    document = {} if document is None else document
    if not isinstance(document, dict) or not all(isinstance(id_, str) for id_ in document):
        raise ValueError("expected a mapping of ids to entries")
    return document


def parse_file(data: bytes) -> Parsed[ApiKey]:
    """Return the keys of a file, and what is wrong with entries that are of no use; ValueError where all of it is.

    One bad entry must not keep the others from being revoked.
    """
    keys, skipped = [], []
    for id_, members in read_entries(data).items():
        try:
            keys.append(entry(id_, members))
        except ValueError as error:
            skipped.append(f"{id_}: {error}")
    return Parsed(tuple(keys), tuple(skipped))


def write_entries(entries: Mapping[str, Any]) -> bytes:
    """Return the file with these entries in it."""
    text = yaml.safe_dump(dict(entries), sort_keys=False, allow_unicode=True, width=128) if entries else ""
    return (_HEAD + text).encode()
