"""Catch-up: clients replay history from Kafka while others are live, and how much that disturbs the live ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bench.fleet import Fleet, Report, fleet
from bench.processes import Failed
from bench.serving import Missing, Running, ServerContext, Setting, Work
from bench.source import Source, source
from bench.window import Window

COLUMNS = {
    "values_mb_per_s": "MB/s of values",
    "seconds": "seconds",
    "core_percent": "core %",
    "kafka_mb": "read from Kafka MB",
    "live_p99_ms": "live p99 ms",
    "quiet_p99_ms": "quiet p99 ms",
    "live_max_ms": "live max ms",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
SIZE = 1024
LIVE_RATE = 20
MB = 1e6
QUERY = "&limit=1000&max_bytes=8388608"
COLD = "gateway_cold_read_bytes_total"


class Live:
    """Clients that are live on the first channel, and the producer of their messages."""

    def __init__(self, crowd: Fleet, messages: Source) -> None:
        self._crowd = crowd
        self._messages = messages
        self._sent = 0

    def send_for_a_second(self) -> None:
        """Send a second's messages and wait until everybody has them."""
        self._sent += LIVE_RATE
        self._crowd.await_message(self._sent)
        self._messages.begin("steady", size=64, count=LIVE_RATE, rate=LIVE_RATE, keys=0)
        self._messages.done()
        self._crowd.reached(60)

    def quiet(self, seconds: int) -> Report:
        """Measure without anybody else."""
        self._crowd.start()
        for _ in range(seconds):
            self.send_for_a_second()
        return self._crowd.report()

    def during(self, work: Callable[[], float]) -> tuple[float, Report]:
        """Measure while `work` runs; return what it returned."""
        done: list[float | Failed] = []

        def run() -> None:
            try:
                done.append(work())
            except Failed as failure:
                done.append(failure)

        self._crowd.start()
        worker = threading.Thread(target=run)
        worker.start()
        while worker.is_alive():
            self.send_for_a_second()
        if isinstance(done[0], Failed):
            raise done[0]
        return done[0], self._crowd.report()


@contextmanager
def lively(server: Running, setting: Setting) -> Iterator[Live]:
    """Connect the live clients."""
    with source(server.sink, setting.directory) as messages, fleet(server.plan, setting.directory) as crowd:
        crowd.connect()
        live = Live(crowd, messages)
        live.send_for_a_second()
        yield live


def replay(server: Running, setting: Setting, readers: int, last: int, timeout: float) -> tuple[Window, float]:
    """Let `readers` begin within a second and read everything; return the window and the seconds that it took."""
    if server.asking is None or server.history is None:
        raise Missing("it has no history that one could read from the beginning")
    base = server.asking("history", readers, QUERY)
    plan = replace(
        base,
        first=base.first.replace(QUERY, f"{QUERY}&from=earliest"),
        options={**base.options, "spread": 1000 * (readers > 1)},
    )
    with fleet(plan, setting.directory) as crowd, Window(server, crowd) as window:
        crowd.await_message(last)
        crowd.tell("connect")
        crowd.hear("reached", timeout)
    return window, window.seconds


def measure(
    serve: ServerContext, setting: Setting, *, live: int, readers: int, megabytes: int, quiet: int = 5, timeout: float = 240.0
) -> dict[str, Any]:
    """Replay `megabytes` with so many readers beside so many live clients."""
    last = megabytes * 1_000_000 // SIZE
    with serve(setting, Work(live, history=True)) as server:
        if server.history is None:
            raise Missing("it keeps no history that one could read from the beginning")
        with source({**server.history, "batched": True}, setting.directory) as past:
            past.begin("fill", size=SIZE, count=last)
            past.done(timeout)
        with lively(server, setting) as alive:
            before = alive.quiet(quiet)
            cold = server.metrics().get(COLD, 0.0)
            windows: list[Window] = []

            def work() -> float:
                window, took = replay(server, setting, readers, last, timeout)
                windows.append(window)
                return took

            took, meanwhile = alive.during(work)
            figures = windows[0].figures()
            return {
                **figures,
                "values_mb_per_s": readers * last * SIZE / MB / took,
                "kafka_mb": (server.metrics().get(COLD, 0.0) - cold) / MB,
                "live_p99_ms": meanwhile.ms(0.99),
                "live_max_ms": meanwhile.max_ms,
                "quiet_p99_ms": before.ms(0.99),
                "lost": figures["lost"] + meanwhile.counts["lost"],
                "doubled": figures["doubled"] + meanwhile.counts["doubled"],
                "errors": figures["errors"] + meanwhile.errors,
            }
