"""A backend that answers as told, and a cache before it with a clock that stands until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from multidict import CIMultiDict

from gateway.proxy.cache import Cache
from gateway.proxy.caching import CacheAnswer, CacheRequest, Fetched, Result

NOW = 1_800_000_000.0
Fields = Iterable[tuple[str, str]]


def at(seconds: float) -> str:
    """Return an HTTP-date so many seconds after the beginning."""
    return formatdate(NOW + seconds, usegmt=True)


def head(*fields: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(fields)


def get(*fields: tuple[str, str], method: str = "GET", target: str = "/a", **more: Any) -> CacheRequest:
    """Return a request on a public route, unless told otherwise."""
    settings: dict[str, Any] = {"authenticated": False, "anonymous": True} | more
    return CacheRequest(method, "https", "api.example.com", target, head(*fields), **settings)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Body:
    """A body that gives its chunks when asked, waits where there is an event, and knows whether it was closed."""

    def __init__(self, *parts: bytes | asyncio.Event | Exception) -> None:
        self.parts = list(parts)
        self.closed = False
        self.asked = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.asked += 1
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, asyncio.Event):
                await part.wait()
            elif isinstance(part, Exception):
                raise part
            else:
                return part
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Backend:
    """Gives its answers in turn, the last one again and again; an exception is raised. `gate`: it answers once that is set."""

    answers: list[Fetched | Exception]
    gate: asyncio.Event | None = None
    heads: list[CIMultiDict[str]] = field(default_factory=list)
    done: int = 0

    async def __call__(self, headers: CIMultiDict[str]) -> Fetched:
        self.heads.append(headers)
        number = len(self.heads)
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers[min(number, len(self.answers)) - 1]
        self.done += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


def ok(*fields: tuple[str, str], status: int = 200, body: Any = b"one") -> Fetched:
    return Fetched(status, head(*fields), body)


@dataclass
class Site:
    """A cache with its clock."""

    cache: Cache
    clock: Clock

    async def ask(self, backend: Backend, request: CacheRequest) -> CacheAnswer:
        return await self.cache.fetch(request, backend)

    async def results(self, backend: Backend, *requests: CacheRequest) -> list[Result]:
        """Ask one after the other, each body read to its end."""
        found = []
        for request in requests:
            answer = await self.ask(backend, request)
            await read(answer)
            found.append(answer.result)
        return found


async def read(answer: CacheAnswer) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    return b"".join([chunk async for chunk in answer.body])


@asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Site]:
    clock = Clock()
    cache = Cache(**{"max_bytes": 2**20, "max_answer_bytes": 2**16, "clock": clock} | settings)
    try:
        yield Site(cache, clock)
    finally:
        await cache.close()
