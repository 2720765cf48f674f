"""A measuring window: what the server used and what the clients saw between two moments."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bench.fleet import Fleet, Report
from bench.serving import Running

LAG_BUCKET = re.compile(r'gateway_loop_lag_seconds_bucket\{le="([^"]+)"\}')


@dataclass
class Window:
    """Open while the block runs. Afterwards: `seconds` on the clock, `cpu` in seconds by process tree, the clients' `report`.

    `loop_gap_ms` is the upper end of the highest bucket of the server's own loop lag that grew, None where it tells none.
    """

    server: Running
    fleet: Fleet
    seconds: float = 0.0
    cpu: Mapping[str, float] = None  # type: ignore[assignment]  # set on leaving
    report: Report = None  # type: ignore[assignment]
    loop_gap_ms: float | None = None

    def __enter__(self) -> Self:
        self._lag = _lag(self.server.metrics())
        self.fleet.start()
        self._cpu = self.server.cpu()
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._begun
        self.cpu = {name: used - self._cpu[name] for name, used in self.server.cpu().items()}
        self.report = self.fleet.report()
        self.loop_gap_ms = largest_gap(self._lag, _lag(self.server.metrics()))

    def figures(self) -> dict[str, Any]:
        """Return what every measurement shows."""
        apart = {f"cpu_s_{name}": used for name, used in self.cpu.items() if name != "server"}
        return {
            **self.report.figures(),
            "seconds": self.seconds,
            "cpu_s": self.cpu["server"],
            "core_percent": 100 * self.cpu["server"] / self.seconds,
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
