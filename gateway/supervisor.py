"""The supervisor of worker processes: keeps them running, and speaks for all of them.

Theory of operation. Each worker has a seat, which one process after the other fills: a *life*. A life begins with a fresh
interpreter, whose standard input is one end of a socket pair. There it gets its order; there it says when it serves; and there
it sees that the supervisor is gone. A life has a serial number, which names its Unix socket and keeps its counters apart until
it ends (see `gateway.exposition`). Who dies is started again: at once the first time, then after pauses that double. Only where
none has ever served, a few deaths with the exit codes of a wrong configuration are the end, for that does not heal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.exposition import Sums
from gateway.metrics import WORKER_RESTARTS, WORKERS, Metrics, encoded

_log = logging.getLogger(__name__)

READY = b"ready\n"
"""What a worker says on its standard input, once, when clients can connect."""

# Seconds; a life that was long wipes the slate.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
LONG_LIFE = 60.0
START_ATTEMPTS = 3
HOPELESS = (1, 2)  # the command line's: could not run, is configured wrongly
# A worker that does not answer within this time is left out.
ANSWER_SECONDS = 2.0


class Pauses:
    """How long to wait before a worker is started again. `jitter` gives numbers in [0, 1)."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self.deaths = 0

    def next(self, lived: float) -> float:
        """Return the pause, in seconds, after a life of `lived` seconds."""
        self.deaths = 1 if lived >= LONG_LIFE else self.deaths + 1
        if self.deaths == 1:
            return 0.0
        doubled = SHORTEST_PAUSE * 2.0 ** min(self.deaths - 2, 16)
        return min(doubled, LONGEST_PAUSE) * (0.5 + self._jitter() / 2)


