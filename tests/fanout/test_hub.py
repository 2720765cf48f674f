"""The hub, verb by verb: who is woken, with which moment, and what is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fanout.cursor import Position, TopicPosition, id_hash
from gateway.fanout.hub import CHANGED, RECORDS, TICK, TIMEOUT, Hub, Interest, Waiter, advance
from gateway.records import OVERHEAD_BYTES, Record

ID, OTHER_ID = b"\x01" * 16, b"\x02" * 16
FAR = 1_000.0


def record(offset: int, key: bytes | None = None, value: bytes | None = b"") -> Record:
    return Record(offset, 0, key, value)


class Bell:
    """Counts how often the hub called for the shell."""

    def __init__(self) -> None:
        self.rung = 0

    def __call__(self) -> None:
        self.rung += 1


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def hub(bell: Bell) -> Hub:
    """Topics a (partitions 0 and 1) and b (partition 0), each log from 0, each tail empty at 10."""
    hub = Hub(budget=2**20, tail_budget=2**20, on_woken=bell)
    for name, count in (("a", 2), ("b", 1)):
        hub.describe(name, topic_id=ID, partitions=count)
        for partition in range(count):
            hub.open(name, partition, start=10, log_start=0)
    return hub


def ends(hub: Hub, *names: str) -> Position:
    return {name: hub.topics[name].position for name in names}


def parked(
    hub: Hub,
    *interests: tuple[str, bytes | None],
    position: Position | None = None,
    deadline: float | None = FAR,
    labels: tuple[str, ...] = (),
) -> Waiter:
    """Park a waiter at the tail or at `position`."""
    waiter = Waiter(tuple(Interest(*interest) for interest in interests), labels)
    at_tail = position is None
    here = ends(hub, *(name for name, _ in interests)) if position is None else position
    hub.park(waiter, here, at_tail=at_tail, deadline=deadline)
    return waiter


def at(*offsets: int, topic: str = "a", topic_id: bytes | None = ID) -> Position:
    return {topic: TopicPosition(id_hash(topic_id), dict(enumerate(offsets)))}


# --- topics ---


def test_topics_are_known_from_create_to_forget(hub: Hub) -> None:
    assert hub.topic("c") is None
    topic = hub.create("c")
    assert hub.create("c") is hub.topic("c") is topic
    assert (topic.topic_id, topic.partition_count, topic.id_hash, topic.tails, topic.parked) == (None, 0, 0, {}, 0)
    assert (topic.version, topic.last_polled) == (0, 0.0)
    hub.forget("c")
    hub.forget("c")
    assert hub.topic("c") is None


def test_the_state_can_be_read_from_repr(hub: Hub) -> None:
    parked(hub, ("a", None))
    assert repr(hub) == "<Hub 2 topics, 0 bytes, 1 parked, 0 woken>"
    tail = "<Tail 10..10 of 0 records, 0 bytes, log from 0>"
    assert repr(hub.topics["a"]) == f"<Topic a {{0: {tail}, 1: {tail}}} parked=1>"


def test_describe_notes_id_and_count_and_wakes_with_the_position_before(hub: Hub) -> None:
    for count in (1, 2):
        hub.describe("c", topic_id=None, partitions=count)
        assert hub.topics["c"].version == count
    waiter = parked(hub, ("c", None), ("a", None), position={"c": TopicPosition(0, {}), **at(10, 10)})
    version = hub.topics["c"].version
    hub.describe("c", topic_id=ID, partitions=3)
    topic = hub.topics["c"]
    assert (topic.topic_id, topic.partition_count, topic.id_hash) == (ID, 3, id_hash(ID))
    assert topic.version == version + 1
    assert (waiter.parked, waiter.why) == (False, CHANGED)
    assert waiter.moment["c"] == TopicPosition(0, {})
    assert waiter.moment["a"] == hub.topics["a"].position


@pytest.mark.parametrize("known", [ID, None, bytes(16)])
def test_describing_what_is_known_changes_nothing(hub: Hub, known: bytes | None) -> None:
    waiter, version = parked(hub, ("a", None)), hub.topics["a"].version
    hub.describe("a", topic_id=known, partitions=2)
    assert waiter.parked
    assert (hub.topics["a"].version, hub.topics["a"].topic_id) == (version, ID)


def test_an_id_that_becomes_known_keeps_the_tails(hub: Hub) -> None:
    hub.describe("c", topic_id=None, partitions=1)
    hub.open("c", 0, start=3, log_start=0)
    waiter = parked(hub, ("c", None))
    hub.describe("c", topic_id=ID, partitions=1)
    assert not waiter.parked
    assert hub.topics["c"].position == TopicPosition(id_hash(ID), {0: 3})
    assert hub.topics["c"].tails.keys() == {0}


def test_another_id_drops_the_tails_and_wakes_with_the_old_position(hub: Hub) -> None:
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    waiter, other = parked(hub, ("a", b"x")), parked(hub, ("b", None))
    before = hub.topics["a"].position
    hub.describe("a", topic_id=OTHER_ID, partitions=2)
    topic = hub.topics["a"]
    assert (topic.tails, topic.topic_id, topic.partition_count) == ({}, OTHER_ID, 2)
    assert topic.position == TopicPosition(id_hash(OTHER_ID), {})
    assert hub.cost == 0
    assert (waiter.parked, waiter.why, waiter.moment["a"]) == (False, CHANGED, before)
    assert other.parked


def test_more_partitions_keep_the_tails_and_wake(hub: Hub) -> None:
    waiter = parked(hub, ("a", None))
    hub.describe("a", topic_id=ID, partitions=3)
    assert (hub.topics["a"].partition_count, hub.topics["a"].tails.keys()) == (3, {0, 1})
    assert not waiter.parked


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_partitions_drop_the_tails_and_keep_the_id(hub: Hub, count: int) -> None:
    waiter = parked(hub, ("a", None))
    hub.describe("a", topic_id=None, partitions=count)
    topic = hub.topics["a"]
    assert (topic.tails, topic.partition_count, topic.topic_id) == ({}, count, ID)
    assert topic.position == TopicPosition(id_hash(ID), {})
    assert (waiter.parked, waiter.moment["a"].offsets) == (False, {0: 10, 1: 10})


def test_open_makes_a_partition_readable_and_wakes_with_the_position_before(hub: Hub) -> None:
    waiter = parked(hub, ("a", b"x"), ("b", None))
    version = hub.topics["a"].version
    hub.open("a", 2, start=5, log_start=1)
    tail = hub.topics["a"].tails[2]
    assert (tail.start, tail.end, tail.log_start) == (5, 5, 1)
    assert hub.topics["a"].partition_count == 3
    assert hub.topics["a"].position.offsets == {0: 10, 1: 10, 2: 5}
    assert hub.topics["a"].version > version
    assert (waiter.parked, waiter.why) == (False, CHANGED)
    assert waiter.moment["a"].offsets == {0: 10, 1: 10}
    assert waiter.moment["b"].offsets == {0: 10}


def test_opening_again_drops_what_was_held(hub: Hub) -> None:
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    waiter = parked(hub, ("a", None))
    hub.open("a", 0, start=40, log_start=30)
    tail = hub.topics["a"].tails[0]
    assert (len(tail), tail.start, hub.cost, hub.topics["a"].partition_count) == (0, 40, 0, 2)
    assert waiter.moment["a"].offsets == {0: 11, 1: 10}
    assert hub.topics["a"].position.offsets == {0: 40, 1: 10}


def test_close_drops_one_tail_and_lets_its_readers_look_again(hub: Hub) -> None:
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    waiter, other = parked(hub, ("a", None), ("a", b"x")), parked(hub, ("b", None))
    hub.close("a", 0)
    assert hub.topics["a"].position.offsets == {1: 10}
    assert hub.cost == 0
    assert (waiter.parked, waiter.why, waiter.moment["a"].offsets) == (False, CHANGED, {0: 11, 1: 10})
    assert other.parked
    assert hub.take(9) == [waiter]


def test_closing_what_is_not_open_does_nothing(hub: Hub) -> None:
    waiter = parked(hub, ("a", None))
    hub.close("a", 7)
    hub.close("c", 0)
    assert waiter.parked
    assert hub.topic("c") is None


def test_forget_wakes_with_the_last_position(hub: Hub) -> None:
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    waiter = parked(hub, ("a", None), ("b", None))
    hub.forget("a")
    assert hub.cost == 0
    assert (waiter.parked, waiter.why) == (False, CHANGED)
    assert waiter.moment["a"].offsets == {0: 11, 1: 10}
    assert hub.topics["b"].parked == 0


# --- append ---


def test_append_to_what_is_not_open_is_left_alone(hub: Hub) -> None:
    assert hub.append("c", 0, [record(1)], end=2, log_start=0) == 0
    assert hub.append("a", 7, [record(1)], end=2, log_start=0) == 0
    assert hub.topic("c") is None
    assert hub.cost == 0


def test_append_moves_the_position_and_the_version_only_with_the_end(hub: Hub) -> None:
    topic = hub.topics["a"]
    kept, version = topic.position, topic.version
    hub.append("a", 0, [record(10)], end=12, log_start=0)
    assert kept.offsets == {0: 10, 1: 10}
    assert topic.position.offsets == {0: 12, 1: 10}
    assert topic.version == version + 1
    hub.append("a", 0, [record(10)], end=12, log_start=5)
    assert topic.version == version + 1
    assert topic.tails[0].log_start == 5


def test_append_wakes_readers_of_all_records_and_of_the_key(hub: Hub, bell: Bell) -> None:
    whole, x, y, other = (parked(hub, i) for i in (("a", None), ("a", b"x"), ("a", b"y"), ("b", None)))
    assert hub.append("a", 1, [record(10, b"x"), record(11)], end=12, log_start=0) == 2
    assert (whole.parked, x.parked, y.parked, other.parked) == (False, False, True, True)
    assert {whole.why, x.why} == {RECORDS}
    assert whole.moment is x.moment
    assert whole.moment == {"a": TopicPosition(id_hash(ID), {0: 10, 1: 10}), "b": hub.topics["b"].position}
    assert bell.rung == 1


def test_no_records_and_records_without_key_wake_no_keyed_reader(hub: Hub, bell: Bell) -> None:
    keyed, whole = parked(hub, ("a", b"x")), parked(hub, ("a", None))
    assert hub.append("a", 0, [], end=15, log_start=0) == 0
    assert (keyed.parked, whole.parked, bell.rung) == (True, True, 0)
    assert hub.append("a", 0, [record(15)], end=16, log_start=0) == 1
    assert (keyed.parked, whole.parked) == (True, False)


def test_records_that_came_before_wake_nobody(hub: Hub) -> None:
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    waiter = parked(hub, ("a", None))
    assert hub.append("a", 0, [record(10)], end=11, log_start=0) == 0
    assert waiter.parked


def test_a_reader_of_several_keys_wakes_once(hub: Hub) -> None:
    waiter = parked(hub, ("a", b"x"), ("a", b"y"), ("b", None))
    assert hub.topics["a"].parked == 2
    assert hub.append("a", 0, [record(10, b"x"), record(11, b"y")], end=12, log_start=0) == 1
    assert hub.take(9) == [waiter]
    assert (hub.topics["a"].keyed, hub.topics["b"].whole) == ({}, {})


def test_one_of_two_readers_of_a_key_leaves_the_other_in_place(hub: Hub) -> None:
    first, second = parked(hub, ("a", b"x")), parked(hub, ("a", b"x"))
    hub.unpark(first)
    assert hub.append("a", 0, [record(10, b"x")], end=11, log_start=0) == 1
    assert not second.parked


def test_the_shell_is_called_once_until_the_queue_is_empty(hub: Hub, bell: Bell) -> None:
    waiters = [parked(hub, ("a", None)) for _ in range(3)]
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    late = parked(hub, ("a", None))
    hub.append("a", 0, [record(11)], end=12, log_start=0)
    assert bell.rung == 1
    assert hub.take(2) == waiters[:2]
    assert hub.take(2) == [waiters[2], late]
    assert hub.take(2) == []
    parked(hub, ("b", None))
    hub.append("b", 0, [record(10)], end=11, log_start=0)
    assert bell.rung == 2


def test_nobody_needs_to_be_called() -> None:
    hub = Hub(budget=1, tail_budget=1)
    waiter = parked(hub, ("a", None), position={"a": TopicPosition(0, {})})
    assert hub.end([waiter], "why") == 1


# --- waiters ahead, behind, elsewhere ---


@pytest.mark.parametrize(("offset", "wakes"), [(11, True), (12, True), (13, False)])
@pytest.mark.parametrize("key", [None, b"x"])
def test_a_waiter_ahead_of_the_tail_wakes_only_for_what_it_has_not_read(
    hub: Hub, offset: int, wakes: bool, key: bytes | None
) -> None:
    waiter = parked(hub, ("a", key), position=at(offset, 10))
    assert (
        hub.append("a", 0, [record(11, b"x"), record(12, b"x"), record(13, b"z")][: 2 + (key is not None)], end=14, log_start=0)
        == wakes
    )
    assert waiter.parked is not wakes


def test_a_waiter_ahead_goes_by_the_last_record_of_its_key(hub: Hub) -> None:
    """The newest record of the fetch is news, but not of its key."""
    waiter = parked(hub, ("a", b"x"), position=at(12, 10))
    assert hub.append("a", 0, [record(11, b"x"), record(12, b"y")], end=13, log_start=0) == 0
    assert waiter.parked


def test_a_waiter_that_does_not_read_a_partition_is_not_woken_for_it(hub: Hub) -> None:
    """It follows a partitioner; its key was written elsewhere by hand."""
    waiter = parked(hub, ("a", b"x"), position={"a": TopicPosition(id_hash(ID), {1: 10}, 2)})
    assert hub.append("a", 0, [record(10, b"x")], end=11, log_start=0) == 0
    assert waiter.parked
    assert hub.append("a", 1, [record(10, b"x")], end=11, log_start=0) == 1


def test_a_sleeper_does_not_fall_behind(hub: Hub) -> None:
    at_tail = parked(hub, ("a", b"x"))
    apart = parked(hub, ("a", b"x"), position=at(10, 99))
    for n in range(10, 60):
        hub.append("a", 0, [record(n, b"unrelated")], end=n + 1, log_start=0)
    hub.append("a", 0, [record(60, b"x")], end=61, log_start=0)
    assert at_tail.apart is None
    assert at_tail.moment["a"].offsets == {0: 60, 1: 10}
    assert apart.apart is not None
    assert advance(apart.apart, apart.moment) == at(60, 99)


def test_a_waiter_behind_a_tail_stays_where_it_was(hub: Hub) -> None:
    """Its history could not be fetched: moving on to the tail's end would skip it."""
    position = {**at(4, 12), "b": hub.topics["b"].position}
    waiter = parked(hub, ("a", b"x"), ("b", None), position=position)
    hub.append("b", 0, [record(10)], end=11, log_start=0)
    assert waiter.apart is not None
    assert advance(waiter.apart, waiter.moment) == position


