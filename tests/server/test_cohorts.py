"""Cohorts: who joins and leaves, whose sleep ends, what is told of it; without a loop, with numbers for time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fanout.fakekafka import FakeKafka

from gateway.fanout.cursor import Position, encode
from gateway.fanout.hub import CHANGED, RECORDS, TIMEOUT, Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Selection, Subscription
from gateway.limits import Slots
from gateway.server.cohorts import Cohorts
from gateway.server.crowd import Cohort, Crowd, Shape
from gateway.server.crowds import Crowds
from gateway.server.outcome import Outcome

NEVER = float("inf")


class World:
    """A topic, a crowd that reads it, and what was to be delivered: members, whence, why."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.hub = Hub(budget=2**20, tail_budget=2**20)
        self.kafka = FakeKafka(self.hub)
        self.kafka.create("a", 2)
        self.slots = Slots(quota=100, total=100)
        self.delivered: list[tuple[list[Any], Position | None, str]] = []
        self.cohorts = Cohorts(self.hub, self.slots, self.deliver, now=self.now)
        self.crowds = Crowds(self.hub, Reader(self.hub, self.kafka), lambda: 0.0)
        self.crowd = self.crowds.crowd(Shape(Subscription((Selection("a", "a", "a", None),)), 30.0, ()))

    def deliver(self, cohort: Cohort, position: Position | None, why: str) -> None:
        assert not cohort.parked
        self.delivered.append(([lane for lane in cohort.members if lane.cohort is cohort], position, why))

    @property
    def end(self) -> Position:
        return {"a": self.hub.topics["a"].position}

    def look(self, cursor: bytes | None = None) -> tuple[bytes, Outcome]:
        """Return what a poll at the end of the tails, or with a cursor, comes to."""
        cursor = cursor or encode(self.end).encode()
        outcome = self.crowd.look(cursor, self.now)
        assert outcome is not None
        return cursor, outcome

    def lane(self, cursor: bytes | None = None, expires: float = NEVER) -> Any:
        """Return a lane that has been parked."""
        lane: Any = Lane(self.crowd, self.slots, expires)
        self.cohorts.park(lane, *self.look(cursor), self.now)
        return lane

    def wake(self) -> None:
        """Wake whom the hub has collected."""
        for waiter in self.hub.take(100):
            waiter.wake()

    def tick(self, now: float) -> None:
        self.now = now
        self.cohorts.tick(now, "expired")


class Lane:
    """A lane, as far as it matters here."""

    def __init__(self, crowd: Crowd, slots: Slots, expires: float) -> None:
        self.cohort: Cohort | None = None
        self.since = 0.0
        self.armed = SimpleNamespace(crowd=crowd, holder=slots.holder("ann"), expires=expires, near=expires - crowd.wait)


@pytest.fixture
def world() -> World:
    return World()


def test_those_at_the_end_of_the_tails_sleep_together(world: World) -> None:
    """As one waiter of the hub; each holds a slot, and who comes with the same cursor is known by it."""
    lanes = [world.lane() for _ in range(3)]
    cohort = lanes[0].cohort
    assert cohort is world.crowd.cohort
    assert {lane.cohort for lane in lanes} == {cohort}
    assert (cohort.members, cohort.tip, world.hub.parked) == (lanes, world.look()[0], 1)
    assert (world.slots.held, lanes[0].armed.holder.held) == (3, 3)
    assert repr(world.cohorts) == "<Cohorts, <Wheel, 1 alarms, 0 early ends>>"


def test_who_stands_elsewhere_sleeps_apart(world: World) -> None:
    """The crowd's cohort is another, and has another tip."""
    world.hub.close("a", 1)
    here = world.end["a"]
    apart = world.lane(encode({"a": here._replace(offsets={0: 0, 1: 9})}).encode())
    assert world.crowd.cohort is None
    assert (apart.cohort.tip, apart.cohort.apart) == (b"", {"a": here._replace(offsets={0: 0, 1: 9})})
    lane = world.lane()
    assert lane.cohort is world.crowd.cohort is not apart.cohort


def test_a_woken_cohort_is_delivered_from_its_moment(world: World) -> None:
    """Whoever comes meanwhile sleeps in another one."""
    lane = world.lane()
    world.kafka.say("a", 0, None)
    world.wake()
    assert world.delivered == [([lane], None, RECORDS)]
    late = world.lane()
    assert late.cohort is world.crowd.cohort is not lane.cohort


