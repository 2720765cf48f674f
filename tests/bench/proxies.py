"""The proxies that a scenario can name: the gateway, the plain one of plain_proxy.py, nginx, HAProxy."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import gateways
from bench.listening import listens
from bench.processes import SERVER_CORE, running, wait_until
from bench.proxy_peers import haproxy, nginx
from bench.proxying import (
    ATTEMPTS,
    CHECK,
    CHECK_SECONDS,
    CONNECT_SECONDS,
    FAILURES,
    FALL,
    HOLD,
    HOLD_SECONDS,
    ITEM,
    KEPT,
    OUT_SECONDS,
    OWN,
    RISE,
    ProxyContext,
    Proxying,
    requests,
)
from bench.serving import Running, Setting, Work
from integration.ports import free_ports

TESTS = Path(__file__).parents[1]
ALGORITHM = "HS256"


def routing(work: Proxying) -> dict[str, Any]:
    """Return the sections `upstreams` and `routes`."""
    common = {
        "targets": [f"127.0.0.1:{port}" for port in work.ports],
        "connections": {"idle": KEPT},
        "limits": {"concurrent": 20_000},
        "health": {"path": CHECK, "interval": CHECK_SECONDS, "timeout": CHECK_SECONDS, "rise": RISE, "fall": FALL},
        "outliers": {"consecutive": FAILURES, "ejection": OUT_SECONDS},
        "breaker": {"consecutive": FAILURES, "open": OUT_SECONDS},
        "retries": {"attempts": ATTEMPTS},
        "slow_start": work.slow_start,
    }
    items = {"upstream": "items", "timeouts": {"connect": CONNECT_SECONDS, "first_byte": work.first_byte}}
    return {
        "upstreams": {
            "polls": {**common, "balance": "least_outstanding"},
            "items": {**common, "balance": "round_robin"},
        },
        "routes": {
            "polls": {"prefix": HOLD, "upstream": "polls", "public": True, "hold": {"first_byte": HOLD_SECONDS}},
            "items": {"prefix": "/items", "public": True, **items},
            "own": {"prefix": "/own", **items},
        },
    }


@contextlib.contextmanager
def gateway(setting: Setting, work: Proxying, *, authenticated: bool = False) -> Iterator[Running]:
    """Run a gateway in front of the backends; `authenticated`: each client asks with a token of its own."""
    topic = setting.broker.topic()
    port, admin = free_ports(2)
    variant = gateways.Variant(algorithm=ALGORITHM)
    document = gateways.configuration(variant, setting, Work(work.clients), topic, port, admin) | routing(work)
    tokens = gateways.tokens(ALGORITHM, work.clients, long=False) if authenticated else ()
    with contextlib.ExitStack() as stack:
        stack.callback(setting.broker.delete, topic)
        process = stack.enter_context(gateways.process(setting, document))
        yield Running(
            port=port,
            pids=[process.pid],
            plan=requests(port, OWN if authenticated else ITEM, work.clients, tokens),
            sink={},
            metrics=lambda: gateways.metrics(admin),
        )


@contextlib.contextmanager
def aiohttp(setting: Setting, work: Proxying) -> Iterator[Running]:
    """Run the plain proxy of plain_proxy.py."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.plain_proxy", str(port), *map(str, work.ports)]
    log = setting.directory / "plain_proxy.log"
    with running(command, core=SERVER_CORE, cwd=TESTS, log=log) as process:
        wait_until(lambda: listens(port), f"the aiohttp proxy (its log: {log})", process=process)
        yield Running(port=port, pids=[process.pid], plan=requests(port, ITEM, work.clients), sink={})


PROXIES: Mapping[str, ProxyContext] = {
    "gateway": gateway,
    "gateway-jwt": functools.partial(gateway, authenticated=True),
    "aiohttp": aiohttp,
    "nginx": nginx,
    "haproxy": haproxy,
}
