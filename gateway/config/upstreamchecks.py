"""What the values of an upstream have to be to each other."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.findings import Finding, at_most, authorities, pem
from gateway.config.placeholders import is_plain, parse
from gateway.config.upstreams import Health, TargetTls, UpstreamSection


def check(upstream: UpstreamSection) -> Iterator[Finding]:
    """Give each mistake, with its path inside the upstream."""
    yield from _targets(upstream)
    yield from _balance(upstream)
    if upstream.tls is not None:
        yield from ((("tls", *path), sentence) for path, sentence in _tls(upstream.tls))
    if upstream.health is not None:
        yield from ((("health", *path), sentence) for path, sentence in _health(upstream.health))
    if upstream.outliers is not None:
        yield from at_most(("outliers",), upstream.outliers, "ejection", "max_ejection")
    if upstream.breaker is not None:
        yield from at_most(("breaker",), upstream.breaker, "open", "max_open")
    if upstream.retries is not None:
        yield from at_most(("retries",), upstream.retries, "backoff", "max_backoff")
    if not upstream.connections.idle and "keepalive" in upstream.connections.model_fields_set:
        yield ("connections", "keepalive"), "expected idle above 0 beside it, got 0: no connection is kept"


def _targets(upstream: UpstreamSection) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, target in enumerate(upstream.targets):
        given = [name for name in ("address", "dns") if getattr(target, name) is not None]
        if len(given) != 1:
            yield ("targets", index), f"expected exactly one of address and dns, got {' and '.join(given) or 'neither'}"
            continue
        first = seen.setdefault(target.place.lower(), index)
        if first != index:
            yield ("targets", index), f"expected each target once (more requests: weight), got targets[{first}] again"
    if all(target.priority > 0 for target in upstream.targets):
        yield ("targets",), "expected a target with priority 0, which is the first group, got none"


def _balance(upstream: UpstreamSection) -> Iterator[Finding]:
    if upstream.hash_on is None:
        if upstream.balance == "hash":
            yield ("hash_on",), "expected a template with balance hash, got nothing"
        return
    if upstream.balance != "hash":
        yield ("hash_on",), f"expected balance hash beside it, got {upstream.balance}"
    try:
        found = parse(upstream.hash_on)
    except ValueError as error:
        yield ("hash_on",), f"{error}, got something else"
    else:
        if is_plain(found):
            yield ("hash_on",), "expected something that differs between requests, such as {claims.sub}, got plain text"


def _tls(tls: TargetTls) -> Iterator[Finding]:
    if tls.cafile is not None:
        if not tls.verify:
            yield ("cafile",), "expected verify beside it, got false: certificates are not looked at"
        yield from ((("cafile",), found) for found in authorities(tls.cafile))
    if tls.certfile is not None and tls.keyfile is not None:
        yield from ((("certfile",), found) for found in pem(tls.certfile, tls.keyfile))
    elif tls.certfile is not None or tls.keyfile is not None:
        missing = "keyfile" if tls.keyfile is None else "certfile"
        yield (missing,), "expected certfile and keyfile together, got one of them"


def _health(health: Health) -> Iterator[Finding]:
    if health.tcp == (health.path is not None):
        yield (), f"expected exactly one of path and tcp, got {'both' if health.tcp else 'neither'}"
    if health.tcp:
        for name in ("statuses", "body"):
            if name in health.model_fields_set:
                yield (name,), "expected path beside it (with tcp there is no answer to look at), got tcp"
    yield from at_most((), health, "timeout", "interval")
