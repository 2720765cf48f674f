"""The hub and its readers against plain lists of all records: whatever happens, in whatever order."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from fanout.fakekafka import FakeKafka, FakePartition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gateway.errors import BrokerUnavailable, CursorExpired, CursorReset
from gateway.fanout.cursor import Position, TopicPosition, bind, decode, encode, id_hash
from gateway.fanout.hub import CHANGED, RECORDS, TICK, TIMEOUT, Hub, Waiter, advance
from gateway.fanout.reader import Reader
from gateway.fanout.reading import Reading
from gateway.fanout.responses import build
from gateway.fanout.subscription import Selection, Subscription
from gateway.records import Record
from gateway.wire import From

TOPICS = ("a", "b")
Happening = tuple[str, str, int, int]
KEYS = (None, b"x", b"y", b"z")
BUDGET, TAIL_BUDGET = 6_000, 3_500

topics = st.sampled_from(TOPICS)
partitions = st.integers(0, 3)
numbers = st.integers(0, 7)
keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4)
happenings = st.tuples(
    st.sampled_from(
        ("flood", "outrun", "trim", "compact", "add", "refresh", "reopen", "close", "recreate", "forget", "lose_or_heal")
    ),
    topics,
    partitions,
    st.integers(0, 3),
)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    topic, key = draw(topics), draw(st.sampled_from(KEYS))
    partitioner = draw(st.sampled_from((None, "murmur2"))) if key is not None else None
    priority, on_reset = draw(st.sampled_from((0, 100))), draw(st.sampled_from(("fail", "earliest", "latest")))
    name = f"{topic}/{key!r}/{partitioner}/{priority}"
    on_loss = draw(st.sampled_from(("report", "report", "fail")))
    return Selection(name, topic, topic, key, priority=priority, partitioner=partitioner, on_loss=on_loss, on_reset=on_reset)


subscriptions = st.builds(
    Subscription,
    st.lists(selections(), min_size=1, max_size=4, unique_by=lambda s: s.channel).map(
        lambda found: tuple(sorted(found, key=lambda s: s.channel))
    ),
    limit=st.sampled_from((1, 2, 3, 100)),
    max_bytes=st.sampled_from((5, 2**20)),
)


class Client:
    """One chain of cursors, and the waiter it may be parked with."""

    def __init__(self, subscription: Subscription, position: Position) -> None:
        self.subscription = subscription
        self.position = position
        self.waiter: Waiter | None = None
        self.deadline = 0.0
        self.at_tail = False
        self.failed = False
        self.before: dict[str, TopicPosition] = {}

    def matching(self, topic: str, record: Record) -> list[Selection]:
        return [s for s in self.subscription.by_topic.get(topic, ()) if s.key is None or s.key == record.key]


class Model(RuleBasedStateMachine):
    """All that can happen to topics, tails, readers and waiters."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.rung = 0
        self.hub = Hub(budget=BUDGET, tail_budget=TAIL_BUDGET, on_woken=self.ring)
        self.kafka = FakeKafka(self.hub)
        self.reader = Reader(self.hub, self.kafka, scan_bytes=40, clock=lambda: self.now)
        self.runner = asyncio.Runner()
        self.clients: list[Client] = []
        self.woken: list[Client] = []
        self.incarnations: dict[int, Any] = {0: None}
        self.named = True

    def teardown(self) -> None:
        for log in self.logs():
            log.reachable = True
        for name in self.kafka.topics:
            self.describe(name)
            for number in range(len(self.kafka.topics[name].partitions)):
                if name not in self.hub.topics or number not in self.hub.topics[name].tails:
                    self.act(lambda name=name, number=number: self.kafka.open(name, number))
                self.feed(name, number, 1_000, 0)
        for client in list(self.clients):
            self.drain(client)
        for client in self.clients:
            self.leave(client)
        self.hub.take(1_000)
        assert self.hub.parked == 0
        assert not +self.hub.parked_by
        assert all(topic.parked == 0 and not topic.keyed for topic in self.hub.topics.values())
        assert self.hub.waiters() == []
        self.runner.close()

    def ring(self) -> None:
        self.rung += 1

    def logs(self) -> list[FakePartition]:
        return [log for topic in self.kafka.topics.values() for log in topic.partitions]

    def describe(self, name: str) -> None:
        topic = self.kafka.topics[name]
        self.incarnations[id_hash(topic.topic_id)] = topic
        self.act(lambda: self.kafka.describe(name, with_id=self.named))

    # --- what is checked whenever the hub is told something ---

    def act(self, call: Callable[[], object]) -> list[Client]:
        """Let something happen to the hub; return who was woken by it, having noted where all tails ended before."""
        before = {name: topic.position for name, topic in self.hub.topics.items()}
        parked = [client for client in self.clients if client.waiter is not None and client.waiter.parked]
        idle, rung = not self.hub._woken, self.rung
        call()
        woken = [client for client in parked if not client.waiter.parked]
        assert self.rung - rung == (1 if idle and woken else 0)
        for client in woken:
            client.before = before
        return woken

    def feed(self, name: str, partition: int, most: int, again: int) -> None:
        topic = self.hub.topics.get(name)
        tail = topic.tails.get(partition) if topic else None
        parked = [client for client in self.clients if client.waiter is not None and client.waiter.parked]
        log = self.kafka.partition(name, partition)
        if tail is not None and tail.end >= log.log_start:
            fresh = log.between(tail.end, tail.end + most)
            expected = {id(client) for client in parked if self.readable(client, name, partition, fresh)}
            counted: list[int] = []
            woken = self.act(lambda: counted.append(self.kafka.feed(name, partition, most, again=again)))
            assert {id(client) for client in woken} == expected
            assert counted == [len(expected)]
            assert all(client.waiter.why == RECORDS for client in woken)
        else:
            self.act(lambda: self.kafka.feed(name, partition, most, again=again))

    @staticmethod
    def readable(client: Client, name: str, partition: int, fresh: list[Record]) -> bool:
        if name not in client.subscription.topics:
            return False
        offset = client.position[name].offsets.get(partition)
        follows = client.subscription.follows_partitioner(name)
        assert follows or offset is not None
        return offset is not None and any(r.offset >= offset and client.matching(name, r) for r in fresh)

    # --- topics ---

    @initialize(
        named=st.booleans(),
        first=st.integers(1, 2),
        second=st.integers(0, 2),
        subscribed=st.lists(subscriptions, min_size=1, max_size=3),
    )
    def begin(self, named: bool, first: int, second: int, subscribed: list[Subscription]) -> None:
        self.named = named
        for name, count in zip(TOPICS, (first, second), strict=True):
            if count:
                self.kafka.create(name, count, described=False)
                self.describe(name)
                for number in range(count):
                    self.kafka.open(name, number)
        for subscription in subscribed:
            self.come(subscription, "latest")

    def place(self, name: str, number: int) -> tuple[str, int] | None:
        topic = self.kafka.topics.get(name)
        return (name, number % len(topic.partitions)) if topic is not None else None

    @rule(
        name=topics, number=partitions, said=keys, marker=st.booleans(), at=st.integers(0, 3), size=st.sampled_from((0, 2, 9))
    )
    def write(self, name: str, number: int, said: list[bytes | None], marker: bool, at: int, size: int) -> None:
        if place := self.place(name, number):
            for key in said:
                self.kafka.partition(*place).write(key, b"7" * size if size else None, at)
            if marker:
                self.kafka.partition(*place).marker()

    @rule(name=topics, number=partitions, most=st.integers(0, 5), again=st.integers(0, 3))
    def fetch(self, name: str, number: int, most: int, again: int) -> None:
        if place := self.place(name, number):
            self.feed(*place, most, again)

    @rule(name=topics, number=partitions, said=keys)
    def say(self, name: str, number: int, said: list[bytes | None]) -> None:
        self.write(name, number, said, False, 0, 2)
        if place := self.place(name, number):
            self.feed(*place, 1_000, 0)

    def flood(self, name: str, number: int) -> None:
        """Much that nobody waits for, so that tails are evicted."""
        if place := self.place(name, number):
            for _ in range(8):
                self.kafka.partition(*place).write(b"unread", b"1" * 40, 1)
            self.feed(*place, 1_000, 0)

    def outrun(self, name: str, number: int, keep: int) -> None:
        """Let retention and eviction pass whoever does not read."""
        self.flood(name, number)
        self.trim(name, number, keep)

    def trim(self, name: str, number: int, keep: int) -> None:
        if place := self.place(name, number):
            log = self.kafka.partition(*place)
            log.trim(log.stable_end - keep)

    def compact(self, name: str, number: int, every: int) -> None:
        if place := self.place(name, number):
            log = self.kafka.partition(*place)
            log.compact([offset for offset in log.records if offset % (every + 1) == 0])

    def add(self, name: str) -> None:
        if name not in self.kafka.topics:
            self.kafka.create(name, 1, described=False)
            self.describe(name)
        elif len(self.kafka.topics[name].partitions) < 4:
            self.kafka.topics[name].partitions.append(FakePartition())

    def refresh(self, name: str) -> None:
        if name in self.kafka.topics:
            self.describe(name)

    def reopen(self, name: str, number: int, back: int) -> None:
        if (place := self.place(name, number)) and name in self.hub.topics:
            log = self.kafka.partition(*place)
            if place[1] < self.hub.topics[name].partition_count:
                self.act(lambda: self.kafka.open(*place, max(log.log_start, log.stable_end - back)))

    def close(self, name: str, number: int) -> None:
        if place := self.place(name, number):
            woken = self.act(lambda: self.hub.close(*place))
            assert all(client.waiter.why == CHANGED for client in woken)

    def recreate(self, name: str, count: int) -> None:
        if name in self.kafka.topics and self.named:
            if count == 3:
                self.act(lambda: self.hub.describe(name, topic_id=None, partitions=0))
            count = max(1, count)
            self.kafka.create(name, count, described=False)
            self.describe(name)
            for number in range(count):
                self.act(lambda number=number: self.kafka.open(name, number))

    def forget(self, name: str) -> None:
        self.act(lambda: self.hub.forget(name))
        assert name not in self.hub.topics

    def lose_or_heal(self, name: str, number: int) -> None:
        if place := self.place(name, number):
            log = self.kafka.partition(*place)
            log.reachable = not log.reachable

    @rule(what=happenings)
    def happens(self, what: Happening) -> None:
        self.happen(what)()

    @rule(what=happenings)
    def happens_too(self, what: Happening) -> None:
        self.happen(what)()

    def happen(self, what: Happening) -> Callable[[], None]:
        happening, name, number, much = what
        more = {
            "trim": (name, number, much),
            "outrun": (name, number, much),
            "compact": (name, number, much),
            "reopen": (name, number, much),
        }
        more |= {"add": (name,), "refresh": (name,), "forget": (name,), "recreate": (name, much)}
        return lambda: getattr(self, happening)(*more.get(happening, (name, number)))

    # --- clients ---

    @rule(subscription=subscriptions, start=st.sampled_from(("latest", "earliest", "time", "newest")))
    def come(self, subscription: Subscription, start: str) -> None:
        if len(self.clients) >= 5:
            return
        try:
            position = self.runner.run(self.reader.begin(subscription, None, From(start, 2)))
        except BrokerUnavailable:
            return
        self.clients.append(Client(subscription, position))

    @precondition(lambda self: self.clients)
    @rule(n=numbers, meanwhile=st.lists(happenings, max_size=2))
    def poll(self, n: int, meanwhile: list[Happening]) -> None:
        client = self.clients[n % len(self.clients)]
        if client.waiter is None:
            for name in client.subscription.topics:
                self.follow(name)
            self.look(client, meanwhile)

    def follow(self, name: str) -> None:
        """Do what the feed does for the first poll of a topic."""
        if name in self.kafka.topics and not (name in self.hub.topics and self.hub.topics[name].partition_count):
            self.describe(name)
            for number in range(len(self.kafka.topics[name].partitions)):
                self.act(lambda number=number: self.kafka.open(name, number))

    @rule()
    def poll_all(self) -> None:
        """All clients go on until they are parked, or nearly so."""
        self.slice(1_000)
        for client in self.clients:
            for _ in range(5):
                if client.waiter is not None or not self.look(client):
                    break

    @precondition(lambda self: self.clients)
    @rule(n=numbers)
    def leave_one(self, n: int) -> None:
        self.leave(self.clients[n % len(self.clients)])

    @precondition(lambda self: self.clients)
    @rule(n=numbers)
    def hurry_ahead(self, n: int) -> None:
        """Let a client have been served by another instance, which had read more than this one."""
        client = self.clients[n % len(self.clients)]
        if client.waiter is None:
            client.position = {name: self.ahead(name, own) for name, own in client.position.items()}

    def ahead(self, name: str, own: TopicPosition) -> TopicPosition:
        topic = self.incarnations.get(own.id_hash) or self.kafka.topics.get(name)
        if topic is None or self.kafka.topics.get(name) is not topic:
            return own
        ends = {n: log.stable_end for n, log in enumerate(topic.partitions)}
        return own._replace(offsets={p: max(offset, ends.get(p, 0)) for p, offset in own.offsets.items()})

    @rule(most=st.integers(1, 3))
    def slice(self, most: int) -> None:
        taken = self.hub.take(most)
        for client in [client for client in self.clients if client.waiter in taken]:
            self.wake(client)

    @rule(ticks=st.integers(1, 12))
    def sleep(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += TICK * 0.9
            woken = self.act(lambda: self.hub.expire(self.now))
            assert all(client.waiter.why == TIMEOUT for client in woken)
            assert all(client.deadline < self.now for client in woken)
            parked = [client for client in self.clients if client.waiter is not None and client.waiter.parked]
            # "At most one tick late", and what passes between two calls of `expire`.
            assert all(self.now < client.deadline + 2 * TICK for client in parked)

    def leave(self, client: Client) -> None:
        if client.waiter is not None:
            self.hub.unpark(client.waiter)
            self.hub.unpark(client.waiter)
            client.waiter = None

    def wake(self, client: Client) -> None:
        """Go on as the server does, and see that nothing was slept over and that the sleeper did not fall behind."""
        waiter, old = client.waiter, client.position
        assert waiter is not None
        new = client.subscription.position_at(waiter.moment) if waiter.apart is None else advance(waiter.apart, waiter.moment)
        assert new.keys() == old.keys()
        for name, own in new.items():
            before = old[name].offsets
            assert own.offsets.keys() == before.keys(), "position lost or gained partitions in its sleep"
            assert own.id_hash in (old[name].id_hash, client.before[name].id_hash)
            if old[name].id_hash and old[name].id_hash != client.before[name].id_hash:
                assert own == old[name]
                continue
            for p, offset in own.offsets.items():
                assert offset >= before[p]
                slept_over = self.written(name, own, p, before[p], offset)
                assert not any(client.matching(name, record) for record in slept_over), (name, p, before[p], offset)
                if not client.failed:
                    assert offset >= client.before[name].offsets.get(p, offset), "fell behind"
        client.position, client.waiter = new, None

    def written(self, name: str, own: TopicPosition, partition: int, start: int, end: int) -> list[Record]:
        """All records of a partition that were written and not compacted since, whether retention took them or not."""
        topic = self.incarnations.get(own.id_hash) or self.kafka.topics.get(name)
        if topic is None or partition >= len(topic.partitions):
            return []
        ever = topic.partitions[partition].ever
        return [ever[offset] for offset in sorted(ever) if start <= offset < end]

    # --- one look ---

    def look(self, client: Client, meanwhile: list[Happening] = ()) -> bool:
        """Peek or read, check what comes, and park if there is nothing. Return whether there was an answer."""
        subscription = client.subscription
        position: Position = bind(decode(encode(client.position)), subscription.topics)
        assert position == client.position
        self.kafka.meanwhile = [self.happen(what) for what in meanwhile]
        try:
            reading = self.reader.peek(subscription, position)
            if reading is None:
                reading = self.runner.run(self.reader.read(subscription, position))
            else:
                assert self.runner.run(self.reader.read(subscription, position)) == reading
        except CursorReset as reset:
            self.check_reset(client, position, decode(reset.extra["cursor"]))
            return True
        except CursorExpired as expired:
            self.check_expired(client, position, expired)
            return True
        except BrokerUnavailable:
            assert any(not log.reachable for log in self.logs()) or len(self.kafka.topics) < len(TOPICS)
            return False
        finally:
            self.kafka.meanwhile = []
        self.check(client, position, reading)
        client.position = reading.position
        if reading.messages or reading.lost or not (reading.up_to_date or reading.failed):
            body = json.loads(build(subscription, reading).body)
            assert body["cursor"] == encode(reading.position)
            assert [m["offset"] for m in body["messages"]] == [m.record.offset for m in reading.messages]
            return True
        self.park(client, reading)
        return False

    def park(self, client: Client, reading: Reading) -> None:
        client.waiter = Waiter(client.subscription.interests, client.subscription.labels)
        client.deadline = self.now + 0.35
        client.at_tail, client.failed = reading.at_tail, reading.failed
        self.hub.park(client.waiter, reading.position, at_tail=reading.at_tail, deadline=client.deadline)

    def check(self, client: Client, position: Position, reading: Reading) -> None:
        subscription = client.subscription
        got: dict[tuple[str, int], list[tuple[Record, list[str]]]] = {}
        for message in reading.messages:
            place = got.setdefault((message.selection.topic, message.partition), [])
            if not place or place[-1][0] is not message.record:
                place.append((message.record, []))
            place[-1][1].append(message.selection.channel)
        lost: dict[tuple[str, int], tuple[int, int]] = {}
        for entry in reading.lost:
            lost[entry.selection.topic, entry.partition] = entry.start, entry.end
        assert reading.position.keys() == position.keys()
        for name, own in reading.position.items():
            places = {p for topic, p in (*got, *lost) if topic == name}
            assert places <= own.offsets.keys()
            assert position[name].offsets.keys() <= own.offsets.keys() or self.restarted(position[name], own)
            for p, end in own.offsets.items():
                self.check_place(client, name, p, position[name], own, got.get((name, p), []), lost.get((name, p)))
                tail = (self.hub.topics[name].tails if name in self.hub.topics else {}).get(p)
                if reading.up_to_date and tail is not None and name in self.kafka.topics:
                    assert end >= tail.end
        if reading.at_tail:
            ends = {name: topic.position for name, topic in self.hub.topics.items()}
            assert subscription.position_at(ends) == reading.position
        assert len(reading.messages) <= subscription.limit or len({id(m.record) for m in reading.messages}) == 1
        if not (reading.messages or reading.lost or reading.up_to_date or reading.failed):
            assert reading.position != position, "no progress"
        if reading.failed:
            assert not reading.at_tail

    @staticmethod
    def restarted(before: TopicPosition, after: TopicPosition) -> bool:
        return before.id_hash not in {after.id_hash, 0}

    def check_place(
        self,
        client: Client,
        name: str,
        partition: int,
        before: TopicPosition,
        after: TopicPosition,
        got: list[tuple[Record, list[str]]],
        lost: tuple[int, int] | None,
    ) -> None:
        """Compare what was delivered with all that was written between two cursors, less what is told to be lost."""
        topic = self.incarnations.get(after.id_hash) or self.kafka.topics[name]
        log, end = topic.partitions[partition], after.offsets[partition]
        delivered = [record.offset for record, _ in got]
        assert delivered == sorted(set(delivered)), "order, or twice"
        for record, channels in got:
            assert record is log.ever.get(record.offset) or record is log.gone.get(record.offset)
            assert sorted(channels) == sorted(s.channel for s in client.matching(name, record)), "filter"
        start = before.offsets.get(partition)
        if self.restarted(before, after) or (start is not None and end < start):
            policies = {s.on_reset for s in client.subscription.by_topic[name]}
            assert "fail" not in policies
            start = 0 if "earliest" in policies else None
            must = [r for r in log.between(start or 0, end) if client.matching(name, r)]
            offsets = [r.offset for r in must]
            assert set(offsets) <= set(delivered) or (
                start is None and (not delivered or offsets[-len(delivered) :] == delivered)
            )
            return
        assert all((start or 0) <= offset < end for offset in delivered)
        if start is None:
            # Not named before: from the log start on, wherever that is.
            assert lost is None
            must = [r for r in log.between(0, end) if client.matching(name, r)]
        else:
            # The look may have passed some history before it met the gap.
            gap = lost or (start, start)
            assert lost is None or start <= gap[0] < gap[1] <= min(end, log.log_start), "loss is exact"
            assert not any(gap[0] <= offset < gap[1] for offset in delivered)
            must = [r for r in self.written(name, after, partition, start, end) if client.matching(name, r)]
            must = [r for r in must if not gap[0] <= r.offset < gap[1]]
        missing = {r.offset for r in must} - set(delivered)
        assert not missing, f"{name}-{partition}: {missing} missing between {start} and {end}"

    def check_reset(self, client: Client, position: Position, entries: list[Any]) -> None:
        fresh = bind(entries, client.subscription.topics)
        assert any(s.on_reset == "fail" for s in client.subscription.selections)
        reset = False
        for name, own in position.items():
            topic = self.kafka.topics.get(name)
            if topic is None:
                continue
            reset |= own.id_hash not in (0, id_hash(topic.topic_id))
            reset |= any(p >= len(topic.partitions) for p in own.offsets)
            for p, offset in own.offsets.items():
                reset |= p < len(topic.partitions) and offset > topic.partitions[p].stable_end
        assert reset, "a false alarm"
        client.position = fresh

    def check_expired(self, client: Client, position: Position, expired: CursorExpired) -> None:
        """See that the 410's cursor skips what is gone and nothing else."""
        fresh = bind(decode(expired.extra["cursor"]), client.subscription.topics)
        assert any(s.on_loss == "fail" for s in client.subscription.selections)
        gone = {(str(entry["channel"])[0], entry["partition"]): entry for entry in expired.extra["lost"]}
        assert gone
        for name, own in fresh.items():
            if self.restarted(position[name], own):
                continue
            for p, offset in own.offsets.items():
                start = position[name].offsets[p]
                if (entry := gone.get((name, p))) is not None:
                    # What the look had passed before it met the gap did not match.
                    passed = self.written(name, own, p, start, entry["from"])
                    assert not any(client.matching(name, record) for record in passed)
                    log = (self.incarnations.get(own.id_hash) or self.kafka.topics[name]).partitions[p]
                    assert entry["to"] == offset <= log.log_start
                else:
                    assert not any(client.matching(name, r) for r in self.written(name, own, p, start, offset))
        client.position = fresh

    def drain(self, client: Client) -> None:
        """In the end everyone gets to the end."""
        self.slice(1_000)
        self.leave(client)
        for _ in range(400):
            if not self.look(client):
                break
        else:
            raise AssertionError("never up to date")
        for name, own in client.position.items():
            for p, offset in own.offsets.items():
                if name in self.kafka.topics and p < len(self.kafka.topics[name].partitions):
                    assert offset == self.kafka.partition(name, p).stable_end
            if name in self.kafka.topics and client.subscription.by_topic[name][0].partitioner is None:
                assert len(own.offsets) == len(self.kafka.topics[name].partitions)

    # --- what always holds ---

    @invariant()
    def counts(self) -> None:
        parked = [client for client in self.clients if client.waiter is not None and client.waiter.parked]
        assert self.hub.parked == len(parked) == len(self.hub.waiters())
        assert +self.hub.parked_by == Counter(label for client in parked for label in client.subscription.labels)
        for name, topic in self.hub.topics.items():
            interests = [i for client in parked for i in client.subscription.interests if i.topic == name]
            assert topic.parked == len(interests)

    @invariant()
    def memory(self) -> None:
        tails = [tail for topic in self.hub.topics.values() for tail in topic.tails.values()]
        assert self.hub.cost == sum(tail.cost for tail in tails) <= BUDGET
        for tail in tails:
            held = tail.since(0, None, 1_000)
            assert tail.cost == sum(record.cost for record in held) <= TAIL_BUDGET
            assert all(tail.start <= record.offset < tail.end for record in held)
            assert len(tail) == len(held)
            for key in KEYS[1:]:
                assert list(tail.since(0, key, 1_000)) == [record for record in held if record.key == key]

    @invariant()
    def tails_are_complete(self) -> None:
        for name, topic in self.hub.topics.items():
            assert topic.position.offsets == {p: tail.end for p, tail in topic.tails.items()}
            for p, tail in topic.tails.items():
                log = self.incarnations.get(topic.id_hash) or self.kafka.topics[name]
                held = {record.offset for record in tail.since(0, None, 1_000)}
                assert {r.offset for r in log.partitions[p].between(tail.start, tail.end)} <= held


def test_nothing_is_lost_doubled_or_slept_over() -> None:
    """No loss, no double, order, filters, wake-ups, deadlines, memory: see the checks of `Model`."""
    run_state_machine_as_test(Model, settings=settings(stateful_step_count=40))
