"""Instances of the gateway that are restarted in turn while clients go on."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bench.broker import KafkaBroker
from bench.gateways import process
from bench.processes import Failed
from bench.serving import Setting

PATIENCE = 30.0


class Instance:
    """One instance on ports of its own; after `terminate` or `kill` it can be started again, on the same ones."""

    def __init__(self, broker: KafkaBroker, document: Mapping[str, Any], directory: Path) -> None:
        directory.mkdir()
        self._setting = Setting(broker, directory)
        self._document = document
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    @property
    def port(self) -> int:
        """Where clients find it."""
        return int(self._document["server"]["port"])

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = self._stack.enter_context(process(self._setting, self._document))

    def terminate(self) -> None:
        """End it with a drain and wait for that."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Let it die."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it, however."""
        self._stack.close()

    def _end(self, sent: signal.Signals) -> None:
        if self._process is None:
            raise AssertionError("it was started")
        os.killpg(self._process.pid, sent)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"a gateway has not ended within {PATIENCE:g} s of {sent.name}") from None
        self._stack.close()


class Turns:
    """Restarts of instances, one after the other, on a thread; every other one dies. A context manager.

    Never are two of them away, as an operator would have it. `restarts`, `kills`: how many there were.
    """

    def __init__(self, instances: Sequence[Instance], every: float) -> None:
        self.restarts = self.kills = 0
        self._instances = instances
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="turns")
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            # As long as there are turns: a graceful end and a death for each instance before it begins anew.
            for turn in itertools.count():
                if self._over.wait(self._every):
                    return
                instance = self._instances[turn // 2 % len(self._instances)]
                if turn % 2:
                    instance.kill()
                    self.kills += 1
                else:
                    instance.terminate()
                instance.start()
                self.restarts += 1
        except (Failed, OSError) as failure:
            self._failure = failure
