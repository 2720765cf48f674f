"""Clients by the thousand: runs load.c, and speaks its commands and events."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import histogram
from bench.compiling import compiled
from bench.processes import LOAD_CORE, Failed, running

# Ports for outgoing connections of one source address, with some to spare for others.
PORTS_PER_SOURCE = 25_000
SPARE_FILES = 500


@dataclass(frozen=True)
class Plan:
    """What the clients send (plan.c has the meaning), and the port that they send it to."""

    port: int
    first: str
    next: str
    captures: Sequence[str]
    values: Sequence[Sequence[str]]
    hold: bool = False
    options: Mapping[str, int] = field(default_factory=dict)

    def encoded(self, start: int, stop: int) -> bytes:
        """Return the file for the clients from `start` to `stop`."""
        first, following = self.first.encode(), self.next.encode()
        values = self.values[start:stop]
        parts = [
            b"first %d\n%s\nnext %d\n%s\n" % (len(first), first, len(following), following),
            b"hold %d\n" % self.hold,
            *(f"capture {name}\n".encode() for name in self.captures),
            b"clients %d %d\n" % (len(values), len(values[0])),
            *("\t".join(own).encode() + b"\n" for own in values),
        ]
        return b"".join(parts)


@dataclass(frozen=True)
class Report:
    """What the clients saw since `start`; times in milliseconds."""

    counts: Mapping[str, int]
    statuses: Mapping[str, int]
    latency: Mapping[int, int]
    max_ms: float

    @property
    def messages(self) -> int:
        """Messages that arrived."""
        return self.counts["messages"]

    @property
    def answers(self) -> int:
        """Answers of any kind."""
        return self.counts["answers"]

    @property
    def errors(self) -> int:
        """Answers that no client hopes for, and connections that were cut, refused or broken."""
        bad = sum(count for status, count in self.statuses.items() if status not in ("200", "204", "304"))
        return bad + self.counts["cut"] + self.counts["broken"] + self.counts["refused"]

    def ms(self, share: float) -> float | None:
        """Return a percentile of the latency in milliseconds."""
        micros = histogram.percentile(self.latency, share)
        return None if micros is None else min(micros / 1_000, self.max_ms)

    def figures(self) -> dict[str, Any]:
        """Return what every measurement shows of its clients."""
        return {
            "messages": self.messages,
            "answers": self.answers,
            "p50_ms": self.ms(0.5),
            "p90_ms": self.ms(0.9),
            "p99_ms": self.ms(0.99),
            "max_ms": self.max_ms,
            "lost": self.counts["lost"],
            "doubled": self.counts["doubled"],
            "errors": self.errors,
            "statuses": dict(self.statuses),
            "reconnects": self.counts["reconnects"],
        }


class Fleet:
    """Load processes that share the clients of one plan: one process cannot have more connections than open files."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], clients: int) -> None:
        self._processes = processes
        self._buffers = [b""] * len(processes)
        self.clients = clients

    @property
    def pids(self) -> list[int]:
        """The load processes."""
        return [process.pid for process in self._processes]

    def tell(self, command: str) -> None:
        """Give a command to all."""
        for process in self._processes:
            if process.stdin is None:
                raise AssertionError("load processes are started with pipes")
            process.stdin.write(command + "\n")
            process.stdin.flush()

    def hear(self, event: str, timeout: float) -> list[dict[str, Any]]:
        """Wait for an event of all; raises Failed when it does not come in time."""
        deadline = time.monotonic() + timeout
        try:
            return [self._hear(number, event, deadline) for number in range(len(self._processes))]
        except TimeoutError:
            seen = self.report()
            raise Failed(
                f"not all clients came to '{event}' within {timeout:g} s: {seen.counts['parked']} of {self.clients} are parked, "
                f"statuses {dict(seen.statuses)}, cut {seen.counts['cut']}, refused {seen.counts['refused']}"
            ) from None

    def _hear(self, number: int, event: str, deadline: float) -> dict[str, Any]:
        stream = self._processes[number].stdout
        if stream is None:
            raise AssertionError("load processes are started with pipes")
        while True:
            line, feed, rest = self._buffers[number].partition(b"\n")
            if feed:
                self._buffers[number] = rest
                told: dict[str, Any] = json.loads(line)
                if told["event"] == event:
                    return told
                continue
            readable, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                raise Failed(f"a load process ended with {self._processes[number].wait()} (its log is beside the server's)")
            self._buffers[number] += data

    def connect(self, *, storm: bool = False, timeout: float = 120.0) -> float:
        """Connect all clients, or cut and reconnect all at once; return the seconds until all have sent a poll that is held."""
        self.tell("storm" if storm else "connect")
        told = self.hear("parked", timeout)
        return (max(each["now"] for each in told) - min(each["begun"] for each in told)) / 1e9

    def await_message(self, number: int) -> None:
        """Ask to be told when every client has this message and has sent its next poll; `reached` waits for that."""
        self.tell(f"await {number}")

    def reached(self, timeout: float = 30.0) -> float:
        """Wait for what was asked; return the seconds from the sending until the last client had the message."""
        told = self.hear("reached", timeout)
        return (max(each["last"] for each in told) - min(each["sent"] for each in told)) / 1e9

    def start(self) -> None:
        """Count from zero."""
        self.tell("start")

    def report(self) -> Report:
        """Ask for what was counted."""
        self.tell("report")
        told = self.hear("report", 30.0)
        names = [name for name, value in told[0].items() if isinstance(value, int) and name not in ("now", "max_us")]
        statuses: dict[str, int] = {}
        for each in told:
            for status, count in each["statuses"].items():
                statuses[status] = statuses.get(status, 0) + count
        return Report(
            counts={name: sum(each[name] for each in told) for name in names},
            statuses=statuses,
            latency=histogram.merged(each["histogram"] for each in told),
            max_ms=max(each["max_us"] for each in told) / 1_000,
        )


@contextlib.contextmanager
def fleet(plan: Plan, directory: Path) -> Iterator[Fleet]:
    """Run the load processes for a plan; they do nothing before they are told to."""
    program = compiled("load")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
    total = len(plan.values)
    parts = -(-total // most)
    bounds = [total * part // parts for part in range(parts + 1)]
    sources = -(-total // PORTS_PER_SOURCE)
    with contextlib.ExitStack() as stack:
        processes = []
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            file = directory / f"plan-{number}-{os.urandom(4).hex()}"
            file.write_bytes(plan.encoded(start, stop))
            stack.callback(file.unlink)
            options = {"port": plan.port, "sources": sources, **plan.options}
            command = [program, file, *(f"{name}={value}" for name, value in options.items())]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (directory / "load.log").open("a")}
            stack.callback(pipes["stderr"].close)
            processes.append(stack.enter_context(running(command, core=LOAD_CORE, **pipes)))
        yield Fleet(processes, total)
