"""Backends for proxies to stand in front of: runs backend.c on the load's core, and speaks its commands."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.compiling import compiled
from bench.listening import listens
from bench.processes import LOAD_CORE, Failed, running, wait_until
from integration.ports import free_ports

BODY_BYTES = 1_024
PATIENCE = 30.0


class Backend:
    """One backend on a port of its own; after `terminate` or `kill` it can be started again, on the same port."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._running().pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [compiled("backend"), str(self.port), str(BODY_BYTES)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = self._stack.enter_context(running(command, core=LOAD_CORE, log=self._log, **pipes))
        wait_until(lambda: listens(self.port), f"a backend (its log: {self._log})", process=self._process)

    def stop(self) -> None:
        """End it, however."""
        self._stack.close()

    def terminate(self) -> None:
        """End it gracefully and wait for that."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Let it die."""
        self._end(signal.SIGKILL)

    def report(self) -> dict[str, int]:
        """Return the counts so far."""
        return self._tell("report")

    def answer(self) -> dict[str, int]:
        """Answer all that is held."""
        return self._tell("answer")

    def delay(self, milliseconds: int) -> dict[str, int]:
        """Answer so much later from now on."""
        return self._tell(f"delay {milliseconds}")

    def _end(self, sent: signal.Signals) -> None:
        process = self._running()
        process.send_signal(sent)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"a backend has not ended within {PATIENCE:g} s of {sent.name}") from None

    def _tell(self, command: str) -> dict[str, int]:
        process = self._running()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("backends are started with pipes")
        process.stdin.write(command + "\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if readable else ""
        if not line:
            raise Failed(f"a backend does not answer to '{command}' (its log: {self._log})")
        told: dict[str, int] = json.loads(line)
        return told

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise AssertionError("the backend was not started")
        return self._process


@contextlib.contextmanager
def backends(count: int, directory: Path) -> Iterator[Sequence[Backend]]:
    """Run so many backends."""
    started = [Backend(port, directory / "backend.log") for port in free_ports(count)]
    with contextlib.ExitStack() as stack:
        for each in started:
            stack.callback(each.stop)
            each.start()
        yield started


def held(those: Sequence[Backend]) -> list[int]:
    """Return how many long polls each of them holds."""
    return [each.report()["held"] for each in those]


def await_held(those: Sequence[Backend], count: int, timeout: float) -> float:
    """Wait until they hold so many long polls together; return the seconds it took, raise Failed after `timeout`."""
    begun = time.monotonic()
    wait_until(lambda: sum(held(those)) == count, f"{count:,} held long polls", timeout=timeout)
    return time.monotonic() - begun


def spread_percent(counts: Sequence[int]) -> float:
    """Return how far the count that is farthest from the mean is from it, in percent of the mean."""
    mean = sum(counts) / len(counts)
    return 100 * max(abs(count - mean) for count in counts) / mean if mean else 0.0


def watch(those: Sequence[Backend], seconds: float, step: float = 0.1) -> Iterator[tuple[float, list[int]]]:
    """Yield for each step its end in seconds from now, and how many requests each of them got in it."""
    begun, before = time.monotonic(), [each.report()["requests"] for each in those]
    elapsed = 0.0
    while elapsed < seconds:
        time.sleep(step)
        after, elapsed = [each.report()["requests"] for each in those], time.monotonic() - begun
        yield elapsed, [now - then for now, then in zip(after, before, strict=True)]
        before = after


def share_percent(steps: Iterable[tuple[float, Sequence[int]]], start: float, stop: float) -> float | None:
    """Return the percentage of all requests that the first one got between two moments; None if there were no requests."""
    within = [counts for end, counts in steps if start < end <= stop]
    total = sum(map(sum, within))
    return 100 * sum(counts[0] for counts in within) / total if total else None
