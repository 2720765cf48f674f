"""Text with claims, path parameters and header fields to fill in (sans-I/O).

`{room}` is a path parameter and `{claims.sub}` a claim by its name; `{claims."https://a.example/b"}` is one whose name is not
plain, and `{{` and `}}` are braces. `{headers.X-Name}` is a header field of the request, only where the reader of the template
allows it: what a caller makes up decides nothing. Nested claims cannot be named. Nothing is converted: a claim that is absent,
empty or not a string opens nothing.

Two placeholders side by side are a trap: with `{a}-{b}` the values `x-y`, `z` and `x`, `y-z` give the same text, so that
whoever chooses one of them could reach another's key. So templates here can be read back in one way only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import final

from gateway.auth.principal import Principal
from gateway.errors import Forbidden

_TOKEN = re.compile(
    r"""
    (?P<text>(?:[^{}]|\{\{|\}\})+)
    | \{claims\.(?:(?P<claim>[A-Za-z0-9_-]+)|"(?P<quoted>[^"]+)")\}
    | \{headers\.(?P<header>[!#$%&'*+.^_`|~0-9A-Za-z-]+)\}
    | \{(?P<parameter>[A-Za-z_][A-Za-z0-9_]*)\}
    """,
    re.VERBOSE | re.ASCII,
)
_PARAMETER_CHARACTERS = re.compile(r"[A-Za-z0-9._~-]", re.ASCII)  # what a path parameter may hold, by the HTTP contract
_TEMPLATE_EXPECTED = (
    'expected text with {parameter}, {claims.name} or {claims."a name with dots"}; braces themselves are {{ and }}'
)
_HEADER_EXPECTED = _TEMPLATE_EXPECTED.replace("{claims.name}", "{headers.Name}, {claims.name}")
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@final
@dataclass(frozen=True, slots=True)
class Text:
    """Literal text in a template."""

    text: str


@final
@dataclass(frozen=True, slots=True)
class Parameter:
    """A path parameter in a template."""

    name: str


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A top-level claim in a template."""

    name: str


@final
@dataclass(frozen=True, slots=True)
class Header:
    """A header field of the request in a template; of several lines the first."""

    name: str


Part = Text | Parameter | Claim | Header


@final
@dataclass(frozen=True, slots=True)
class Template:
    """Text with placeholders, parsed once.

    Between two placeholders stands at least one character that no path parameter may hold, such as ":" or "/". These are
    the `separators`; a value that has one opens nothing. So different values never give the same text.
    """

    parts: tuple[Part, ...]
    separators: frozenset[str] = frozenset()

    @property
    def parameters(self) -> frozenset[str]:
        """Return the names of the path parameters used."""
        return frozenset(part.name for part in self.parts if isinstance(part, Parameter))

    @property
    def claims(self) -> frozenset[str]:
        """Return the names of the claims used."""
        return frozenset(part.name for part in self.parts if isinstance(part, Claim))

    def expand(self, principal: Principal | None, params: Mapping[str, str], headers: Mapping[str, str] = _NO_HEADERS) -> str:
        """Return the text for this caller, None being nobody known; `headers` finds names in any case.

        Raise Forbidden where a claim, parameter or field is absent, empty, not a string, or has one of the separators in it.
        """
        return "".join([self._value(part, principal, params, headers) for part in self.parts])

    def _value(self, part: Part, principal: Principal | None, params: Mapping[str, str], headers: Mapping[str, str]) -> str:
        if isinstance(part, Text):
            return part.text
        value: object
        if isinstance(part, Parameter):
            value = params.get(part.name)
        elif isinstance(part, Header):
            value = headers.get(part.name)
        else:
            value = None if principal is None else principal.claims.get(part.name)
        if not isinstance(value, str) or not value or not self.separators.isdisjoint(value):
            raise Forbidden
        return value


def parse_template(text: object, *, parameters: Collection[str] | None = None, headers: bool = False) -> Template:
    """Parse a template; `parameters` are the path parameters there are, None leaves that open; `headers` allows fields.

    Raise ValueError, saying what was expected.
    """
    if not isinstance(text, str) or not text:
        raise ValueError("expected a non-empty string")
    parts: list[Part] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or (found["header"] is not None and not headers):
            raise ValueError(_HEADER_EXPECTED if headers else _TEMPLATE_EXPECTED)
        at = found.end()
        parts.append(_part(found))
    template = Template(tuple(parts), _separators(parts))
    if parameters is not None and not template.parameters <= frozenset(parameters):
        known = ", ".join(f"{{{name}}}" for name in sorted(parameters)) or "none"
        raise ValueError(f"expected no parameters but those of the channel's name: {known}")
    return template


def _part(found: re.Match[str]) -> Part:
    text, claim, quoted, parameter, header = found.group("text", "claim", "quoted", "parameter", "header")
    if text is not None:
        return Text(text.replace("{{", "{").replace("}}", "}"))
    if header is not None:
        return Header(header)
    return Parameter(parameter) if parameter is not None else Claim(claim or quoted)


def _separators(parts: list[Part]) -> frozenset[str]:
    """Return the characters that tell the placeholders apart, as `Template` explains."""
    places = [index for index, part in enumerate(parts) if not isinstance(part, Text)]
    found: set[str] = set()
    for left, right in pairwise(places):
        between = "".join(part.text for part in parts[left:right] if isinstance(part, Text))
        special = set(_PARAMETER_CHARACTERS.sub("", between))
        if not special:
            raise ValueError('expected a character such as ":" or "/" between two placeholders, so that they stay apart')
        found |= special
    return frozenset(found)
