"""Kafka as readers need it: the feed for what is live, the archive for what is older, and questions to leaders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.errors import BrokerUnavailable
from gateway.fanout.hub import Hub, Topic
from gateway.kafka.archive import Archive
from gateway.kafka.cluster import Cluster
from gateway.kafka.connect import Backoff, Connections, KafkaSettings, quiet_aiokafka
from gateway.kafka.feed import Feed
from gateway.kafka.observer import Observer, Silent
from gateway.kafka.produce import Producer
from gateway.kafka.requests import LATEST
from gateway.records import Block

# How long leaders that cannot answer now are asked again, beside the time that the requests take.
_ASK_SECONDS = 2.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class KafkaStatus:
    """How things stand, for readiness.

    `connected`: brokers answer; else `reason` says why not. `topic_ids`: re-created topics are recognized. `sick`: topic,
    partition (-1: all of it) and error of what is not followed as it should be. `skipped`: topic, partition and offsets
    [start, end) of the last batches that could not be decoded and were given up.
    """

    connected: bool
    reason: str
    topic_ids: bool
    sick: list[tuple[str, int, str]]
    skipped: list[tuple[str, int, int, int]]


class Flights(Generic[K, V]):
    """Single flights: askers of the same thing share one question.

    An asker that comes while a question is under way gets the answer to the *next* one: an answer may have been given before
    he asked, and he must not be told of a past that he knows better.
    """

    def __init__(self, ask: Callable[[K], Awaitable[V]]) -> None:
        self._ask = ask
        self._flying: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """Return an answer that was given after this call. Cancelling is safe and disturbs no other asker."""
        if key not in self._flying:
            task = self._flying[key] = self._start(key, None)
        elif key not in self._next:
            task = self._next[key] = self._start(key, self._flying[key])
        else:
            task = self._next[key]
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise BrokerUnavailable from None
            raise

    async def close(self) -> None:
        """End all questions; askers get BrokerUnavailable."""
        tasks = [*self._flying.values(), *self._next.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, key: K, before: asyncio.Task[V] | None) -> asyncio.Task[V]:
        # Owned by this object: it stands in a table until it is done, and `close` ends it.
        task = asyncio.get_running_loop().create_task(self._fly(key, before))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _fly(self, key: K, before: asyncio.Task[V] | None) -> V:
        if before is not None:
            await asyncio.wait([before])
            self._flying[key] = self._next.pop(key)
        try:
            return await self._ask(key)
        finally:
            if key not in self._next:
                del self._flying[key]


class KafkaLog:
    """Feeds a hub from Kafka and answers what the hub cannot.

    `retire_after` is in seconds, `archive_bytes` bounds the cache of cold blocks. `producer` is there from the start; it
    connects with the first record. Raises OSError if the TLS files of the settings cannot be used.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        hub: Hub,
        *,
        observer: Observer | None = None,
        retire_after: float = 300.0,
        archive_bytes: int = 256 * 2**20,
        max_wait: float = 1.0,
        stall: float = 5.0,
        patience: float = 2.0,
        max_record_bytes: int = 2**20,
    ) -> None:
        watch = observer or Silent()
        self._settings = settings
        self._connections = Connections(settings)
        self.cluster = Cluster(settings, self._connections, watch)
        self.archive = Archive(
            self.cluster,
            watch,
            max_bytes=archive_bytes,
            timeout=settings.request_timeout,
            urge=lambda: self.feed.urge(),  # noqa: PLW0108  # the feed comes after it
        )
        self.feed = Feed(
            hub,
            self.cluster,
            watch,
            metadata_max_age=settings.metadata_max_age,
            retire_after=retire_after,
            max_wait=max_wait,
            stall=stall,
            patience=patience,
            on_gone=self.archive.forget,
        )
        self.producer = Producer(
            settings, self.cluster, watch, max_bytes=max_record_bytes, request_timeout=settings.request_timeout
        )
        self._ends: Flights[tuple[str, int], int] = Flights(self._ask_end)
        self._starts: Flights[tuple[str, int], dict[int, int]] = Flights(self._ask_offsets)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<KafkaLog {self.cluster!r} {self.feed!r} {self.archive!r}>"

    async def start(self) -> None:
        """Begin to connect; returns at once, whether there is a broker or not."""
        quiet_aiokafka()
        self._task = asyncio.get_running_loop().create_task(self.feed.run())

    async def stop(self) -> None:
        """End all tasks and close all connections; what was handed to the producer is sent first."""
        await self.producer.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for part in (self._ends, self._starts, self.archive, self._connections):
            await part.close()

    def status(self) -> KafkaStatus:
        """Tell how things stand."""
        cluster = self.cluster
        return KafkaStatus(cluster.connected, cluster.reason, cluster.topic_ids, self.feed.sick(), list(self.feed.skipped))

    async def follow(self, topic: str, now: float) -> Topic:
        """Keep a topic live (`now` monotonic) and return what is known of it.

        Of a live topic at once, without yielding to the loop. Of a new one when its metadata and the ends of its reachable
        partitions are known, after 2 s at the latest. One that the broker does not know has no partitions. Raises
        BrokerUnavailable if nothing is known of it and nobody can be asked.
        """
        return await self.feed.follow(topic, now)

    async def renew(self, topic: str) -> None:
        """Return once the brokers have told anew what a live topic is, and the hub knows; BrokerUnavailable."""
        await self.feed.renew(topic)

    async def read(self, topic: str, partition: int, offset: int, until: int) -> Block:
        """Return the block that holds `offset`: `block.start` <= `offset` < `block.end`.

        If retention has passed `offset` the block begins at the log start; if nothing is there yet it is empty and ends at
        `offset`. Blocks are shared by all readers and may reach beyond `until`, which only says how far it is worth
        reading ahead. Raises BrokerUnavailable.
        """
        return await self.archive.read(topic, partition, offset, until)

    async def offsets(self, topic: str, at: int) -> dict[int, int]:
        """Return the offsets of all partitions at a time: EARLIEST, LATEST (the last stable offset), or ms since the epoch.

        For a time: the first offset whose timestamp is not earlier, else the partition's end. Partitions that cannot be
        asked are missing.
        """
        return await self._starts.get((topic, at))

    async def end(self, topic: str, partition: int) -> int:
        """Return the last stable offset as the leader says after this call; BrokerUnavailable if it cannot be asked."""
        return await self._ends.get((topic, partition))

    async def _ask_end(self, place: tuple[str, int]) -> int:
        found = await self._ask([place], LATEST)
        if place not in found:
            raise BrokerUnavailable
        return found[place]

    async def _ask_offsets(self, key: tuple[str, int]) -> dict[int, int]:
        topic, at = key
        known = self.cluster.topics.get(topic)
        places = [(topic, partition) for partition in known.leaders] if known else []
        found = await self._ask(places, at)
        beyond = [place for place, offset in found.items() if offset < 0]
        ends = await self._ask(beyond, LATEST) if beyond else {}
        return {place[1]: ends.get(place, offset) for place, offset in found.items() if offset >= 0 or place in ends}

    async def _ask(self, places: list[tuple[str, int]], at: int) -> dict[tuple[str, int], int]:
        """Ask leaders; those that have moved, or do not know their end yet (OFFSET_NOT_AVAILABLE), again for up to 2 s."""
        found: dict[tuple[str, int], int] = {}
        backoff = Backoff(0.05, 0.5)
        waited = 0.0
        while True:
            missing = [place for place in places if place not in found]
            answers = await self.cluster.list_offsets(missing, at)
            found.update({place: listed.offset for place, listed in answers.items() if not listed.error})
            if len(found) == len(places) or waited > _ASK_SECONDS:
                return found
            self.feed.urge()
            wait = backoff.next()
            waited += wait
            await asyncio.sleep(wait)
