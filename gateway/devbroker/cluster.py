"""What all nodes share: topics with their ids, partitions with their leaders, transactions, group offsets (sans-I/O).

Every change of a partition goes through here and is told to `changed`, so that parked fetches look again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.devbroker.batches import Batch
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.groups import Groups
from gateway.devbroker.log import Log
from gateway.devbroker.protocol import EVERYTHING
from gateway.devbroker.schemas import Api
from gateway.devbroker.transactions import Ending, Transactions

# Kafka's default for max.message.bytes.
MAX_BATCH_BYTES = 1024 * 1024 + 12
MAX_PARTITIONS = 10_000
# The configs that have an effect here, beside message.timestamp.type; others are kept and shown.
NUMBERS = ("retention.ms", "retention.bytes", "max.message.bytes")
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(slots=True)
class Partition:
    """One partition: its log, the id of the node that leads it, and how often the leader has changed."""

    leader: int
    leader_epoch: int = 0
    log: Log = field(default_factory=Log)


@dataclass(slots=True)
class Topic:
    """One topic. `topic_id` (16 bytes) tells it from an earlier topic of the same name; `configs` as Kafka names them."""

    name: str
    topic_id: bytes
    partitions: list[Partition]
    configs: dict[str, str]

    def number(self, config: str) -> int | None:
        """Return a numeric config; None where it is absent or -1 (no limit)."""
        value = int(self.configs.get(config, "-1"))
        return None if value < 0 else value


@dataclass(slots=True)
class Node:
    """One listener of the cluster; `up` False: it is stopped and leads nothing."""

    node_id: int
    host: str
    port: int
    up: bool = True


class Cluster:
    """All state of a dev broker."""

    def __init__(
        self,
        *,
        new_id: Callable[[], bytes],
        auto_create: bool = False,
        default_partitions: int = 1,
        configs: dict[str, str] | None = None,
        newest: Mapping[Api, int] = EVERYTHING,
    ) -> None:
        self.newest = newest
        self.nodes: dict[int, Node] = {}
        self.topics: dict[str, Topic] = {}
        self.transactions = Transactions()
        self.groups = Groups()
        self.auto_create = auto_create
        self.default_partitions = default_partitions
        self.configs = dict(configs or {})
        self.changed: Callable[[str, int], None] = lambda _topic, _partition: None
        self._new_id = new_id

    def running(self) -> list[Node]:
        """Return the nodes that are up, by id."""
        return [self.nodes[node_id] for node_id in sorted(self.nodes) if self.nodes[node_id].up]

    def coordinator(self, key: str) -> Node:
        """Return the node that coordinates a group or a transactional id."""
        nodes = self.running()
        return nodes[zlib.crc32(key.encode()) % len(nodes)]

    def create(self, name: str, partitions: int, configs: dict[str, str] | None = None) -> Topic:
        """Create a topic; leaders are spread over the nodes. Refused as CreateTopics would be."""
        self.check_new(name, partitions, configs)
        topic = Topic(name, self._new_id(), [], self.configs | (configs or {}))
        self.topics[name] = topic
        self._grow(topic, partitions)
        return topic

    def configure(self, name: str, configs: dict[str, str]) -> None:
        """Change a topic's configs."""
        _check_configs(configs)
        self.topic(name).configs.update(configs)

    def check_new(self, name: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        """Refuse a topic that could not be created."""
        _check_configs(configs or {})
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise Refused(Code.INVALID_TOPIC)
        if name in self.topics:
            raise Refused(Code.TOPIC_ALREADY_EXISTS)
        if not 0 < partitions <= MAX_PARTITIONS:
            raise Refused(Code.INVALID_PARTITIONS)

    def _grow(self, topic: Topic, count: int) -> None:
        nodes = sorted(self.nodes)
        shift = zlib.crc32(topic.name.encode())
        for index in range(len(topic.partitions), count):
            topic.partitions.append(Partition(nodes[(shift + index) % len(nodes)]))

    def grow(self, name: str, count: int) -> None:
        """Raise a topic's number of partitions to `count`."""
        self.check_growth(name, count)
        self._grow(self.topics[name], count)

    def check_growth(self, name: str, count: int) -> None:
        """Refuse a number of partitions that is not more than there are."""
        if not len(self.topic(name).partitions) < count <= MAX_PARTITIONS:
            raise Refused(Code.INVALID_PARTITIONS)

    def delete(self, name: str) -> None:
        """Delete a topic with its data and its committed offsets."""
        topic = self.topic(name)
        del self.topics[name]
        self.groups.forget_topic(name)
        for index in range(len(topic.partitions)):
            self.changed(name, index)

    def topic(self, name: str) -> Topic:
        """Find a topic; Refused with UNKNOWN_TOPIC_OR_PARTITION."""
        if name not in self.topics:
            raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION)
        return self.topics[name]

    def partition(self, name: str, index: int) -> Partition:
        """Find a partition; Refused with UNKNOWN_TOPIC_OR_PARTITION."""
        partitions = self.topic(name).partitions
        if not 0 <= index < len(partitions):
            raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION)
        return partitions[index]

    def led(self, name: str, index: int, node_id: int, leader_epoch: int = -1) -> Partition:
        """Find a partition at its leader; the epoch, if one is given, must be the current one (KIP-320)."""
        partition = self.partition(name, index)
        if partition.leader != node_id:
            raise Refused(Code.NOT_LEADER_OR_FOLLOWER)
        if 0 <= leader_epoch < partition.leader_epoch:
            raise Refused(Code.FENCED_LEADER_EPOCH)
        if leader_epoch > partition.leader_epoch:
            raise Refused(Code.UNKNOWN_LEADER_EPOCH)
        return partition

    def lead(self, name: str, index: int, node_id: int) -> None:
        """Make another node the leader of a partition."""
        partition = self.partition(name, index)
        if node_id not in self.nodes:
            raise Refused(Code.INVALID_REQUEST, f"no node {node_id}")
        partition.leader = node_id
        partition.leader_epoch += 1
        self.changed(name, index)

    def append(self, name: str, index: int, batches: Sequence[Batch], now: float) -> tuple[int, int]:
        """Append batches and return (base offset of the first, log append time in ms or -1); `now` is Unix time.

        Size, kind and transaction of all are checked before the first is stored; a sequence when its batch is.
        """
        partition = self.partition(name, index)
        topic = self.topics[name]
        limit = topic.number("max.message.bytes") or MAX_BATCH_BYTES
        for batch in batches:
            if len(batch.raw) > limit:
                raise Refused(Code.MESSAGE_TOO_LARGE)
            if batch.control:
                raise Refused(Code.INVALID_RECORD)
            if batch.transactional:
                self.transactions.check(batch.producer_id, batch.producer_epoch, (name, index))
        stamp = int(now * 1000) if topic.configs.get("message.timestamp.type") == "LogAppendTime" else -1
        base = -1
        for batch in batches:
            stored = batch if stamp < 0 else batch.stamped(stamp)
            at = partition.log.append(stored, leader_epoch=partition.leader_epoch)
            base = at if base < 0 else base
        self._expire(topic, partition, now)
        self.changed(name, index)
        return base, stamp

    def finish(self, ending: Ending, now: float) -> None:
        """Write a transaction's markers and, on commit, its group offsets."""
        for name, index in ending.places:
            if name in self.topics:
                log = self.topics[name].partitions[index].log
                log.finish(ending.producer_id, ending.epoch, commit=ending.commit, timestamp_ms=int(now * 1000))
                self.changed(name, index)
        if ending.commit:
            for group, offsets in ending.offsets.items():
                for (name, index), (offset, metadata) in offsets.items():
                    self.groups.commit(group, name, index, offset, metadata)

    def delete_before(self, name: str, index: int, offset: int) -> int:
        """Delete the records below an offset and return the new log start."""
        start = self.partition(name, index).log.delete_before(offset)
        self.changed(name, index)
        return start

    def upkeep(self, now: float) -> None:
        """Apply retention by time and end transactions that are open for too long; `now` is Unix time."""
        for topic in self.topics.values():
            for index, partition in enumerate(topic.partitions):
                if self._expire(topic, partition, now):
                    self.changed(topic.name, index)
        for ending in self.transactions.expire(now):
            self.finish(ending, now)
        self.groups.expire(now)

    @staticmethod
    def _expire(topic: Topic, partition: Partition, now: float) -> int:
        max_age_ms = topic.number("retention.ms")
        before_ms = None if max_age_ms is None else int(now * 1000) - max_age_ms
        return partition.log.expire(before_ms=before_ms, max_bytes=topic.number("retention.bytes"))


def _check_configs(configs: dict[str, str]) -> None:
    for name in NUMBERS:
        if name in configs and not re.fullmatch(r"-?[0-9]{1,18}", configs[name]):
            raise Refused(Code.INVALID_CONFIG, f"{name} is not a number")