def test_a_waiter_that_was_behind_may_be_parked_again_at_the_tail(hub: Hub) -> None:
    waiter = parked(hub, ("a", None), position=at(4, 10))
    hub.unpark(waiter)
    hub.park(waiter, ends(hub, "a"), at_tail=True, deadline=FAR)
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    assert waiter.moment["a"] == at(10, 10)["a"]


@pytest.mark.parametrize(
    "position",
    [at(10, 10), at(11, 10), {"a": TopicPosition(id_hash(ID), {0: 10, 7: 3})}, {**at(10, 10), "c": TopicPosition(0, {0: 1})}],
    ids=["at the end", "ahead", "a partition without tail", "a topic that is not known"],
)
def test_who_is_not_behind_any_tail_gets_the_moment(hub: Hub, position: Position) -> None:
    waiter = parked(hub, ("a", None), position=position)
    hub.end([waiter], "why")
    assert waiter.moment["a"] == hub.topics["a"].position


# --- counting ---


def test_parked_waiters_are_counted_by_label_and_topic(hub: Hub) -> None:
    first = parked(hub, ("a", None), ("b", b"x"), labels=("p", "q"))
    second = parked(hub, ("a", None), labels=("p",))
    assert (hub.parked, hub.parked_by["p"], hub.parked_by["q"]) == (2, 2, 1)
    assert (hub.topics["a"].parked, hub.topics["b"].parked) == (2, 1)
    assert list(hub.topics["b"].waiters()) == [first]
    hub.unpark(first)
    hub.unpark(first)
    assert (hub.parked, hub.parked_by["p"], hub.parked_by["q"]) == (1, 1, 0)
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    hub.unpark(second)
    assert (hub.parked, +hub.parked_by, hub.topics["a"].parked, hub.topics["b"].keyed) == (0, {}, 0, {})
    assert hub.take(9) == [second]
    assert hub._wheel == {}


