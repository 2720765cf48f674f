"""One fetch for one or more clients.

Theory of operation. A flight has a task of its own, so that it outlives the client who began it. Its leader is told as soon
as there is a head, and reads the body as it comes, at his own pace. Those who wait are told once, when it has landed: with an
answer for all, or with none, and then each goes to the backend himself, all at the same moment. Everybody who looks at a
flight is counted; when the last one leaves, its task is cancelled, unless it is detached.

However its task ends, the flight lands: nobody waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar, final

from gateway.errors import UpstreamFailed
from gateway.proxy.caching import close_body

A = TypeVar("A")
H = TypeVar("H")


@final
class Flight(Generic[H, A]):
    """A fetch under way. H: what the leader is shown; A: what it lands with.

    `detached`: goes on though nobody looks. `led`: somebody wants the body as it comes.
    `tainted`: what it brings is older than a change and must not be stored.
    """

    def __init__(self, *, detached: bool = False) -> None:
        self.detached = detached
        self.led = False
        self.tainted = False
        self.interest = 0
        self.shown: H | None = None
        self.answer: A | None = None
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self._headed = asyncio.Event()
        self._landed = asyncio.Event()

    def __repr__(self) -> str:
        state = "landed" if self._landed.is_set() else "shown" if self.shown is not None else "under way"
        return f"<Flight {state}, of interest to {self.interest}{', detached' if self.detached else ''}>"

    @property
    def landed(self) -> bool:
        """Whether those who wait have been told."""
        return self._landed.is_set()

    def enter(self) -> None:
        """Count one more who looks; each `leave`s once."""
        self.interest += 1

    def leave(self) -> bool:
        """Count one less; the last one ends the flight. Return whether he was the last one."""
        self.interest -= 1
        if self.interest or self.detached or self.task is None:
            return False
        self.task.cancel()
        return True

    async def head(self) -> None:
        """Wait until there is something to show, or it has landed or failed."""
        await self._headed.wait()

    async def land(self) -> None:
        """Wait until it has landed."""
        await self._landed.wait()

    def show(self, shown: H) -> None:
        """Show the leader what came; those who wait go on waiting."""
        self.shown = shown
        self._headed.set()

    def bring(self, answer: A | None) -> None:
        """Land with an answer for all, or with none. Only the first landing counts."""
        if not self._landed.is_set():
            self.answer = answer
            self._landed.set()
        self._headed.set()

    def fail(self, error: Exception) -> None:
        """Land with nothing; the leader gets the error."""
        self.error = error
        self.bring(None)


@final
class Tee(AsyncIterator[bytes]):
    """A body that is recorded at the backend's pace, up to `limit` bytes, while one client reads it at his own.

    Beyond the limit recording ends and the client draws the rest from the backend himself, so that a slow one holds nothing
    but his own bytes.
    """

    def __init__(self, body: AsyncIterator[bytes], limit: int) -> None:
        self._body = body
        self._limit = limit
        self._chunks: list[bytes] = []
        self._read = 0
        self._progress = asyncio.Event()
        self._whole = False
        self._over = False
        self._closed = False
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "over its limit" if self._over else "whole" if self._whole else "broken" if self._error else "recording"
        return f"<Tee {state}, {self._read} of {len(self._chunks)} chunks read>"

    async def record(self) -> bytes | None:
        """Return the whole body, or None once it is over the limit; raise what the body raises."""
        size = 0
        try:
            async for chunk in self._body:
                size += len(chunk)
                self._chunks.append(chunk)
                self._progress.set()
                if size > self._limit:
                    self._over = True
                    break
            else:
                self._whole = True
        except BaseException as error:
            self._error = error
            await close_body(self._body)
            raise
        finally:
            self._progress.set()
        if self._over and self._closed:
            await close_body(self._body)
        return b"".join(self._chunks) if self._whole else None

    async def __anext__(self) -> bytes:
        """Return the next chunk; raise what the backend's body raised, once all that came before is read."""
        while self._read == len(self._chunks):
            if self._whole or self._closed:
                raise StopAsyncIteration
            if isinstance(self._error, Exception):
                raise self._error
            if self._error is not None:
                raise UpstreamFailed("The backend's answer was cut short.") from self._error
            if self._over:
                return await anext(self._body)
            self._progress.clear()
            await self._progress.wait()
        chunk = self._chunks[self._read]
        self._read += 1
        if self._over:
            self._chunks[self._read - 1] = b""
        return chunk

    async def aclose(self) -> None:
        """Give up reading; recording may go on for others."""
        self._closed = True
        if self._over:
            await close_body(self._body)


@final
class Reading(AsyncIterator[bytes]):
    """A leader's view of a tee; `leave` is called once: when he has read all, or gives up."""

    def __init__(self, tee: Tee, leave: Callable[[], None]) -> None:
        self._tee = tee
        self._leave: Callable[[], None] | None = leave

    async def __anext__(self) -> bytes:
        """Return the next chunk."""
        try:
            return await anext(self._tee)
        except BaseException as error:
            # A client that gives up while it waits may read on; one that was told of the end has left.
            if not isinstance(error, asyncio.CancelledError):
                self._left()
            raise

    async def aclose(self) -> None:
        """Give up reading."""
        await self._tee.aclose()
        self._left()

    def _left(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
