"""Chaos: the client libraries over a network that drops, stalls and cuts, against two instances that are restarted in turn.

Records are numbered and written straight into Kafka, which tells where it put each. Every reader appends a line for each record
that it has processed to a file of its own, in the order of processing. From its first position on each record has to be there
exactly once, and in order within its partition. Readers are also ended in order and go on from what their stores say.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bench.gateways import Variant, configuration, tokens
from bench.instances import Instance, Turns
from bench.mischief import Mischief
from bench.processes import LOAD_CORE, Failed, running, wait_until
from bench.serving import Missing, Setting, Work
from confluent_kafka import Producer
from integration.ports import free_ports

COLUMNS = {
    "records": "records",
    "processed": "processed",
    "lost": "missing",
    "doubled": "doubled",
    "out_of_order": "out of order",
    "faults": "faults",
    "restarts": "gateway restarts",
    "kills": "of these killed",
    "resumed": "reader restarts",
    "duplicates": "sent again, left out",
    "failures": "failed requests",
    "polls": "polls",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
}
HERE = Path(__file__).parent
TESTS = HERE.parent
PARTITIONS = 6
CATCH_UP_SECONDS = 90.0
RESTART_EVERY = 12.0
"""Seconds between two restarts of gateways."""

READER_EVERY = 40.0
"""Seconds between two restarts of a reader."""

Spot = tuple[int, int]
"""Partition and offset: the topic is one."""

READERS: Mapping[str, list[str]] = {
    "python-sync": [sys.executable, "-m", "bench.reader", "sync"],
    "python-async": [sys.executable, "-m", "bench.reader", "async"],
    "javascript": ["node", str(HERE / "reader.mjs")],
}


@dataclass
class Written:
    """What Kafka has stored: the number of each record, by place."""

    numbers: dict[Spot, int] = field(default_factory=dict)
    failed: int = 0


class Writer:
    """Writes numbered records at a steady rate, on a thread; a context manager. `written` is whole when it has ended."""

    def __init__(self, bootstrap: str, topic: str, rate: float) -> None:
        self.written = Written()
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 2})
        self._topic = topic
        self._rate = rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._producer.flush(60) or self.written.failed:
            raise Failed("not all records were stored")

    def _run(self) -> None:
        begun, number = time.monotonic(), 0
        while not self._over.wait(max(0.0, begun + number / self._rate - time.monotonic())):
            value = json.dumps({"n": number, "t": time.time_ns()})
            self._producer.produce(self._topic, value, str(number % 997), on_delivery=self._stored(number))
            self._producer.poll(0)
            number += 1

    def _stored(self, number: int) -> Any:
        def stored(error: Any, message: Any) -> None:
            if error is None:
                self.written.numbers[message.partition(), message.offset()] = number
            else:
                self.written.failed += 1

        return stored


class Reader:
    """One reader process after the other, with one store; lines of what was processed in one file."""

    def __init__(self, name: str, port: int, token: str, directory: Path) -> None:
        self.name = name
        self.resumed = 0
        self.counters: Counter[str] = Counter()
        self._said = directory / f"{name}.lines"
        self._log = directory / f"{name}.log"
        store = directory / f"{name}.position"
        self._command = [*READERS[name], f"http://127.0.0.1:{port}", "all", str(store), str(self._said)]
        self._env = {"GATEWAY_TOKEN": token, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it has a position."""
        pipes = {"stdout": subprocess.PIPE}
        self._process = self._stack.enter_context(
            running(self._command, core=LOAD_CORE, log=self._log, env=self._env, cwd=TESTS, **pipes)
        )
        if self._process.stdout is None or not self._process.stdout.readline():
            raise Failed(f"the reader {self.name} did not start (its log: {self._log})")

    def stop(self) -> None:
        """End it in order and take its counters."""
        if self._process is None or self._process.stdout is None:
            raise AssertionError("it was started")
        self._process.send_signal(signal.SIGTERM)
        last = self._process.stdout.readline()
        if self._process.wait(30) != 0 or not last:
            raise Failed(f"the reader {self.name} did not end well (its log: {self._log})")
        self.counters.update(json.loads(last))
        self._stack.close()

    def again(self) -> None:
        """End it and let another go on from where it was."""
        self.stop()
        self.start()
        self.resumed += 1

    def close(self) -> None:
        """End it, however."""
        self._stack.close()

    def lines(self) -> Iterator[tuple[int, int, int, int]]:
        """Return partition, offset, number and nanoseconds from writing to processing, for all that was processed."""
        if self._said.exists():
            for line in self._said.read_text().splitlines():
                partition, offset, number, late = map(int, line.split())
                yield partition, offset, number, late

    def count(self) -> int:
        """Return how many lines there are."""
        return self._said.read_bytes().count(b"\n") if self._said.exists() else 0


