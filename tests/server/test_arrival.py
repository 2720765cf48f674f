"""Connections until their first bytes."""

import asyncio
from unittest.mock import Mock

from waiting import eventually

from gateway.server.arrival import Arrivals


def arrivals(*, takes: bool, patience: float = 60.0) -> tuple[Arrivals, Mock, Mock]:
    make, take = Mock(), Mock(return_value=takes)
    return Arrivals(make, take, patience=patience), make, take


async def test_what_is_taken_is_no_concern_of_the_framework():
    """It gets the transport, the first bytes, and what makes the framework's protocols."""
    made, make, take = arrivals(takes=True)
    transport = Mock(spec=asyncio.Transport)
    arrival = made()
    arrival.connection_made(transport)
    assert repr(made) == "<Arrivals, 1 without a byte>"
    arrival.data_received(b"GET /")
    take.assert_called_once_with(transport, b"GET /", make)
    make.assert_not_called()
    assert not made.waiting


async def test_any_other_goes_to_the_framework():
    """As if it had been there from the start."""
    made, make, _ = arrivals(takes=False)
    transport = Mock(spec=asyncio.Transport)
    arrival = made()
    arrival.connection_made(transport)
    arrival.data_received(b"GET /")
    transport.set_protocol.assert_called_once_with(make.return_value)
    assert [name for name, *_ in make.return_value.method_calls] == ["connection_made", "data_received"]


async def test_who_sends_nothing_is_dropped():
    """After `patience`, at the end, or because it leaves."""
    made, _, _ = arrivals(takes=True, patience=0.01)
    slow = Mock(spec=asyncio.Transport)
    made().connection_made(slow)
    await eventually(lambda: slow.abort.called)
    made.close()
    assert slow.abort.call_count == 2
    gone, leaving = Mock(spec=asyncio.Transport), made()
    leaving.connection_made(gone)
    leaving.connection_lost(None)
    assert made.waiting == {slow}
