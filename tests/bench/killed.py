"""Killed: one of three backends dies with all the long polls that it holds, and later comes back to a steady rate of requests.

A poll that the proxy asks of another backend, or whose client is told that it failed and asks again a tenth of a second later, has
ended when a backend that lives holds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench import paced
from bench.backends import Backend, await_held, backends, held, share_percent, spread_percent, watch
from bench.fleet import fleet
from bench.processes import Failed
from bench.proxying import HOLD, ITEM, ProxyContext, Proxying, check_files, requests
from bench.serving import Running, Setting

COLUMNS = {
    "on_it": "polls on it",
    "ended_s": "all ended after s",
    "hanging": "hanging",
    "failed_polls": "told so",
    "spread_percent": "others from even %",
    "back_s": "back after s",
    "first_percent": "share in its first second %",
    "half_percent": "half way %",
    "full_percent": "afterwards %",
    "errors": "errors of requests",
}
BACKENDS = 3
PATIENCE, REST = 20.0, 3.0
CLIENTS_OF_ITEMS = 64


def measure(serve: ProxyContext, setting: Setting, *, clients: int, rate: int, slow_start: float) -> dict[str, Any]:
    """Kill a backend, start it again, and return what became of the polls, and its share of the requests in slow start."""
    check_files(clients)
    with (
        backends(BACKENDS, setting.directory) as those,
        serve(setting, Proxying([each.port for each in those], clients, slow_start=slow_start)) as server,
    ):
        return {**_killed(server, those, setting, clients), **_returned(server, those, setting, rate, slow_start)}


def _killed(server: Running, those: Sequence[Backend], setting: Setting, clients: int) -> dict[str, Any]:
    victim, *others = those
    with fleet(requests(server.port, HOLD, clients), setting.directory) as crowd:
        crowd.connect()
        await_held(those, clients, timeout=60)
        on_it = held([victim])[0]
        crowd.start()
        victim.kill()
        try:
            ended, hanging = await_held(others, clients, PATIENCE), 0
        except Failed:
            ended, hanging = None, clients - sum(held(others))
        spread, seen = spread_percent(held(others)), crowd.report()
    # Nobody waits any more, so the backends must not either.
    await_held(others, 0, PATIENCE)
    return {
        "on_it": on_it,
        "ended_s": ended,
        "hanging": hanging,
        "failed_polls": seen.errors,
        "statuses": dict(seen.statuses),
        "spread_percent": spread,
    }


def _returned(server: Running, those: Sequence[Backend], setting: Setting, rate: int, slow_start: float) -> dict[str, Any]:
    with paced.ready(requests(server.port, ITEM, CLIENTS_OF_ITEMS), setting) as crowd:
        crowd.tell(f"pace {rate}")
        time.sleep(REST)
        those[0].start()
        steps = list(watch(those, slow_start + 2 * REST + 1))
        crowd.tell("pace 0")
        lacking = paced.unanswered(crowd)
        back = next((end for end, counts in steps if counts[0]), None)
        start = back or 0.0
        return {
            "back_s": back,
            "first_percent": share_percent(steps, start - 0.01, start + 1),
            "half_percent": share_percent(steps, start + slow_start / 2 - 0.5, start + slow_start / 2 + 0.5),
            "full_percent": share_percent(steps, start + slow_start + 0.5, start + slow_start + 2),
            "errors": crowd.report().errors + lacking,
        }