def judge(written: Mapping[Spot, int], lines: Iterator[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Compare what was processed with what was written. Raises Failed where something was processed that never was written."""
    times: Counter[Spot] = Counter()
    latest: dict[int, int] = {}
    late: list[float] = []
    out_of_order = 0
    for partition, offset, number, nanoseconds in lines:
        spot = partition, offset
        if written.get(spot) != number:
            raise Failed(f"record {number} was processed as {spot}, where Kafka has {written.get(spot)}")
        times[spot] += 1
        out_of_order += offset <= latest.get(partition, -1)
        latest[partition] = max(offset, latest.get(partition, -1))
        late.append(nanoseconds / 1e6)
    late.sort()
    return {
        "records": len(written),
        "processed": len(times),
        "lost": len(written.keys() - times.keys()),
        "doubled": sum(count - 1 for count in times.values()),
        "out_of_order": out_of_order,
        "p50_ms": late[len(late) // 2] if late else None,
        "p99_ms": late[int(len(late) * 0.99)] if late else None,
        "max_ms": late[-1] if late else None,
    }


def check(names: list[str]) -> None:
    """Raise Missing where a reader cannot run."""
    if "javascript" in names and shutil.which("node") is None:
        raise Missing("node is not installed")


@contextlib.contextmanager
def _instances(setting: Setting, topic: str, count: int) -> Iterator[list[Instance]]:
    with contextlib.ExitStack() as stack:
        ports = free_ports(2 * count)
        instances = []
        for number in range(count):
            document = configuration(Variant(), setting, Work(10), topic, *ports[2 * number : 2 * number + 2])
            document["drain"] = {"delay": 0.2, "window": 1}
            instances.append(Instance(setting.broker, document, setting.directory / f"gateway-{number}"))
            stack.callback(instances[-1].stop)
            instances[-1].start()
        yield instances


def read_all(
    setting: Setting,
    names: list[str],
    *,
    rate: float,
    seconds: float,
    seed: int,
    restart_every: float = RESTART_EVERY,
    reader_every: float = READER_EVERY,
) -> dict[str, dict[str, Any]]:
    """Let readers read for so long, and return the figures of each by name."""
    check(names)
    topic = setting.broker.topic(PARTITIONS)
    signed = dict(zip(names, tokens("HS256", len(names), long=False), strict=True))
    with contextlib.ExitStack() as stack:
        stack.callback(setting.broker.delete, topic)
        instances = stack.enter_context(_instances(setting, topic, 2))
        mischief = stack.enter_context(Mischief([each.port for each in instances], names, seed))
        readers = [Reader(name, mischief.port(name), signed[name], setting.directory) for name in names]
        for reader in readers:
            stack.callback(reader.close)
            reader.start()
        with Writer(setting.broker.address, topic, rate) as writer, Turns(instances, restart_every) as turns:
            mischief.begin()
            _restart(readers, seconds, reader_every)
        mischief.end()
        for reader in readers:
            _await(reader, len(writer.written.numbers))
            reader.stop()
    shared = {"faults": mischief.faults.total(), "restarts": turns.restarts, "kills": turns.kills}
    return {
        reader.name: {
            **judge(writer.written.numbers, reader.lines()),
            **shared,
            "resumed": reader.resumed,
            **{name: reader.counters[name] for name in ("duplicates", "failures", "polls")},
        }
        for reader in readers
    }


def _restart(readers: list[Reader], seconds: float, every: float) -> None:
    """Wait so long; meanwhile end a reader every so many seconds and let it go on."""
    deadline = time.monotonic() + seconds
    turn = 0
    while (left := deadline - time.monotonic()) > every:
        time.sleep(every)
        readers[turn % len(readers)].again()
        turn += 1
    time.sleep(max(0.0, left))


def _await(reader: Reader, count: int) -> None:
    with contextlib.suppress(Failed):  # what is missing then stands in the figures
        wait_until(lambda: reader.count() >= count, "", timeout=CATCH_UP_SECONDS)


def measure(names: list[str], setting: Setting, *, rate: int, seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """Run it once; Failed where a record is missing, doubled or out of order."""
    figures = read_all(setting, names, rate=rate, seconds=seconds, seed=seed)
    wrong = [name for name, each in figures.items() if each["lost"] or each["doubled"] or each["out_of_order"]]
    for name, each in figures.items():
        each["errors"] = int(name in wrong)
    return figures