def test_parking_makes_a_topic_known(hub: Hub) -> None:
    waiter = parked(hub, ("c", None), position={"c": TopicPosition(0, {})})
    assert hub.topics["c"].parked == 1
    hub.describe("c", topic_id=ID, partitions=1)
    assert not waiter.parked


def test_a_new_waiter_wakes_to_nothing() -> None:
    waiter = Waiter((Interest("a", None),))
    assert (waiter.apart, waiter.moment, waiter.parked, waiter.why, waiter.labels) == (None, {}, False, RECORDS, ())
    waiter.wake()


# --- deadlines ---


def test_a_deadline_wakes_at_the_next_tick_and_not_before(hub: Hub) -> None:
    first, second = parked(hub, ("a", None), deadline=5.01), parked(hub, ("a", b"x"), deadline=7.0)
    assert hub.waiters() == [first, second]
    assert hub.expire(5.0) == hub.expire(5.02) == 0
    assert hub.expire(5.11) == 1
    assert (first.parked, first.why, second.parked) == (False, TIMEOUT, True)
    assert first.moment["a"].offsets == {0: 10, 1: 10}
    assert hub.take(9) == [first]


def test_a_deadline_that_has_passed_is_reached_at_the_next_tick(hub: Hub) -> None:
    hub.expire(50.0)
    waiter = parked(hub, ("a", None), deadline=3.0)
    assert hub.expire(50.05) == 0
    assert waiter.parked
    assert hub.expire(50.11) == 1


