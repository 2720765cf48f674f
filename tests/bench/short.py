"""Short polls: `wait=0` at the end of a channel, from some connections as fast as the answers come."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from bench.fleet import fleet
from bench.serving import Missing, ServerContext, Setting, Work
from bench.window import Window

COLUMNS = {
    "requests_per_s": "requests/s",
    "us_per_request": "CPU µs/request",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
WARM_UP_SECONDS = 0.5


def measure(serve: ServerContext, setting: Setting, *, clients: int, seconds: float) -> dict[str, Any]:
    """Ask for some seconds and return the figures; the latency is that from request to answer."""
    with serve(setting, Work(clients)) as server:
        if "wait=55" not in server.plan.next:
            raise Missing("it has no polls that are answered at once")
        plan = replace(
            server.plan, next=server.plan.next.replace("wait=55", "wait=0"), options={**server.plan.options, "requests": 1}
        )
        with fleet(plan, setting.directory) as crowd:
            crowd.tell("connect")
            time.sleep(WARM_UP_SECONDS)
            with Window(server, crowd) as window:
                time.sleep(seconds)
            figures = window.figures()
            answers = window.report.answers or 1
            return {
                **figures,
                "requests_per_s": answers / window.seconds,
                "us_per_request": figures["cpu_s"] / answers * 1e6,
            }
