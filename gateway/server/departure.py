"""Connections that change hands: answers that give theirs away, and how a protocol takes one over."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web


class Departure(web.StreamResponse):
    """What a handler returns to have the connection taken from aiohttp, through which nothing of the answer goes.

    Nothing may be awaited before that happens.
    """

    def take(self, connection: Any) -> None:
        """Take the connection."""
        raise NotImplementedError


def hand_on(transport: asyncio.Transport, protocol: asyncio.Protocol, data: bytes) -> None:
    """Give a connection to a protocol, with what has come in already, as if it had been its own from the start."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if data:
        protocol.data_received(data)
