"""The producer: acknowledged by all replicas, idempotent, on aiokafka's producer.

aiokafka's producer asks for metadata of an unknown or leaderless topic as fast as brokers answer, and creates topics where the
brokers allow that; so nothing is handed to it before our own metadata knows the topic and a leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from gateway.errors import BodyTooLarge, BrokerUnavailable, GatewayError
from gateway.kafka.cluster import Cluster, TopicMetadata
from gateway.kafka.connect import Backoff, KafkaSettings, Unreachable
from gateway.kafka.observer import Observer
from gateway.records import Headers

log = logging.getLogger(__name__)

_NOT_SENT: Final = "not_sent"
_UNKNOWN: Final = "unknown"
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
_LOOKUP_AGE: Final = 1.0
_BATCH_BYTES: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class Produced:
    """Where Kafka has stored a record; `timestamp_ms` as the log has it, None where the broker does not tell."""

    partition: int
    offset: int
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A record to be produced. `partition` None: by the key's murmur2 hash, or any where there is no key."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Producing(Protocol):
    """What is used of aiokafka's producer."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Send what waits, and close."""

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Any = None,
    ) -> asyncio.Future[Any]:
        """Put a record into a batch; the future ends when the batch does."""
        ...


class Producer:
    """Sends records. Starting needs no broker: it connects with the first record, and again after a fatal error.

    `max_bytes` bounds one record, `linger` is the time in seconds in which records gather into a batch, `request_timeout`
    bounds the delivery of a batch with all retries, in seconds.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        cluster: Cluster,
        observer: Observer,
        *,
        max_bytes: int = 2**20,
        linger: float = 0.002,
        request_timeout: float = 10.0,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._observer = observer
        self._max_bytes = max_bytes
        self._linger = linger
        self._request_timeout = request_timeout
        self._producer: Producing | None = None
        self._starting = asyncio.Lock()
        self._backoff = Backoff(0.1, 3.0)
        self._not_before = 0.0
        self._looked_up: dict[str, float] = {}
        self._closed = False

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        *,
        partition: int | None = None,
        timeout: float,  # noqa: ASYNC109  # bounds what happens until the hand-over; afterwards the outcome differs
    ) -> Produced:
        """Produce one record and return where it is.

        `timeout` in seconds. Raises BodyTooLarge, and BrokerUnavailable with outcome "not_sent" (it is certain that the record
        was not stored) or "unknown". Being cancelled does not take back a record that was handed over.
        """
        (result,) = await self.send_many(topic, [Draft(key, value, headers, partition)], timeout=timeout)
        if isinstance(result, GatewayError):
            raise result
        return result

    async def send_many(
        self,
        topic: str,
        drafts: Sequence[Draft],
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> list[Produced | GatewayError]:
        """Produce records in order and return what became of each; see `send` for the errors, of which none is raised here."""
        deadline = asyncio.get_running_loop().time() + timeout
        results: list[Produced | GatewayError | asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout_at(deadline):
                await self._check(topic, drafts)
                producer = await self._ready()
                for draft in drafts:
                    results.append(await self._hand_over(producer, topic, draft))  # noqa: PERF401  # may end half-way
        except (TimeoutError, BrokerUnavailable) as error:
            refusal = error if isinstance(error, BrokerUnavailable) else _unavailable(_NOT_SENT, error)
            results += [refusal] * (len(drafts) - len(results))
        futures = [result for result in results if isinstance(result, asyncio.Future)]
        if futures:
            await asyncio.wait(futures, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        settled = [self._settle(result) if isinstance(result, asyncio.Future) else result for result in results]
        self._count(topic, drafts, settled)
        await self._replace_if_fenced(futures)
        return settled

    async def close(self) -> None:
        """Send what waits, for at most `request_timeout` seconds, and close."""
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._stop(producer)

    # --- inside ---

    async def _check(self, topic: str, drafts: Sequence[Draft]) -> None:
        """Raise BrokerUnavailable unless the topic, and a leader for what the drafts ask, is known."""
        metadata = await self._metadata(topic, drafts)
        if metadata is None or not _can_take(metadata, drafts):
            raise _unavailable(_NOT_SENT)

    async def _metadata(self, topic: str, drafts: Sequence[Draft]) -> TopicMetadata | None:
        cluster, now = self._cluster, time.monotonic()
        known = cluster.topics.get(topic)
        age = now - cluster.told_at.get(topic, -math.inf)
        # Topics that the feed follows are kept fresh by it; others are looked up.
        if known is not None and cluster.connected and _can_take(known, drafts) and age < 2 * self._settings.metadata_max_age:
            return known
        if now - self._looked_up.get(topic, -math.inf) < _LOOKUP_AGE:
            # Handed over now it would wait in the producer and might be stored much later: "unknown" instead of "not sent".
            return known if cluster.connected else None
        self._looked_up[topic] = now
        try:
            return (await cluster.refresh([topic])).get(topic)
        except Unreachable as error:
            raise _unavailable(_NOT_SENT, error) from error

    async def _ready(self) -> Producing:
        async with self._starting:
            if self._closed:
                raise _unavailable(_NOT_SENT)
            if self._producer is not None:
                return self._producer
            if time.monotonic() < self._not_before:
                raise _unavailable(_NOT_SENT)
            producer = self._build()
            try:
                await producer.start()
            except BaseException as error:
                await self._stop(producer)
                self._not_before = time.monotonic() + self._backoff.next()
                if isinstance(error, (KafkaError, OSError)):
                    self._observer.kafka_error("PRODUCER_START")
                    raise _unavailable(_NOT_SENT, error) from error
                raise
            self._backoff.reset()
            self._producer = producer
            return producer

    def _build(self) -> Producing:
        settings = self._settings
        producer: Producing = AIOKafkaProducer(
            bootstrap_servers=",".join(settings.bootstrap_servers),
            client_id=settings.client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=int(self._linger * 1000),
            max_batch_size=_BATCH_BYTES,
            max_request_size=self._max_bytes,
            request_timeout_ms=int(self._request_timeout * 1000),
            metadata_max_age_ms=int(settings.metadata_max_age * 1000),
            **settings.security(settings.ssl_context()),
        )
        return producer

    async def _hand_over(self, producer: Producing, topic: str, draft: Draft) -> asyncio.Future[Any] | GatewayError:
        try:
            future = await producer.send(topic, draft.value, draft.key, draft.partition, headers=list(draft.headers))
        except _TOO_LARGE:
            return BodyTooLarge(self._max_bytes)
        except (KafkaError, AssertionError) as error:
            # The assertion: a partition that the topic does not have.
            return _unavailable(_NOT_SENT, error)
        future.add_done_callback(_hear)
        return future

    def _settle(self, future: asyncio.Future[Any]) -> Produced | GatewayError:
        if not future.done():
            return _unavailable(_UNKNOWN)
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            stored = future.result()
            return Produced(stored.partition, stored.offset, stored.timestamp if stored.timestamp != -1 else None)
        self._observer.kafka_error(getattr(error, "message", "") or type(error).__name__)
        if isinstance(error, _TOO_LARGE):
            return BodyTooLarge(self._max_bytes)
        return _unavailable(_NOT_SENT if isinstance(error, TopicAuthorizationFailedError) else _UNKNOWN, error)

    def _count(self, topic: str, drafts: Sequence[Draft], settled: Sequence[Produced | GatewayError]) -> None:
        stored = [draft for draft, result in zip(drafts, settled, strict=True) if isinstance(result, Produced)]
        if stored:
            size = sum(len(draft.key or b"") + len(draft.value or b"") for draft in stored)
            self._observer.produced(topic, records=len(stored), size=size)

    async def _replace_if_fenced(self, futures: Sequence[asyncio.Future[Any]]) -> None:
        """After an error that ends an idempotent producer's session, begin with a new one."""
        errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
        if any(isinstance(error, (ProducerFenced, OutOfOrderSequenceNumber)) for error in errors):
            producer, self._producer = self._producer, None
            if producer is not None:
                await self._stop(producer)

    async def _stop(self, producer: Producing) -> None:
        try:
            async with asyncio.timeout(self._request_timeout):
                await producer.stop()
        except (TimeoutError, KafkaError, OSError) as error:
            log.warning("closing the producer: %r", error)
            if isinstance(producer, AIOKafkaProducer):
                await _abandon(producer)


