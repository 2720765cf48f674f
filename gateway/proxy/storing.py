"""What may be stored of an answer, and what an unsafe request makes worthless (sans-I/O).

hishel's CacheMiss decides by RFC 9111, section 3, and names the fields that are not kept. It is corrected here: a request's
own no-store (5.2.1.5), must-understand with a status that we do not know (5.2.2.3), and fields that Connection names (3.1).
And this cache is stricter than it must be: nothing with Set-Cookie is stored unless the answer says that the rest may be
(`no-cache="set-cookie"`), a request with a cookie gets no heuristic lifetime, an answer that could never be used is not kept.
"""

from __future__ import annotations

from enum import Enum
from typing import Final
from urllib.parse import urljoin, urlsplit

from hishel import CacheMiss, CacheOptions, Headers, Request, Response, StoreAndUse
from hishel._core._spec import SAFE_METHODS
from multidict import CIMultiDict

from gateway.proxy.caching import CacheRequest
from gateway.proxy.directives import directives, http_date, mended
from gateway.proxy.freshness import freshness
from gateway.proxy.stored import Stored, names_of, packed, vary_of

SHARED: Final = CacheOptions(shared=True, supported_methods=["GET", "HEAD"])
# Statuses whose own rules for caches are kept here (must-understand).
_UNDERSTOOD: Final = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501})
_CREDENTIALS: Final = frozenset({"authorization", "x-api-key"})
_ENDLESS: Final = ("text/event-stream", "multipart/x-mixed-replace")


class Keep(Enum):
    """What may be done with an answer beyond giving it to the one who asked.

    WAITING: nothing forbids to give it to those who wait for it at this moment, and nothing allows to store it.
    """

    STORE = "store"
    WAITING = "share among those who wait"
    NO = "no"


def judge(
    request: CacheRequest, status: int, headers: CIMultiDict[str], *, asked: float, received: float
) -> tuple[Keep, Stored]:
    """Decide about an answer to GET or HEAD by its head, which has a valid Date; the Stored has no body yet.

    `asked` and `received` are Unix seconds: when the request was sent and when the head came.
    """
    kept, storable = _kept(request, status, headers)
    names = names_of(headers, "Vary")
    stored = Stored(
        uri=request.uri,
        method=request.method,
        status=status,
        head=packed(kept),
        vary=vary_of(request.headers, names),
        freshness=freshness(status, headers, asked=asked, received=received, held=request.held),
        date=http_date(headers.get("Date")) or 0,
    )
    if not _one_for_all(request, kept, names):
        return Keep.NO, stored
    if storable and _useful(request, stored, kept):
        return Keep.STORE, stored
    return (Keep.WAITING if _harmless(request, headers) else Keep.NO), stored


def invalidated(request: CacheRequest, status: int, headers: CIMultiDict[str]) -> set[str]:
    """Return the URIs that an answer to a request makes worthless (section 4.4): its own, and those it names of its origin."""
    if request.method in SAFE_METHODS or not 200 <= status < 400:  # noqa: PLR2004  # success and redirection
        return set()
    uri = request.uri
    found = {uri}
    for field in ("Location", "Content-Location"):
        for value in headers.getall(field, ()):
            named = _joined(uri, value)
            if named is not None:
                found.add(named)
    return found


def _joined(uri: str, reference: str) -> str | None:
    try:
        parts = urlsplit(urljoin(uri, reference))
    except ValueError:
        return None
    named = CacheRequest("GET", parts.scheme, parts.netloc, parts.path or "/", CIMultiDict()).uri
    named += f"?{parts.query}" if parts.query else ""
    return named if urlsplit(named)[:2] == urlsplit(uri)[:2] else None


def _kept(request: CacheRequest, status: int, headers: CIMultiDict[str]) -> tuple[CIMultiDict[str], bool]:
    """Return the fields that may be kept, and whether the answer may be stored."""
    fields: dict[str, str | list[str]] = {name.lower(): headers.getall(name) for name in set(headers)}
    fields["cache-control"] = mended(headers)
    asked = Request(request.method, request.uri, Headers({"authorization": "present"} if request.authorized else {}))
    verdict = CacheMiss(options=SHARED, request=asked).next(Response(status, Headers(fields)))
    if not isinstance(verdict, StoreAndUse):
        return headers.copy(), False
    dropped = {"age", *names_of(headers, "Connection")}
    kept = [item for item in headers.items() if item[0].lower() in verdict.response.headers and item[0].lower() not in dropped]
    understood = status in _UNDERSTOOD or not directives(headers).must_understand
    return CIMultiDict(kept), understood and not directives(request.headers).no_store


def _one_for_all(request: CacheRequest, kept: CIMultiDict[str], names: list[str]) -> bool:
    """Tell whether an answer can be for more than one client at all, whatever else it says."""
    if "Set-Cookie" in kept or "*" in names or "Content-Range" in kept:
        return False
    # A field that the backend never saw cannot tell two clients apart: what varies by it is for nobody else.
    return not any(name in _CREDENTIALS and name not in request.headers for name in names if request.authenticated)


def _useful(request: CacheRequest, stored: Stored, kept: CIMultiDict[str]) -> bool:
    """Tell whether a stored answer could be used once: it is fresh for a while, or can be validated."""
    fresh = stored.freshness
    said = directives(kept)
    if "Cookie" in request.headers and said.max_age is None and said.s_maxage is None and not said.public:
        return "Expires" in kept and fresh.lifetime > 0
    if "ETag" in kept or "Last-Modified" in kept:
        return True
    return not fresh.validate and fresh.lifetime + max(fresh.while_revalidate, fresh.if_error) > fresh.initial_age


def _harmless(request: CacheRequest, headers: CIMultiDict[str]) -> bool:
    """Tell whether no word of an answer speaks against giving it to others who asked the same at the same time.

    RFC 9111 forbids it after no-store, private, no-cache, and after must-revalidate and proxy-revalidate once stale. What is
    silent is not fresh, so that to share it is an agreement out of band (section 4.2.4): that a route is public and collapses.
    """
    said = directives(headers)
    forbidden = said.no_store or said.private is not False or said.no_cache is not False
    strict = said.must_revalidate or said.proxy_revalidate or said.must_understand
    endless = headers.get("Content-Type", "").lower().startswith(_ENDLESS)
    return request.nameless and not forbidden and not strict and not endless and not directives(request.headers).no_store
