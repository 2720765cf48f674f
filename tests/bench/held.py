"""Held: long polls through a proxy to three backends that hold them: memory for each, and how evenly they are dealt out.

Afterwards the backends answer all that they hold, one backend after the other, and the clients ask again.
"""

from __future__ import annotations

from typing import Any

from bench.backends import await_held, backends, held, spread_percent
from bench.fleet import fleet
from bench.proxying import HOLD, ProxyContext, Proxying, check_files, requests
from bench.serving import Setting

COLUMNS = {
    "pss_kb": "PSS KB/poll",
    "rss_kb": "RSS KB/poll",
    "pss_kb_late": "PSS KB/poll, after all",
    "us_per_poll": "CPU µs/poll",
    "spread_percent": "from even %",
    "spread_percent_late": "from even %, after all",
    "empty_mb": "without clients MB",
    "errors": "errors",
}
BACKENDS = 3
CYCLES = 3


def measure(serve: ProxyContext, setting: Setting, *, clients: int) -> dict[str, Any]:
    """Have so many polls held, and all of them answered some times, and return the figures."""
    check_files(clients)
    with (
        backends(BACKENDS, setting.directory) as those,
        serve(setting, Proxying([each.port for each in those], clients)) as server,
        fleet(requests(server.port, HOLD, clients), setting.directory) as crowd,
    ):
        server.settle()
        before = server.memory()
        crowd.connect()
        await_held(those, clients, timeout=60)
        server.settle()
        new, spread = server.memory(), held(those)
        used = server.cpu()["server"]
        for _ in range(CYCLES):
            for each in those:
                each.answer()
                await_held(those, clients, timeout=60)
        server.settle()
        used = server.cpu()["server"] - used
        late = server.memory()
        seen = crowd.report()
        return {
            "pss_kb": (new.pss - before.pss) / clients,
            "rss_kb": (new.rss - before.rss) / clients,
            "pss_kb_late": (late.pss - before.pss) / clients,
            "us_per_poll": used / (seen.answers or 1) * 1e6,
            "spread_percent": spread_percent(spread),
            "spread_percent_late": spread_percent(held(those)),
            "spread": spread,
            "empty_mb": before.rss / 1024,
            "answers": seen.answers,
            "errors": seen.errors,
        }
