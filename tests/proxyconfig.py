"""Configurations with one route or one upstream, and what is said of them: each line without the name of the file."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from gateway.config.loading import ConfigInvalid, inspect, read
from gateway.config.routes import RouteSection
from gateway.config.upstreams import UpstreamSection

KAFKA = "kafka: {bootstrap_servers: 'a:1'}\n"
ISSUER = "issuer: https://%s/, audience: a, jwks_url: 'https://%s/keys'"
ONE_ISSUER = f"auth: {{issuers: {{main: {{{ISSUER % ('one', 'one')}}}}}}}\n"
TWO_ISSUERS = f"auth: {{issuers: {{main: {{{ISSUER % ('one', 'one')}}}, corp: {{{ISSUER % ('two', 'two')}}}}}}}\n"
UPSTREAMS = "upstreams: {shop: {targets: ['a:1']}, shop-next: {targets: ['a:2']}}\n"


def with_route(given: str, *, auth: str = ONE_ISSUER, upstreams: str = UPSTREAMS, more: str = "") -> str:
    """Give a file of which the lines of the route `one` begin at line 6."""
    return f"{KAFKA}{auth}{upstreams}routes:\n  one:\n{indent(given.strip(), '    ')}\n{more}"


def with_upstream(given: str, *, more: str = "") -> str:
    """Give a file of which the lines of the upstream `shop` begin at line 4."""
    return f"{KAFKA}upstreams:\n  shop:\n{indent(given.strip(), '    ')}\n{more}"


def report(text: str, base: Path | None = None) -> list[str]:
    """Give the mistakes as `LINE: PATH: SENTENCE`."""
    try:
        read(text, {}, source="f", base=base)
    except ConfigInvalid as error:
        return [line.removeprefix("f:") for line in error.lines()]
    return []


def advice(folder: Path, text: str) -> list[str]:
    """Give the warnings, without those about channels."""
    file = folder / "f"
    file.write_text(text)
    lines = [line.removeprefix(f"{file}:") for line in inspect(file, {}).warnings()]
    return [line for line in lines if ": channels: " not in line]


def route(given: str, **more: str) -> RouteSection:
    """Read one route."""
    return read(with_route(given, **more), {}).routes["one"]


def upstream(given: str) -> UpstreamSection:
    """Read one upstream."""
    return read(with_upstream(given), {}).upstreams["shop"]
