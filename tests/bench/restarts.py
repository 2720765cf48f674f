"""Restarts: three backends are ended gracefully and started again, one after the other, under a steady rate of requests.

A backend that ends stops listening, closes the connections on which nothing is under way, and answers what is.
"""

from __future__ import annotations

import time
from typing import Any

from bench import paced
from bench.backends import backends
from bench.proxying import ProxyContext, Proxying
from bench.serving import Setting
from bench.window import Window

COLUMNS = {
    "requests": "requests",
    "errors": "errors",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "us_per_request": "CPU µs/request",
    "load_percent": "load %",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
BACKENDS = 3


def measure(serve: ProxyContext, setting: Setting, *, clients: int, rate: int, pause: float) -> dict[str, Any]:
    """Restart every backend, with a pause after each, and return what the clients noticed."""
    with (
        backends(BACKENDS, setting.directory) as those,
        serve(setting, Proxying([each.port for each in those], clients)) as server,
        paced.ready(server.plan, setting) as crowd,
    ):
        crowd.tell(f"pace {rate}")
        time.sleep(paced.WARM_UP_SECONDS)
        with Window(server, crowd) as window:
            for each in those:
                time.sleep(pause / 2)
                each.terminate()
                each.start()
                time.sleep(pause / 2)
        crowd.tell("pace 0")
        figures = window.figures()
        return {
            **figures,
            "requests": window.report.counts["requests"],
            "errors": window.report.errors + paced.unanswered(crowd),
            "us_per_request": figures["cpu_s"] / (window.report.answers or 1) * 1e6,
        }
