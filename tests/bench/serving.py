"""A server under test, whichever it is: what scenarios need to know of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import proc
from bench.broker import KafkaBroker
from bench.fleet import Plan
from bench.processes import Failed


class Missing(Exception):
    """This server cannot run here; the text says why. It stands in the table in place of figures."""


@dataclass(frozen=True)
class Work:
    """What a server is to serve.

    `clients`: how many. `keyed`: each has a channel of its own, otherwise all have the same one. `partitions` of the topic.
    `history`: there is a second topic, for replays.
    """

    clients: int
    keyed: bool = False
    partitions: int = 1
    workers: int = 1
    history: bool = False


@dataclass(frozen=True)
class Setting:
    """Where a server runs: the broker, and a directory for its files."""

    broker: KafkaBroker
    directory: Path


@dataclass
class Running:
    """A running server. `pids`: the roots of its process trees; `sink`: what the producer gets, as JSON."""

    port: int
    pids: Sequence[int]
    plan: Plan
    sink: Mapping[str, Any]
    apart: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Processes that help and are counted apart, by name."""
    metrics: Callable[[], Mapping[str, float]] = dict
    """What the server tells about itself; empty where it tells nothing."""
    asking: Callable[[str, int, str], Plan] | None = None
    """Make a plan for another channel, so many clients, and further query parameters."""
    rest: float = 0.003
    """Seconds without work after which nothing is left to do: more where processes wait for each other's timers."""
    most_at_once: int | None = None
    """Polls that may come at the same time, where more are refused in part."""
    history: Mapping[str, Any] | None = None
    """What the producer gets to fill the channel `history`."""

    def bears(self, clients: int) -> bool:
        """Say whether so many clients can ask at the same time."""
        return self.most_at_once is None or clients <= self.most_at_once

    def check_burst(self, clients: int) -> None:
        """Raise Missing where they cannot."""
        if not self.bears(clients):
            raise Missing(f"it refuses or loses some of {clients:,} polls that come at the same time")

    @property
    def tree(self) -> list[int]:
        """All processes of the server."""
        return [pid for root in self.pids for pid in proc.tree(root)]

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far: of the server ("server"), and of each of the others by its name."""
        used = {"server": proc.cpu(self.tree)}
        for name, roots in self.apart.items():
            used[name] = proc.cpu(pid for root in roots for pid in proc.tree(root))
        return used

    def memory(self) -> proc.Memory:
        """Return the server's memory."""
        return proc.memory(self.tree)

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until the server has worked off what it was sent: until it leaves its core alone for a while."""
        pids = [*self.tree, *(pid for roots in self.apart.values() for root in roots for pid in proc.tree(root))]
        deadline = time.monotonic() + timeout
        before, since = proc.cpu(pids), time.monotonic()
        while True:
            time.sleep(self.rest)
            after, now = proc.cpu(pids), time.monotonic()
            if after - before < (now - since) * 0.1:
                return
            if time.monotonic() > deadline:
                raise Failed("the server does not come to rest")
            before, since = after, now


ServerContext = Callable[[Setting, Work], contextlib.AbstractContextManager[Running]]
