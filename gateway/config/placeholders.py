"""What the templates of routes and upstreams refer to: claims, parameters of the path, header fields (sans-I/O).

`{headers.X-Name}` comes to what `gateway.auth.templates` knows, so that one grammar is parsed here, and its rule holds for all:
two placeholders side by side are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.auth.templates import parse_template

# Doubled braces are matched so that they are passed over: what follows them is text.
_HEADER: Final = re.compile(r"\{\{|\}\}|\{headers\.([A-Za-z0-9!#$%&'*+.^_`|~-]{1,128})\}")
_MARK: Final = "\0"  # no claim that a template can name has it

EXPECTED: Final = (
    'expected text with {parameter}, {headers.Name}, {claims.name} or {claims."a name with dots"};'
    " braces themselves are {{ and }}"
)


@dataclass(frozen=True, slots=True)
class Placeholders:
    """The names in one template."""

    parameters: frozenset[str]
    claims: frozenset[str]
    headers: frozenset[str]

    def mistakes(self, parameters: frozenset[str], *, public: bool) -> Iterator[str]:
        """Say what a route with these parameters cannot fill in."""
        if not self.parameters <= parameters:
            known = ", ".join(f"{{{name}}}" for name in sorted(parameters)) or "none"
            yield f"expected no parameters but those of the route's path: {known}, got another"
        if self.claims and public:
            yield "expected no claims (the route is public, so that there may be no token), got a claim"


def parse(text: str) -> Placeholders:
    """Give the names in a template; raises ValueError, saying what was expected."""

    def as_claim(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else f'{{claims."{_MARK}{match[1]}"}}'

    if _MARK in text:
        raise ValueError(EXPECTED)
    try:
        template = parse_template(_HEADER.sub(as_claim, text))
    except ValueError as error:
        raise ValueError(EXPECTED if "with {parameter}" in str(error) else str(error)) from None
    headers = frozenset(name.removeprefix(_MARK) for name in template.claims if name.startswith(_MARK))
    claims = frozenset(name for name in template.claims if not name.startswith(_MARK))
    return Placeholders(template.parameters, claims, headers)
