"""What a backend sees in place of what was sent: its path, and edited header fields (sans-I/O).

A value that the caller chose can change neither the shape of a path nor that of a header: parameters are percent-encoded,
down to the slash, and a field whose text holds what no field may is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import quote

from multidict import CIMultiDict

from gateway.auth.principal import Principal
from gateway.auth.templates import Template, parse_template
from gateway.errors import Forbidden
from gateway.proxy.paths import is_raw
from gateway.proxy.routes import Found

_PARAMETER: Final = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
# RFC 9110, section 5.5: no control characters, and no white space around it, which the next reader would cut off. Surrogates
# stand for bytes that were no text.
_FIELD: Final = re.compile(
    r"[^\x00-\x20\x7f\ud800-\udfff](?:[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*[^\x00-\x20\x7f\ud800-\udfff])?"
)


@final
@dataclass(frozen=True, slots=True)
class PathRewrite:
    """What takes the place of the matched path, or of the matched prefix: text as it is sent and parameters, by turns."""

    pieces: tuple[str, ...]

    def apply(self, found: Found[object]) -> str:
        """Return the path for the backend; what followed a matched prefix stays byte for byte. The query is none of it."""
        pieces = list(self.pieces)
        for index in range(1, len(pieces), 2):
            pieces[index] = quote(found.parameters[pieces[index]], safe="")
        return "".join(pieces) + found.rest or "/"


def parse_path_rewrite(text: str, parameters: Collection[str]) -> PathRewrite:
    """Read a path such as `/v2/{id}`, for a route with these parameters; raises ValueError, saying what was expected."""
    pieces = tuple(_PARAMETER.split(text))
    if text[:1] != "/" or not all(map(is_raw, pieces[::2])):
        raise ValueError("expected a path such as /v2/{id}")
    if not set(pieces[1::2]) <= set(parameters):
        known = ", ".join(f"{{{name}}}" for name in sorted(parameters)) or "none"
        raise ValueError(f"expected no parameters but those of the route's path: {known}")
    return PathRewrite(pieces)


def parse_prefix_rewrite(text: str) -> PathRewrite:
    """Read what takes the place of a prefix, `/` being nothing; raises ValueError, saying what was expected."""
    if text[:1] != "/" or not is_raw(text) or (text != "/" and text[-1] == "/"):
        raise ValueError("expected a path such as /v2, without parameters and without a slash at its end")
    return PathRewrite(("" if text == "/" else text,))


@final
@dataclass(frozen=True, slots=True)
class Values:
    """What one request has to fill into templates; `principal` None: nobody known."""

    parameters: Mapping[str, str]
    principal: Principal | None
    headers: Mapping[str, str]  # of the request, as it came

    def text(self, template: Template) -> str:
        """Return a template filled in; raises Forbidden where a value cannot be had."""
        return template.expand(self.principal, self.parameters, self.headers)

    def field(self, template: Template) -> str | None:
        """Return the value of a header field; None where one of its parts cannot be had or it is no such value."""
        try:
            text = self.text(template)
        except Forbidden:
            return None
        return text if _FIELD.fullmatch(text) else None


@final
@dataclass(frozen=True, slots=True)
class HeaderEdits:
    """Changes to header fields: some are removed, some set in the place of what has their name, some added beside it.

    A field whose value cannot be had is left out; where it is to be set, what the sender put there goes all the same.
    """

    put: tuple[tuple[str, Template], ...] = ()
    add: tuple[tuple[str, Template], ...] = ()
    remove: tuple[str, ...] = ()

    def apply(self, headers: CIMultiDict[str], values: Values) -> None:
        """Change the headers in place; `values` may refer to the same ones, all is read before anything is changed."""
        if not (self.put or self.add or self.remove):
            return
        put = [(name, values.field(template)) for name, template in self.put]
        added = [(name, values.field(template)) for name, template in self.add]
        for name in self.remove:
            headers.popall(name, None)
        for name, value in put:
            headers.popall(name, None)
            if value is not None:
                headers[name] = value
        for name, value in added:
            if value is not None:
                headers.add(name, value)


def parse_edits(
    put: Mapping[str, str], add: Mapping[str, str], remove: Collection[str], parameters: Collection[str]
) -> HeaderEdits:
    """Read edits whose texts are templates; raises ValueError, saying what was expected."""

    def parsed(fields: Mapping[str, str]) -> tuple[tuple[str, Template], ...]:
        return tuple((name, parse_template(text, parameters=parameters, headers=True)) for name, text in fields.items())

    return HeaderEdits(parsed(put), parsed(add), tuple(remove))
