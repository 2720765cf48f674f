"""Long-poll clients for tests: one keep-alive connection each, on bare asyncio streams, since a thousand run beside the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlencode

import orjson

# (partition, offset) of a message.
Spot = tuple[int, int]


@dataclass(frozen=True)
class Answer:
    """What came back. `headers` are by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def document(self) -> dict[str, Any]:
        """The body as JSON, empty where there is none."""
        return orjson.loads(self.body) if self.body else {}

    @property
    def cursor(self) -> str:
        """Where to read on."""
        return self.headers["next-cursor"]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages, none in an empty answer."""
        return self.document.get("messages", [])

    @property
    def lost(self) -> list[dict[str, Any]]:
        """What retention took."""
        return self.document.get("lost", [])


class Connection:
    """One connection, opened when it is needed and again when it was closed."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Leave at once, in the middle of whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    def turn_to(self, port: int) -> None:
        """Go on with another instance."""
        if port != self._port:
            self.drop()
            self._port = port

    async def send(
        self, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Write a request; the answer is left to `receive`."""
        head = f"{method} {target} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {self._token}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head += f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n"
        (await self._open())[1].write(head.encode() + body)

    async def receive(self) -> Answer:
        """Read one answer; ConnectionError or IncompleteReadError if the gateway closes before its end."""
        reader, writer = await self._open()
        status, headers = await self.receive_head()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            writer.close()
            self._streams = None
        return Answer(status, headers, body)

    async def receive_head(self) -> tuple[int, dict[str, str]]:
        """Read status and header fields of an answer."""
        reader, _ = await self._open()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(": ") for line in lines[1:-2])
        return int(lines[0].split(" ", 2)[1]), {name.lower(): value for name, _, value in fields}

    async def request(self, target: str, **given: Any) -> Answer:
        """Send, and receive. Cancelled, it leaves the connection in an unknown state: `drop` it."""
        await self.send(target, **given)
        return await self.receive()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[1].is_closing():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**18)
        return self._streams


@dataclass
class Chain:
    """What one client got along its cursor chain, in the order in which it came: where it was, its value, what was told lost.

    Not the messages whole: millions of those would keep the garbage collector busy.
    """

    spots: list[Spot] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.spots)

    def take(self, answer: Answer) -> None:
        """Add an answer."""
        for message in answer.messages:
            self.spots.append((message["partition"], message["offset"]))
            self.values.append(message["value"])
        self.lost += answer.lost


def by_partition(spots: Iterable[Spot]) -> dict[int, list[int]]:
    """Group offsets by partition, keeping their order."""
    grouped: dict[int, list[int]] = {}
    for partition, offset in spots:
        grouped.setdefault(partition, []).append(offset)
    return grouped


class Client(Connection):
    """A subscriber with its cursor. `parameters` go with every poll, `start` only with those that have no cursor yet."""

    def __init__(
        self,
        port: int,
        token: str,
        channels: Sequence[str],
        *,
        start: str | None = None,
        cursor: str | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(port, token)
        self.cursor = cursor
        self.chain = Chain()
        self.answers = 0
        self._channels = list(channels)
        self._start = start
        self._parameters = parameters

    def target(self, **parameters: Any) -> str:
        """Return the target of the next poll."""
        given = {**self._parameters, **parameters}
        query = [("channel", channel) for channel in self._channels]
        if self.cursor is not None:
            query.append(("cursor", self.cursor))
        elif self._start is not None:
            query.append(("from", self._start))
        return f"/v1/subscribe?{urlencode([*query, *given.items()])}"

    async def poll(self, **parameters: Any) -> Answer:
        """Poll once. A good answer's messages and cursor are taken; others are returned as they are."""
        answer = await self.request(self.target(**parameters))
        self.answers += 1
        if answer.status in (200, 204):
            self.cursor = answer.cursor
            self.chain.take(answer)
        return answer

    async def begin(self) -> Answer:
        """Take the first cursor, without waiting."""
        return self.check(await self.poll(wait=0))

    async def read_until(self, enough: Callable[[Chain], bool], *, timeout: float = 20.0, **parameters: Any) -> Chain:
        """Poll until the chain is long enough; AssertionError after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not enough(self.chain):
                    self.check(await self.poll(**parameters))
        except TimeoutError:
            raise AssertionError(f"after {timeout} s only {len(self.chain)} messages came") from None
        return self.chain

    async def read(self, count: int, **given: Any) -> Chain:
        """Poll until `count` messages have come."""
        return await self.read_until(lambda chain: len(chain) >= count, **given)

    async def catch_up(self, *, timeout: float = 20.0, **parameters: Any) -> Chain:
        """Poll without waiting until there is nothing more."""
        async with asyncio.timeout(timeout):
            while self.check(await self.poll(wait=0, **parameters)).status != 204:
                pass
        return self.chain

    @staticmethod
    def check(answer: Answer) -> Answer:
        """Return a good answer; AssertionError with the problem otherwise."""
        assert answer.status in (200, 204), (answer.status, answer.body)
        return answer
