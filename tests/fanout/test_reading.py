"""One reading: which records come, in which order, how many, and where the reader stands afterwards."""

import pytest

from gateway.errors import SubscriptionTooWide
from gateway.fanout.cursor import Position, TopicPosition, id_hash, partition_for
from gateway.fanout.hub import Hub
from gateway.fanout.reading import Lost, Message, Messages, Reading, Run, Survey, collect, survey
from gateway.fanout.subscription import Selection, Subscription
from gateway.records import Block, Record

ID = b"\x01" * 16
HASH = id_hash(ID)


def record(offset: int, key: bytes | None = None, at: int | None = 0, value: bytes | None = b"") -> Record:
    return Record(offset, at, key, value)


def channel(name: str, topic: str = "a", key: bytes | None = None, priority: int = 100, **more: object) -> Selection:
    return Selection(name, name, topic, key, priority=priority, **more)


def hub_with(**tails: list[list[Record]]) -> Hub:
    """Topics with these records in the tails, which begin at offset 0 as their logs do."""
    hub = Hub(budget=2**30, tail_budget=2**30)
    for name, partitions in tails.items():
        hub.describe(name, topic_id=ID, partitions=len(partitions))
        for partition, records in enumerate(partitions):
            hub.open(name, partition, start=0, log_start=0)
            hub.append(name, partition, records, end=records[-1].offset + 1 if records else 0, log_start=0)
    return hub


def cold_hub(start: int, *, end: int | None = None, log_start: int = 0, partitions: int = 1) -> Hub:
    """Topic a, whose tails begin at `start`, far from the log start."""
    hub = Hub(budget=2**30, tail_budget=2**30)
    hub.describe("a", topic_id=ID, partitions=partitions)
    for partition in range(partitions):
        hub.open("a", partition, start=start, log_start=log_start)
        hub.append("a", partition, [record(n) for n in range(start, end or start)], end=end or start, log_start=log_start)
    return hub


def place(*offsets: int, count: int = 0) -> TopicPosition:
    return TopicPosition(HASH, dict(enumerate(offsets)), count)


def subscribe(*selections: Selection, limit: int = 100, max_bytes: int = 2**20) -> Subscription:
    return Subscription(selections, limit, max_bytes)


def look(subscription: Subscription, hub: Hub, position: Position, **more: object) -> Reading:
    return collect(subscription, survey(subscription, hub.topics, position, **more))


def shown(reading: Reading) -> list[tuple[str, int, int]]:
    return [(m.selection.channel, m.partition, m.record.offset) for m in reading.messages]


def block(start: int, end: int, *offsets: int, log_start: int = 0, key: bytes | None = None, value: bytes = b"12345") -> Block:
    return Block(start, end, [record(n, key, 0, value) for n in offsets], log_start, 1_000)


# --- order ---


def test_order_is_priority_timestamp_topic_partition_offset() -> None:
    hub = hub_with(
        a=[[record(0, at=3), record(1, at=4)], [record(0, at=3), record(1, at=1)], [record(0, at=None)]],
        b=[[record(0, at=9), record(1, at=2)]],
        c=[[record(0, at=3)]],
    )
    subscription = subscribe(channel("slow", "a"), channel("urgent", "b", priority=0), channel("c", "c"))
    reading = look(subscription, hub, {"a": place(0, 0, 0), "b": place(0), "c": place(0)})
    assert shown(reading) == [
        ("urgent", 0, 0),
        ("urgent", 0, 1),
        ("slow", 2, 0),
        ("slow", 0, 0),
        ("slow", 1, 0),
        ("slow", 1, 1),
        ("c", 0, 0),
        ("slow", 0, 1),
    ]
    assert reading.position == {"a": place(2, 2, 1), "b": place(2), "c": place(1)}
    assert (reading.up_to_date, reading.at_tail, reading.lost, reading.scanned) == (True, True, [], 0)


def test_offsets_of_a_partition_ascend_whatever_their_timestamps_and_priorities() -> None:
    hub = hub_with(a=[[record(0, b"x", 9), record(1, b"y", 1), record(2, b"x", 5)]])
    subscription = subscribe(channel("x", key=b"x"), channel("y", key=b"y", priority=0))
    assert shown(look(subscription, hub, {"a": place(0)})) == [("x", 0, 0), ("y", 0, 1), ("x", 0, 2)]


