"""The handle on a producer process."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.processes import LOAD_CORE, Failed, running

TESTS = Path(__file__).parents[1]


class Source:
    """A producer process: `one`, `steady` and `fill` as in producer.py."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def begin(self, what: str, **given: Any) -> None:
        """Begin something; `done` waits for it."""
        if self._process.stdin is None:
            raise AssertionError("a producer is started with pipes")
        self._process.stdin.write(json.dumps({"do": what, **given}) + "\n")
        self._process.stdin.flush()

    def done(self, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for what was begun and return what it tells."""
        stream = self._process.stdout
        if stream is None:
            raise AssertionError("a producer is started with pipes")
        readable, _, _ = select.select([stream], [], [], timeout)
        line = stream.readline() if readable else ""
        if not line:
            raise Failed(f"the producer said nothing within {timeout:g} s; its log ends: {self._log.read_text()[-500:]}")
        told: dict[str, Any] = json.loads(line)
        return told

    def one(self, size: int) -> int:
        """Send one message; return its number."""
        self.begin("one", size=size)
        return int(self.done()["n"])


@contextlib.contextmanager
def source(sink: Mapping[str, Any], directory: Path) -> Iterator[Source]:
    """Run a producer process that sends to this sink."""
    log = directory / "producer.log"
    with log.open("a") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "cwd": TESTS}
        command = [sys.executable, "-m", "bench.producer", json.dumps(dict(sink))]
        with running(command, core=LOAD_CORE, **pipes) as process:
            yield Source(process, log)
