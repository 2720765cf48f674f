"""Requests that switch protocols (RFC 9110 §7.8): the client's connection and the target's become a tunnel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway import errors
from gateway.proxy.exchange import Exchange
from gateway.proxy.tunnel import Tunnel
from gateway.server.departure import Departure
from gateway.server.passage import Passage
from gateway.server.returning import returned
from gateway.server.tenures import Tenures

SWITCHING_PROTOCOLS = 101


class Switching:
    """All tunnels. `done` is told of each request that has ended."""

    def __init__(self, tenures: Tenures, done: Callable[[Passage], None]) -> None:
        self._tenures = tenures
        self._done = done
        self._tunnels: set[Tunnel] = set()

    def __len__(self) -> int:
        return len(self._tunnels)

    def close(self) -> None:
        """Cut them: nobody else can end them."""
        for tunnel in list(self._tunnels):
            tunnel.abort()

    def join(self, passage: Passage, exchange: Exchange) -> Departure:
        """Join the client and the target, after 101."""
        headers = returned(exchange.message, upgrade=True)
        passage.route.response_edits.apply(headers, passage.values)
        headers["X-Request-Id"] = passage.facts.request_id
        # What may fail comes first: whoever has given the connection away has to see to it that all is counted to its end.
        principal = passage.values.principal
        self._tenures.check(principal, passage.since)
        exchange.hold()
        passage.held = True
        passage.relay.switch(exchange.message.reason, headers)
        rest = exchange.connection.rest()
        target = exchange.detach()
        passage.switched = True

        def ended(tunnel: Tunnel) -> None:
            self._tunnels.discard(tunnel)
            exchange.received = tunnel.target.received
            passage.relay.sent = tunnel.target.received
            exchange.close()
            passage.release()
            self._done(passage)

        tunnel = Tunnel(ended)
        self._tunnels.add(tunnel)

        def end(error: errors.GatewayError) -> None:
            passage.facts.code = error.code
            tunnel.abort()

        passage.tenure = self._tenures.begin(principal, end)
        return _Switch(tunnel, target, rest)


class _Switch(Departure):
    """Takes a connection into a tunnel."""

    def __init__(self, tunnel: Tunnel, target: asyncio.Transport, rest: bytes) -> None:
        super().__init__()
        self._tunnel = tunnel
        self._target = target
        self._rest = rest

    def take(self, connection: Any) -> None:
        """Join both ends."""
        early = connection.message_tail()
        client = connection.leave()
        self._tunnel.join(client, self._target, up=early, down=self._rest)