def test_a_cohort_whose_members_have_left_is_not_delivered(world: World) -> None:
    """The hub knows it no more; one that it has woken already is nobody's."""
    lane, other = world.lane(), world.lane()
    world.cohorts.leave(lane, lane.cohort)
    assert (lane.cohort, world.slots.held, world.hub.parked) == (None, 1, 1)
    world.kafka.say("a", 0, None)
    world.cohorts.leave(other, other.cohort)
    world.wake()
    assert (world.delivered, world.slots.held, world.hub.parked) == ([], 0, 0)
    last = world.lane()
    world.cohorts.leave(last, last.cohort)
    assert world.hub.parked == 0


def test_a_cohort_of_whom_all_are_answered_is_used_again(world: World) -> None:
    """In a crowd of one that is done for each record."""
    lane = world.lane()
    cohort = lane.cohort
    world.kafka.say("a", 0, None)
    world.wake()
    lane.cohort = None
    cohort.empty()
    assert world.lane().cohort is cohort


def test_each_wait_ends_by_itself(world: World) -> None:
    """Where the tails end then; the cohort sleeps on with the others until nobody is left."""
    first, gone = world.lane(), world.lane()
    world.tick(1_010.0)
    second = world.lane()
    cohort = second.cohort
    world.cohorts.leave(gone, cohort)
    world.tick(1_030.2)
    assert world.delivered == [([first], world.end, TIMEOUT)]
    assert first.cohort is not cohort
    assert (cohort.members, cohort.parked, world.slots.held) == ([second], True, 2)
    world.tick(1_040.2)
    assert world.delivered[1:] == [([second], world.end, TIMEOUT)]
    assert world.hub.parked == 0


def test_an_alarm_finds_nobodys_time_over(world: World) -> None:
    """It was that of one who left: the next one's is watched."""
    first = world.lane()
    world.tick(1_010.0)
    second = world.lane()
    world.cohorts.leave(first, first.cohort)
    world.tick(1_030.2)
    assert world.delivered == []
    world.tick(1_040.2)
    assert world.delivered == [([second], world.end, TIMEOUT)]


def test_an_alarm_of_a_woken_cohort_is_no_alarm(world: World) -> None:
    """It is on its way to an answer."""
    world.lane()
    world.kafka.say("a", 0, None)
    world.tick(1_030.2)
    assert world.delivered == []


def test_a_token_that_ends_before_the_wait_ends_the_sleep(world: World) -> None:
    """For the reason that is given; that of others goes on."""
    lane, other, late = world.lane(expires=1_005.0), world.lane(), world.lane(expires=1_031.0)
    world.tick(1_005.2)
    assert world.delivered == [([lane], world.end, "expired")]
    assert (len(other.cohort), late.cohort) == (2, other.cohort)


def test_only_sleepers_are_ended(world: World) -> None:
    """Who was woken is on the way to an answer, and who is in no cohort does not wait."""
    woken = world.lane()
    world.kafka.say("a", 0, None)
    lane, idle = world.lane(), world.lane()
    world.cohorts.leave(idle, idle.cohort)
    world.cohorts.end([woken, lane, idle], "drained")
    assert world.delivered == [([lane], world.end, "drained")]


def test_the_cohorts_of_a_drain_are_told_one_by_one(world: World) -> None:
    """Each where its members stand."""
    world.hub.close("a", 1)
    position = {"a": world.end["a"]._replace(offsets={0: 0, 1: 9})}
    apart, lane = world.lane(encode(position).encode()), world.lane()
    world.cohorts.end([apart, lane], "drained")
    assert world.delivered == [([apart], position, "drained"), ([lane], world.end, "drained")]


def test_those_who_wake_to_nothing_sleep_on(world: World) -> None:
    """With their slots, their waits, and the ends of their tokens."""
    first = world.lane(expires=1_012.0)
    world.tick(1_010.0)
    second = world.lane()
    cohort = first.cohort
    world.hub.open("a", 1, start=0, log_start=0)
    world.wake()
    assert world.delivered == [([first, second], None, CHANGED)]
    world.delivered.clear()
    world.cohorts.move([first, second], world.look()[1], world.now)
    assert first.cohort is second.cohort is world.crowd.cohort is not cohort
    assert (world.hub.parked, world.slots.held) == (1, 2)
    world.tick(1_012.2)
    world.tick(1_039.9)
    assert world.delivered == [([first], world.end, "expired")]
    world.tick(1_040.2)
    assert world.delivered[1:] == [([second], world.end, TIMEOUT)]


def test_who_wakes_to_nothing_after_his_time_is_looked_at_in_the_next_tick(world: World) -> None:
    """It was over while he was on the way."""
    lane = world.lane()
    world.hub.open("a", 1, start=0, log_start=0)
    world.wake()
    world.delivered.clear()
    world.tick(1_031.0)
    world.cohorts.move([lane], world.look()[1], world.now)
    world.tick(1_031.2)
    assert world.delivered == [([lane], world.end, TIMEOUT)]
