"""A route for backends, with all that its requests pass, and one request on its way over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from gateway.auth.policy import Rule
from gateway.auth.templates import Template
from gateway.lifecycle import ENDLESS, Lifecycle
from gateway.limits import Holder, Slots, TokenBuckets
from gateway.proxy.body import Body
from gateway.proxy.cache import Cache
from gateway.proxy.exchange import Backend, Terms
from gateway.proxy.forwarding import Hop
from gateway.proxy.headers import STRIPPED
from gateway.proxy.rewriting import HeaderEdits, PathRewrite, Values
from gateway.proxy.routes import Found
from gateway.proxy.split import Split
from gateway.server.exchange import Exchange as Facts
from gateway.server.relay import Relay
from gateway.server.tenures import Tenure

NO_EDITS = HeaderEdits()


@dataclass(frozen=True, slots=True)
class Route:
    """One route with all that its requests pass.

    `backends` by upstream name; with more than one, `split` chooses by `split_on`, None: the client's address. `origins` None:
    cross-origin requests are the backend's business. `allow` does not matter where it is `public`.
    """

    name: str
    backends: Mapping[str, Backend]
    terms: Terms
    allow: Rule
    max_body: int
    split: Split | None = None
    split_on: Template | None = None
    public: bool = False
    rewrite: PathRewrite | None = None
    host: str | None = None
    request_edits: HeaderEdits = NO_EDITS
    response_edits: HeaderEdits = NO_EDITS
    claims: tuple[tuple[str, Template], ...] = ()
    stripped: frozenset[bytes] = STRIPPED
    bucket: TokenBuckets | None = None
    slots: Slots | None = None
    origins: frozenset[str] | None = None
    lifecycle: Lifecycle = ENDLESS
    compress: bool = False
    cache: Cache | None = None
    plain: bool = field(init=False)
    """Whether a request without a body needs nothing but what can be done at once."""
    alike: bool = field(init=False)
    """Whether the heads of its answers do not depend on the request."""

    def __post_init__(self) -> None:
        plain = self.cache is None and not self.compress and not self.terms.held and self.lifecycle.sunset is None
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "alike", self.response_edits == NO_EDITS and not self.origins)

    def backend(self, values: Values, address: str) -> Backend:
        """Return the backend for a request."""
        if self.split is None:
            return next(iter(self.backends.values()))
        key = address if self.split_on is None else values.text(self.split_on)
        return self.backends[self.split.choose(key.encode("utf-8", "surrogateescape"))]


@dataclass(slots=True)
class Passage:
    """One request on its way: what is known of it. `request` and `relay` are there once a task has it."""

    message: RawRequestMessage
    route: Route
    found: Found[Route]
    facts: Facts
    hop: Hop
    path: str
    query: str
    values: Values
    origin: str | None = None
    """The Access-Control-Allow-Origin to answer with, None: none."""
    upstream: str | None = None
    body: Body | None = None
    held: bool = False
    expects: bool = False
    """The client waits for 100 Continue."""
    holder: Holder | None = None
    """Who has a slot of the route for it."""
    switched: bool = False
    """It goes on in a tunnel, which ends it."""
    since: int = 0
    """How many keys had been withdrawn when the token was found good."""
    tenure: Tenure | None = None
    """What ends the tunnel with the token."""

    request: web.BaseRequest = field(init=False)
    relay: Relay = field(init=False)

    def release(self) -> None:
        """Give its slot back, and forget whom it is held for."""
        if self.tenure is not None:
            self.tenure.close()
        if self.holder is not None and self.route.slots is not None:
            self.route.slots.release_of(self.holder)

    def target(self, path: str) -> str:
        """Return a target with this path and the query as sent."""
        return f"{path}?{self.query}" if "?" in self.message.path else path

    def backend(self) -> tuple[Backend, bytes | None]:
        """Choose its backend; return it, and what its `hash` balancing goes by. Forbidden where that cannot be had."""
        backend = self.route.backend(self.values, self.facts.address)
        self.upstream = backend.name
        if backend.key is None:
            return backend, None
        return backend, self.values.text(backend.key).encode("utf-8", "surrogateescape")