async def _abandon(producer: AIOKafkaProducer) -> None:
    """End a producer that cannot send what it holds: an idempotent one would try for ever."""
    error = KafkaConnectionError("closed")
    producer._message_accumulator.fail_all(error)  # noqa: SLF001  # its stop() can only wait
    sender = producer._sender.sender_task  # noqa: SLF001
    if sender is not None:
        sender.cancel()
        await producer.client.close()
        await asyncio.wait([sender])
    await producer.client.close()


def _can_take(metadata: TopicMetadata, drafts: Sequence[Draft]) -> bool:
    """Tell whether every partition that a draft may go to has a leader."""
    if metadata.error or not metadata.leaders:
        return False
    if all(draft.partition is not None for draft in drafts):
        return all(metadata.leaders.get(draft.partition, -1) >= 0 for draft in drafts if draft.partition is not None)
    return any(node >= 0 for node in metadata.leaders.values())


def _unavailable(outcome: str, cause: BaseException | None = None) -> BrokerUnavailable:
    error = BrokerUnavailable(outcome=outcome)
    error.__cause__ = cause
    return error


def _hear(future: asyncio.Future[Any]) -> None:
    """Take note of an outcome, so that asyncio does not complain where nobody waits for it any more."""
    with contextlib.suppress(asyncio.CancelledError):
        future.exception()
