"""Connections that wait for their first bytes."""

import socket
import struct
from collections.abc import Iterator

import pytest

from gateway.server.silence import Silence


class Guests:
    """A listening socket, clients of it, and the silence that their connections wait in."""

    def __init__(self) -> None:
        self.silence = Silence()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []

    def arrive(self, now: float = 0.0) -> socket.socket:
        client = socket.create_connection(self._listening.getsockname(), timeout=5)
        self._clients.append(client)
        accepted, _ = self._listening.accept()
        accepted.setblocking(False)
        self.silence.add(accepted, now)
        return client

    def close(self) -> None:
        for each in (self.silence, self._listening, *self._clients):
            each.close()


@pytest.fixture
def guests() -> Iterator[Guests]:
    made = Guests()
    yield made
    made.close()


def test_who_speaks_is_heard_and_leaves(guests: Guests):
    """What was sent can be read then; the others stay."""
    guests.arrive()
    guests.arrive().sendall(b"hello")
    [heard] = guests.silence.heard(16)
    assert heard.recv(16) == b"hello"
    assert repr(guests.silence) == "<Silence of 1 connections>"
    assert guests.silence.heard(16) == []
    heard.close()


def test_only_some_are_heard_at_once(guests: Guests):
    """The rest is heard the next time."""
    for _ in range(5):
        guests.arrive().sendall(b"x")
    rounds = [guests.silence.heard(2) for _ in range(3)]
    assert [len(heard) for heard in rounds] == [2, 2, 1]
    assert len(guests.silence) == 0
    for heard in rounds:
        for connection in heard:
            connection.close()


def test_a_broken_connection_is_closed(guests: Guests):
    """Nobody hears of it."""
    client = guests.arrive()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert guests.silence.heard(16) == []
    assert len(guests.silence) == 0


def test_the_longest_silent_are_dismissed(guests: Guests):
    """Those who came later stay."""
    old, young = guests.arrive(1.0), guests.arrive(2.0)
    guests.silence.dismiss(1.5)
    assert old.recv(1) == b""
    assert len(guests.silence) == 1
    guests.silence.dismiss(2.0)
    assert young.recv(1) == b""
    guests.silence.dismiss(9.0)


def test_closing_drops_all(guests: Guests):
    """It may be told twice."""
    client = guests.arrive()
    guests.silence.close()
    assert client.recv(1) == b""
    assert guests.silence.closed
    guests.silence.close()
