"""The section `routes`: which requests are passed on, to whom, as what, and with how much patience."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from gateway.auth.policy import AUTHENTICATED, Rule, parse_rule
from gateway.auth.templates import Template, parse_template
from gateway.config.access import Bucket, Cors, RuleSection
from gateway.config.httpvalues import (
    Authority,
    FieldName,
    FieldValue,
    Hosts,
    Methods,
    Name,
    RewrittenPath,
    RewrittenPrefix,
    RoutePath,
    RoutePrefix,
    parameters,
    some,
)
from gateway.config.lives import LivingSection
from gateway.config.section import Section
from gateway.config.values import Count, File, Seconds, Size, Text
from gateway.proxy.paths import parse_path, parse_prefix
from gateway.proxy.rewriting import HeaderEdits, PathRewrite, parse_edits, parse_path_rewrite, parse_prefix_rewrite
from gateway.proxy.routes import Match


class Share(Section):
    """One of the upstreams that share a route."""

    upstream: Name
    """One of the upstreams."""
    weight: Annotated[Count, Field(ge=0, le=10_000)]
    """Its share, beside the weights of the others; 0: none."""


class SplitSection(Section):
    """Several upstreams that share the requests of a route, such as a new version that gets a few of them."""

    on: FieldValue | None = None
    """What goes to the same upstream every time, as a template; null: each client address."""
    to: Annotated[tuple[Share, ...], some]
    """The upstreams with their shares."""


class Rewrite(Section):
    """What backends see in place of the path and the host."""

    path: RewrittenPath | None = None
    """Path to ask the backend for, with the route's parameters; for routes with path."""
    prefix: RewrittenPrefix | None = None
    """What takes the place of the matched prefix; for routes with prefix."""
    host: Authority | None = None
    """Host to name to the backend; null: the one that the client named."""

    @property
    def change(self) -> PathRewrite | None:
        """What becomes of the path, None if it stays."""
        if self.path is not None:
            return parse_path_rewrite(self.path, parameters(self.path))
        return None if self.prefix is None else parse_prefix_rewrite(self.prefix)


class Edits(Section):
    """Changes to header fields: texts may hold `{parameter}`, `{claims.name}` and `{headers.Name}`."""

    set: dict[FieldName, FieldValue] = Field(default={})
    """Fields to put in, in place of any that have the name."""
    add: dict[FieldName, FieldValue] = Field(default={})
    """Fields to put in beside those that have the name."""
    remove: tuple[FieldName, ...] = ()
    """Fields to take out."""

    def edits(self, names: Collection[str]) -> HeaderEdits:
        """Make the changes, for a route with parameters of these names; raises ValueError, saying what was expected."""
        return parse_edits(self.set, self.add, self.remove, names)


class RouteLimits(Section):
    """What one principal, or one client address where no token is needed, may ask of a route."""

    requests: Bucket | None = None
    """Requests of one principal; null: as many as it likes."""
    concurrent: Annotated[Count, Field(ge=1, le=1_000_000)] | None = None
    """Requests of one principal at once; null: as many as it likes."""


class Timeouts(Section):
    """How long to wait for a backend."""

    connect: Annotated[Seconds, Field(gt=0)] = 2.0
    """Seconds for the connection."""
    first_byte: Annotated[Seconds, Field(gt=0)] = 30.0
    """Seconds until the answer begins."""
    idle: Annotated[Seconds, Field(gt=0)] = 30.0
    """Seconds without a byte in either direction, once it began."""
    total: Annotated[Seconds, Field(gt=0)] = 120.0
    """Seconds for all of it, with all attempts."""


class HoldSection(Section):
    """Long polls: every request of the route is held by the backend on purpose."""

    first_byte: Annotated[Seconds, Field(gt=0)] = 75.0
    """Seconds until the answer to a long poll begins."""
    total: Annotated[Seconds, Field(gt=0)] = 120.0
    """Seconds for all of a long poll."""


class CacheSection(Section):
    """Answers that are stored, where they allow it (RFC 9111)."""

    max_bytes: Annotated[Size, Field(ge=64 << 10)] = 64 << 20
    """Memory for all stored answers of the route."""
    max_answer_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """Largest answer to store."""
    collapse: bool = True
    """Ask the backend once for requests that come together for the same."""


