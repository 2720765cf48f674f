"""What goes into the cache and comes out of it (sans-I/O)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from multidict import CIMultiDict

_PORTS: Final = {"http": ":80", "https": ":443"}


class Result(StrEnum):
    """How an answer came about; the label `result` of gateway_proxy_cache_total."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    REVALIDATED = "revalidated"
    COLLAPSED = "collapsed"
    BYPASS = "bypass"


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """A request as the cache sees it.

    `scheme`, `authority` and `target` (raw path and query) are those that the client asked for. `headers` is the head as it
    goes to the backend, claims included, so that Vary on a claim keeps principals apart. `authenticated`: the route wants a
    token or key, whether or not it is forwarded; answers are then shared only as RFC 9111, section 3.5, allows it.
    `anonymous`: the route is public and forwards no claims. `held`: a long poll.
    """

    method: str
    scheme: str
    authority: str
    target: str
    headers: CIMultiDict[str]
    authenticated: bool = True
    anonymous: bool = False
    held: bool = False

    @property
    def uri(self) -> str:
        """The target URI, with the parts that do not tell cases apart in lower case (RFC 9110, section 4.2.3)."""
        scheme = self.scheme.lower()
        return f"{scheme}://{self.authority.lower().removesuffix(_PORTS.get(scheme, ':'))}{self.target}"

    @property
    def authorized(self) -> bool:
        """Whether section 3.5 applies: somebody proved who he is, here or to the backend."""
        return self.authenticated or "Authorization" in self.headers

    @property
    def nameless(self) -> bool:
        """Whether nothing in the request can tell one client from another, short of what Vary names."""
        return self.anonymous and not self.authorized and "Cookie" not in self.headers

    @property
    def conditional(self) -> bool:
        """Whether the client asks only for what it does not have (RFC 9110, section 13.1)."""
        return "If-None-Match" in self.headers or "If-Modified-Since" in self.headers


@dataclass(frozen=True, slots=True)
class Fetched:
    """A backend's answer. The body is bytes or an iterator, whose `aclose`, if it has one, gives back what it holds.

    A body that ends early must raise: one that just stops counts as whole unless Content-Length says otherwise.
    """

    status: int
    headers: CIMultiDict[str]
    body: bytes | AsyncIterator[bytes] = b""

    async def close(self) -> None:
        """Give the body up."""
        await close_body(self.body)


@dataclass(frozen=True, slots=True)
class CacheAnswer:
    """The answer for one client. Whoever has it reads the body to its end or awaits `close`."""

    status: int
    headers: CIMultiDict[str]
    body: bytes | AsyncIterator[bytes]
    result: Result

    async def close(self) -> None:
        """Give the body up; a fetch that nobody else wants is ended."""
        await close_body(self.body)


async def close_body(body: bytes | AsyncIterator[bytes]) -> None:
    """Close a body that can be closed."""
    close = getattr(body, "aclose", None)
    if close is not None:
        await close()
