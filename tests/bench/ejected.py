"""Ejected: one of three backends answers too late for a while, under a steady rate of requests, though its checks are answered.

It has to be left out, and to come back when it is fast again.
"""

from __future__ import annotations

import time
from typing import Any

from bench import paced
from bench.backends import backends, share_percent, watch
from bench.proxying import ProxyContext, Proxying
from bench.serving import Setting

COLUMNS = {
    "ejected_s": "left out after s",
    "slow_percent": "its share while slow %",
    "errors": "errors",
    "p99_ms": "p99 ms",
    "readmitted_s": "back after s",
    "after_percent": "afterwards %",
}
BACKENDS = 3
FIRST_BYTE, DELAY_MS = 1.0, 2_000
LEFT_OUT, BACK = 5.0, 25.0
"""Percentages of the requests below which a backend is left out, and above which it is back: even would be 33."""


def measure(serve: ProxyContext, setting: Setting, *, clients: int, rate: int, seconds: float) -> dict[str, Any]:
    """Let a backend be slow for some seconds and fast for as long, and return its shares of the requests."""
    with (
        backends(BACKENDS, setting.directory) as those,
        serve(setting, Proxying([each.port for each in those], clients, first_byte=FIRST_BYTE)) as server,
        paced.ready(server.plan, setting) as crowd,
    ):
        crowd.tell(f"pace {rate}")
        time.sleep(paced.WARM_UP_SECONDS)
        crowd.start()
        those[0].delay(DELAY_MS)
        slow = list(watch(those, seconds))
        those[0].delay(0)
        fast = list(watch(those, seconds))
        crowd.tell("pace 0")
        lacking = paced.unanswered(crowd)
        seen = crowd.report()
        return {
            **seen.figures(),
            "ejected_s": next((end for end, counts in slow if _share(counts) < LEFT_OUT), None),
            "slow_percent": share_percent(slow, 0, seconds + 1),
            "readmitted_s": next((end for end, counts in fast if _share(counts) > BACK), None),
            "after_percent": share_percent(fast, seconds - 1, seconds + 1),
            "errors": seen.errors + lacking,
        }


def _share(counts: list[int]) -> float:
    """Return the percentage of the first; before anything was asked nobody is left out."""
    return 100 * counts[0] / sum(counts) if sum(counts) else BACK