def test_two_channels_with_one_record_show_it_both_the_urgent_one_first() -> None:
    hub = hub_with(a=[[record(0, b"x"), record(1), record(2, b"y")]])
    subscription = subscribe(channel("all"), channel("x", key=b"x", priority=0), channel("x2", key=b"x"))
    assert shown(look(subscription, hub, {"a": place(0)})) == [
        ("x", 0, 0),
        ("all", 0, 0),
        ("x2", 0, 0),
        ("all", 0, 1),
        ("all", 0, 2),
    ]


# --- limits ---


def test_limit_counts_messages_and_the_rest_comes_next() -> None:
    hub = hub_with(a=[[record(n, at=n) for n in range(5)], [record(n, at=n) for n in range(2)]])
    subscription = subscribe(channel("a"), limit=3)
    position: Position = {"a": place(0, 0)}
    seen = []
    for expected in ((place(2, 1), False), (place(4, 2), False), (place(5, 2), True)):
        reading = look(subscription, hub, position)
        seen += shown(reading)
        assert (reading.position, reading.up_to_date, reading.at_tail) == ({"a": expected[0]}, expected[1], expected[1])
        position = reading.position
    assert seen == [("a", p, n) for p, n in ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3), (0, 4))]


def test_exactly_as_many_as_the_limit_is_up_to_date() -> None:
    reading = look(subscribe(channel("a"), limit=3), hub_with(a=[[record(n) for n in range(3)]]), {"a": place(0)})
    assert (len(reading.messages), reading.up_to_date) == (3, True)


@pytest.mark.parametrize(("max_bytes", "count"), [(3, 1), (4, 1), (8, 2), (11, 2), (12, 3), (16, 4)])
def test_max_bytes_counts_values_and_is_soft_for_the_first(max_bytes: int, count: int) -> None:
    hub = hub_with(a=[[record(n, value=b"1234") for n in range(4)]])
    reading = look(subscribe(channel("a"), max_bytes=max_bytes), hub, {"a": place(0)})
    assert len(reading.messages) == count
    assert reading.position == {"a": place(count)}


def test_tombstones_weigh_nothing() -> None:
    hub = hub_with(a=[[record(n, value=None) for n in range(4)]])
    assert len(look(subscribe(channel("a"), max_bytes=1), hub, {"a": place(0)}).messages) == 4


def test_a_record_of_two_channels_weighs_twice_and_comes_whole() -> None:
    hub = hub_with(a=[[record(0, b"x", value=b"12"), record(1, b"x", value=b"12")]])
    both = channel("all"), channel("x", key=b"x")
    assert len(look(subscribe(*both, limit=1), hub, {"a": place(0)}).messages) == 2
    assert len(look(subscribe(*both, limit=3), hub, {"a": place(0)}).messages) == 2
    assert len(look(subscribe(*both, max_bytes=7), hub, {"a": place(0)}).messages) == 2
    assert len(look(subscribe(*both, max_bytes=8), hub, {"a": place(0)}).messages) == 4


def test_the_one_message_that_always_comes_is_the_first_in_order() -> None:
    hub = hub_with(a=[[record(0, at=5, value=b"123")], [record(0, at=4, value=b"123")]])
    assert shown(look(subscribe(channel("a"), max_bytes=1), hub, {"a": place(0, 0)})) == [("a", 1, 0)]


