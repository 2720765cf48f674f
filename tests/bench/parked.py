"""Parked: memory of a server for each client that waits, after some cycles and again after many: it must not grow."""

from __future__ import annotations

import time
from typing import Any

from bench.broadcast import cycle
from bench.fleet import fleet
from bench.serving import ServerContext, Setting, Work
from bench.source import source
from bench.window import Window

COLUMNS = {
    "rss_kb": "RSS KB/client",
    "pss_kb": "PSS KB/client",
    "rss_kb_later": "RSS later",
    "pss_kb_later": "PSS later",
    "cycles": "cycles",
    "empty_mb": "without clients MB",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "loop_gap_ms": "loop gap <= ms",
}
CYCLES = 5
# Slow servers do fewer cycles than asked for: so many seconds of them.
PATIENCE = 90.0


def measure(
    serve: ServerContext, setting: Setting, *, clients: int, workers: int, cycles: int, size: int = 64
) -> dict[str, Any]:
    """Park clients and return the memory for each, after CYCLES cycles and after `cycles`."""
    with (
        serve(setting, Work(clients, workers=workers)) as server,
        source(server.sink, setting.directory) as messages,
        fleet(server.plan, setting.directory) as crowd,
    ):
        server.settle()
        before = server.memory()
        crowd.connect(timeout=300)
        server.settle()
        with Window(server, crowd) as window:
            for number in range(1, CYCLES + 1):
                cycle(server, crowd, messages, number, size)
            early = server.memory()
            end, number = time.monotonic() + PATIENCE, CYCLES
            while number < cycles and time.monotonic() < end:
                number += 1
                cycle(server, crowd, messages, number, size)
        later = server.memory()
        return {
            **window.figures(),
            "rss_kb": (early.rss - before.rss) / clients,
            "pss_kb": (early.pss - before.pss) / clients,
            "rss_kb_later": (later.rss - before.rss) / clients,
            "pss_kb_later": (later.pss - before.pss) / clients,
            "cycles": number,
            "empty_mb": before.rss / 1024,
        }
