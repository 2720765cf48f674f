"""A Kafka for the fan-out's tests: plain lists of records, a hub that is fed from them, and the questions that readers ask."""

from collections.abc import Callable, Iterable
from itertools import count

from gateway.errors import BrokerUnavailable
from gateway.fanout.hub import Hub, Topic
from gateway.records import Block, Record

_IDS = count(1)


class FakePartition:
    """One log: `records` are there, `ever` were written and not compacted since, `gone` were compacted away."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.ever: dict[int, Record] = {}
        self.gone: dict[int, Record] = {}
        self.log_start = 0
        self.stable_end = 0
        self.reachable = True

    def write(self, key: bytes | None, value: bytes | None = b"{}", timestamp_ms: int | None = 0) -> Record:
        record = Record(self.stable_end, timestamp_ms, key, value)
        self.records[record.offset] = self.ever[record.offset] = record
        self.stable_end += 1
        return record

    def marker(self) -> None:
        """Use up an offset, as a control batch does."""
        self.stable_end += 1

    def trim(self, log_start: int) -> None:
        self.log_start = max(self.log_start, min(log_start, self.stable_end))
        self.records = {offset: record for offset, record in self.records.items() if offset >= self.log_start}

    def compact(self, offsets: Iterable[int]) -> None:
        for offset in offsets:
            if self.records.pop(offset, None) is not None:
                self.gone[offset] = self.ever.pop(offset)

    def between(self, start: int, end: int) -> list[Record]:
        return [self.records[offset] for offset in sorted(self.records) if start <= offset < end]


class FakeTopic:
    """One incarnation of a topic."""

    def __init__(self, partitions: int) -> None:
        self.topic_id = next(_IDS).to_bytes(16, "big")
        self.partitions = [FakePartition() for _ in range(partitions)]


class FakeKafka:
    """Implements the `Log` protocol. `meanwhile` is what happens while a reader waits for an answer: one call per question."""

    def __init__(self, hub: Hub, *, block: int = 4) -> None:
        self.hub = hub
        self.block = block
        self.topics: dict[str, FakeTopic] = {}
        self.meanwhile: list[Callable[[], None]] = []
        self.asked: list[tuple[object, ...]] = []
        self.followed: list[str] = []
        self.away = False

    def create(self, name: str, partitions: int, *, described: bool = True) -> FakeTopic:
        self.topics[name] = FakeTopic(partitions)
        if described:
            self.describe(name)
            for partition in range(partitions):
                self.open(name, partition)
        return self.topics[name]

    def partition(self, name: str, partition: int) -> FakePartition:
        return self.topics[name].partitions[partition]

    # --- what the feed does ---

    def describe(self, name: str, *, with_id: bool = True) -> None:
        topic = self.topics.get(name)
        if topic is None:
            self.hub.describe(name, topic_id=None, partitions=0)
        else:
            self.hub.describe(name, topic_id=topic.topic_id if with_id else None, partitions=len(topic.partitions))

    def open(self, name: str, partition: int, start: int | None = None) -> None:
        log = self.partition(name, partition)
        self.hub.open(name, partition, start=log.stable_end if start is None else start, log_start=log.log_start)

    def feed(self, name: str, partition: int, most: int = 1_000, *, again: int = 0) -> int:
        """Fetch up to `most` offsets; `again`: as many that were fetched before come once more."""
        log = self.partition(name, partition)
        topic = self.hub.topic(name)
        tail = topic.tails.get(partition) if topic is not None else None
        if tail is None:
            return self.hub.append(name, partition, [], end=log.stable_end, log_start=log.log_start)
        if tail.end < log.log_start:
            self.open(name, partition, log.log_start)
            tail = self.hub.topics[name].tails[partition]
        end = min(log.stable_end, tail.end + most)
        return self.hub.append(name, partition, log.between(tail.end - again, end), end=end, log_start=log.log_start)

    def say(self, name: str, partition: int, *keys: bytes | None, value: bytes | None = b"{}", at: int | None = 0) -> int:
        """Write one record for each key and feed all; return the number of woken waiters."""
        for key in keys:
            self.partition(name, partition).write(key, value, at)
        return self.feed(name, partition)

    # --- what readers ask ---

    def _waited(self) -> None:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        if self.away:
            raise BrokerUnavailable

    async def follow(self, topic: str, now: float) -> Topic:
        self.followed.append(topic)
        self._waited()
        known = self.hub.create(topic)
        known.last_polled = now
        return known

    async def renew(self, topic: str) -> None:
        self.asked.append(("renew", topic))
        self._waited()
        self.describe(topic)

    async def read(self, topic: str, partition: int, offset: int, until: int) -> Block:
        """Return a block aligned to `block` offsets; an empty one if nothing is left from `offset` on."""
        self.asked.append(("read", topic, partition, offset, until))
        log = self.partition(topic, partition)
        if not log.reachable:
            self._waited()
            raise BrokerUnavailable
        at = max(offset, log.log_start)
        start = max(log.log_start, at - at % self.block)
        end = min(start - start % self.block + self.block, log.stable_end)
        found = Block(start, end, log.between(start, end), log.log_start, log.stable_end)
        if not log.between(at, log.stable_end) and at == offset:
            found = Block(offset, offset, [], log.log_start, log.stable_end)
        self._waited()
        return found

    async def offsets(self, topic: str, at: int) -> dict[int, int]:
        self.asked.append(("offsets", topic, at))
        self._waited()
        found = {}
        for number, log in enumerate(self.topics[topic].partitions if topic in self.topics else []):
            if log.reachable:
                later = [r.offset for r in log.between(0, log.stable_end) if (r.timestamp_ms or 0) >= at]
                found[number] = {-2: log.log_start, -1: log.stable_end}.get(at, min(later, default=log.stable_end))
        return found

    async def end(self, topic: str, partition: int) -> int:
        self.asked.append(("end", topic, partition))
        self._waited()
        partitions = self.topics[topic].partitions if topic in self.topics else []
        if partition >= len(partitions) or not partitions[partition].reachable:
            raise BrokerUnavailable
        return partitions[partition].stable_end
