"""The HTTP applications of the public and the admin listener, and the sockets that they listen on."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from gateway.channels import Channels, Visible
from gateway.server.accepting import Acceptor, listen, listen_at
from gateway.server.admin import livez
from gateway.server.admission import Admission
from gateway.server.arrival import Arrivals, Take
from gateway.server.catalog import Offer, offers_for
from gateway.server.documents import Documents
from gateway.server.openapi import describe
from gateway.server.proxyprotocol import ProxyProtocol


class Handler(Protocol):
    """What answers the requests of one route."""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        ...


def application(middlewares: Sequence[Any], routes: Sequence[web.RouteDef], *, max_body: int = 2**20) -> web.Application:
    """Return an application with these routes and /livez. `max_body` bounds request bodies, in bytes."""
    app = web.Application(middlewares=list(middlewares), client_max_size=max_body)
    app.add_routes([*routes, web.get("/livez", livez)])
    return app


def public_routes(
    prefix: str,
    *,
    subscribe: Handler,
    publish: Handler,
    channels: Handler,
    cursors: Handler,
    client: Handler,
    openapi: Handler,
) -> list[web.RouteDef]:
    """Return the routes of clients; HEAD is a GET that does not wait."""
    # The bound methods: of an object that can be called aiohttp does not see that it is asynchronous, and warns.
    return [
        web.get(f"{prefix}/subscribe", subscribe.__call__),
        web.post(f"{prefix}/publish", publish.__call__),
        web.get(f"{prefix}/channels", channels.__call__),
        web.get(f"{prefix}/cursors/{{cursor}}", cursors.__call__),
        web.get(f"{prefix}/client.js", client.__call__),
        web.get("/openapi.json", openapi.__call__),
    ]


class ListChannels:
    """GET /v1/channels: what the caller may read and publish, and the routes that it may use."""

    def __init__(
        self,
        admission: Admission,
        channels: Channels,
        offers: Sequence[Offer] = (),
        *,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._offers = offers
        self._unix_clock = unix_clock

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer with the lists, in the order of the configuration."""
        principal = await self._admission.identify(request)
        now = self._unix_clock()
        document = {
            "channels": [_line(seen, now) for seen in self._channels.visible(principal)],
            "routes": [offer.listed(now) for offer in offers_for(principal, self._offers)],
        }
        return _answer(document)


def _line(seen: Visible, now: float) -> dict[str, object]:
    channel = seen.channel
    return {
        "channel": channel.pattern,
        "read": seen.read,
        "publish": seen.publish,
        "version": channel.lifecycle.version,
        "lifecycle": channel.lifecycle.listed(now),
        "format": channel.format,
        "headers": channel.headers,
        "keyed": channel.key is not None,
        "priority": channel.priority,
        "description": channel.description,
    }


def _answer(document: object) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "private, no-store"}
    return web.Response(body=msgspec.json.encode(document), headers=headers)


class OpenApi:
    """GET /openapi.json: the description of what the caller may use. `documents` has what backends say of routes."""

    def __init__(
        self,
        admission: Admission,
        channels: Channels,
        offers: Sequence[Offer] = (),
        documents: Documents | None = None,
        *,
        prefix: str,
        version: str,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._offers = offers
        self._documents = Documents(()) if documents is None else documents
        self._prefix = prefix
        self._version = version
        self._unix_clock = unix_clock

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer with the document."""
        principal = await self._admission.identify(request)
        document = describe(
            self._channels.visible(principal),
            prefix=self._prefix,
            version=self._version,
            now=self._unix_clock(),
            offers=offers_for(principal, self._offers),
            ready=self._documents.ready,
        )
        return _answer(document)


class Listener:
    """One listening socket and the connections that came through it.

    `front` puts the PROXY protocol before HTTP. `port` 0 takes a free one; with `reuse_port` other processes of the same user
    may listen there as well. With `path` it is a Unix socket, and the address does not matter. `take` is offered each
    connection with its first bytes, before aiohttp is. One that sends nothing is closed after `patience` seconds.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        reuse_port: bool = False,
        path: str | None = None,
        backlog: int = 128,
        tls: ssl.SSLContext | None = None,
        front: Callable[[Callable[[], asyncio.BaseProtocol]], ProxyProtocol] | None = None,
        take: Take | None = None,
        patience: float = 75.0,
    ) -> None:
        self._runner = runner
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._path = path
        self._backlog = backlog
        self._tls = tls
        self._front = front
        self._take = take
        self._patience = patience
        self._acceptor: Acceptor | None = None
        self._greeter: ProxyProtocol | None = None
        self._arrivals: Arrivals | None = None

    @property
    def port(self) -> int:
        """The port in use; 0 on a Unix socket."""
        if self._acceptor is None:
            raise AssertionError("the listener has not started")
        return self._port

    @property
    def connections(self) -> int:
        """How many connections are open."""
        server = self._runner.server
        waiting = self._acceptor.silent if self._acceptor is not None else 0
        arriving = len(self._arrivals.waiting) if self._arrivals is not None else 0
        return waiting + arriving + (0 if server is None else len(server.connections))

    async def start(self) -> None:
        """Listen; OSError if the address is taken."""
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise AssertionError("setup makes the server")
        factory: Callable[[], asyncio.BaseProtocol] = server
        if self._take is not None:
            factory = self._arrivals = Arrivals(server, self._take, patience=self._patience)
        if self._front is not None:
            factory = self._greeter = self._front(factory)
        if self._path is not None:
            sockets = [listen_at(self._path, backlog=self._backlog)]
        else:
            sockets = listen(self._host, self._port, backlog=self._backlog, reuse_port=self._reuse_port)
            self._port = sockets[0].getsockname()[1]
        self._acceptor = Acceptor(sockets, factory, tls=self._tls, patience=self._patience)

    def stop_accepting(self) -> None:
        """Close the listening socket; connections go on."""
        if self._acceptor is not None:
            self._acceptor.close()

    async def stop(self) -> None:
        """Close the connections, when the answers under way are out, and the application."""
        self.stop_accepting()
        if self._greeter is not None:
            self._greeter.close()
        if self._arrivals is not None:
            self._arrivals.close()
        if self._acceptor is not None:
            await self._acceptor.abort()
        await self._runner.cleanup()


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """Return the context of an HTTPS listener; OSError or ssl.SSLError if the files cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    return context
