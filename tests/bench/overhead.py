"""Overhead: one client on a core of its own that reads what is written at a steady rate, or all that is there at once.

The server, Kafka and the producer share the other core. A bare loop over httpx and json is measured beside the clients: what it
costs is not theirs, and what they cost beyond it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import proc
from bench.gateways import gateway, tokens
from bench.processes import LOAD_CORE, Failed, running, wait_until
from bench.serving import Setting, Work
from bench.source import source

HERE = Path(__file__).parent
TESTS = HERE.parent
COLUMNS = {
    "messages_per_s": "messages/s",
    "us_per_message": "client's CPU µs/message",
    "core_percent": "client's core %",
    "messages_per_answer": "messages/answer",
    "most_per_s": "at most messages/s",
    "us_at_most": "CPU µs/message then",
}
READERS: Mapping[str, list[str]] = {
    "httpx": [sys.executable, "-m", "bench.reader", "plain"],
    "python-async": [sys.executable, "-m", "bench.reader", "async"],
    "python-sync": [sys.executable, "-m", "bench.reader", "sync"],
    "javascript": ["node", str(HERE / "reader.mjs")],
}
PARTITIONS = 4
SIZE = 100
WARM_UP_SECONDS = 2.0
LEAST_SECONDS = 0.01
BUSY = 0.1
"""A reader that uses less of its core has read all."""


@contextlib.contextmanager
def reader(name: str, port: int, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a reader alone on its core, until it has its first position."""
    (signed,) = tokens("HS256", 1, long=False)
    env = {"GATEWAY_TOKEN": signed, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    command = [*READERS[name], f"http://127.0.0.1:{port}", "all", "-", "-"]
    log = directory / f"{name}.log"
    with running(command, core=LOAD_CORE, log=log, env=env, cwd=TESTS, stdout=subprocess.PIPE) as process:
        if process.stdout is None or not process.stdout.readline():
            raise Failed(f"the reader {name} did not start (its log: {log})")
        yield process


def measure(name: str, setting: Setting, *, rate: int, seconds: float, burst: int) -> dict[str, Any]:
    """Let a reader read at a rate for so long, and then a burst; return the figures."""
    work = Work(1, partitions=PARTITIONS)
    with gateway(setting, work) as server, source(server.sink, setting.directory) as messages:
        with reader(name, server.port, setting.directory) as process:
            messages.begin("steady", size=SIZE, count=int(rate * (WARM_UP_SECONDS + seconds)), rate=rate, keys=0)
            time.sleep(WARM_UP_SECONDS)
            before, began = proc.cpu([process.pid]), time.monotonic()
            messages.done(60 + seconds)
            used, took = proc.cpu([process.pid]) - before, time.monotonic() - began
            figures = _ended(process)
        with_burst = _burst(name, server.port, messages, setting, burst)
    return {
        "messages_per_s": rate,
        "us_per_message": used / (rate * took) * 1e6,
        "core_percent": used / took * 100,
        "messages_per_answer": figures["messages"] / max(1, figures["polls"]),
        **with_burst,
    }


def _burst(name: str, port: int, messages: Any, setting: Setting, count: int) -> dict[str, Any]:
    """Have the reader find so many messages at once, and see how long it is busy with them."""
    with reader(name, port, setting.directory) as process:
        os.kill(process.pid, signal.SIGSTOP)
        messages.begin("fill", size=SIZE, count=count)
        messages.done(120)
        before, began = proc.cpu([process.pid]), time.monotonic()
        os.kill(process.pid, signal.SIGCONT)
        last, since, looked = before, began, began

        def rests() -> bool:
            nonlocal last, since, looked
            used, now = proc.cpu([process.pid]), time.monotonic()
            if used - last > (now - looked) * BUSY:
                since = now
            last, looked = used, now
            return now - since > 1

        wait_until(rests, f"{name} to have read all", timeout=120)
        took = max(since - began, LEAST_SECONDS)
        read = _ended(process)["messages"]
    return {"most_per_s": read / took, "us_at_most": (last - before) / max(1, read) * 1e6}


def _ended(process: subprocess.Popen[str]) -> dict[str, int]:
    process.send_signal(signal.SIGTERM)
    if process.stdout is None:
        raise AssertionError("readers are started with a pipe")
    told: dict[str, int] = json.loads(process.stdout.readline() or "{}")
    if process.wait(30) or not told:
        raise Failed("the reader did not end well")
    return told
