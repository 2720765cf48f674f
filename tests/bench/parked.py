"""Parked: memory of a server for each client that waits, after some cycles and again after many: it must not grow."""

from __future__ import annotations

import time
from typing import Any

from bench.broadcast import cycle
from bench.fleet import fleet
from bench.proc import Memory
from bench.serving import ServerContext, Setting, Work
from bench.source import source
from bench.window import Window

CYCLES = 5
COLUMNS = {
    "rss_kb_new": "RSS KB/client, new",
    "rss_kb_early": f"after {CYCLES} messages",
    "rss_kb_late": "after all",
    "pss_kb_late": "PSS KB/client",
    "cycles": "messages",
    "empty_mb": "without clients MB",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
# Slow servers do fewer cycles than asked for: so many seconds of them.
PATIENCE = 90.0


def measure(
    serve: ServerContext, setting: Setting, *, clients: int, workers: int, cycles: int, size: int = 64
) -> dict[str, Any]:
    """Park clients and return the memory for each: newly parked, after CYCLES messages, and after `cycles`."""
    with (
        serve(setting, Work(clients, workers=workers)) as server,
        source(server.sink, setting.directory) as messages,
        fleet(server.plan, setting.directory) as crowd,
    ):
        server.settle()
        before = server.memory()
        crowd.connect(timeout=300)
        server.settle()
        new = server.memory()
        most = cycles if server.bears(clients) else 0
        end, number, early = time.monotonic() + PATIENCE, 0, None
        with Window(server, crowd) as window:
            while number < most and (number < CYCLES or time.monotonic() < end):
                number += 1
                cycle(server, crowd, messages, number, size)
                early = server.memory() if number == CYCLES else early
        return {
            **window.figures(),
            **_each("new", before, new, clients),
            **_each("early", before, early, clients),
            **_each("late", before, server.memory() if number > CYCLES else None, clients),
            "cycles": number,
            "empty_mb": before.rss / 1024,
        }


def _each(when: str, before: Memory, after: Memory | None, clients: int) -> dict[str, float | None]:
    """Return what one client takes, None where nobody looked."""
    return {
        f"rss_kb_{when}": None if after is None else (after.rss - before.rss) / clients,
        f"pss_kb_{when}": None if after is None else (after.pss - before.pss) / clients,
    }
