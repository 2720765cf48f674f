"""Accepting: when a connection is given to the loop."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

from waiting import eventually

from gateway.server import accepting
from gateway.server.accepting import Acceptor, listen


class Echo(asyncio.Protocol):
    """Answers with what came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextlib.asynccontextmanager
async def accepted(made: list[Echo], **given: float) -> AsyncIterator[tuple[Acceptor, int]]:
    """Run an acceptor that notes what it makes."""

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    sockets = listen("127.0.0.1", 0, backlog=64)
    port = sockets[0].getsockname()[1]
    acceptor = Acceptor(sockets, make, **given)
    yield acceptor, port
    acceptor.close()
    await acceptor.abort()
    for each in made:
        each.transport.close()
    await asyncio.sleep(0)


async def test_a_silent_connection_is_none_of_the_loop():
    """It becomes one with its first byte."""
    made: list[Echo] = []
    async with accepted(made) as (acceptor, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: acceptor.silent == 1)
        assert made == []
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert (len(made), acceptor.silent) == (1, 0)
        writer.close()


async def test_a_turn_lets_in_a_few(monkeypatch):
    """However many have sent something, and all are served in the end."""
    made: list[Echo] = []
    at_once: list[int] = []
    hear = accepting.Silence.heard

    def heard(self: accepting.Silence, most: int) -> list:
        found = hear(self, most)
        at_once.append(len(found))
        return found

    monkeypatch.setattr(accepting.Silence, "heard", heard)
    monkeypatch.setattr(accepting, "GREETINGS_PER_TURN", 3)
    async with accepted(made) as (acceptor, port):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        await eventually(lambda: acceptor.silent == 10)
        for _, writer in streams:
            writer.write(b"x")
        assert [await reader.read(1) for reader, _ in streams] == [b"x"] * 10
        assert max(at_once) <= 3
        for _, writer in streams:
            writer.close()


async def test_patience_with_silence_ends(monkeypatch):
    """The connection is closed; nobody looks any more when nobody is left."""
    monkeypatch.setattr(accepting, "_PAUSE", 0.02)
    async with accepted([], patience=0.05) as (acceptor, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await eventually(lambda: acceptor._dismissal is None)
        writer.close()


async def test_the_end_closes_the_silent():
    """They go on after `close`, but not after `abort`, which may come twice."""
    async with accepted([]) as (acceptor, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: acceptor.silent == 1)
        acceptor.close()
        assert repr(acceptor) == "<Acceptor on 0 sockets, <Silence of 1 connections>>"
        await acceptor.abort()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


class Full(socket.socket):
    """A listening socket of a system that has no room for another connection."""

    room = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.room:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_room_it_pauses(monkeypatch, caplog):
    """And goes on when there is some; the end does not wait for that."""
    monkeypatch.setattr(accepting, "_PAUSE", 0.02)
    [listening] = listen("127.0.0.1", 0, backlog=64)
    port = listening.getsockname()[1]
    full = Full(fileno=listening.detach())
    full.setblocking(False)
    acceptor = Acceptor([full], Echo)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await eventually(lambda: "no room for another connection" in caplog.text)
    await eventually(lambda: repr(acceptor).endswith(" paused>"))
    full.room = True
    await eventually(lambda: acceptor.silent == 1)
    full.room = False
    _, another = await asyncio.open_connection("127.0.0.1", port)
    await eventually(lambda: repr(acceptor).endswith(" paused>"))
    acceptor.close()
    await acceptor.abort()
    for each in (writer, another):
        each.close()
