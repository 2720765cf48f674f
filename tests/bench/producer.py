"""The sender of messages, a process of its own: into Kafka, or by POST into a server that takes messages over HTTP.

It reads commands as JSON lines and answers each with one JSON line. Messages are numbered 1, 2, 3, … for each key and hold the
time of their sending.

    {"do": "one", "size": 64}                                     the next message without a key
    {"do": "steady", "size": 64, "count": N, "rate": R, "keys": K}  N messages, R a second, over K keys in turn (0: no key)
    {"do": "fill", "size": 1024, "count": N}                      N messages as fast as may be
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections import Counter
from typing import Any, Protocol
from urllib.parse import quote

from confluent_kafka import Producer

HTTP_CONNECTIONS = 16


def message(number: int, size: int) -> bytes:
    """Return a message of `size` bytes, or a little more where that is too short."""
    head = b'{"n":%d,"t":%d,"p":"' % (number, time.monotonic_ns())
    return head + b"x" * (size - len(head) - 2) + b'"}'


class Sink(Protocol):
    """Where messages go."""

    def send(self, key: str | None, number: int, size: int) -> None:
        """Send without waiting for the outcome."""
        ...

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        ...

    def latencies(self) -> list[float]:
        """Return the seconds that Kafka took to store each message since this was asked last; empty without Kafka."""
        ...


class KafkaSink:
    """A topic, at once and without lingering. `batched`: as much as possible instead, for filling."""

    def __init__(self, bootstrap: str, topic: str, *, batched: bool = False) -> None:
        settings: dict[str, Any] = {"bootstrap.servers": bootstrap, "linger.ms": 20 if batched else 0, "acks": "all"}
        # What comes while a request is under way goes into the next one: no waiting, and no request for each record.
        settings |= {"max.in.flight.requests.per.connection": 1}
        settings |= {"queue.buffering.max.messages": 1_000_000, "queue.buffering.max.kbytes": 256 << 10}
        self._producer = Producer(settings)
        self._topic = topic
        self._failed: list[str] = []
        self._latencies: list[float] = []

    def _delivered(self, error: Any, stored: Any) -> None:
        if error is not None:
            self._failed.append(str(error))
        else:
            self._latencies.append(stored.latency())

    def send(self, key: str | None, number: int, size: int) -> None:
        while True:
            try:
                self._producer.produce(self._topic, message(number, size), key, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.05)
            else:
                break
        self._producer.poll(0)

    def finish(self) -> None:
        self._producer.flush(60)
        if self._failed:
            raise RuntimeError(f"{len(self._failed)} messages were not stored: {self._failed[0]}")

    def latencies(self) -> list[float]:
        latencies, self._latencies = self._latencies, []
        return latencies


class HttpSink:
    """POSTs over kept connections. A key always takes the same one, so its messages stay in order."""

    def __init__(self, port: int, target: str, channel: str, *, body: str = "{message}") -> None:
        self._target = target
        self._channel = channel
        self._before, _, self._after = (part.encode() for part in body.partition("{message}"))
        self._escape = body != "{message}"
        self._connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(HTTP_CONNECTIONS)]
        for connection in self._connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._busy = [False] * HTTP_CONNECTIONS

    def send(self, key: str | None, number: int, size: int) -> None:
        which = 0 if key is None else int(key) % HTTP_CONNECTIONS
        self._settle(which)
        channel = quote(self._channel.replace("{key}", key or ""), safe="")
        content = message(number, size)
        if self._escape:
            content = content.replace(b'"', b'\\"')
        body = self._before.replace(b"{channel}", channel.encode()) + content + self._after
        head = (
            f"POST {self._target.replace('{channel}', channel)} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._connections[which].sendall(head.encode() + body)
        self._busy[which] = True

    def _settle(self, which: int) -> None:
        if not self._busy[which]:
            return
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer) < _whole_size(answer):
            data = self._connections[which].recv(65536)
            if not data:
                raise RuntimeError(f"the server closed the connection after {answer!r}")
            answer += data
        if answer[9:10] != b"2":
            raise RuntimeError(f"the server refused a message: {answer!r}")
        self._busy[which] = False

    def finish(self) -> None:
        for which in range(HTTP_CONNECTIONS):
            self._settle(which)

    def latencies(self) -> list[float]:
        return []


def _whole_size(answer: bytes) -> int:
    head, _, _ = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line[15:])
    return len(head) + 4


class Sender:
    """Numbers messages and sends them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._numbers: Counter[str | None] = Counter()

    def one(self, size: int) -> dict[str, Any]:
        """Send the next message without a key."""
        self._send(None, size)
        self._sink.finish()
        return {"n": self._numbers[None]}

    def steady(self, size: int, count: int, rate: float, keys: int) -> dict[str, Any]:
        """Send at a steady rate; what was due while this process had no CPU is sent at once."""
        names = [str(number) for number in range(keys)]
        random.Random(1).shuffle(names)
        begun = time.monotonic()
        behind = 0.0
        for number in range(count):
            due = begun + number / rate
            late = time.monotonic() - due
            if late < 0:
                time.sleep(-late)
            behind = max(behind, late)
            self._send(names[number % keys] if keys else None, size)
        took = time.monotonic() - begun
        self._sink.finish()
        stored = sorted(self._sink.latencies())
        return {
            "n": max(self._numbers.values()),
            "rate": count / took,
            "behind_ms": behind * 1_000,
            "stored_p99_ms": stored[int(len(stored) * 0.99)] * 1_000 if stored else None,
        }

    def fill(self, size: int, count: int) -> dict[str, Any]:
        """Send as fast as may be."""
        for _ in range(count):
            self._send(None, size)
        self._sink.finish()
        return {"n": self._numbers[None]}

    def _send(self, key: str | None, size: int) -> None:
        self._numbers[key] += 1
        self._sink.send(key, self._numbers[key], size)


def main() -> None:
    """Obey commands until standard input ends. The only argument is the sink, as JSON."""
    given = json.loads(sys.argv[1])
    sink: Sink = {"kafka": KafkaSink, "http": HttpSink}[given.pop("kind")](**given)
    sender = Sender(sink)
    for line in sys.stdin:
        command = json.loads(line)
        done = getattr(sender, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
