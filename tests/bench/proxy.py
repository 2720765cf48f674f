"""Proxy: requests through a proxy to a backend that answers at once with 1 KB, over connections that are kept.

First as fast as the answers come, then at a steady rate, in turns with the same requests to the backend itself: the difference is
what the proxy adds. Load and backend share the other core.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from bench import paced
from bench.backends import Backend, backends
from bench.fleet import Report, fleet
from bench.proxying import ProxyContext, Proxying
from bench.serving import Running, Setting
from bench.window import Window

COLUMNS = {
    "requests_per_s": "requests/s",
    "requests_per_cpu_s": "requests/CPU s",
    "us_per_request": "CPU µs/request",
    "core_percent": "core %",
    "load_core_percent": "load and backend %",
    "direct_p50_ms": "direct p50 ms",
    "added_p50_ms": "added p50 ms",
    "added_p99_ms": "added p99 ms",
    "us_paced": "CPU µs/request, paced",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
WARM_UP_SECONDS = 0.5
SLICES = 8


def measure(serve: ProxyContext, setting: Setting, *, clients: int, rate: int, seconds: float) -> dict[str, Any]:
    """Ask for some seconds flat out and for some at this rate, and return the figures."""
    with (
        backends(1, setting.directory) as (backend,),
        serve(setting, Proxying([backend.port], clients)) as server,
    ):
        server.apart = {"backend": [backend.pid]}
        flat_out = _flat_out(server, setting, seconds)
        steady = _steady(server, backend, setting, rate, seconds)
        return {**flat_out, **steady, "errors": flat_out["errors"] + steady["errors"]}


def _flat_out(server: Running, setting: Setting, seconds: float) -> dict[str, Any]:
    with fleet(server.plan, setting.directory) as crowd:
        crowd.tell("connect")
        time.sleep(WARM_UP_SECONDS)
        with Window(server, crowd) as window:
            time.sleep(seconds)
        figures = window.figures()
        answers = window.report.answers or 1
        return {
            **figures,
            "requests_per_s": answers / window.seconds,
            "requests_per_cpu_s": answers / figures["cpu_s"],
            "us_per_request": figures["cpu_s"] / answers * 1e6,
            "load_core_percent": figures["load_percent"] + 100 * figures["cpu_s_backend"] / window.seconds,
        }


def _steady(server: Running, backend: Backend, setting: Setting, rate: int, seconds: float) -> dict[str, Any]:
    with (
        paced.ready(server.plan, setting) as proxied,
        paced.ready(replace(server.plan, port=backend.port), setting) as direct,
    ):
        for crowd in (proxied, direct):
            paced.pace(crowd, rate, WARM_UP_SECONDS / 2)
            crowd.start()
        used = server.cpu()["server"]
        for _ in range(SLICES):
            for crowd in (proxied, direct):
                paced.pace(crowd, rate, seconds / SLICES)
        lacking = paced.unanswered(proxied)
        used = server.cpu()["server"] - used
        through, without = proxied.report(), direct.report()
        return {
            "direct_p50_ms": without.ms(0.5),
            "direct_p99_ms": without.ms(0.99),
            "paced_p50_ms": through.ms(0.5),
            "paced_p99_ms": through.ms(0.99),
            "added_p50_ms": _added(through, without, 0.5),
            "added_p99_ms": _added(through, without, 0.99),
            "us_paced": used / (through.answers or 1) * 1e6,
            "errors": through.errors + lacking,
        }


def _added(through: Report, without: Report, share: float) -> float | None:
    more, less = through.ms(share), without.ms(share)
    return None if more is None or less is None else more - less
