"""Clients that are held: each takes its first cursor with `wait=0`, and then polls behind it over a kept connection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import aiohttp

from gateway.loadtest.tally import Tally

REFUSED = (401, 403)
_WAIT = 25
_OK = 200
_NO_CONTENT = 204
_PAUSE = 1.0
_MOST_PAUSE = 5.0
_PATIENCE = aiohttp.ClientTimeout(total=_WAIT + 15, sock_connect=10)


class NotAllowed(Exception):
    """The gateway refuses the tokens: there is nothing to measure."""


class Crowd:
    """So many clients of one channel, as `grow` and `shrink` say; an async context manager.

    `tally` is the current step's; a new one begins with `fresh`. `tokens` are given out in turn; empty: none are sent.
    """

    def __init__(self, url: str, channel: str, tokens: Sequence[str], *, verify: bool = True) -> None:
        self.tally = Tally()
        self._url = url.rstrip("/")
        self._channel = channel
        self._tokens = tokens
        self._verify = verify
        self._tasks: list[asyncio.Task[None]] = []
        self._settled: set[int] = set()
        self._probes: dict[str, float] = {}
        self._refused: NotAllowed | None = None
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=70, ssl=self._verify)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_PATIENCE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shrink(0)
        await self._session.close()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def settled(self) -> int:
        """How many are held, or have been."""
        return len(self._settled)

    def fresh(self) -> Tally:
        """Begin a new tally and return it."""
        self.tally = Tally()
        return self.tally

    async def grow(self, count: int, per_second: float) -> None:
        """Add clients up to `count`, so many a second at most; NotAllowed if the gateway refuses the first."""
        began, first = time.monotonic(), len(self._tasks)
        while len(self._tasks) < count:
            due = int((time.monotonic() - began) * per_second) + 1
            for number in range(len(self._tasks), min(count, first + due)):
                self._tasks.append(asyncio.create_task(self._poll(number)))  # noqa: TID251  # kept in the list
            await asyncio.sleep(0.01)
            self.check()

    async def shrink(self, count: int) -> None:
        """End the clients beyond `count`."""
        gone, self._tasks = self._tasks[count:], self._tasks[:count]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        self._settled = {number for number in self._settled if number < count}

    async def settle(self, seconds: float) -> float | None:
        """Wait until all are held; return how many seconds that took, None: it took more than that."""
        began = time.monotonic()
        while len(self._settled) < len(self._tasks):
            self.check()
            if time.monotonic() - began > seconds:
                return None
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def delivered(self, seconds: float) -> None:
        """Wait until every client has got every probe, so many seconds at most."""
        overdue = time.monotonic() + seconds
        while self.tally.undelivered:
            if time.monotonic() > overdue:
                return
            await asyncio.sleep(0.005)

    async def probe(self) -> None:
        """Publish a message that every client is to get. NotAllowed where that is refused."""
        name = f"probe-{len(self._probes)}-{time.monotonic_ns()}"
        self._probes[name] = time.monotonic()
        self.tally.expected += len(self._tasks)
        headers = {**self._identity(0), "Content-Type": "application/json"}
        target = f"{self._url}/v1/publish"
        async with self._session.post(
            target, params={"channel": self._channel}, json={"probe": name}, headers=headers
        ) as answer:
            if answer.status >= 400:  # noqa: PLR2004
                raise NotAllowed(f"a probe was refused: {await _said(answer)}")

    def check(self) -> None:
        """Raise NotAllowed once the gateway has refused a token."""
        if self._refused is not None:
            raise self._refused

    def _identity(self, number: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens[number % len(self._tokens)]}"} if self._tokens else {}

    async def _poll(self, number: int) -> None:
        headers = self._identity(number)
        query: dict[str, Any] = {"channel": self._channel, "wait": 0}
        while True:
            pause = _PAUSE
            try:
                async with self._session.get(f"{self._url}/v1/subscribe", params=query, headers=headers) as answer:
                    if answer.status in (_OK, _NO_CONTENT):
                        body = await answer.read()
                        self._received(body)
                        headers = {**headers, "Cursor": answer.headers["Next-Cursor"]}
                        query["wait"] = _WAIT
                        self._settled.add(number)
                        self.tally.settled = len(self._settled)
                        continue
                    said = await _said(answer)
                    self.tally.refusals[said] += 1
                    if answer.status in REFUSED:
                        self._refused = NotAllowed(said)
                        return
                    with suppress(ValueError):
                        pause = float(answer.headers.get("Retry-After", pause))
            except (aiohttp.ClientError, TimeoutError, OSError, KeyError) as error:
                self.tally.failures[type(error).__name__] += 1
            self._settled.discard(number)
            await asyncio.sleep(min(pause, _MOST_PAUSE))

    def _received(self, body: bytes) -> None:
        now = time.monotonic()
        self.tally.polls += 1
        if not body:
            return
        for message in json.loads(body)["messages"]:
            value = message["value"]
            began = self._probes.get(value.get("probe", "")) if isinstance(value, dict) else None
            if began is not None:
                self.tally.latencies.append(now - began)


async def _said(answer: aiohttp.ClientResponse) -> str:
    """Return an error in words: its status and code."""
    try:
        code = json.loads(await answer.read()).get("code", "")
    except (ValueError, AttributeError):
        code = ""
    return f"{answer.status} {code}".rstrip()
