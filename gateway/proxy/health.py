"""Active checks: asks each target of an upstream, every now and then, whether it is well.

A probe is a function that looks at one target: `HttpProbe` asks for a path, `TcpProbe` connects. Each target has a task of
its own, so a slow one delays nobody's check, and its times are jittered, so that many gateways do not ask in step. What a check
says goes to the upstream, and what changes by it to the callback; why a check failed is logged once, not every time.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, RawResponseMessage
from aiohttp.streams import StreamReader

from gateway.proxy.events import Event
from gateway.proxy.target import Target, join_address
from gateway.proxy.upstream import Upstream

_log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 65_536
"""In which a body's expected text must stand."""

_CHUNK: Final = 16_384

Probe = Callable[[Target], Awaitable[bool]]
"""Tells whether a target is well; may raise Unfit, or OSError, to say why it is not."""


class Unfit(Exception):
    """A target is not well; the text says why."""


@final
class TcpProbe:
    """Connects, and no more; with `tls`, shakes hands."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, server_name: str | None = None) -> None:
        self._tls = tls
        self._server_name = server_name

    async def __call__(self, target: Target) -> bool:
        """Return True; raise OSError if there is no connection."""
        _, writer = await _connect(target, self._tls, self._server_name)
        writer.transport.abort()
        return True


@final
class HttpProbe:
    """Asks for `path` and expects one of `statuses` and, if given, `body` within the first 64 KiB of the answer.

    `host`: the Host field, else the target's own name and port. Redirects are not followed.
    """

    def __init__(
        self,
        path: str,
        *,
        statuses: Collection[int] = (200,),
        body: bytes | None = None,
        host: str | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self._path = path
        self._statuses = frozenset(statuses)
        self._body = body
        self._host = host
        self._tls = tls
        self._server_name = server_name

    async def __call__(self, target: Target) -> bool:
        """Return True; raise Unfit or OSError."""
        reader, writer = await _connect(target, self._tls, self._server_name)
        try:
            host = self._host or join_address(target.name, target.port)
            writer.write(
                f"GET {self._path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: longpoll-gateway\r\n"
                "Accept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("latin-1")
            )
            answer = _Answer(reader)
            status, payload = await answer.head()
            if status not in self._statuses:
                raise Unfit(f"status {status}")
            if self._body is not None and not await answer.contains(payload, self._body):
                raise Unfit("the expected text is not in the answer")
        except HttpProcessingError as error:
            raise Unfit(f"no HTTP: {type(error).__name__}") from error
        finally:
            writer.transport.abort()
        return True


async def _connect(
    target: Target, tls: ssl.SSLContext | None, server_name: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name = None if tls is None else server_name or target.name
    return await asyncio.open_connection(target.host, target.port, ssl=tls, server_hostname=name)


class _Answer:
    """An answer, as far as a check reads it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._parser = HttpResponseParser(BaseProtocol(loop), loop, MAX_BODY_BYTES, read_until_eof=True, auto_decompress=False)

    async def head(self) -> tuple[int, StreamReader]:
        """Return the status and what the body will be in; informational answers are skipped (RFC 9110, section 15.2)."""
        while data := await self._reader.read(_CHUNK):
            messages: Sequence[tuple[RawResponseMessage, StreamReader]]
            messages, _, _ = self._parser.feed_data(data)
            for message, payload in messages:
                if message.code >= 200:  # noqa: PLR2004  # final
                    return message.code, payload
        raise Unfit("closed without an answer")

    async def contains(self, payload: StreamReader, text: bytes) -> bool:
        """Read the body until the text is there, or the body ends, or 64 KiB of it were read."""
        body = bytearray(payload.read_nowait())
        while text not in body:
            if len(body) >= MAX_BODY_BYTES or payload.is_eof():
                return False
            data = await self._reader.read(_CHUNK)
            if data:
                self._parser.feed_data(data)
            else:
                self._parser.feed_eof()
            body += payload.read_nowait()
        return True


@final
class Checks:
    """Checks all targets of an upstream for as long as `run` runs.

    Each is checked every `interval` seconds, give or take the `jitter`th part (0 to 1), and a check takes at most `timeout`
    seconds. `told` gets what changed. `rand` gives numbers in [0, 1).
    """

    def __init__(
        self,
        upstream: Upstream,
        probe: Probe,
        *,
        interval: float,
        jitter: float,
        timeout: float,
        told: Callable[[list[Event]], None],
        clock: Callable[[], float],
        rand: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstream = upstream
        self._probe = probe
        self._interval = interval
        self._jitter = jitter
        self._timeout = timeout
        self._told = told
        self._clock = clock
        self._rand = rand
        self._pause = pause
        self._changed = asyncio.Event()
        self._watches: dict[Target, asyncio.Task[None]] = {}
        self.reasons: dict[Target, str] = {}

    def __repr__(self) -> str:
        return f"<Checks {self._upstream.name}: {len(self._watches)} targets, {len(self.reasons)} failing>"

    async def run(self) -> None:
        """Check, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    self._follow(group)
                    await self._changed.wait()
        finally:
            self._watches.clear()

    def targets_changed(self) -> None:
        """Note that the upstream has other targets than before."""
        self._changed.set()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        targets = self._upstream.targets
        for target in self._watches.keys() - set(targets):
            self._watches.pop(target).cancel()
            self.reasons.pop(target, None)
        for target in targets:
            if target not in self._watches:
                self._watches[target] = group.create_task(self._watch(target))

    async def _watch(self, target: Target) -> None:
        # The first check is soon, but not everybody's at once.
        await self._pause(self._interval * self._jitter * self._rand())
        while True:
            due = self._clock() + self._interval * (1.0 + self._jitter * (2.0 * self._rand() - 1.0))
            await self._check(target)
            await self._pause(max(0.0, due - self._clock()))

    async def _check(self, target: Target) -> None:
        reason = await self._why_not(target)
        if reason is None:
            self.reasons.pop(target, None)
        elif reason != self.reasons.get(target):
            self.reasons[target] = reason
            _log.warning("check of %s of upstream %s failed: %s", target.address, self._upstream.name, reason)
        events = self._upstream.checked(target, reason is None, self._clock())
        if events:
            self._told(events)

    async def _why_not(self, target: Target) -> str | None:
        """Return why the target is not well, None if it is."""
        try:
            async with asyncio.timeout(self._timeout):
                return None if await self._probe(target) else "not as expected"
        except Unfit as error:
            return str(error)
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except OSError as error:
            return error.strerror or type(error).__name__
        except Exception:  # noqa: BLE001  # Whatever a strange answer provokes, the checks go on.
            _log.exception("unexpected failure of a check of %s", target.address)
            return "unexpected failure"
