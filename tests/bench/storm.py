"""Storm: all clients lose their connections and come back at once, each with its cursor."""

from __future__ import annotations

import time
from typing import Any

from bench import proc
from bench.broadcast import cycle
from bench.fleet import fleet
from bench.serving import ServerContext, Setting, Work
from bench.source import source
from bench.window import Window

COLUMNS = {
    "parked_s": "all parked s",
    "us_per_client": "CPU µs/client",
    "rss_mb": "before MB",
    "peak_mb": "peak MB",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
WARM_UP = 3


def measure(serve: ServerContext, setting: Setting, *, clients: int) -> dict[str, Any]:
    """Cut all connections and return how long it takes until everybody is parked again, and the highest memory meanwhile."""
    with (
        serve(setting, Work(clients)) as server,
        source(server.sink, setting.directory) as messages,
        fleet(server.plan, setting.directory) as crowd,
    ):
        server.check_burst(clients)
        crowd.connect()
        server.settle()
        for number in range(1, WARM_UP + 1):
            cycle(server, crowd, messages, number, 64)
        before = server.memory()
        proc.forget_peak(server.tree)
        with Window(server, crowd) as window:
            begun = time.monotonic()
            crowd.connect(storm=True)
            server.settle()
            took = time.monotonic() - begun
            peak = server.memory().peak
        figures = window.figures()
        # Whoever came back misses nothing.
        cycle(server, crowd, messages, WARM_UP + 1, 64)
        figures |= {name: crowd.report().figures()[name] for name in ("lost", "doubled")}
        return {
            **figures,
            "parked_s": took,
            "us_per_client": figures["cpu_s"] / clients * 1e6,
            "rss_mb": before.rss / 1024,
            "peak_mb": peak / 1024,
        }