def test_a_wheel_that_stood_still_wakes_the_nearest_deadlines_first(hub: Hub) -> None:
    late, early, never = (parked(hub, ("a", None), deadline=d) for d in (9.0, 5.0, 500.0))
    assert hub.expire(100.0) == 2
    assert hub.take(9) == [early, late]
    assert hub.waiters() == [never]


@given(st.lists(st.floats(0, 60), min_size=1, max_size=20), st.floats(0, 1e6), st.lists(st.floats(0.001, TICK), max_size=40))
def test_deadlines_are_never_early_and_at_most_one_tick_late(waits: list[float], start: float, steps: list[float]) -> None:
    hub = Hub(budget=1, tail_budget=1)
    now = start
    hub.expire(now)
    deadlines = {}
    for wait in waits:
        waiter = parked(hub, ("a", None), position={"a": TopicPosition(0, {})}, deadline=now + wait)
        deadlines[waiter] = now + wait
    for step in [*steps, 30.0, 31.0]:
        now += step
        hub.expire(now)
        for waiter, deadline in deadlines.items():
            assert waiter.parked or deadline < now
            assert not waiter.parked or now < deadline + TICK + 1e-6
    assert hub.parked == 0


def test_a_waiter_without_a_deadline_is_no_business_of_the_wheel(hub: Hub) -> None:
    """It stands for many readers and watches their deadlines itself; records and the topic wake it all the same."""
    waiter, other = parked(hub, ("a", None), deadline=None), parked(hub, ("a", None))
    assert hub.waiters() == [other]
    assert hub.expire(1e9) == 1
    assert waiter.parked
    assert hub.parked == 1
    assert hub.append("a", 0, [record(10)], end=11, log_start=0) == 1
    assert (waiter.parked, waiter.why, hub.parked) == (False, RECORDS, 0)
    again = parked(hub, ("a", None), deadline=None)
    hub.unpark(again)
    hub.unpark(again)
    assert (again.parked, hub.parked, hub.topics["a"].parked) == (False, 0, 0)
    assert hub.take(9) == [other, waiter]


