"""Connections to Kafka's brokers, one for each purpose, on aiokafka's connection layer.

Theory of operation. `AIOKafkaClient` is not used, only the connection below it: the client opens connections one after the
other under a single lock (a broker that swallows packets delays those to healthy ones), knows one time-out for all requests,
and asks for metadata in a way that creates topics. Here a connection is known by (address, group). A Kafka connection answers
in order, so a long poll blocks whatever is behind it: each long poll has a group of its own, and when its caller gives up, the
connection goes with it (`exclusive`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import KafkaError

from gateway.kafka.pieces import PiecewiseConnection

Address = tuple[str, int]

# Below Kafka's own connections.max.idle.ms (10 minutes), so that we close first and never write into a closing connection.
IDLE_SECONDS: Final = 540.0

# What aiokafka's connection raises: its handshakes answer an odd broker with NotImplementedError, ValueError and assertions.
_FAULTS: Final = (OSError, KafkaError, NotImplementedError, ValueError, AssertionError)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach the cluster.

    `bootstrap_servers` are "host:port"; one may also be a list of several, with commas.
    `security_protocol` is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; `sasl_mechanism` PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    `request_timeout` bounds one request other than a long poll, connecting included, in seconds; `metadata_max_age` is the
    time in seconds after which new partitions are seen.
    """

    bootstrap_servers: tuple[str, ...]
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: str | None = field(default=None, repr=False)
    ssl_check_hostname: bool = True
    client_id: str = "longpoll-gateway"
    request_timeout: float = 10.0
    metadata_max_age: float = 10.0

    @property
    def addresses(self) -> list[Address]:
        """The bootstrap servers in random order; a missing port is 9092."""
        return [(host, port) for host, port, _ in collect_hosts(",".join(self.bootstrap_servers)) if host]

    def ssl_context(self) -> ssl.SSLContext | None:
        """Build the TLS context, None for plaintext. Raises OSError or ssl.SSLError for files that cannot be used."""
        if self.security_protocol not in {"SSL", "SASL_SSL"}:
            return None
        context = ssl.create_default_context(cafile=self.ssl_cafile)
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile is not None:
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, self.ssl_password)
        return context

    def security(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        """Return the keyword arguments that aiokafka's connection and producer have in common."""
        return {
            "security_protocol": self.security_protocol,
            "ssl_context": context,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }


class Unreachable(Exception):
    """A broker could not be asked, or (`stalled`) did not answer in time. `reason` is for logs and status, in one line."""

    def __init__(self, address: Address | None, reason: str, *, stalled: bool = False) -> None:
        where = "no broker" if address is None else f"{address[0]}:{address[1]}"
        super().__init__(f"{where}: {reason}")
        self.reason = str(self)
        self.stalled = stalled


class Backoff:
    """Growing waits with jitter, so that a thousand instances do not come back in step.

    Waits lie between half and all of `first` * 2**n, at most `most` seconds.
    """

    __slots__ = ("_first", "_most", "failures")

    def __init__(self, first: float = 0.05, most: float = 3.0) -> None:
        self._first = first
        self._most = most
        self.failures = 0

    def next(self) -> float:
        """Count a failure and return the seconds to wait."""
        full = min(self._most, self._first * 2 ** min(self.failures, 30))
        self.failures += 1
        return full * (0.5 + random.random() / 2)  # noqa: S311  # jitter is no secret

    def reset(self) -> None:
        """Forget all failures."""
        self.failures = 0


class Pool:
    """A few connections to one node for short requests: `slot` gives the number of a free one, waiting until there is one."""

    def __init__(self, size: int) -> None:
        self._free = list(range(size))
        self._permits = asyncio.Semaphore(size)

    @property
    def busy(self) -> bool:
        """No connection is free."""
        return self._permits.locked()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Hold one connection's number."""
        async with self._permits:
            number = self._free.pop()
            try:
                yield number
            finally:
                self._free.append(number)


class _Slot:
    """The place of one connection. The lock lets senders of one group share one attempt to connect."""

    __slots__ = ("connection", "lock")

    def __init__(self) -> None:
        self.connection: AIOKafkaConnection | None = None
        self.lock = asyncio.Lock()


class Connections:
    """Open connections by (address, group).

    Raises OSError from the constructor if the TLS files of the settings cannot be used.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._security = settings.security(settings.ssl_context())
        self._slots: dict[tuple[Address, Hashable], _Slot] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False

    def __repr__(self) -> str:
        groups = sorted(f"{host}:{port}/{group}" for ((host, port), group), slot in self._slots.items() if _up(slot))
        return f"<Connections {' '.join(groups) or 'none'}>"

    async def send(
        self,
        address: Address,
        request: Any,
        *,
        group: Hashable,
        timeout: float,  # noqa: ASYNC109  # its end closes the connection
        exclusive: bool = False,
    ) -> Any:
        """Send a request and return its response.

        `timeout` is in seconds and includes connecting. Raises Unreachable; the connection is then closed, since a late
        answer would block the next one. Cancelling is safe; where the group is `exclusive` it closes the connection too.
        """
        slot = self._slots.get((address, group))
        if slot is None:
            slot = self._slots[address, group] = _Slot()
        connection = None
        try:
            async with asyncio.timeout(timeout):
                connection = slot.connection
                if connection is None or not connection.connected():
                    connection = await self._connected(address, slot)
                return await connection.send(request)
        except asyncio.CancelledError:
            if exclusive:
                self._discard(slot, connection)
            raise
        except TimeoutError as error:
            self._discard(slot, connection)
            raise Unreachable(address, f"no answer within {timeout:g} s", stalled=True) from error
        except _FAULTS as error:
            self._discard(slot, connection)
            raise Unreachable(address, _told(error)) from error

    async def close(self) -> None:
        """Close all connections and wait until their sockets are."""
        self._closed = True
        for slot in self._slots.values():
            self._discard(slot, slot.connection)
        if self._closing:
            await asyncio.wait(self._closing, timeout=1.0)

    def drop(self, address: Address, group: Hashable) -> None:
        """Close one connection, if there is one."""
        slot = self._slots.get((address, group))
        if slot is not None:
            self._discard(slot, slot.connection)

    async def _connected(self, address: Address, slot: _Slot) -> AIOKafkaConnection:
        async with slot.lock:
            if self._closed:
                raise ConnectionAbortedError("closed here")
            if slot.connection is None or not slot.connection.connected():
                connection = PiecewiseConnection(
                    *address,
                    client_id=self._settings.client_id,
                    # Each request has a time-out of its own around it; this one only covers what is forgotten.
                    request_timeout_ms=600_000,
                    max_idle_ms=int(IDLE_SECONDS * 1000),
                    **self._security,
                )
                await connection.connect()
                slot.connection = connection
            return slot.connection

    def _discard(self, slot: _Slot, connection: AIOKafkaConnection | None) -> None:
        if connection is None:
            return
        if slot.connection is connection:
            slot.connection = None
        writer = connection._writer  # noqa: SLF001  # close() alone waits for a peer that does not read
        if writer is not None:
            writer.transport.abort()
        closed = connection.close()
        if closed is not None and not closed.done():
            self._closing.add(closed)
            closed.add_done_callback(self._closing.discard)


def quiet_aiokafka() -> None:
    """Silence aiokafka's loggers: every failure reaches us as an error, and is logged once where it is known what it means."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _up(slot: _Slot) -> bool:
    return slot.connection is not None and bool(slot.connection.connected())


def _told(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__