class Life:
    """One process of a worker, from its start to its end."""

    def __init__(self, serial: int, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.serial = serial
        self.process = process
        self.serving = False
        self._session = session

    async def ask(self, path: str) -> bytes | None:
        """Return what the worker answers, whatever the status; None if it does not."""
        try:
            async with self._session.get(f"http://worker{path}") as response:
                return await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is still somebody to get it."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Seat:
    """One worker: its number, from 1, the life that fills the seat at present, and how often it was filled again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.life: Life | None = None
        self.restarts = 0


class Supervisor(Collector):
    """Keeps `count` workers running and speaks for them.

    `order` makes what worker `number` is told, for a socket at a path; `directory` is where these sockets are. `metrics` are
    the supervisor's own. `patience`: seconds that the workers may take to drain. `command` starts a worker.
    """

    def __init__(
        self,
        count: int,
        *,
        order: Callable[[int, str], bytes],
        directory: str,
        metrics: Metrics,
        patience: float,
        command: Sequence[str],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._seats = [Seat(number) for number in range(1, count + 1)]
        self._order = order
        self._directory = directory
        self._metrics = metrics
        self._patience = patience
        self._command = command
        self._jitter = jitter
        self._serials = itertools.count(1)
        self._sums = Sums()
        self._ending = asyncio.Event()
        self._killing: asyncio.TimerHandle | None = None
        self._hope = False
        self._code = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def __repr__(self) -> str:
        running = sum(seat.life is not None for seat in self._seats)
        return f"<Supervisor: {running} of {len(self._seats)} workers{', ending' if self._ending.is_set() else ''}>"

    # --- their lives ---

    async def run(self) -> int:
        """Keep all workers running until `end`; return the exit code, not 0 if none could be started at all."""
        try:
            async with asyncio.TaskGroup() as group:
                for seat in self._seats:
                    group.create_task(self._fill(seat))
        finally:
            if self._killing is not None:
                self._killing.cancel()
        return self._code

    def end(self) -> None:
        """Let the workers drain and end, all at once; asked again, they do not take their time."""
        if not self._ending.is_set():
            self._ending.set()
            self._killing = asyncio.get_running_loop().call_later(self._patience, self._kill)
        self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        _log.error("workers that do not end are killed, %.0f s after they should have begun to", self._patience)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for seat in self._seats:
            if seat.life is not None:
                seat.life.signal(number)

    async def _fill(self, seat: Seat) -> None:
        pauses = Pauses(self._jitter)
        clock = asyncio.get_running_loop().time
        while not self._ending.is_set():
            began = clock()
            code = await self._live(seat)
            if self._ending.is_set():
                return
            pause = pauses.next(clock() - began)
            if not self._hope and code in HOPELESS and pauses.deaths >= START_ATTEMPTS:
                _log.error("no worker can be started: exit code %d, %d times", code, pauses.deaths)
                self._code = code
                self.end()
                return
            _log.error("worker %d %s; it is started again in %.1f s", seat.number, _fate(code), pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            seat.restarts += 1

    async def _live(self, seat: Seat) -> int:
        """Start a process for a seat, wait until it ends, and return its exit code, or minus the signal that ended it."""
        serial = next(self._serials)
        path = str(Path(self._directory, str(serial)))
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # A session of its own: Ctrl-C in a terminal is for the supervisor, which tells the workers.
                process = await asyncio.create_subprocess_exec(*self._command, stdin=theirs.fileno(), start_new_session=True)
            except OSError as error:
                ours.close()
                _log.error("worker %d cannot be started: %s", seat.number, error)
                return HOPELESS[0]
        connector, timeout = aiohttp.UnixConnector(path, force_close=True), aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            life = Life(serial, process, session)
            try:
                return await self._watch(seat, life, ours, self._order(seat.number, path))
            finally:
                life.signal(signal.SIGKILL)  # in the case that waiting was cancelled
                await process.wait()
                _remove(path)

    async def _watch(self, seat: Seat, life: Life, link: socket.socket, order: bytes) -> int:
        reader, writer = await asyncio.open_unix_connection(sock=link)
        seat.life = life
        self._sums.join(life.serial)
        if self._ending.is_set():
            life.signal(signal.SIGTERM)
        try:
            with contextlib.suppress(OSError):  # where it ends before it has read its order
                writer.write(order + b"\n")
                if await reader.readline() == READY:
                    life.serving = self._hope = True
                    _log.info("worker %d serves as process %d", seat.number, life.process.pid)
            return await life.process.wait()
        finally:
            seat.life = None
            self._sums.leave(life.serial)
            writer.close()

    # --- what operators ask ---

    async def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body and Content-Type of /metrics: the sums over the workers, as they are now."""
        await asyncio.gather(*(self._scrape(life) for life in self._serving()))
        return encoded(self._registry, accept)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, as last scraped; prometheus_client calls it."""
        workers = GaugeMetricFamily(WORKERS.name, WORKERS.help, labels=WORKERS.labels)
        workers.add_metric(["expected"], len(self._seats))
        workers.add_metric(["running"], sum(seat.life is not None for seat in self._seats))
        workers.add_metric(["serving"], len(self._serving()))
        restarts = sum(seat.restarts for seat in self._seats)
        own = [workers, CounterMetricFamily(WORKER_RESTARTS.name, WORKER_RESTARTS.help, value=restarts)]
        return self._sums.families([*self._metrics.registry.collect(), *own], expected=len(self._seats))

    def _serving(self) -> list[Life]:
        return [seat.life for seat in self._seats if seat.life is not None and seat.life.serving]

    async def _scrape(self, life: Life) -> None:
        body = await life.ask("/metrics")
        try:
            self._sums.take(life.serial, _text(body))
        except ValueError as error:
            self._sums.missed(life.serial)
            self._metrics.scrape_errors.add()
            _log.warning("the metrics of process %d cannot be read: %s", life.process.pid, error)

    async def readiness(self) -> tuple[Mapping[str, str], Mapping[str, object]]:
        """Return what is wrong, by name, and what each worker says."""
        told = await asyncio.gather(*(self._told(seat) for seat in self._seats))
        wrong = {"process": "draining"} if self._ending.is_set() else {}
        for seat, facts in zip(self._seats, told, strict=True):
            if facts["failed"]:
                wrong[f"worker {seat.number}"] = "; ".join(f"{name}: {reason}" for name, reason in facts["failed"].items())
        return wrong, {"parked_polls": sum(facts.get("parked_polls", 0) for facts in told), "workers": told}

    async def _told(self, seat: Seat) -> dict[str, Any]:
        life = seat.life
        known: dict[str, Any] = {"worker": seat.number, "pid": None, "restarts": seat.restarts, "ready": False}
        if life is None:
            return known | {"failed": {"process": "not running"}}
        known["pid"] = life.process.pid
        if not life.serving:
            return known | {"failed": {"process": "starting"}}
        body = await life.ask("/readyz")
        return known | ({"failed": {"process": "no answer"}} if body is None else msgspec.json.decode(body))


def _text(body: bytes | None) -> str:
    if body is None:
        raise ValueError("no answer")
    return body.decode()


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # the real-time signals have no names
        return f"was ended by signal {-code}"