# --- ends for other reasons ---


def test_the_moment_is_where_all_tails_end_now(hub: Hub) -> None:
    """What happens later does not change it."""
    moment = hub.moment()
    assert moment == {"a": TopicPosition(id_hash(ID), {0: 10, 1: 10}), "b": TopicPosition(id_hash(ID), {0: 10})}
    hub.append("a", 0, [record(10)], end=11, log_start=0)
    hub.forget("b")
    assert moment == {"a": TopicPosition(id_hash(ID), {0: 10, 1: 10}), "b": TopicPosition(id_hash(ID), {0: 10})}
    assert hub.moment() == {"a": TopicPosition(id_hash(ID), {0: 11, 1: 10})}


def test_end_wakes_for_the_callers_reason_and_counts_who_was_parked(hub: Hub) -> None:
    first, second = parked(hub, ("a", None)), parked(hub, ("b", None))
    assert hub.end([first, first], "revoked") == 1
    assert hub.end([first, second], "drained") == 1
    assert (first.why, second.why) == ("revoked", "drained")
    assert hub.end([first, second], "again") == 0
    assert hub.take(9) == [first, second]
    assert hub.parked == 0


# --- memory ---


def test_one_tail_keeps_to_its_own_budget_with_some_slack_for_the_next_records() -> None:
    hub = Hub(budget=2**20, tail_budget=64 * OVERHEAD_BYTES)
    hub.open("a", 0, start=0, log_start=0)
    for n in range(64):
        hub.append("a", 0, [record(n)], end=n + 1, log_start=0)
    tail = hub.topics["a"].tails[0]
    assert (len(tail), tail.start, hub.cost) == (64, 0, 64 * OVERHEAD_BYTES)
    hub.append("a", 0, [record(64)], end=65, log_start=0)
    assert (len(tail), tail.start, hub.cost) == (62, 3, 62 * OVERHEAD_BYTES)


