"""Conditional requests, to the backend and by clients (sans-I/O).

hishel's NeedRevalidation says what a 304 updates. It is corrected here: a weak entity tag that is not the stored one's
identifies nothing (RFC 9111, section 4.3.4).
"""

from __future__ import annotations

import uuid
from typing import Final

from hishel import Entry, FromCache, Headers, InvalidateEntries, NeedRevalidation, NeedToBeUpdated, Request, Response
from hishel._core._spec import make_conditional_request
from multidict import CIMultiDict

from gateway.proxy.caching import CacheRequest
from gateway.proxy.directives import http_date
from gateway.proxy.stored import Stored
from gateway.proxy.storing import SHARED

_NAMELESS: Final = uuid.UUID(int=0)
_CONDITIONS: Final = ("If-None-Match", "If-Modified-Since")
# What a 304 does not have of a head: it describes a content that is not sent (RFC 9110, section 15.4.5).
_CONTENT: Final = ("Content-Type", "Content-Length", "Content-Encoding", "Content-Language")


def validating(request: CacheRequest, stored: Stored | None) -> CIMultiDict[str]:
    """Return the head to send: with the validators of what is stored, else with no condition, so that all can be stored.

    The client's own conditions are left out; they are for the cache to answer (section 4.3.2). A held request keeps them,
    for there they say what to wait for.
    """
    headers = request.headers.copy()
    if request.held:
        return headers
    for name in _CONDITIONS:
        headers.popall(name, None)
    if stored is not None:
        asked = make_conditional_request(_request(request), _response(stored.status, stored.headers)).headers
        headers.update((name, asked[name]) for name in _CONDITIONS if name in asked)
    return headers


def validated(stored: Stored) -> bool:
    """Tell whether there is something to validate it by."""
    headers = stored.headers
    return "ETag" in headers or "Last-Modified" in headers


def updated(request: CacheRequest, stored: Stored, headers: CIMultiDict[str]) -> CIMultiDict[str] | None:
    """Return the stored head as a 304 with this head updates it; None if the 304 means another answer."""
    old = stored.headers
    if not _may_mean(headers.get("ETag"), old.get("ETag")):
        return None
    entry = Entry(_NAMELESS, _request(request), _response(stored.status, old))
    need = NeedRevalidation(options=SHARED, request=entry.request, original_request=entry.request, revalidating_entries=[entry])
    state = need.next(_response(304, headers))
    if isinstance(state, InvalidateEntries):
        state = state.next()  # type: ignore[assignment]  # any state
    if not isinstance(state, NeedToBeUpdated):
        return None
    return _merged(old, headers, state.next())


def outdated_by(stored: Stored, status: int, headers: CIMultiDict[str]) -> bool:
    """Tell whether an answer to HEAD shows that a stored answer to GET is no longer the right one (section 4.3.5)."""
    old = stored.headers
    differs = any(name in headers and headers[name] != old.get(name) for name in ("ETag", "Last-Modified", "Content-Length"))
    return status == stored.status and differs


def not_modified(request: CacheRequest, stored: Stored) -> bool:
    """Tell whether a client's conditions are answered by 304 (RFC 9111, section 4.3.2; RFC 9110, section 13.2.2)."""
    if not request.conditional or not 200 <= stored.status < 300:  # noqa: PLR2004  # success
        return False
    headers = stored.headers
    if "If-None-Match" in request.headers:
        asked = [tag.strip() for tag in ",".join(request.headers.getall("If-None-Match")).split(",")]
        tag = headers.get("ETag")
        return "*" in asked or (tag is not None and _opaque(tag) in map(_opaque, asked))
    since = http_date(request.headers["If-Modified-Since"])
    modified = http_date(headers.get("Last-Modified"))
    return since is not None and (stored.date if modified is None else modified) <= since


def not_modified_head(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """Return what a 304 has of a head."""
    left = headers.copy()
    for name in _CONTENT:
        left.popall(name, None)
    return left


def _merged(old: CIMultiDict[str], new: CIMultiDict[str], state: FromCache) -> CIMultiDict[str]:
    """Return the fields that the library chose, with the spelling that they came with."""
    chosen = state.entry.response.headers
    spelt = {name.lower(): name for name in (*new, *old)}
    return CIMultiDict(
        (spelt[name], value) for name in chosen for value in chosen.get_list(name) or () if name != "age" or "Age" in new
    )


def _may_mean(new: str | None, old: str | None) -> bool:
    return new is None or old is None or _opaque(new) == _opaque(old)


def _opaque(tag: str) -> str:
    """Return an entity tag for weak comparison (RFC 9110, section 8.8.3.2)."""
    return tag.strip().removeprefix("W/")


def _request(request: CacheRequest) -> Request:
    return Request(request.method, request.uri)


def _response(status: int, headers: CIMultiDict[str]) -> Response:
    return Response(status, Headers({name: headers.getall(name) for name in set(headers)}))
