"""What is known of the cluster: brokers, leaders, topic ids; and the questions that any leader answers at once.

Nothing here repeats by itself: the feed's one metadata loop owns the pace, so that no error can turn into a hot loop of
metadata requests.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.kafka.connect import Address, Connections, KafkaSettings, Unreachable
from gateway.kafka.observer import Observer
from gateway.kafka.requests import LEADER_NOT_AVAILABLE, ListOffsets, Metadata, error_name

TopicPartition = tuple[str, int]

# What is answered at once shares a connection per broker.
ASK: Final = "ask"
METADATA: Final = "metadata"
# One broker that does not answer must not use up the time in which others could.
_METADATA_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """One topic: its id (None: the broker cannot tell), each partition's leader (-1: none now), and an error code (0: none)."""

    topic_id: bytes | None
    leaders: Mapping[int, int]
    error: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A partition's answer to ListOffsets: `offset` is -1 where nothing fits; `error` is empty, an error name or a reason."""

    offset: int
    error: str = ""


class Cluster:
    """Brokers and topics as last told, and when (`told_at`, monotonic).

    `connected` and `reason` say how the last attempt to ask went.
    """

    def __init__(self, settings: KafkaSettings, connections: Connections, observer: Observer) -> None:
        self.connections = connections
        self.brokers: dict[int, Address] = {}
        self.topics: dict[str, TopicMetadata] = {}
        self.told_at: dict[str, float] = {}
        self.connected = False
        self.reason = "not connected yet"
        self.topic_ids = False
        self._silent: set[Address] = set()
        self._settings = settings
        self._observer = observer

    def __repr__(self) -> str:
        return f"<Cluster {len(self.brokers)} brokers, {len(self.topics)} topics, {self.reason or 'connected'}>"

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the node that leads a partition, None where none is known."""
        known = self.topics.get(topic)
        node = known.leaders.get(partition, -1) if known else -1
        return node if node in self.brokers else None

    async def refresh(self, names: Iterable[str]) -> dict[str, TopicMetadata]:
        """Ask for these topics and return what was told of them; creates no topic.

        Known brokers are asked in random order, those that were silent last, then the bootstrap servers, so that a cluster
        whose brokers have all changed is found again. Raises Unreachable when nobody answers.
        """
        request = Metadata(sorted(names))
        timeout = min(_METADATA_SECONDS, self._settings.request_timeout)
        known = list(self.brokers.values())
        random.shuffle(known)
        known.sort(key=self._silent.__contains__)
        failed = Unreachable(None, "no bootstrap server")
        for address in dict.fromkeys([*known, *self._settings.addresses]):
            try:
                response = await self.connections.send(address, request, group=METADATA, timeout=timeout)
            except Unreachable as error:
                failed = error
                self._silent.add(address)
                continue
            self._silent.discard(address)
            return self._learn(response)
        self._note(failed.reason)
        self._observer.kafka_error("UNREACHABLE")
        raise failed

    async def send(
        self,
        node: int,
        request: Any,
        *,
        group: object,
        timeout: float,  # noqa: ASYNC109  # its end closes the connection
        exclusive: bool = False,
    ) -> Any:
        """Send a request to a node. Raises Unreachable, also for a node that metadata no longer knows."""
        address = self.brokers.get(node)
        if address is None:
            raise Unreachable(None, f"node {node} has left the cluster")
        try:
            return await self.connections.send(address, request, group=group, timeout=timeout, exclusive=exclusive)
        except Unreachable:
            self._silent.add(address)  # metadata had better be asked of another one
            raise

    async def ping(self, node: int, *, timeout: float) -> None:  # noqa: ASYNC109  # see send
        """Raise Unreachable unless a node answers a question on a fresh connection within `timeout` seconds."""
        address = self.brokers.get(node)
        if address is not None:
            self.connections.drop(address, "ping")
        await self.send(node, Metadata([]), group="ping", timeout=timeout)

    async def list_offsets(self, partitions: Iterable[TopicPartition], at: int) -> dict[TopicPartition, Listed]:
        """Ask each partition's leader for its offset at a time (ms since epoch), LATEST (the last stable offset) or EARLIEST.

        Leaders are asked concurrently. Never raises: what went wrong stands in the answer.
        """
        found: dict[TopicPartition, Listed] = {}
        by_node: dict[int, dict[str, list[int]]] = {}
        for topic, partition in partitions:
            node = self.leader(topic, partition)
            if node is None:
                found[topic, partition] = Listed(-1, error_name(LEADER_NOT_AVAILABLE))
            else:
                by_node.setdefault(node, {}).setdefault(topic, []).append(partition)
        answers = await asyncio.gather(*(self._list(node, wanted, at) for node, wanted in by_node.items()))
        for answer in answers:
            found.update(answer)
        return found

    async def _list(self, node: int, wanted: dict[str, list[int]], at: int) -> dict[TopicPartition, Listed]:
        try:
            response = await self.send(node, ListOffsets(wanted, at), group=ASK, timeout=self._settings.request_timeout)
        except Unreachable as error:
            return {(topic, p): Listed(-1, error.reason) for topic, partitions in wanted.items() for p in partitions}
        return {
            (topic, partition): Listed(offset, error_name(error) if error else "")
            for topic, partitions in response.topics
            for partition, error, _, offset, *_ in partitions
        }

    def _learn(self, response: Any) -> dict[str, TopicMetadata]:
        self.brokers = {node: (host, port) for node, host, port, *_ in response.brokers} or self.brokers
        told: dict[str, TopicMetadata] = {}
        with_ids = response.API_VERSION >= 10  # noqa: PLR2004  # KIP-516
        for topic in response.topics:
            error, name = topic[0], topic[1]
            topic_id, partitions = (topic[2], topic[4]) if with_ids else (None, topic[3])
            leaders = {entry[1]: entry[2] for entry in partitions}
            told[name] = TopicMetadata(topic_id if topic_id and any(topic_id) else None, leaders, error)
        self.topics.update(told)
        self.told_at.update(dict.fromkeys(told, time.monotonic()))
        self.topic_ids = with_ids
        self._note("")
        return told

    def _note(self, reason: str) -> None:
        self.reason = reason
        if self.connected != (not reason):
            self.connected = not reason
            self._observer.connected(self.connected)