def test_the_slack_is_whole_bytes() -> None:
    """A thirty-second part, rounded down: a byte more would cost another record."""
    hub = Hub(budget=2**20, tail_budget=28_614)
    hub.open("a", 0, start=0, log_start=0)
    hub.append("a", 0, [record(n) for n in range(66)], end=66, log_start=0)
    assert len(hub.topics["a"].tails[0]) == 63
    hub = Hub(budget=14_091, tail_budget=2**20)
    hub.open("a", 0, start=0, log_start=0)
    hub.append("a", 0, [*(record(n) for n in range(31)), record(31, value=bytes(6))], end=32, log_start=0)
    assert len(hub.topics["a"].tails[0]) == 31


def test_the_largest_tail_gives_up_its_oldest_records_for_the_others() -> None:
    hub = Hub(budget=100 * OVERHEAD_BYTES, tail_budget=2**20)
    for partition in range(2):
        hub.open("a", partition, start=0, log_start=0)
    hub.open("b", 0, start=0, log_start=0)
    hub.append("a", 1, [record(n) for n in range(96)], end=96, log_start=0)
    hub.append("b", 0, [record(n) for n in range(4)], end=4, log_start=0)
    assert hub.cost == 100 * OVERHEAD_BYTES
    hub.append("b", 0, [record(4)], end=5, log_start=0)
    sizes = len(hub.topics["a"].tails[1]), len(hub.topics["b"].tails[0])
    assert sizes == (93, 5)
    assert hub.cost == 98 * OVERHEAD_BYTES


