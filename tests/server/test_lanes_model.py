"""Lanes against plain lists of all records: whatever happens, in whatever order, each chain of cursors tells everything once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from server.laneworld import Answer, Client, World

from gateway.auth.principal import KeyRef
from gateway.fanout.cursor import bind, decode
from gateway.fanout.hub import TICK
from gateway.fanout.responses import build
from gateway.fanout.subscription import Subscription
from gateway.limits import TokenBuckets
from gateway.records import Record
from gateway.server import deliveries as deliveries_module
from gateway.server import parking as parking_module
from gateway.server.deliveries import SLICE_SECONDS
from gateway.server.lane import Lane

KEYS = (None, b"x", b"y")
TOPICS = ("a", "b")
Shape = tuple[tuple[str, ...], bytes | None, float, int]
# Topics, key, wait and limit: few, so that many share a crowd.
SHAPES = (
    (("b",), None, 1.0, 100),
    (("a",), b"x", 30.0, 100),
    (("a",), None, 1.0, 100),
    (("a", "b"), None, 30.0, 2),
    (("a",), None, 0.0, 1),
)
PARTITIONS = {"a": 2, "b": 1}

places = st.sampled_from([(topic, number) for topic, count in PARTITIONS.items() for number in range(count)])
subjects = st.sampled_from(("ann", "bob", "cid"))
anybody = st.integers(0, 50)
keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4)


class Loop:
    """Stands for asyncio in the modules under test: what is to be called soon is called when the model says so."""

    Protocol, Transport = asyncio.Protocol, asyncio.Transport

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def get_running_loop(self) -> Loop:
        return self

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)


class Chain:
    """One reader: what it reads, where it stands, and the connection on which it waits for an answer."""

    def __init__(self, topics: tuple[str, ...], key: bytes | None, cursor: str, subject: str, wait: float, limit: int) -> None:
        self.topics = topics
        self.key = key
        self.cursor = cursor
        self.subject = subject
        self.wait = wait
        self.limit = limit
        self.head: Client | None = None
        self.on: Client | None = None
        self.expires = float("inf")

    def where(self, cursor: str) -> dict[tuple[str, int], int]:
        """Return the offsets of a cursor; what it does not name is read from its log's start, which is 0."""
        bound = bind(decode(cursor), self.topics)
        assert bound.keys() == set(self.topics)
        return {
            (name, number): bound[name].offsets.get(number, 0) for name in self.topics for number in range(PARTITIONS[name])
        }

    def matches(self, record: Record) -> bool:
        return self.key is None or record.key == self.key


