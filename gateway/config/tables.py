"""The routes in the order in which they are tried, and the upstreams, as lines for people (sans-I/O)."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.routes import RouteSection
from gateway.config.sections import Config
from gateway.config.upstreams import TargetSection, UpstreamSection


def tables(config: Config) -> Iterator[str]:
    """Give two lines for each route, the most exact first, and two for each upstream."""
    for name, route in sorted(config.routes.items(), key=lambda item: (_precedence(item[1]), item[0])):
        yield f"route {name}: {_taken(route)} → {_destination(route)}"
        yield f"  {'; '.join(_does(route))}"
    for name, upstream in config.upstreams.items():
        yield f"upstream {name}: {', '.join(map(_target, upstream.targets))}"
        yield f"  {'; '.join(_cares(upstream))}"


def _precedence(route: RouteSection) -> tuple[tuple[int, int], bool, bool, int, int]:
    match = route.match
    host = min(((1, -len(host)) if host.startswith("*") else (0, 0) for host in match.hosts or ()), default=(2, 0))
    return host, match.below, match.literals < len(match.segments), -match.literals, -match.conditions


def _taken(route: RouteSection) -> str:
    path = route.path or f"{(route.prefix or '').removesuffix('/')}/…"
    conditions = [
        *(f"{name}: {value}" for name, value in route.headers.items()),
        *(f"?{name}={value}" for name, value in route.query.items()),
    ]
    return " ".join((", ".join(route.methods or ("any method",)), ", ".join(route.hosts or ("any host",)), path, *conditions))


def _destination(route: RouteSection) -> str:
    whole = sum(weight for _, weight in route.shares)
    shares = [f"{name} {weight / whole:.3g}" for name, weight in route.shares] if route.split else [route.upstream or ""]
    rewrite = route.rewrite
    path = rewrite.path or (f"{rewrite.prefix.removesuffix('/')}/…" if rewrite.prefix else "")
    return ", ".join(shares) + (f" as {path}" if path else "") + (f" on {rewrite.host}" if rewrite.host else "")


def _does(route: RouteSection) -> Iterator[str]:
    times = route.timeouts
    yield "for everybody" if route.public else "by a rule" if route.allow is not None else "with a token"
    if route.hold is not None:
        yield f"held, first byte {route.hold.first_byte:g} s, total {route.hold.total:g} s, connect {times.connect:g} s"
    else:
        waits = {"connect": times.connect, "first byte": times.first_byte, "idle": times.idle, "total": times.total}
        yield ", ".join(f"{name} {seconds:g} s" for name, seconds in waits.items())
    if route.limits is not None:
        bucket, concurrent = route.limits.requests, route.limits.concurrent
        yield from [f"at most {bucket.rate:g}/s"] if bucket is not None else []
        yield from [f"at most {concurrent} at once"] if concurrent is not None else []
    said = {
        f"tells {', '.join(route.claims)}": bool(route.claims),
        "never repeated": not route.retries,
        "stored": route.cache is not None,
        "compressed": route.compress,
        "deprecated": route.deprecated is not None,
    }
    yield from (text for text, true in said.items() if true)
    if route.sunset is not None:
        yield f"gone after {route.sunset.isoformat()}"


def _target(target: TargetSection) -> str:
    aside = [f"weight {target.weight}"] * (target.weight > 1) + [f"priority {target.priority}"] * (target.priority > 0)
    place = f"each address of {target.place}" if target.dns else target.place
    return f"{place} ({', '.join(aside)})" if aside else place


def _cares(upstream: UpstreamSection) -> Iterator[str]:
    yield upstream.balance + (f" on {upstream.hash_on}" if upstream.hash_on else "")
    yield "HTTPS" if upstream.tls is not None else "plain HTTP"
    limits, health, outliers, breaker, retries = (
        upstream.limits,
        upstream.health,
        upstream.outliers,
        upstream.breaker,
        upstream.retries,
    )
    yield f"at most {limits.concurrent} at once, {limits.held} held, {limits.queue} waiting {limits.queue_timeout:g} s"
    if health is not None:
        yield f"asked every {health.interval:g} s{'' if health.tcp else f' for {health.path}'}"
    if outliers is not None:
        yield f"left out for {outliers.ejection:g} s after {outliers.consecutive} failures"
    if breaker is not None:
        yield f"breaker open for {breaker.open:g} s after {breaker.consecutive}"
    if retries is not None:
        yield f"{retries.attempts} attempts, budget {retries.budget:g}"
