"""What the values of routes have to be to each other, to the upstreams and to the rest of the gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from gateway.auth.policy import NOBODY, parse_rule, trusts_any_issuer
from gateway.config import lives, upstreamchecks
from gateway.config.access import RuleSection
from gateway.config.document import Path
from gateway.config.findings import Finding, Names, at_most, said, unknown
from gateway.config.httpvalues import FRAMING, WAY
from gateway.config.placeholders import mistakes, parse
from gateway.config.routes import Edits, RouteSection
from gateway.config.sections import Config, Server
from gateway.proxy.rewriting import parse_path_rewrite
from gateway.proxy.routes import Entry, RouteConflict, Routes
from gateway.server import apidocs
from gateway.server.ownpaths import own_paths

_CREDENTIALS = frozenset(("authorization", "proxy-authorization", "x-api-key"))


def check(config: Config, names: Names) -> Iterator[Finding]:
    """Give each mistake of what is left of a file."""
    for name, upstream in config.upstreams.items():
        yield from ((("upstreams", name, *path), sentence) for path, sentence in upstreamchecks.check(upstream))
    for name, route in config.routes.items():
        found = _route(route, config, names)
        yield from ((("routes", name, *path), sentence) for path, sentence in found)
    # A route of which a condition is missing would seem to be for the same requests as another one.
    yield from _conflicts({name: route for name, route in config.routes.items() if name not in names.doubtful})


def _conflicts(routes: Mapping[str, RouteSection]) -> Iterator[Finding]:
    placed = {name: route for name, route in routes.items() if (route.path is None) != (route.prefix is None)}
    try:
        Routes(Entry(name, route.match, None) for name, route in placed.items())
    except RouteConflict as error:
        for first, second, why in error.conflicts:
            yield ("routes", second), f"expected no two routes for the same requests, got one like {first}: {why}"


def _route(route: RouteSection, config: Config, names: Names) -> Iterator[Finding]:
    yield from _place(route, config.server)
    yield from _matching(route)
    yield from _destination(route, names.upstreams)
    yield from _rewrite(route)
    for name, edits in (("request_headers", route.request_headers), ("response_headers", route.response_headers)):
        yield from (((name, *path), sentence) for path, sentence in _edits(edits, route, answers=name == "response_headers"))
    yield from _claims(route)
    yield from _rule(route, names.issuers)
    yield from _bounds(route, config.server)
    yield from _cache(route)
    yield from lives.check(route)
    if route.openapi is not None:
        yield from ((("openapi",), sentence) for sentence in _openapi(route.openapi))


def _place(route: RouteSection, server: Server) -> Iterator[Finding]:
    given = [name for name in ("path", "prefix") if getattr(route, name) is not None]
    if len(given) != 1:
        yield (), f"expected exactly one of path and prefix, got {'both' if given else 'neither'}"
    for name in given:
        if getattr(route, name) in own_paths(server.prefix, single_listener=server.single_listener):
            yield (name,), "expected a path that is none of the gateway's own, got one that it answers itself"


def _matching(route: RouteSection) -> Iterator[Finding]:
    yield from ((("headers",), sentence) for sentence in _twice(route.headers))
    for name in route.headers:
        if name.lower() == "host":
            yield ("headers", name), "expected hosts in its place, got the field Host"


def _twice(names: Mapping[str, str]) -> Iterator[str]:
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:
            yield f"expected each field once (capitals make no difference), got {name} {count} times"


def _destination(route: RouteSection, upstreams: frozenset[str]) -> Iterator[Finding]:
    if (route.upstream is None) == (route.split is None):
        yield (), f"expected exactly one of upstream and split, got {'neither' if route.upstream is None else 'both'}"
    if route.upstream is not None and route.upstream not in upstreams:
        yield ("upstream",), unknown("upstream", route.upstream, upstreams)
    if route.split is None:
        return
    seen: set[str] = set()
    for index, share in enumerate(route.split.to):
        here: Path = ("split", "to", index, "upstream")
        if share.upstream not in upstreams:
            yield here, unknown("upstream", share.upstream, upstreams)
        elif share.upstream in seen:
            yield here, "expected each upstream once, got one again"
        seen.add(share.upstream)
    if not any(share.weight for share in route.split.to):
        yield ("split", "to"), "expected a weight above 0, got none: nobody would get a request"
    if route.split.on is not None:
        yield from _template(("split", "on"), route.split.on, route)


def _rewrite(route: RouteSection) -> Iterator[Finding]:
    rewrite = route.rewrite
    if rewrite.path is not None:
        if route.prefix is not None:
            yield ("rewrite", "path"), "expected path beside it (a route with prefix has rewrite.prefix), got prefix"
        else:
            yield from said(("rewrite", "path"), parse_path_rewrite, rewrite.path, route.parameters)
    if rewrite.prefix is not None and route.path is not None:
        yield ("rewrite", "prefix"), "expected prefix beside it (a route with path has rewrite.path), got path"


def _edits(edits: Edits, route: RouteSection, *, answers: bool) -> Iterator[Finding]:
    for kind, fields in (("set", edits.set), ("add", edits.add)):
        yield from (((kind,), sentence) for sentence in _twice(fields))
        for name, text in fields.items():
            yield from (((kind, name), sentence) for sentence in _field(name, answers=answers))
            yield from _template((kind, name), text, route)
    put_in = {name.lower() for name in (*edits.set, *edits.add)}
    for index, name in enumerate(edits.remove):
        yield from ((("remove", index), sentence) for sentence in _field(name, answers=answers))
        if name.lower() in put_in:
            yield ("remove", index), "expected none of the fields that are put in, got one (set alone replaces it)"


def _field(name: str, *, answers: bool) -> Iterator[str]:
    lowered = name.lower()
    if lowered in FRAMING:
        yield "expected a field that is passed on, got one of the connection or its framing, which the gateway decides on"
    elif lowered == "host" and not answers:
        yield "expected rewrite.host in its place, got the field Host"
    elif lowered in WAY and not answers:
        yield "expected a field that the gateway does not write itself, got one that says which way a request took"


def _claims(route: RouteSection) -> Iterator[Finding]:
    yield from ((("claims",), sentence) for sentence in _twice(route.claims))
    for name, text in route.claims.items():
        yield from ((("claims", name), sentence) for sentence in _field(name, answers=False))
        if name.lower() in _CREDENTIALS - FRAMING:
            yield ("claims", name), "expected a field of its own, got one that clients prove with who they are"
        if name.lower() in {edited.lower() for edited in (*route.request_headers.set, *route.request_headers.add)}:
            yield ("claims", name), "expected a field that request_headers leaves alone, got one that it puts in as well"
        yield from _template(("claims", name), text, route)


def _template(path: Path, text: str, route: RouteSection) -> Iterator[Finding]:
    yield from ((path, sentence) for sentence in mistakes(text, route.parameters, public=route.public))


def _rule(route: RouteSection, aliases: frozenset[str]) -> Iterator[Finding]:
    if route.public:
        if route.allow is not None:
            yield ("allow",), "expected a route that is not public beside it, got one that anybody may use"
        return
    wrong = [] if route.allow is None else list(_parsed(route.allow, route, aliases))
    yield from wrong
    if not wrong and len(aliases) > 1 and _trusting(route):
        yield ("allow",), "expected the issuers whose claims are meant (several are configured), got none"


def _parsed(rule: RuleSection, route: RouteSection, aliases: frozenset[str]) -> Iterator[Finding]:
    bounds = {"parameters": route.parameters, "issuers": aliases}
    for path, sentence in said(("allow",), parse_rule, rule.written, absent=NOBODY, **bounds):
        yield path, sentence.replace("the channel's name", "the route's path")


def _trusting(route: RouteSection) -> bool:
    """Tell whether a claim decides something, or is told to the backend, without its issuer being named."""
    texts = (*route.claims.values(), *route.request_headers.set.values(), *route.request_headers.add.values())
    rule = route.rule
    return rule is not None and (trusts_any_issuer(rule) or (not rule.guarded and any(map(_claims_of, texts))))


def _claims_of(text: str) -> frozenset[str]:
    try:
        return parse(text).claims
    except ValueError:
        return frozenset()


def _bounds(route: RouteSection, server: Server) -> Iterator[Finding]:
    times, hold = route.timeouts, route.hold
    for name in ("connect", "first_byte", "idle"):
        yield from at_most(("timeouts",), times, name, "total")
    if hold is not None:
        yield from at_most(("hold",), hold, "first_byte", "total")
        for name in ("first_byte", "total"):
            if getattr(hold, name) < getattr(times, name):
                yield ("hold", name), f"expected at least timeouts.{name} (a long poll waits longer, not shorter), got less"
    if route.limits is not None and route.limits.requests is None and route.limits.concurrent is None:
        yield ("limits",), "expected at least one of requests and concurrent (null: no limits), got neither"
    if route.max_body_bytes is not None and route.max_body_bytes > server.max_body_bytes:
        bound = f"server.max_body_bytes ({server.max_body_bytes}), which refuses larger bodies before a route is looked at"
        yield ("max_body_bytes",), f"expected at most {bound}, got more"


def _cache(route: RouteSection) -> Iterator[Finding]:
    cache = route.cache
    if cache is None:
        return
    yield from at_most(("cache",), cache, "max_answer_bytes", "max_bytes")
    if route.methods is not None and not {"GET", "HEAD"} & set(route.methods):
        yield ("cache",), "expected GET or HEAD among the route's methods (no other answers are stored), got neither"
    if route.hold is not None and not cache.collapse:
        yield ("cache", "collapse"), "expected true with hold (else each long poll would be one at the backend), got false"


def _openapi(file: FilePath) -> Iterator[str]:
    """Try a document; a file that is not found has been told of already."""
    try:
        with file.open("rb") as stream:
            apidocs.parse(stream.read(apidocs.MAX_BYTES + 1))
    except OSError:
        return
    except apidocs.DocumentInvalid as error:
        yield str(error)
