"""Advice on routes and upstreams: what works, but is seldom meant."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.findings import Finding
from gateway.config.routes import RouteSection
from gateway.config.sections import Config
from gateway.config.upstreams import UpstreamSection


def advise(config: Config) -> Iterator[Finding]:
    """Give each piece of advice."""
    used = {name for route in config.routes.values() for name, weight in route.shares if weight}
    for name, upstream in config.upstreams.items():
        if name not in used:
            yield ("upstreams", name), "no route leads here"
        yield from ((("upstreams", name, *path), sentence) for path, sentence in _upstream(upstream))
    for name, route in config.routes.items():
        yield from ((("routes", name, *path), sentence) for path, sentence in _route(route, config))


def _upstream(upstream: UpstreamSection) -> Iterator[Finding]:
    if upstream.tls is not None and not upstream.tls.verify:
        yield ("tls", "verify"), "anybody who is between can pass for a target, and read what is sent to it"
    if upstream.retries is not None and upstream.retries.attempts == 1:
        yield ("retries", "attempts"), "one attempt in all is no retry: null says so"


def _route(route: RouteSection, config: Config) -> Iterator[Finding]:
    if route.hold is not None:
        yield from _hold(route.hold.first_byte, route.hold.total, config)
    if route.compress and route.cache is not None:
        yield ("compress",), "what is stored is stored as the backend sent it, and compressed again for each client"
    if route.split is not None and route.cache is not None:
        yield ("cache",), "what one upstream answered is stored for all, whichever upstream the split has for them"
    if route.cors is not None and "*" in route.cors.origins:
        yield ("cors", "origins"), "every web page may call"
    if not route.public and not config.auth.issuers and not config.api_keys:
        yield (), "it needs a token, and there are no issuers, so nobody can use it"
    if route.public and route.limits is None and config.limits.address is None:
        yield ("limits",), "anybody may call, as often as it likes: limits.address is off as well"
    for name, _ in route.shares:
        yield from _hashing(route, config.upstreams[name])


def _hold(first_byte: float, total: float, config: Config) -> Iterator[Finding]:
    keepalive = config.server.keepalive
    if first_byte > keepalive:
        early = f"a load balancer in front that goes by server.keepalive ({keepalive:g} seconds) gives up before"
        yield ("hold", "first_byte"), early
    drain = config.drain.delay + config.drain.window
    if total > drain:
        yield ("hold", "total"), f"a drain takes {drain:g} seconds (drain.delay and drain.window), and ends what is held longer"


def _hashing(route: RouteSection, upstream: UpstreamSection) -> Iterator[Finding]:
    found = upstream.key
    if found is None:
        return
    missing = [f"{{{name}}}" for name in sorted(found.parameters - route.parameters)]
    if route.public:
        missing += [f"{{claims.{name}}}" for name in sorted(found.claims)]
    if missing:
        what = ", ".join(missing)
        yield (), f"there is no {what} for hash_on of its upstream here: its requests go to any target"
