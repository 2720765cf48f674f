"""Cross-origin requests for backends, where a route answers for them (Fetch standard, "HTTP extensions")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiohttp import hdrs
from multidict import CIMultiDict

from gateway.server.middleware import PREFLIGHT_MAX_AGE

ANY = "*"


def allowed_origin(fields: Mapping[str, str], origins: frozenset[str] | None) -> str | None:
    """Return the Access-Control-Allow-Origin to answer a request with; None: none. `origins` None or empty: nobody may."""
    if not origins:
        return None
    origin = fields.get(hdrs.ORIGIN)
    if origin is None or not (ANY in origins or origin in origins):
        return None
    return ANY if ANY in origins else origin


def mark(headers: CIMultiDict[str], allowed: str | None, origins: frozenset[str] | None) -> None:
    """Have the head of an answer say what a page may see of it, in place of what the backend says."""
    if not origins:
        return
    for name in [name for name in headers if name.lower().startswith("access-control-")]:
        headers.popall(name, None)
    if ANY not in origins:
        headers.add(hdrs.VARY, "Origin")
    if allowed is not None:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(
            sorted({name for name in headers if name.lower() not in _SAFELISTED})
        )


def is_preflight(method: str, fields: Mapping[str, str]) -> bool:
    """Tell whether a browser asks what it may ask for."""
    return method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in fields


def permission(fields: Mapping[str, str], origins: frozenset[str]) -> CIMultiDict[str]:
    """Return the head of the answer to a preflight: it grants all that is asked for, or nothing."""
    headers: CIMultiDict[str] = CIMultiDict()
    allowed = allowed_origin(fields, origins)
    mark(headers, allowed, origins)
    if allowed is not None:
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = fields[hdrs.ACCESS_CONTROL_REQUEST_METHOD]
        asked = fields.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        if asked is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_MAX_AGE
        headers.popall(hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, None)
    return headers


class _Wanted(str):
    """The value of a field that a preflight names: whatever a route asks for."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class Meant(Mapping[str, str]):
    """The fields of the request that a preflight is for: it tells their names, not their values."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        names = headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")
        self._named = {name.strip().lower(): _Wanted(name) for name in names}

    def __getitem__(self, name: str) -> str:
        named = self._named.get(name.lower())
        return self._headers[name] if named is None else named

    def __iter__(self) -> Iterator[str]:
        return iter({**self._headers, **self._named})

    def __len__(self) -> int:
        return len({**self._headers, **self._named})


# Fetch standard, "CORS-safelisted response-header name", and those that are for the browser alone.
_SAFELISTED = frozenset((
    "cache-control", "connection", "content-language", "content-length", "content-type", "date", "expires", "keep-alive",
    "last-modified", "pragma", "server", "set-cookie", "transfer-encoding", "vary", "via",
))  # fmt: skip