def test_one_fetch_that_is_far_over_the_budget_is_cut_at_once() -> None:
    hub = Hub(budget=10 * OVERHEAD_BYTES, tail_budget=2**20)
    hub.open("a", 0, start=0, log_start=0)
    hub.append("a", 0, [record(n) for n in range(50)], end=50, log_start=0)
    assert hub.cost == 10 * OVERHEAD_BYTES
    assert hub.topics["a"].tails[0].start == 40


def test_a_record_that_is_larger_than_all_budgets_wakes_its_readers_and_is_not_kept() -> None:
    hub = Hub(budget=10, tail_budget=10)
    hub.open("a", 0, start=0, log_start=0)
    waiter = parked(hub, ("a", None))
    assert hub.append("a", 0, [record(0)], end=1, log_start=0) == 1
    assert not waiter.parked
    assert (hub.cost, hub.topics["a"].tails[0].start) == (0, 1)


# --- advance ---

MOVES: dict[str, tuple[TopicPosition, TopicPosition | None, TopicPosition]] = {
    "moves on": (TopicPosition(1, {0: 5, 1: 9}, 2), TopicPosition(1, {0: 8, 1: 9}), TopicPosition(1, {0: 8, 1: 9}, 2)),
    "ahead stays": (TopicPosition(1, {0: 5}), TopicPosition(1, {0: 4}), TopicPosition(1, {0: 5})),
    "no tail stays": (TopicPosition(1, {0: 5}), TopicPosition(1, {1: 8}), TopicPosition(1, {0: 5})),
    "unknown topic stays": (TopicPosition(1, {0: 5}), None, TopicPosition(1, {0: 5})),
    "re-created stays": (TopicPosition(1, {0: 5}), TopicPosition(2, {0: 8}), TopicPosition(1, {0: 5})),
    "learns the id": (TopicPosition(0, {0: 5}), TopicPosition(2, {0: 8}), TopicPosition(2, {0: 8})),
    "keeps the id": (TopicPosition(1, {0: 5}), TopicPosition(0, {0: 8}), TopicPosition(1, {0: 8})),
    "names no more": (TopicPosition(1, {0: 5}), TopicPosition(1, {0: 8, 1: 8}), TopicPosition(1, {0: 8})),
}


@pytest.mark.parametrize(("own", "ends", "moved"), MOVES.values(), ids=MOVES)
def test_advance(own: TopicPosition, ends: TopicPosition | None, moved: TopicPosition) -> None:
    other = TopicPosition(9, {0: 1})
    moment = {"b": other} | ({"a": ends} if ends is not None else {})
    assert advance({"a": own, "b": other}, moment) == {"a": moved, "b": other}


def test_a_failing_call_of_the_shell_loses_no_waiter(hub: Hub) -> None:
    """The queue is filled before the shell is called."""

    def fail() -> None:
        raise RuntimeError

    hub._on_woken = fail
    waiter = parked(hub, ("a", None))
    with pytest.raises(RuntimeError):
        hub.append("a", 0, [record(10)], end=11, log_start=0)
    assert hub.take(9) == [waiter]


def test_a_hole_wakes_whoever_might_have_read_what_was_there() -> None:
    """Keyed readers too, since nobody knows the keys of a damaged batch; not those that are ahead of it."""
    hub = Hub(budget=2**20, tail_budget=2**20)
    hub.describe("a", topic_id=None, partitions=1)
    hub.open("a", 0, start=0, log_start=0)
    keyed, whole, apart, ahead = (Waiter((Interest("a", key),)) for key in (b"k", None, b"k", b"k"))
    for waiter in (keyed, whole, apart):
        hub.park(waiter, {"a": TopicPosition(0, {0: 0})}, at_tail=waiter is not apart, deadline=9.0)
    hub.park(ahead, {"a": TopicPosition(0, {0: 7})}, at_tail=False, deadline=9.0)
    assert hub.append("a", 0, [Record.hole(0, 3)], end=3, log_start=0) == 3
    assert set(hub.take(9)) == {keyed, whole, apart}
