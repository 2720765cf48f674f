"""Processes of a run: each on one core, each ended when its block ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SERVER_CORE, LOAD_CORE = 0, 1


class Failed(Exception):
    """Something that a measurement needs did not work; the text says what."""


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let the processes that are started inside run on one core; on a machine with one core they share it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & _cores() or _cores())
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores() -> set[int]:
    return set(range(os.cpu_count() or 1))


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    core: int,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    grace: float = 5.0,
    **given: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process group of its own, which is ended with the block: asked first, killed after `grace` seconds.

    Its standard error goes into the file `log`, as does its standard output unless `stdout` is given.
    """
    with contextlib.ExitStack() as stack:
        output: IO[str] | int = stack.enter_context(log.open("a")) if log else subprocess.DEVNULL
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output} | given
        with on_core(core):
            process = subprocess.Popen(
                list(map(str, command)), text=True, env={**os.environ, **(env or {})}, process_group=0, **streams
            )
        try:
            yield process
        finally:
            _end(process, grace)


def _end(process: subprocess.Popen[str], grace: float) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    for sent, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def wait_until(condition: Any, what: str, *, timeout: float = 20.0, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until `condition()` is true; raises Failed after `timeout` seconds, or when the process has ended."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            raise Failed(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)
