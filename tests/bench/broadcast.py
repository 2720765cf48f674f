"""Broadcast: everybody waits on one channel, a message comes, everybody gets it and asks again; then the next one comes.

The CPU time is that of the whole cycle, delivery and next poll.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.fleet import Fleet, fleet
from bench.serving import Running, ServerContext, Setting, Work
from bench.source import Source, source
from bench.window import Window

COLUMNS = {
    "us_per_delivery": "CPU µs/delivery",
    "deliveries_per_s": "deliveries/s",
    "last_ms": "last client ms",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "haproxy_us": "haproxy µs",
    "us_per_connect": "CPU µs/connect",
    "load_percent": "load %",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
WARM_UP = 4
MIN_CYCLES = 3


def cycle(server: Running, clients: Fleet, messages: Source, number: int, size: int) -> tuple[float, float]:
    """Send message `number` to everybody; return the seconds until the last one had it, and until the server was at rest."""
    clients.await_message(number)
    begun = time.monotonic()
    messages.one(size)
    last = clients.reached()
    server.settle()
    return last, time.monotonic() - begun


def measure(serve: ServerContext, setting: Setting, *, clients: int, size: int, seconds: float) -> dict[str, Any]:
    """Run cycles for some seconds and return the figures."""
    work = Work(clients)
    with (
        serve(setting, work) as server,
        source(server.sink, setting.directory) as messages,
        fleet(server.plan, setting.directory) as crowd,
    ):
        server.check_burst(clients)
        before = server.cpu()["server"]
        connected = crowd.connect()
        server.settle()
        connecting = server.cpu()["server"] - before
        for number in range(1, WARM_UP + 1):
            cycle(server, crowd, messages, number, size)
        lasts = []
        with Window(server, crowd) as window:
            number, end = WARM_UP, time.monotonic() + seconds
            while len(lasts) < MIN_CYCLES or time.monotonic() < end:
                number += 1
                lasts.append(cycle(server, crowd, messages, number, size)[0])
        figures = window.figures()
        deliveries = window.report.messages or 1
        last = statistics.median(lasts)
        return {
            **figures,
            "us_per_delivery": figures["cpu_s"] / deliveries * 1e6,
            "deliveries_per_s": clients / last,
            "last_ms": last * 1_000,
            "cycles": len(lasts),
            "connected_s": connected,
            "us_per_connect": connecting / clients * 1e6,
            **({"haproxy_us": figures["cpu_s_haproxy"] / deliveries * 1e6} if "cpu_s_haproxy" in figures else {}),
        }