class RouteSection(LivingSection):
    """One route: the key in the mapping is its name, a label in metrics and logs."""

    hosts: Hosts | None = None
    """Hosts it is for, such as api.example.com or *.example.org; null: all."""
    path: RoutePath | None = None
    """The whole path, with `{parameter}` for any one segment."""
    prefix: RoutePrefix | None = None
    """In the place of path: this path and all below it; `/` is everything."""
    methods: Methods | None = None
    """Methods it is for; null: all."""
    headers: dict[FieldName, FieldValue] = Field(default={})
    """Header fields that a request has to have, with exactly these values; `*`: any value."""
    query: dict[Text, Annotated[str, Field(max_length=1000)]] = Field(default={})
    """Parameters that the query has to have, with exactly these values; `*`: any value."""
    upstream: Name | None = None
    """The upstream to pass requests on to."""
    split: SplitSection | None = None
    """In the place of upstream: several that share the requests."""
    rewrite: Rewrite = Rewrite()
    """What backends see in place of the path and the host."""
    request_headers: Edits = Edits()
    """Changes to the header of requests."""
    response_headers: Edits = Edits()
    """Changes to the header of answers."""
    public: bool = False
    """No token is needed."""
    allow: RuleSection | None = None
    """Who may use it; null: every principal."""
    claims: dict[FieldName, FieldValue] = Field(default={})
    """What backends are told of the principal, by header field; what clients send under these names is taken out."""
    authorization: Literal["strip", "forward"] = "strip"
    """What becomes of the client's token or key: strip or forward."""
    limits: RouteLimits | None = None
    """What one principal, or one client address where no token is needed, may ask of a route; null: anything."""
    timeouts: Timeouts = Timeouts()
    """How long to wait for a backend."""
    hold: HoldSection | None = None
    """Long polls: every request of the route is held by the backend on purpose; null: none is."""
    max_body_bytes: Annotated[Size, Field(ge=0)] | None = None
    """Largest request body of the route; null: server.max_body_bytes."""
    cors: Cors | None = None
    """Origins for this route, in place of the general ones."""
    compress: bool = False
    """Compress answers of text-like types over 1 KiB."""
    retries: bool = True
    """Try again what the upstream's retries allow."""
    cache: CacheSection | None = None
    """Answers that are stored, where they allow it (RFC 9111); null: none."""
    openapi: File | None = None
    """The backend's OpenAPI document, as JSON or YAML, to be part of /openapi.json."""
    description: Annotated[str, Field(max_length=1000)] = ""
    """For people, in the lists."""

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the path's parameters."""
        return frozenset() if self.path is None else parameters(self.path)

    @property
    def key(self) -> Template | None:
        """What a split goes by, None: the client address."""
        on = None if self.split is None else self.split.on
        return None if on is None else parse_template(on, headers=True)

    @property
    def shares(self) -> tuple[tuple[str, int], ...]:
        """The upstreams with their weights, as written; one alone has the weight 1."""
        if self.split is not None:
            return tuple((share.upstream, share.weight) for share in self.split.to)
        return () if self.upstream is None else ((self.upstream, 1),)

    @property
    def rule(self) -> Rule | None:
        """Who may use it, None without a token; a configuration that was checked cannot fail here."""
        if self.public:
            return None
        return parse_rule(None if self.allow is None else self.allow.written, absent=AUTHENTICATED)

    @property
    def match(self) -> Match:
        """Which requests it takes; there has to be a path or a prefix."""
        return Match(
            segments=parse_prefix(self.prefix or "/") if self.path is None else parse_path(self.path),
            below=self.path is None,
            hosts=self.hosts,
            methods=None if self.methods is None else frozenset(self.methods),
            headers=tuple(self.headers.items()),
            query=tuple(self.query.items()),
        )

    @property
    def told(self) -> tuple[tuple[str, Template], ...]:
        """The fields that tell the backend of the principal, with their templates."""
        return tuple((name, parse_template(text, headers=True)) for name, text in self.claims.items())