def test_one_channel_of_several_partitions_keeps_to_the_bytes_in_their_common_order() -> None:
    """Of equal timestamps the lower partition comes first; a record without one comes before all."""
    hub = hub_with(
        a=[
            [record(n, at=at, value=b"12") for n, at in enumerate((4, 1, 6))],
            [record(n, at=at, value=b"12") for n, at in enumerate((4, 5))],
            [record(0, at=None, value=b"12")],
        ]
    )
    everything = [("a", 2, 0), ("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("a", 1, 1), ("a", 0, 2)]
    for most in range(1, 8):
        for subscription in (subscribe(channel("a"), limit=most), subscribe(channel("a"), max_bytes=2 * most)):
            reading = look(subscription, hub, {"a": place(0, 0, 0)})
            assert shown(reading) == everything[:most]
            assert reading.up_to_date == (most >= 6)
            taken = [sum(partition == n for _, partition, _ in everything[:most]) for n in range(3)]
            assert reading.position == {"a": place(*taken)}


def test_one_channel_is_merged_as_two_of_the_same_topic_are() -> None:
    """The short way of one channel and the long way of several come to the same."""
    tails = [[record(n, at=(n * 7 + p) % 5, value=b"x" * (n % 3)) for n in range(9)] for p in range(3)]
    hub = hub_with(a=tails, b=[[]])
    for limit in range(1, 30):
        for max_bytes in (1, 4, 100):
            one = look(subscribe(channel("a"), limit=limit, max_bytes=max_bytes), hub, {"a": place(0, 0, 0)})
            both = subscribe(channel("a"), channel("b", "b"), limit=limit, max_bytes=max_bytes)
            two = look(both, hub, {"a": place(0, 0, 0), "b": place(0)})
            assert shown(one) == shown(two)
            assert (one.position["a"], one.up_to_date) == (two.position["a"], two.up_to_date)


def test_messages_are_a_sequence() -> None:
    one, two = channel("a"), channel("b")
    records = [record(n) for n in range(3)]
    messages = Messages([Run(records[:2], one, 0), Run(records[2:], two, 1)])
    listed = [Message(records[0], one, 0), Message(records[1], one, 0), Message(records[2], two, 1)]
    assert list(messages) == listed
    assert messages == listed
    assert messages == Messages([Run(records[:1], one, 0), Run(records[1:2], one, 0), Run(records[2:], two, 1)])
    assert messages != listed[:2]
    assert messages != tuple(listed)
    assert (len(messages), messages[2], messages[1:]) == (3, listed[2], listed[1:])
    assert repr(messages) == repr(listed)
    assert not Messages([])
    with pytest.raises(TypeError):
        hash(messages)


# --- a place for each channel ---


def test_every_channel_that_has_something_gets_a_place() -> None:
    """A chatty urgent channel does not push out the others."""
    hub = hub_with(a=[[record(n, at=n) for n in range(50)]], b=[[record(0, at=99)]], c=[[]])
    subscription = subscribe(channel("a", priority=0), channel("b", "b"), channel("c", "c"), limit=3)
    reading = look(subscription, hub, {"a": place(0), "b": place(0), "c": place(0)})
    assert shown(reading) == [("a", 0, 0), ("a", 0, 1), ("b", 0, 0)]


def test_a_place_behind_other_records_takes_them_along() -> None:
    hub = hub_with(a=[[record(n, b"x") for n in range(3)] + [record(3, b"y"), record(4, b"x")]])
    both = channel("x", key=b"x", priority=0), channel("y", key=b"y")
    assert shown(look(subscribe(*both, limit=4), hub, {"a": place(0)}))[-1] == ("y", 0, 3)
    assert len(look(subscribe(*both, limit=3), hub, {"a": place(0)}).messages) == 3


def test_the_nearest_partition_gives_the_place() -> None:
    hub = hub_with(a=[[record(0, b"x", 1), record(1, b"x", 1), record(2, b"y", 1)], [record(0, b"x", 2), record(1, b"y", 2)]])
    both = channel("x", key=b"x", priority=0), channel("y", key=b"y")
    assert shown(look(subscribe(*both, limit=2), hub, {"a": place(0, 0)})) == [("x", 0, 0), ("x", 0, 1)]
    assert shown(look(subscribe(*both, limit=3), hub, {"a": place(0, 0)})) == [("x", 0, 0), ("x", 1, 0), ("y", 1, 1)]


def test_more_channels_than_the_limit_go_by_priority_and_name() -> None:
    hub = hub_with(**{name: [[record(0)]] for name in "abc"})
    subscription = subscribe(channel("z", "a"), channel("y", "b"), channel("x", "c", priority=0), limit=2)
    reading = look(subscription, hub, {name: place(0) for name in "abc"})
    assert shown(reading) == [("x", 0, 0), ("y", 0, 0)]


class Counted(list):
    """A list that counts how often it is walked through."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def test_many_channels_do_not_walk_through_the_records_once_for_each() -> None:
    """With hundreds of partitions that held up the loop for more than a second."""
    channels = [channel("all"), *(channel(f"c{n:02}", key=b"%d" % n) for n in range(31))]
    position = {"a": place(0)}
    found = survey(subscribe(*channels), hub_with(a=[[record(n) for n in range(200)]]).topics, position)
    (queue,) = found.queues
    queue.matches = Counted(queue.matches)
    assert len(collect(subscribe(*channels), found).messages) == 100
    assert queue.matches.walks <= 3


def test_large_records_do_not_starve_another_channel_of_large_records() -> None:
    hub = hub_with(a=[[record(n, value=b"12345") for n in range(3)]], b=[[record(0, value=b"12345")]])
    subscription = subscribe(channel("a", priority=0), channel("b", "b"), max_bytes=4)
    assert shown(look(subscription, hub, {"a": place(0), "b": place(0)})) == [("a", 0, 0), ("b", 0, 0)]


def test_the_records_before_a_place_must_fit_the_bytes() -> None:
    """What an answer weighs stays bounded: a place is not worth a whole partition."""
    hub = hub_with(a=[[record(n, b"x", value=b"12345") for n in range(20)] + [record(20, b"y", value=b"12345")]])
    both = channel("x", key=b"x", priority=0), channel("y", key=b"y")
    assert len(look(subscribe(*both, max_bytes=99), hub, {"a": place(0)}).messages) == 19
    assert len(look(subscribe(*both, max_bytes=100), hub, {"a": place(0)}).messages) == 21


# --- where the reader stands ---


def test_the_position_moves_past_what_the_filter_skipped() -> None:
    hub = hub_with(a=[[record(n, b"other") for n in range(9)]])
    reading = look(subscribe(channel("x", key=b"x")), hub, {"a": place(2)})
    assert (reading.messages, reading.position, reading.at_tail) == ([], {"a": place(9)}, True)


def test_a_limited_reading_of_a_key_stands_at_its_next_record() -> None:
    hub = hub_with(a=[[record(n, b"x" if n in (1, 5, 7) else b"o") for n in range(9)]])
    reading = look(subscribe(channel("x", key=b"x"), limit=1), hub, {"a": place(0)})
    assert (shown(reading), reading.position, reading.up_to_date) == ([("x", 0, 1)], {"a": place(5)}, False)


def test_several_keys_come_in_order_of_offset() -> None:
    hub = hub_with(a=[[record(0, b"y"), record(1, b"x"), record(2, b"y"), record(3), record(4, b"z")]])
    subscription = subscribe(channel("x", key=b"x"), channel("y", key=b"y"), limit=2)
    assert shown(look(subscription, hub, {"a": place(0)})) == [("y", 0, 0), ("x", 0, 1)]


def test_a_topic_that_does_not_exist_yet_keeps_its_place_and_needs_a_position_of_its_own() -> None:
    hub = hub_with(a=[[record(0)]])
    hub.create("b")
    own = TopicPosition(0, {})
    reading = look(subscribe(channel("a"), channel("b", "b"), channel("c", "c")), hub, {"a": place(0), "b": own, "c": own})
    assert shown(reading) == [("a", 0, 0)]
    assert reading.position == {"a": place(1), "b": own, "c": own}
    assert (reading.up_to_date, reading.at_tail) == (True, False)


def test_a_new_partition_is_read_from_its_log_start_without_a_loss() -> None:
    hub = hub_with(a=[[record(0)], [record(n) for n in range(3)]])
    hub.append("a", 1, [], end=3, log_start=1)
    reading = look(subscribe(channel("a")), hub, {"a": place(1)})
    assert shown(reading) == [("a", 1, 0), ("a", 1, 1), ("a", 1, 2)]
    assert (reading.position, reading.lost) == ({"a": place(1, 3)}, [])


def test_a_new_partition_whose_log_start_is_cold_is_asked_for_from_there() -> None:
    hub = cold_hub(50, log_start=20)
    seen = survey(subscribe(channel("a")), hub.topics, {"a": TopicPosition(HASH, {})})
    assert (seen.cold, seen.lost, seen.grown) == ({("a", 0): (20, 50)}, [], True)
    blocks = {("a", 0): block(30, 50, 40, log_start=30)}
    reading = look(subscribe(channel("a")), hub, {"a": TopicPosition(HASH, {})}, blocks=blocks)
    assert (shown(reading), reading.lost) == ([("a", 0, 40)], [])


def test_partitions_beyond_what_a_cursor_holds_are_refused() -> None:
    hub = hub_with(a=[[] for _ in range(257)])
    with pytest.raises(SubscriptionTooWide):
        look(subscribe(channel("a")), hub, {"a": place(*[0] * 256)})
    hub = hub_with(a=[[] for _ in range(256)])
    assert len(look(subscribe(channel("a")), hub, {"a": place(*[0] * 255)}).position["a"].offsets) == 256


def test_a_partition_without_tail_keeps_its_place() -> None:
    hub = hub_with(a=[[record(0)], [record(0)]])
    hub.close("a", 1)
    reading = look(subscribe(channel("a")), hub, {"a": place(0, 0)})
    assert (shown(reading), reading.position) == ([("a", 0, 0)], {"a": place(1, 0)})
    assert (reading.up_to_date, reading.at_tail) == (True, False)


def test_a_partition_that_was_never_open_is_left_unnamed() -> None:
    hub = hub_with(a=[[record(0)]])
    hub.describe("a", topic_id=ID, partitions=2)
    reading = look(subscribe(channel("a")), hub, {"a": place(0)})
    assert (reading.position, reading.at_tail) == ({"a": place(1)}, True)


# --- topic ids ---


@pytest.mark.parametrize(
    ("own", "reset"),
    [
        (TopicPosition(HASH, {0: 0}), False),
        (TopicPosition(0, {0: 0}), False),
        (TopicPosition(HASH + 1, {0: 0}), True),
        (TopicPosition(HASH, {1: 0}), True),
        (TopicPosition(HASH, {}), False),
    ],
)
def test_another_topic_id_or_a_partition_that_is_gone_is_a_reset(own: TopicPosition, reset: bool) -> None:
    seen = survey(subscribe(channel("a")), hub_with(a=[[]]).topics, {"a": own})
    assert seen.resets == ["a"] * reset


def test_the_topic_id_is_learnt_and_never_forgotten() -> None:
    hub = hub_with(a=[[]])
    assert look(subscribe(channel("a")), hub, {"a": TopicPosition(0, {0: 0})}).position == {"a": place(0)}
    nameless = Hub(budget=1, tail_budget=1)
    nameless.open("a", 0, start=0, log_start=0)
    reading = look(subscribe(channel("a")), nameless, {"a": place(0)})
    assert (reading.position, reading.at_tail) == ({"a": place(0)}, False)
    reading = look(subscribe(channel("a")), nameless, {"a": TopicPosition(0, {0: 0})})
    assert reading.at_tail


# --- ahead ---


def test_a_place_beyond_the_tail_is_to_be_confirmed_and_then_waits() -> None:
    hub = hub_with(a=[[record(0)], [record(0)]])
    position = {"a": place(0, 5)}
    assert survey(subscribe(channel("a")), hub.topics, position).ahead == [("a", 1)]
    reading = look(subscribe(channel("a")), hub, position, confirmed={("a", 1)})
    assert (shown(reading), reading.position) == ([("a", 0, 0)], {"a": place(1, 5)})
    assert (reading.up_to_date, reading.at_tail) == (True, False)


# --- the archive ---


def test_what_lies_before_the_tail_is_asked_for() -> None:
    seen = survey(subscribe(channel("a")), cold_hub(50, partitions=2).topics, {"a": place(7, 50)})
    assert seen.cold == {("a", 0): (7, 50)}


def test_a_block_and_the_tail_join_without_a_seam() -> None:
    hub = cold_hub(50, end=52)
    reading = look(subscribe(channel("a")), hub, {"a": place(47)}, blocks={("a", 0): block(40, 50, 41, 47, 49)})
    assert shown(reading) == [("a", 0, n) for n in (47, 49, 50, 51)]
    assert (reading.position, reading.up_to_date, reading.at_tail, reading.scanned) == ({"a": place(52)}, True, True, 10)


def test_a_block_that_reaches_into_the_tail_or_beyond_gives_nothing_twice() -> None:
    hub = cold_hub(50, end=52)
    reading = look(subscribe(channel("a")), hub, {"a": place(48)}, blocks={("a", 0): block(40, 60, *range(48, 60))})
    assert shown(reading) == [("a", 0, n) for n in (48, 49, 50, 51)]
    assert reading.position == {"a": place(52)}


def test_a_block_that_ends_before_the_tail_leaves_more_to_read() -> None:
    hub = cold_hub(50, end=52)
    reading = look(subscribe(channel("a")), hub, {"a": place(3)}, blocks={("a", 0): block(0, 20, 3, 19)})
    assert shown(reading) == [("a", 0, 3), ("a", 0, 19)]
    assert (reading.position, reading.up_to_date, reading.at_tail) == ({"a": place(20)}, False, False)


def test_a_full_block_takes_nothing_of_the_tail() -> None:
    hub = cold_hub(50, end=60)
    reading = look(subscribe(channel("a"), limit=2), hub, {"a": place(40)}, blocks={("a", 0): block(40, 50, *range(40, 50))})
    assert (shown(reading), reading.position) == ([("a", 0, 40), ("a", 0, 41)], {"a": place(42)})


def test_a_key_scans_its_block_and_stops_when_it_has_enough() -> None:
    hub = cold_hub(50)
    records = [record(n, b"x" if n % 2 else b"o", 0, b"1234") for n in range(40, 50)]
    blocks = {("a", 0): Block(40, 50, records, 0, 50)}
    reading = look(subscribe(channel("x", key=b"x")), hub, {"a": place(40)}, blocks=blocks)
    assert (len(reading.messages), reading.scanned) == (5, 50)
    reading = look(subscribe(channel("x", key=b"x"), limit=1), hub, {"a": place(40)}, blocks=blocks)
    assert (len(reading.messages), reading.scanned, reading.position) == (1, 20, {"a": place(43)})


def test_null_keys_and_values_are_scanned_as_well() -> None:
    blocks = {("a", 0): Block(0, 50, [record(1, None, 0, None), record(2, b"k", 0, None)], 0, 50)}
    assert look(subscribe(channel("x", key=b"x")), cold_hub(50), {"a": place(0)}, blocks=blocks).scanned == 1
    assert look(subscribe(channel("a")), cold_hub(50), {"a": place(0)}, blocks=blocks).scanned == 0


def test_a_block_that_does_not_reach_down_to_the_place_is_asked_for_again() -> None:
    seen = survey(subscribe(channel("a")), cold_hub(50).topics, {"a": place(3)}, {("a", 0): block(10, 20)})
    assert seen.cold == {("a", 0): (3, 50)}


def test_a_skipped_place_is_kept_while_the_others_are_read() -> None:
    hub = cold_hub(50, end=51, partitions=2)
    reading = look(subscribe(channel("a")), hub, {"a": place(3, 50)}, skip={("a", 0)})
    assert (shown(reading), reading.position) == ([("a", 1, 50)], {"a": place(3, 51)})
    assert (reading.up_to_date, reading.at_tail) == (False, False)


# --- loss ---


def test_what_retention_took_is_told_exactly() -> None:
    hub = cold_hub(50, log_start=30)
    subscription = subscribe(channel("a"), channel("x", key=b"x"))
    reading = look(subscription, hub, {"a": place(12)}, blocks={("a", 0): block(30, 50, 31, log_start=30)})
    assert [lost.document() for lost in reading.lost] == [
        {"channel": "a", "partition": 0, "from": 12, "to": 30},
        {"channel": "x", "partition": 0, "from": 12, "to": 30},
    ]
    assert (shown(reading), reading.position) == ([("a", 0, 31)], {"a": place(50)})


def test_the_block_may_know_a_later_log_start_than_the_tail() -> None:
    hub = cold_hub(50, log_start=30)
    reading = look(subscribe(channel("a")), hub, {"a": place(12)}, blocks={("a", 0): block(40, 50, 41, log_start=40)})
    assert [(lost.start, lost.end) for lost in reading.lost] == [(12, 40)]


def test_what_the_tail_still_has_is_not_lost() -> None:
    hub = cold_hub(50, end=55, log_start=30)
    hub.append("a", 0, [], end=55, log_start=53)
    reading = look(subscribe(channel("a")), hub, {"a": place(12)})
    assert [(lost.start, lost.end) for lost in reading.lost] == [(12, 50)]
    assert shown(reading)[0] == ("a", 0, 50)
    reading = look(subscribe(channel("a")), hub, {"a": place(51)})
    assert (reading.lost, shown(reading)[0]) == ([], ("a", 0, 51))


def test_retention_that_passes_all_of_a_block_while_it_is_loaded_takes_no_more_than_itself() -> None:
    """The block was read up to 20, then the log start moved to 30: offsets from 30 to the tail are still to be read."""
    hub = cold_hub(50, end=51, log_start=30)
    reading = look(subscribe(channel("a")), hub, {"a": place(12)}, blocks={("a", 0): block(10, 20, 12, 15)})
    assert [(lost.start, lost.end) for lost in reading.lost] == [(12, 30)]
    assert (shown(reading), reading.position, reading.up_to_date) == ([], {"a": place(30)}, False)


def test_loss_of_a_skipped_place_is_told_once() -> None:
    hub = cold_hub(50, log_start=30)
    first = look(subscribe(channel("a")), hub, {"a": place(12)}, skip={("a", 0)})
    assert [(lost.start, lost.end) for lost in first.lost] == [(12, 30)]
    assert first.position == {"a": place(30)}
    assert look(subscribe(channel("a")), hub, first.position, skip={("a", 0)}).lost == []


def test_a_gap_above_the_log_start_is_no_loss() -> None:
    hub = hub_with(a=[[record(3), record(9)]])
    reading = look(subscribe(channel("a")), hub, {"a": place(0)})
    assert (reading.lost, len(reading.messages)) == ([], 2)


# --- partitioners ---

KEY = b"k"
OWN, OTHER = partition_for(KEY, 4), (partition_for(KEY, 4) + 1) % 4
FOLLOWING = channel("k", key=KEY, partitioner="murmur2")


def test_only_the_keys_own_partition_is_read() -> None:
    hub = hub_with(a=[[record(0, KEY)] for _ in range(4)])
    reading = look(subscribe(FOLLOWING), hub, {"a": TopicPosition(HASH, {OWN: 0}, 4)})
    assert shown(reading) == [("k", OWN, 0)]
    assert reading.position == {"a": TopicPosition(HASH, {OWN: 1}, 4)}
    assert (reading.up_to_date, reading.at_tail) == (True, False)


def test_after_a_change_of_the_count_the_old_partition_is_read_on_and_the_new_one_from_its_log_start() -> None:
    count = next(n for n in range(5, 20) if partition_for(KEY, n) != OWN)
    new = partition_for(KEY, count)
    hub = hub_with(a=[[record(0, KEY), record(1, KEY)] for _ in range(count)])
    reading = look(subscribe(FOLLOWING), hub, {"a": TopicPosition(HASH, {OWN: 1}, 4)})
    assert sorted(shown(reading)) == sorted([("k", OWN, 1), ("k", new, 0), ("k", new, 1)])
    assert reading.position == {"a": TopicPosition(HASH, {OWN: 2, new: 2}, count)}


def test_one_channel_that_reads_all_makes_all_partitions_read() -> None:
    hub = hub_with(a=[[record(0, KEY)] for _ in range(4)])
    reading = look(subscribe(FOLLOWING, channel("all")), hub, {"a": place(0, 0, 0, 0)})
    assert len(reading.messages) == 8
    assert reading.position == {"a": place(1, 1, 1, 1)}


def test_loss_is_told_to_the_channel_whose_partition_it_is() -> None:
    other_key = next(key for key in (b"%d" % n for n in range(99)) if partition_for(key, 4) == OTHER)
    other = channel("o", key=other_key, partitioner="murmur2")
    hub = cold_hub(50, log_start=30, partitions=4)
    position = {"a": TopicPosition(HASH, {OWN: 12, OTHER: 50}, 4)}
    blocks = {("a", OWN): block(30, 50, log_start=30)}
    reading = look(subscribe(FOLLOWING, other), hub, position, blocks=blocks)
    assert reading.lost == [Lost(FOLLOWING, OWN, 12, 30)]


def test_loss_in_a_partition_of_before_the_count_changed_is_told_to_all() -> None:
    other_key = next(key for key in (b"%d" % n for n in range(99)) if partition_for(key, 4) == OTHER)
    other = channel("o", key=other_key, partitioner="murmur2")
    old = next(n for n in range(4) if n not in (OWN, OTHER))
    hub = cold_hub(50, log_start=30, partitions=4)
    position = {"a": TopicPosition(HASH, {OWN: 50, OTHER: 50, old: 12}, 3)}
    reading = look(subscribe(FOLLOWING, other), hub, position, blocks={("a", old): block(30, 50, log_start=30)})
    assert reading.lost == [Lost(FOLLOWING, old, 12, 30), Lost(other, old, 12, 30)]


def test_an_empty_survey_is_up_to_date() -> None:
    assert collect(subscribe(channel("a")), Survey()) == Reading([], {}, [], True, True, 0)
