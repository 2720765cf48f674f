"""Ratio: the gateway and another proxy side by side, asked in turns of a second for the same 1 KB from one backend.

A shared machine is half as fast for some seconds and then is not. Two servers that are measured a minute apart tell its mood;
two that are measured within two seconds, again and again, tell their difference: the median of the pairs' ratios. The one that
is not asked meanwhile rests on the same core.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import repeat
from typing import Any

from bench.backends import backends
from bench.fleet import fleet
from bench.proxies import PROXIES
from bench.proxying import ProxyContext, Proxying
from bench.serving import Running, Setting
from bench.window import Window

COLUMNS = {
    "ratio": "its CPU / the gateway's",
    "ratio_low": "lower quartile",
    "ratio_high": "upper quartile",
    "us_gateway": "gateway CPU µs/request",
    "us_per_request": "CPU µs/request",
    "errors": "errors",
}
OURS = "gateway"
WARM_UP_SECONDS = 0.2


def measure(serve: ProxyContext, setting: Setting, *, clients: int, pairs: int, seconds: float) -> dict[str, Any]:
    """Ask the gateway and the other one in turn, so many times, and return the figures of the other one and of both."""
    directories = [setting.directory / name for name in ("ours", "other")]
    for directory in directories:
        directory.mkdir(exist_ok=True)
    ours, other = (replace(setting, directory=directory) for directory in directories)
    with backends(1, setting.directory) as (backend,):
        work = Proxying([backend.port], clients)
        with PROXIES[OURS](ours, work) as gateway, serve(other, work) as peer:
            turns = [
                (_turn(gateway, ours, seconds), _turn(peer, other, seconds)) for _ in repeat(None, pairs)
            ]  # fmt: skip
    costs = [(mine[0], theirs[0]) for mine, theirs in turns]
    low, middle, high = statistics.quantiles([theirs / mine for mine, theirs in costs], n=4)
    return {
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "us_gateway": statistics.median(mine for mine, _ in costs),
        "us_per_request": statistics.median(theirs for _, theirs in costs),
        "errors": sum(mine[1] + theirs[1] for mine, theirs in turns),
    }


def _turn(server: Running, setting: Setting, seconds: float) -> tuple[float, int]:
    """Return microseconds of CPU for a request, and errors."""
    with fleet(server.plan, setting.directory) as crowd:
        crowd.tell("connect")
        time.sleep(WARM_UP_SECONDS)
        with Window(server, crowd) as window:
            time.sleep(seconds)
        figures = window.figures()
        return figures["cpu_s"] / (window.report.answers or 1) * 1e6, int(figures["errors"])
