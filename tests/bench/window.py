"""A measuring window: what the server used and what the clients saw between two moments."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Self

from bench import proc
from bench.fleet import Fleet, Report
from bench.processes import SERVER_CORE
from bench.serving import Running

SHORTEST = 0.05
LAG_BUCKET = re.compile(r'gateway_loop_lag_seconds_bucket\{le="([^"]+)"\}')


class Window:
    """Open while the block runs. Afterwards: `seconds` on the clock, `cpu` in seconds by name, the clients' `report`.

    `loop_gap_ms` is the upper end of the highest bucket of the server's own loop lag that grew, None where it tells none.
    """

    seconds: float
    cpu: Mapping[str, float]
    report: Report
    loop_gap_ms: float | None

    def __init__(self, server: Running, fleet: Fleet) -> None:
        self._server = server
        self._fleet = fleet

    def __enter__(self) -> Self:
        self._lag = _lag(self._server.metrics())
        self._fleet.start()
        self._before = self._used()
        self._busy = proc.core_busy(SERVER_CORE)
        self._begun = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        self.seconds = time.monotonic() - self._begun
        self.cpu = {name: used - self._before[name] for name, used in self._used().items()}
        self._busy = proc.core_busy(SERVER_CORE) - self._busy
        self.report = self._fleet.report()
        self.loop_gap_ms = largest_gap(self._lag, _lag(self._server.metrics()))

    def _used(self) -> dict[str, float]:
        return {**self._server.cpu(), "load": proc.cpu(self._fleet.pids)}

    def _share(self, name: str) -> float | None:
        """Return the percentage of a core; None for a window in which nothing was done."""
        return 100 * self.cpu[name] / self.seconds if self.seconds > SHORTEST else None

    def _others(self) -> float | None:
        """Return the percentage of the server's core that went to others: with much of it, the figures are worth little."""
        others = max(0.0, self._busy - self.cpu["server"])
        return 100 * others / self.seconds if self.seconds > SHORTEST else None

    def figures(self) -> dict[str, Any]:
        """Return what every measurement shows."""
        apart = {f"cpu_s_{name}": used for name, used in self.cpu.items() if name not in ("server", "load")}
        return {
            **self.report.figures(),
            "seconds": self.seconds,
            "cpu_s": self.cpu["server"],
            "core_percent": self._share("server"),
            "load_percent": self._share("load"),
            "others_percent": self._others(),
            "loop_gap_ms": self.loop_gap_ms,
            **apart,
        }


def _lag(metrics: Mapping[str, float]) -> dict[float, float]:
    """Return the cumulative counts of the loop lag by their buckets' upper ends in seconds."""
    return {float(found[1]): count for name, count in metrics.items() if (found := LAG_BUCKET.fullmatch(name))}


def largest_gap(before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """Return the upper end of the highest bucket that grew, in milliseconds; None if nothing was told."""
    highest, below = None, 0.0
    for bound in sorted(after):
        grown = after[bound] - before.get(bound, 0.0)
        if grown > below:
            highest = bound * 1_000
        below = grown
    return highest