class Model(RuleBasedStateMachine):
    """All that can happen to readers, connections, topics and time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.patches = [patch.object(module, "asyncio", self.loop) for module in (deliveries_module, parking_module)]
        for each in self.patches:
            each.start()
        self.runner = asyncio.Runner()
        self.generation = 0
        polls = TokenBuckets("polls", quota=30, window=10)
        self.world = World(polls=polls, quota=5, total=12, armed=3, tail_budget=6_000)
        self.chains: list[Chain] = []
        self.answered = self.left = 0
        self.stood_still = 0.0

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            for each in self.patches:
                each.stop()
            self.runner.close()

    def finish(self) -> None:
        """Have everybody read to the end, and leave."""
        self.world.clock.step = 0.0
        for name in TOPICS:
            self.refollow(name)
        for _ in range(3):
            self.settle()
            for chain in list(self.chains):
                self.read_on(chain)
        for chain in self.chains:
            assert not self.readable(chain)
        counted = self.world.counted(self.world.metrics.answers)
        assert counted.pop("closed_by_client", 0) == self.left
        assert sum(counted.values()) == self.answered
        for chain in self.chains:
            if chain.on is not None:
                chain.on.lose()
        assert self.world.slots.held == 0
        assert self.world.hub.parked == 0
        for lane in list(self.world.lanes._lanes):
            lane.connection_lost(None)
        assert len(self.world.lanes) == 0

    # --- what the readers find ---

    def told(self, chain: Chain, messages: list[tuple[str, int, int]], cursor: str) -> None:
        """Check an answer against the lists, and move on."""
        old, new = chain.where(chain.cursor), chain.where(cursor)
        logs = {place: self.world.kafka.partition(*place).records for place in old}
        expected = [
            (*place, offset)
            for place, log in logs.items()
            for offset in sorted(log)
            if old[place] <= offset < new[place] and chain.matches(log[offset])
        ]
        assert all(old[place] <= new[place] for place in old)
        assert sorted(messages) == expected
        for place in old:
            offsets = [offset for *at, offset in messages if tuple(at) == place]
            assert offsets == sorted(offsets)
        chain.cursor = cursor

    def collect(self, chain: Chain) -> None:
        """Look whether an answer came on the connection on which a reader waits, or the framework got it back."""
        client = chain.on
        if client is None:
            return
        answers = client.answers
        assert len(answers) <= client.seen + 1
        if len(answers) > client.seen:
            client.seen += 1
            self.answered += 1
            chain.on = None
            self.take(chain, answers[-1])
            if answers[-1].closes:
                assert client.transport.ended == "closed"
                client.lose()
        elif client.replayed is not None:
            chain.on = None
            self.framework(chain, client.replayed)

    def take(self, chain: Chain, answer: Answer) -> None:
        assert answer.status == (200 if answer.body else 204)
        messages = answer.body["messages"] if answer.body else []
        if answer.body:
            assert answer.body["cursor"] == answer.cursor
            assert messages or not answer.body["up_to_date"]
        self.told(chain, [(m["channel"], m["partition"], m["offset"]) for m in messages], answer.cursor)

    def framework(self, chain: Chain, replayed: bytes) -> None:
        """Do what the framework does with a poll: from the cursor that it finds in the bytes."""
        before, behind = chain.head.head.split(b"%")
        assert replayed.startswith(before)
        assert replayed.endswith(behind)
        self.told(chain, [], replayed[len(before) : -len(behind)].decode())
        self.read_through(chain)

    def read_through(self, chain: Chain) -> None:
        """Answer a reader from the archive, if need be."""
        subscription = chain.head.facts.subscription
        assert isinstance(subscription, Subscription)
        position = self.world.lanes._crowds.places.position(chain.cursor.encode(), subscription.topics)
        reading = self.runner.run(self.world.reader.read(subscription, position))
        found = build(subscription, reading)
        self.told(chain, [(m.selection.channel, m.partition, m.record.offset) for m in reading.messages], found.cursor)

    def readable(self, chain: Chain) -> list[tuple[str, int, int]]:
        """Return what is in the tails' range for a reader."""
        return [
            (name, number, offset)
            for (name, number), start in chain.where(chain.cursor).items()
            if name in self.world.hub.topics and (tail := self.world.hub.topics[name].tails.get(number)) is not None
            for offset, record in self.world.kafka.partition(name, number).records.items()
            if start <= offset < tail.end and chain.matches(record)
        ]

    def collect_all(self) -> None:
        for chain in self.chains:
            self.collect(chain)

    # --- what happens ---

    def hand_over(self, chain: Chain, expires: float | None = None) -> None:
        """Send a reader's poll through the framework, which gives the connection away if it can."""
        holder = self.world.slots.holder(("test", chain.subject))
        if holder.held >= self.world.slots.quota or self.world.slots.held >= self.world.slots.total:
            return
        key = KeyRef("test", str(self.generation), "HS256", "")
        client = self.world.client(
            *chain.topics,
            wait=chain.wait,
            subject=chain.subject,
            key=chain.key,
            cursor=chain.cursor,
            limit=chain.limit,
            signed_by=key,
            expires=expires,
            or_none=True,
        )
        chain.head = client
        chain.expires = float("inf") if expires is None else self.world.clock.now + expires
        if client.transport.protocol is None:
            self.read_through(chain)
        else:
            chain.on = client
            self.collect(chain)

    @initialize(
        shapes=st.lists(st.sampled_from(SHAPES), min_size=4, max_size=10), subjects=st.lists(subjects, min_size=10, max_size=10)
    )
    def begin(self, shapes: list[Shape], subjects: list[str]) -> None:
        """Begin with some."""
        for shape, subject in zip(shapes, subjects, strict=False):
            self.arrive(shape, subject, None)

    @rule(shape=st.sampled_from(SHAPES), subject=subjects, expires=st.sampled_from((None, 3.0)))
    def arrive(self, shape: Shape, subject: str, expires: float | None) -> None:
        """Begin a chain at the end."""
        topics, key, wait, limit = shape
        if all(name in self.world.hub.topics and self.world.hub.topics[name].tails for name in topics):
            chain = Chain(topics, key, self.world.end(*topics), subject, wait, limit)
            self.chains.append(chain)
            self.hand_over(chain, expires)
            if chain.head is None:
                self.chains.remove(chain)

    @rule(place=places, keys=keys, turns=st.integers(0, 4))
    def append(self, place: tuple[str, int], keys: list[bytes | None], turns: int) -> None:
        """Let records come; of many, after an offset that holds none."""
        if len(keys) == 4:
            self.world.kafka.partition(*place).marker()
        self.world.say(place[0], *keys, partition=place[1])
        self.turn(turns)

    @rule(over=st.lists(anybody, min_size=10, max_size=10), pieces=st.integers(1, 2))
    def come_back(self, over: list[int], pieces: int) -> None:
        """Have those who do not wait poll again: over open lanes, their own or others', maybe in pieces, or new connections."""
        idle = [chain for chain in self.chains if chain.on is None]
        for chain, number in zip(idle, over, strict=False):
            lanes = self.open_lanes()
            own = [lane for lane in lanes if lane is chain.head]
            if own and number % 3:
                self.poll_over(chain, own[0], pieces)
            elif lanes and number % 2:
                self.poll_over(chain, lanes[number % len(lanes)], pieces)
            else:
                self.hand_over(chain)

    def open_lanes(self) -> list[Client]:
        """Return the connections that nobody waits on."""
        waited = {id(chain.on) for chain in self.chains}
        heads = {id(chain.head): chain.head for chain in self.chains if chain.head is not None}
        return [
            head
            for head in heads.values()
            if id(head) not in waited and isinstance(head.transport.protocol, Lane) and head.lane in self.world.lanes._lanes
        ]

    def poll_over(self, chain: Chain, client: Client, pieces: int) -> None:
        chain.on = client
        data = chain.head.request(chain.cursor)
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
        self.collect(chain)

    def read_on(self, chain: Chain) -> None:
        """Poll as often as it takes, until there is nothing more."""
        for _ in range(200):
            if chain.on is None and not self.readable(chain):
                return
            if chain.on is None:
                self.hand_over(chain)
            if chain.on is None and self.readable(chain):
                self.read_through(chain)
            if chain.on is not None and chain.on.parked and chain.on.lane.cohort.parked:
                return
            self.settle()
        raise AssertionError(f"{chain.on!r} does not come to the end")

    @precondition(lambda self: any(chain.on is not None for chain in self.chains))
    @rule(who=anybody)
    def leave(self, who: int) -> None:
        """Lose a connection; whoever waited on it will come back with the cursor that he had."""
        waiting = [chain for chain in self.chains if chain.on is not None]
        chain = waiting[who % len(waiting)]
        self.left += 1
        chain.on.lose()
        chain.on = None

    @rule(seconds=st.sampled_from((0.1, 0.4, 0.7, 2.0)), turns=st.integers(0, 3))
    def tick(self, seconds: float, turns: int) -> None:
        """Let time pass: nobody sleeps on beyond what he asked for, or his token's end; but for as long as the loop stood still."""
        late = bool(self.loop.soon)
        self.world.pass_(seconds)
        if late:
            self.stood_still = self.world.clock.now
        now = self.world.clock.now - 2 * TICK - 100 * self.world.clock.step
        for lane in self.world.lanes._lanes:
            if lane.cohort is not None and lane.cohort.parked:
                assert max(lane.since + lane.cohort.crowd.wait, self.stood_still) > now
                assert max(lane.armed.expires, self.stood_still) > now
        self.turn(turns)

    @rule(most=st.integers(1, 3))
    def turn(self, most: int) -> None:
        """Let the loop turn."""
        for _ in range(most):
            soon, self.loop.soon = self.loop.soon, []
            for callback in soon:
                callback()
        self.collect_all()

    def settle(self) -> None:
        while self.loop.soon:
            self.turn(1)

    @rule(step=st.sampled_from((0.0, SLICE_SECONDS / 2, SLICE_SECONDS)), turns=st.integers(0, 3))
    def slow(self, step: float, turns: int) -> None:
        """Let the machine get slower, or faster: slices end after one answer, or never."""
        self.world.clock.step = step
        self.turn(turns)

    @rule(what=st.sampled_from(("withdraw", "close", "reopen", "reopen", "forget", "refollow", "refollow")), place=places)
    def happen(self, what: str, place: tuple[str, int]) -> None:
        """Let a key be withdrawn, or a topic or partition be lost, forgotten, found again."""
        name, number = place
        if what == "withdraw":
            self.world.lanes.withdraw(KeyRef("test", str(self.generation), "HS256", ""))
            self.generation += 1
        elif what == "close":
            self.world.hub.close(*place)
        elif what == "forget":
            self.world.hub.forget(name)
        elif what == "refollow":
            self.refollow(name)
        elif name in self.world.hub.topics:
            self.world.kafka.open(name, number)

    def refollow(self, name: str) -> None:
        self.world.kafka.describe(name)
        for number in range(PARTITIONS[name]):
            if number not in self.world.hub.topics[name].tails:
                self.world.kafka.open(name, number)

    # --- what always holds ---

    @invariant()
    def nobody_sleeps_while_there_is_something_to_read(self) -> None:
        for chain in self.chains:
            if chain.on is not None and chain.on.parked and chain.on.lane.cohort.parked:
                assert not self.readable(chain)

    @invariant()
    def slots_are_held_by_those_who_are_parked(self) -> None:
        parked = Counter(lane.armed.principal.id for lane in self.world.lanes._lanes if lane.cohort is not None)
        assert self.world.slots.held == parked.total() <= self.world.slots.total
        assert all(held <= self.world.slots.quota for held in parked.values())
        assert all(self.world.slots.of(("test", who)) == parked["test", who] for who in ("ann", "bob", "cid"))
        assert sum(chain.on is not None and chain.on.parked for chain in self.chains) == parked.total()

    @invariant()
    def cohorts_know_their_members(self) -> None:
        for lane in self.world.lanes._lanes:
            if lane.cohort is not None:
                assert lane.cohort.members.count(lane) == 1
                if lane.cohort.parked:
                    assert len(lane.cohort) == sum(member.cohort is lane.cohort for member in lane.cohort.members)

    @invariant()
    def who_waits_was_not_forgotten(self) -> None:
        if not self.loop.soon:
            for chain in self.chains:
                if chain.on is not None and isinstance(chain.on.transport.protocol, Lane):
                    assert chain.on.lane.cohort is None or chain.on.lane.cohort.parked


def test_no_chain_of_cursors_loses_or_doubles_a_record():
    """In the order of each partition; whoever sleeps has nothing to read, holds one slot, and is told in time."""
    run_state_machine_as_test(Model, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))
