"""Several worker processes behind one port: the supervisor's process, and that of a worker.

Theory of operation. The supervisor serves no client and knows no Kafka. It binds the public port with SO_REUSEPORT and does not
listen there: so a taken address is told before anything else, a free port is the same one for all, and the number stays
reserved while workers come and go. The kernel spreads connections over the workers, each of which listens on a socket of its
own. A worker is a fresh interpreter, for a process with a running loop cannot be forked. It is told its configuration as a
text, so that a worker that is started again runs what the others run. When the link to the supervisor ends, the supervisor is
gone, however it went, and the worker drains and ends. Operators ask the supervisor, and it asks the workers, on Unix sockets
in a directory that nobody else can enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.app import LAST_ANSWERS, Place
from gateway.app import run as serve
from gateway.config.loading import Inspected
from gateway.config.sections import Config
from gateway.metrics import Metrics, Reading
from gateway.server.accesslog import AccessLog, Lines, log_as_json
from gateway.server.address import TrustedProxies
from gateway.server.admin import Overview
from gateway.server.application import Listener, application
from gateway.server.middleware import Exchanges, Problems
from gateway.server.protocol import Runner
from gateway.supervisor import READY, Supervisor

_log = logging.getLogger(__name__)

MAX_BODY = 2**20
# Over what draining takes, in seconds, until a worker that does not end is killed.
KILL_AFTER = 20.0


class Order(msgspec.Struct, frozen=True):
    """What a worker is told by its supervisor: which one it is, where it listens, and its configuration as a text."""

    number: int
    port: int
    admin_path: str
    source: str
    base: str
    text: bytes


# --- the supervisor's process ---


async def run(inspected: Inspected, *, version: str) -> int:
    """Run the workers of a configuration until SIGTERM or SIGINT, and return the exit code.

    OSError where an address cannot be had.
    """
    config = inspected.config
    server, drain = config.server, config.drain
    log_as_json(config.log.level.upper())
    metrics = Metrics(version=version)
    with reserved(server.host, server.port) as port, tempfile.TemporaryDirectory(prefix="gateway-") as directory:
        text = inspected.text if isinstance(inspected.text, bytes) else inspected.text.encode()

        def order(number: int, path: str) -> bytes:
            return msgspec.json.encode(Order(number, port, path, inspected.source, str(inspected.base or ""), text))

        supervisor = Supervisor(
            server.workers,
            order=order,
            directory=directory,
            metrics=metrics,
            patience=drain.delay + drain.window + LAST_ANSWERS + KILL_AFTER,
            command=worker_command(),
        )
        async with _operators(config, metrics, supervisor):
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, supervisor.end)
            _log.info("%d workers share port %d", server.workers, port)
            return await supervisor.run()


def worker_command() -> list[str]:
    """Return what starts a worker; it finds the gateway where this process found it."""
    # With -m Python looks into the working directory first: right if this process did so too, else somebody else's code.
    here = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "gateway", "worker"]


@contextlib.contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Keep an address for workers to listen on, and yield its port; OSError if it is taken."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise OSError("several workers need SO_REUSEPORT, which this system does not have: set server.workers to 1")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as stack:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            if port:
                # Another gateway of this user with SO_REUSEPORT would share the port, and clients would meet either.
                _bound(family, (address[0], port, *address[2:]), shared=False).close()
            held = stack.enter_context(_bound(family, (address[0], port, *address[2:]), shared=True))
            port = held.getsockname()[1]
        yield port


def _bound(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        said = os.strerror(error.errno or 0).lower()
        raise OSError(error.errno, f"error while attempting to bind on address {address!r}: {said}") from error
    return made


@contextlib.asynccontextmanager
async def _operators(config: Config, metrics: Metrics, supervisor: Supervisor) -> AsyncIterator[None]:
    """Answer operators inside a block."""
    server, log = config.server, config.log
    lines = Lines(sys.stdout.fileno(), on_dropped=metrics.log_lines_dropped.add)
    exchanges = Exchanges(
        trusted=TrustedProxies(server.trusted_proxies),
        metrics=metrics,
        access_log=AccessLog(lines, sample=log.sample) if log.access else None,
        closing=lambda: False,
    )
    problems = Problems(metrics, max_body=MAX_BODY)
    overview = Overview(exposition=supervisor.exposition, readiness=supervisor.readiness)
    runner = Runner(
        application([exchanges.middleware(), problems.middleware()], overview.routes()),
        max_target_bytes=server.max_target_bytes,
        max_field_bytes=server.max_head_bytes,
        head_timeout=server.head_timeout,
        keepalive_timeout=server.keepalive,
        shutdown_timeout=LAST_ANSWERS,
        on_refused=lambda status: metrics.responses.add("none", str(status)),
    )
    listener = Listener(runner, host=server.admin.host, port=server.admin.port)
    metrics.pull(lambda: [Reading("gateway_open_connections", ("http",), listener.connections)])
    try:
        await listener.start()
        yield
    finally:
        await listener.stop()
        lines.close()


# --- a worker's process ---


def receive(fd: int = 0) -> tuple[Order, socket.socket]:
    """Read the order on standard input; return it with the link to the supervisor, whom it is from.

    ValueError if there is none.
    """
    try:
        link = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError("there is no supervisor") from error
    try:
        with link.makefile("rb") as lines:
            return msgspec.json.decode(lines.readline(), type=Order), link
    except (OSError, msgspec.DecodeError) as error:
        link.close()
        raise ValueError("there is no order") from error


async def work(config: Config, order: Order, link: socket.socket) -> int:
    """Serve as one worker, until SIGTERM or until the supervisor is gone; return the exit code."""
    reader, writer = await asyncio.open_unix_connection(sock=link)

    async def abandoned() -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        # Nobody asks there any more, neither this worker nor another one, and nobody else clears it away.
        shutil.rmtree(Path(order.admin_path).parent, ignore_errors=True)

    try:
        place = Place(order.number, order.port, order.admin_path, abandoned)
        return await serve(config, ready=lambda _: writer.write(READY), place=place)
    finally:
        writer.close()
