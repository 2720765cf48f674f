"""Clients that together ask at a steady rate, whether or not the answers come: the latency is that from when a request was due."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from bench.fleet import Fleet, Plan, fleet
from bench.serving import Setting

WARM_UP_SECONDS = 1.0
OVERDUE_SECONDS = 3.0


@contextlib.contextmanager
def ready(plan: Plan, setting: Setting) -> Iterator[Fleet]:
    """Connect clients that ask only when told to: `pace` does."""
    with fleet(replace(plan, options={**plan.options, "paced": 1}), setting.directory) as crowd:
        crowd.connect()
        yield crowd


def pace(crowd: Fleet, rate: int, seconds: float) -> None:
    """Have them ask at this rate for some seconds."""
    crowd.tell(f"pace {rate}")
    time.sleep(seconds)
    crowd.tell("pace 0")


def unanswered(crowd: Fleet) -> int:
    """Return how many requests have no answer, not even a broken connection, a while after the last one was sent."""
    deadline = time.monotonic() + OVERDUE_SECONDS
    while True:
        counts = crowd.report().counts
        lacking = counts["clients"] - counts["resting"]
        if not lacking or time.monotonic() > deadline:
            return lacking
        time.sleep(0.05)
