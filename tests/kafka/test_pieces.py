"""What comes from a broker in pieces, read in exact amounts."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kafka.pieces import Pieces


class Transport:
    """Notes whether it is paused; like the real ones it may be told so only once."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


async def opened() -> tuple[Pieces, Transport, asyncio.Future[None]]:
    transport, closed = Transport(), asyncio.get_running_loop().create_future()
    return Pieces(transport, closed), transport, closed


async def started(pieces: Pieces, n: int) -> asyncio.Task[bytes]:
    reading = asyncio.ensure_future(pieces.readexactly(n))
    await asyncio.sleep(0)
    return reading


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.data())
def test_whatever_the_pieces_are_the_bytes_are_the_same(came: list[bytes], data: st.DataObject) -> None:
    """Some come before they are asked for, some after; none twice, none lost, and what is missing at the end is told."""

    async def check() -> None:
        pieces, _, _ = await opened()
        whole, left, got = b"".join(came), list(came), b""
        while len(got) < len(whole):
            n = data.draw(st.integers(0, len(whole) - len(got)))
            for _ in range(data.draw(st.integers(0, len(left)))):
                pieces.data_received(left.pop(0))
            reading = await started(pieces, n)
            while not reading.done() and left:
                pieces.data_received(left.pop(0))
                await asyncio.sleep(0)
            got += await reading
            assert got == whole[: len(got)]
        reading = await started(pieces, 1)
        pieces.eof_received()
        with pytest.raises(asyncio.IncompleteReadError):
            await reading

    asyncio.run(check())


async def test_what_came_before_the_end_can_still_be_read_and_the_rest_is_told() -> None:
    pieces, _, closed = await opened()
    pieces.data_received(b"abcd")
    pieces.connection_lost(None)
    assert closed.done()
    assert pieces.at_eof()
    assert await pieces.readexactly(3) == b"abc"
    with pytest.raises(asyncio.IncompleteReadError) as told:
        await pieces.readexactly(3)
    assert (told.value.partial, told.value.expected) == (b"d", 3)


async def test_what_broke_the_connection_is_raised() -> None:
    pieces, _, closed = await opened()
    reading = await started(pieces, 4)
    pieces.connection_lost(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        await reading
    assert closed.done()
    pieces.connection_lost(None)


async def test_a_peer_that_sends_unasked_is_paused_and_one_that_is_asked_is_not() -> None:
    pieces, transport, _ = await opened()
    pieces.data_received(bytes(2**18))
    assert not transport.paused
    pieces.data_received(b"x")
    assert transport.paused
    assert await pieces.readexactly(2**18) == bytes(2**18)
    assert transport.paused
    assert repr(pieces) == "<Pieces 1 of 0 bytes>"
    reading = await started(pieces, 2**20)
    assert not transport.paused
    for _ in range(2**20 // 1024):
        pieces.data_received(bytes(1024))
    assert not transport.paused
    assert await reading == b"x" + bytes(2**20 - 1)


async def test_a_reader_that_gives_up_disturbs_nothing() -> None:
    pieces, _, _ = await opened()
    reading = await started(pieces, 2)
    reading.cancel()
    pieces.data_received(b"ab")
    assert await pieces.readexactly(2) == b"ab"
    assert repr(pieces) == "<Pieces 0 of 0 bytes>"
