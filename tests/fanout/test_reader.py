"""Beginning and reading on: start positions, resets, losses, scans, and what happens while a reader waits."""

import asyncio
from collections.abc import Callable

import pytest
from fanout.fakekafka import FakeKafka, FakePartition

from gateway.errors import BrokerUnavailable, CursorExpired, CursorInvalid, CursorMismatch, CursorReset, SubscriptionTooWide
from gateway.fanout.cursor import Position, TopicPosition, bind, decode, encode, id_hash, partition_for
from gateway.fanout.hub import Hub, Topic
from gateway.fanout.reader import Reader
from gateway.fanout.reading import Reading
from gateway.fanout.responses import STEP_BYTES, build
from gateway.fanout.subscription import Selection, Subscription
from gateway.records import Block, Record
from gateway.wire import From

LATEST, EARLIEST = From("latest"), From("earliest")
SMALL = 10 * 402


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class World:
    """A fake Kafka, a hub that is fed from it, and a reader."""

    def __init__(self, *, budget: int = 2**30, block: int = 4, scan_bytes: int = 2**23) -> None:
        self.hub = Hub(budget=budget, tail_budget=budget)
        self.kafka = FakeKafka(self.hub, block=block)
        self.clock = Clock()
        self.reader = Reader(self.hub, self.kafka, scan_bytes=scan_bytes, clock=self.clock)

    def history(self, name: str, partition: int, count: int, key: bytes | None = None, at: int = 0) -> None:
        """Write records, and open the tail anew behind them."""
        for _ in range(count):
            self.kafka.partition(name, partition).write(key, b"12345", at)
        self.kafka.open(name, partition)


@pytest.fixture
def world() -> World:
    return World()


def channel(name: str, topic: str = "a", key: bytes | None = None, **more: object) -> Selection:
    return Selection(name, name.split("/", maxsplit=1)[0], topic, key, **more)


def subscribe(*selections: Selection, **more: int) -> Subscription:
    return Subscription(selections, **more)


ALL = subscribe(channel("a"))
X = subscribe(channel("x", key=b"x"))


def shown(reading: Reading) -> list[tuple[str, int, int]]:
    return [(m.selection.channel, m.partition, m.record.offset) for m in reading.messages]


def offsets(position: Position, name: str = "a") -> dict[int, int]:
    return dict(position[name].offsets)


def again(subscription: Subscription, position: Position) -> Position:
    return bind(decode(encode(position)), subscription.topics)


# --- begin ---


async def test_latest_is_the_end_of_the_tails_and_asks_nobody(world: World) -> None:
    world.kafka.create("a", 2)
    world.kafka.say("a", 1, None, None)
    position = await world.reader.begin(ALL, None, LATEST)
    assert position == {"a": world.hub.topics["a"].position}
    assert offsets(position) == {0: 0, 1: 2}
    assert world.kafka.asked == []
    assert world.hub.topics["a"].last_polled == 100.0


async def test_latest_asks_where_a_tail_is_not_open(world: World) -> None:
    world.kafka.create("a", 2)
    world.kafka.say("a", 1, None)
    world.kafka.partition("a", 0).write(None)
    world.hub.close("a", 1)
    assert offsets(await world.reader.begin(ALL, None, LATEST)) == {0: 1, 1: 1}
    assert world.kafka.asked == [("offsets", "a", -1)]


async def test_earliest_is_the_log_start_of_each_partition(world: World) -> None:
    world.kafka.create("a", 2)
    world.history("a", 0, 9)
    world.kafka.partition("a", 0).trim(4)
    assert offsets(await world.reader.begin(ALL, None, EARLIEST)) == {0: 4, 1: 0}
    assert world.kafka.asked == [("offsets", "a", -2)]


async def test_a_time_is_the_first_offset_not_before_it_else_the_end(world: World) -> None:
    world.kafka.create("a", 2)
    for at in (10, 20, 30):
        world.kafka.partition("a", 0).write(None, b"", at)
        world.kafka.partition("a", 1).write(None, b"", 1)
    assert offsets(await world.reader.begin(ALL, None, From("time", 20))) == {0: 1, 1: 3}


async def test_a_start_that_a_leader_does_not_tell_is_an_error(world: World) -> None:
    world.kafka.create("a", 2)
    world.kafka.partition("a", 1).reachable = False
    with pytest.raises(BrokerUnavailable):
        await world.reader.begin(ALL, None, EARLIEST)
    assert offsets(await world.reader.begin(ALL, None, LATEST)) == {0: 0, 1: 0}


async def test_a_topic_that_does_not_exist_is_an_empty_position(world: World) -> None:
    for start in (LATEST, EARLIEST, From("time", 5), From("newest", 5)):
        assert await world.reader.begin(ALL, None, start) == {"a": TopicPosition(0, {})}
    assert world.kafka.asked == []


async def test_a_partitioner_starts_at_the_keys_partition_only(world: World) -> None:
    world.kafka.create("a", 4)
    own = partition_for(b"k", 4)
    for partition in range(4):
        world.kafka.partition("a", partition).reachable = partition == own
    subscription = subscribe(channel("k", key=b"k", partitioner="murmur2"))
    position = await world.reader.begin(subscription, None, EARLIEST)
    assert position == {"a": TopicPosition(world.hub.topics["a"].id_hash, {own: 0}, 4)}


async def test_a_cursor_is_where_its_topics_begin_and_the_others_start_at_from(world: World) -> None:
    for name in "ab":
        world.kafka.create(name, 1)
        world.history(name, 0, 7)
    subscription = subscribe(channel("a"), channel("b", "b"))
    cursor = encode({"b": TopicPosition(0, {0: 3}), "other": TopicPosition(0, {0: 1})})
    position = await world.reader.begin(subscription, cursor, EARLIEST)
    assert (offsets(position, "a"), offsets(position, "b")) == ({0: 0}, {0: 3})
    assert await world.reader.begin(subscription, encode(position), LATEST) == position


@pytest.mark.parametrize(
    ("cursor", "error"),
    [("garbage", CursorInvalid), (encode({"other": TopicPosition(0, {0: 1})}), CursorMismatch), (encode({}), CursorMismatch)],
)
async def test_a_bad_cursor_is_refused_before_kafka_is_asked(world: World, cursor: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await world.reader.begin(ALL, cursor, LATEST)
    assert world.kafka.followed == []


async def test_too_many_partitions_are_refused_at_the_first_poll(world: World) -> None:
    world.kafka.create("a", 257)
    with pytest.raises(SubscriptionTooWide):
        await world.reader.begin(ALL, None, LATEST)


async def test_new_topics_are_waited_for_side_by_side(world: World) -> None:
    """A subscription of 32 channels waits once and not 32 times."""
    waiting: list[str] = []
    release = asyncio.Event()
    follow = world.kafka.follow

    async def slow(name: str, now: float) -> Topic:
        waiting.append(name)
        if len(waiting) == 2:
            release.set()
        await release.wait()
        return await follow(name, now)

    world.kafka.follow = slow
    async with asyncio.timeout(5):
        await world.reader.begin(subscribe(channel("a"), channel("b", "b")), None, LATEST)
    assert sorted(waiting) == ["a", "b"]


async def test_live_topics_are_followed_without_a_turn_of_the_loop(world: World) -> None:
    for name in "ab":
        world.kafka.create(name, 1)
    cursor = encode({name: world.hub.topics[name].position for name in "ab"})
    beginning = world.reader.begin(subscribe(channel("a"), channel("b", "b")), cursor, LATEST)
    with pytest.raises(StopIteration):
        beginning.send(None)
    assert world.kafka.followed == ["a", "b"]


async def test_a_failure_to_follow_is_raised_as_it_is_and_ends_the_others(world: World) -> None:
    world.kafka.away = True
    with pytest.raises(BrokerUnavailable) as raised:
        await world.reader.begin(subscribe(channel("a"), channel("b", "b")), None, LATEST)
    assert raised.value.__cause__ is None


# --- the N newest ---


async def newest(world: World, subscription: Subscription, count: int) -> dict[str, dict[int, int]]:
    position = await world.reader.begin(subscription, None, From("newest", count))
    return {name: dict(own.offsets) for name, own in position.items()}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [[2], []]),
        (2, [[2], [1]]),
        (3, [[1, 2], [1]]),
        (4, [[1, 2], [0, 1]]),
        (5, [[0, 1, 2], [0, 1]]),
        (9, [[0, 1, 2], [0, 1]]),
    ],
)
async def test_the_newest_go_by_timestamp_over_all_partitions(world: World, count: int, expected: list[list[int]]) -> None:
    world.kafka.create("a", 2)
    for at in (10, 20, 50):
        world.kafka.say("a", 0, b"x", at=at)
    for at in (15, 40):
        world.kafka.say("a", 1, b"x", at=at)
    world.kafka.say("a", 0, b"y", at=99)  # not selected, so not counted
    found = await newest(world, X, count)
    reading = world.reader.peek(X, {"a": TopicPosition(0, found["a"])})
    assert reading is not None
    assert [[n for _, p, n in shown(reading) if p == partition] for partition in range(2)] == expected
    assert world.kafka.asked == []


@pytest.mark.parametrize("count", [1, 2, 5, 9, 20, 25])
@pytest.mark.parametrize("subscription", [ALL, X])
async def test_the_newest_are_found_in_the_archive_behind_the_tail(count: int, subscription: Subscription) -> None:
    world = World(budget=SMALL)
    world.kafka.create("a", 1)
    for n in range(20):
        world.kafka.say("a", 0, b"x", b"o", at=n)
    assert world.hub.topics["a"].tails[0].start >= 30
    found = await newest(world, subscription, count)
    step = 1 if subscription is ALL else 2
    matching = list(range(0, 40, step))
    assert [n for n in matching if n >= found["a"][0]] == matching[-count:]


async def test_the_newest_stop_at_the_log_start(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 20)
    world.kafka.partition("a", 0).trim(12)
    world.kafka.feed("a", 0)
    assert await newest(world, ALL, 100) == {"a": {0: 12}}
    assert all(offset >= 12 for _, _, _, offset, _ in world.kafka.asked)


async def test_the_newest_pass_holes_in_one_step(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 4)
    for _ in range(5_000):
        world.kafka.partition("a", 0).marker()
    world.kafka.open("a", 0)
    assert await newest(world, ALL, 2) == {"a": {0: 2}}
    assert len(world.kafka.asked) < 40


async def test_the_newest_take_at_most_their_budget_of_the_archive_and_never_more_messages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """May be fewer; but what was not looked at must not come along."""
    world.kafka.create("a", 2)
    for partition in range(2):
        world.history("a", partition, 40, b"x")
    for budget in (1, 2_000, 4_000, 9_000, 20_000, 40_000):
        monkeypatch.setattr("gateway.fanout.reader._NEWEST_BYTES", budget)
        world.kafka.asked.clear()
        found = await newest(world, X, 30)
        delivered = sum(40 - offset for offset in found["a"].values())
        assert delivered <= 30
        blocks = {(partition, offset - offset % 4) for _, _, partition, offset, _ in world.kafka.asked}
        # The last block of each partition may overdraw.
        assert len(blocks) * 4 * 400 <= budget + 2 * 4 * 420
        if budget >= 20_000:
            assert delivered == 30


async def test_a_block_is_charged_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.kafka.create("a", 1)
    world.kafka.block = 64
    world.history("a", 0, 64)
    monkeypatch.setattr("gateway.fanout.reader._NEWEST_BYTES", 1_000)
    assert await newest(world, ALL, 1) == {"a": {0: 63}}
    monkeypatch.setattr("gateway.fanout.reader._NEWEST_BYTES", 64 * 452)
    assert await newest(world, ALL, 60) == {"a": {0: 4}}


async def test_the_newest_of_a_partition_without_tail_are_not_looked_for(world: World) -> None:
    world.kafka.create("a", 2)
    world.history("a", 0, 5)
    world.hub.close("a", 1)
    world.kafka.partition("a", 1).write(None)
    assert await newest(world, ALL, 2) == {"a": {0: 3, 1: 1}}


async def test_records_that_come_meanwhile_do_not_hide_older_ones() -> None:
    world = World(budget=SMALL)
    world.kafka.create("a", 2)
    for n in range(30):
        world.kafka.say("a", 0, None, at=n)
        world.kafka.say("a", 1, None, at=n)
    # While the archive of partition 0 is asked, more comes to partition 1 than the count.
    world.kafka.meanwhile = [lambda: None] * 2 + [lambda: world.kafka.say("a", 1, *[None] * 4, at=99)]
    found = await newest(world, ALL, 16)
    assert sum(30 - offset for offset in found["a"].values()) == 16


async def test_from_counts_only_for_topics_that_the_cursor_lacks(world: World) -> None:
    for name in "ab":
        world.kafka.create(name, 1)
        world.kafka.say(name, 0, None, None, None)
    subscription = subscribe(channel("a"), channel("b", "b"))
    position = await world.reader.begin(subscription, encode({"b": TopicPosition(0, {0: 0})}), From("newest", 1))
    assert (offsets(position, "a"), offsets(position, "b")) == ({0: 2}, {0: 0})


async def test_no_timestamp_counts_as_the_oldest(world: World) -> None:
    world.kafka.create("a", 2)
    world.kafka.say("a", 0, None, at=None)
    world.kafka.say("a", 1, None, at=5)
    assert await newest(world, ALL, 1) == {"a": {0: 1, 1: 0}}
    world.kafka.open("a", 0)
    assert await newest(world, ALL, 2) == {"a": {0: 0, 1: 0}}


# --- peek ---


async def test_peek_reads_the_tails_only(world: World) -> None:
    world.kafka.create("a", 1)
    position = await world.reader.begin(ALL, None, LATEST)
    world.kafka.say("a", 0, None)
    reading = world.reader.peek(ALL, position)
    assert reading is not None
    assert (shown(reading), reading.up_to_date, reading.at_tail) == ([("a", 0, 0)], True, True)


async def test_peek_gives_none_where_more_has_to_be_asked_or_loss_told(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 9)
    here = world.hub.topics["a"].position
    for own in (
        here._replace(offsets={0: 3}),
        here._replace(offsets={0: 12}),
        here._replace(offsets={1: 0}),
        here._replace(id_hash=1),
    ):
        assert world.reader.peek(ALL, {"a": own}) is None
    world.kafka.partition("a", 0).trim(9)
    world.kafka.feed("a", 0)
    assert world.reader.peek(ALL, {"a": here._replace(offsets={0: 3})}) is None


async def test_partitions_that_are_added_until_no_cursor_holds_them_are_an_error_not_a_bad_cursor(world: World) -> None:
    world.kafka.create("a", 256)
    position = await world.reader.begin(ALL, None, LATEST)
    world.kafka.topics["a"].partitions.append(FakePartition())
    world.kafka.describe("a")
    world.kafka.open("a", 256)
    with pytest.raises(SubscriptionTooWide):
        world.reader.peek(ALL, position)
    with pytest.raises(SubscriptionTooWide):
        await world.reader.read(ALL, position)


# --- read: history ---


async def test_history_is_read_block_by_block_into_the_tail() -> None:
    world = World(budget=SMALL)
    world.kafka.create("a", 2)
    for n in range(30):
        world.kafka.say("a", n % 2, None, at=n)
    position = await world.reader.begin(ALL, None, EARLIEST)
    seen = []
    while True:
        reading = await world.reader.read(ALL, position)
        seen += shown(reading)
        position = again(ALL, reading.position)
        if reading.up_to_date:
            break
        assert reading.messages
    assert sorted(seen) == [("a", p, n) for p in range(2) for n in range(15)]
    assert reading.at_tail


async def test_the_bound_of_a_scan_is_answered_with_progress() -> None:
    world = World(scan_bytes=60)
    world.kafka.create("a", 1)
    world.history("a", 0, 40, b"o")
    world.kafka.say("a", 0, b"x")
    position = await world.reader.begin(X, None, EARLIEST)
    stands = []
    for _ in range(20):
        reading = await world.reader.read(X, position)
        assert not reading.failed
        if reading.messages:
            break
        assert not reading.up_to_date
        stands.append(offsets(reading.position)[0])
        position = again(X, reading.position)
    # 24 bytes a block: three of them reach the bound.
    assert stands == [12, 24, 36]
    assert shown(reading) == [("x", 0, 40)]


async def test_the_time_of_a_scan_is_bounded_as_well(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 40, b"o")
    world.clock.step = 0.02
    reading = await world.reader.read(X, {"a": TopicPosition(0, {0: 0})})
    assert (reading.messages, reading.up_to_date, offsets(reading.position)) == ([], False, {0: 12})


async def test_histories_are_gone_through_by_one_reader_in_each_turn_of_the_loop(world: World) -> None:
    """Blocks that are there at once for many make nobody else wait for all of them."""
    world.kafka.create("a", 1)
    world.history("a", 0, 4)
    begin = await world.reader.begin(ALL, None, EARLIEST)
    turn, ended = 0, []

    async def live() -> None:
        nonlocal turn
        while len(ended) < 5:
            turn += 1
            await asyncio.sleep(0)

    async def old() -> None:
        assert len((await world.reader.read(ALL, begin)).messages) == 4
        ended.append(turn)

    await asyncio.gather(live(), *(old() for _ in range(5)))
    assert len(set(ended)) == 5


async def test_histories_are_encoded_by_one_reader_in_each_turn_of_the_loop(world: World) -> None:
    """However many are at it: between two steps everybody who is live has a turn."""
    world.kafka.create("a", 1)
    for _ in range(4):
        world.kafka.partition("a", 0).write(None, b'"%b"' % (b"x" * STEP_BYTES))
    world.kafka.open("a", 0)
    subscription = subscribe(channel("a"), max_bytes=2**23)
    begin = await world.reader.begin(subscription, None, EARLIEST)
    reading = await world.reader.read(subscription, begin)
    whole = build(subscription, reading)
    turn, ended = 0, []

    async def live() -> None:
        nonlocal turn
        while len(ended) < 3:
            turn += 1
            await asyncio.sleep(0)

    async def old() -> None:
        assert await world.reader.encode(subscription, reading) == whole
        ended.append(turn)

    await asyncio.gather(live(), *(old() for _ in range(3)))
    assert ended[-1] >= 3 * 3


async def test_holes_up_to_the_tail_are_passed_in_one_step(world: World) -> None:
    """Compaction took all that was left."""
    world.kafka.create("a", 1)
    world.history("a", 0, 40)
    world.kafka.partition("a", 0).compact(range(40))
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 3})})
    assert (reading.messages, reading.lost, reading.up_to_date, offsets(reading.position)) == ([], [], True, {0: 40})
    assert len(world.kafka.asked) == 1


async def test_what_is_evicted_while_a_hole_is_read_is_not_part_of_the_hole() -> None:
    """The leader said: nothing from 3 to the tail's start. Meanwhile the start moved over records."""
    world = World(budget=SMALL)
    world.kafka.create("a", 1)
    world.history("a", 0, 40)
    world.kafka.partition("a", 0).compact(range(40))
    world.kafka.meanwhile = [lambda: world.kafka.say("a", 0, *[None] * 30)]
    position: Position = {"a": TopicPosition(0, {0: 3})}
    seen = []
    for _ in range(20):
        reading = await world.reader.read(ALL, position)
        seen += shown(reading)
        position = again(ALL, reading.position)
        if reading.up_to_date:
            break
    assert seen == [("a", 0, n) for n in range(40, 70)]


async def test_a_leader_that_has_less_than_the_tail_is_not_believed(world: World) -> None:
    """It lags behind or was cut; what it does not have is no hole."""
    world.kafka.create("a", 1)
    world.hub.open("a", 0, start=50, log_start=0)
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 7})})
    assert (reading.failed, reading.up_to_date, offsets(reading.position)) == (True, False, {0: 7})


async def test_history_that_cannot_be_fetched_does_not_hold_up_the_rest(world: World) -> None:
    world.kafka.create("a", 2)
    world.history("a", 0, 9)
    world.kafka.say("a", 1, None)
    world.kafka.partition("a", 0).reachable = False
    position: Position = {"a": world.hub.topics["a"].position._replace(offsets={0: 3, 1: 0})}
    reading = await world.reader.read(ALL, position)
    assert (shown(reading), reading.failed, reading.up_to_date, reading.at_tail) == ([("a", 1, 0)], True, False, False)
    assert offsets(reading.position) == {0: 3, 1: 1}
    world.kafka.partition("a", 0).reachable = True
    reading = await world.reader.read(ALL, reading.position)
    assert shown(reading)[0] == ("a", 0, 3)
    assert not reading.failed


async def test_every_topic_gets_a_block_and_at_most_so_many_are_read_at_once(world: World) -> None:
    for name, count in (("a", 20), ("b", 1), ("c", 2)):
        world.kafka.create(name, count)
        for partition in range(count):
            world.history(name, partition, 5)
    subscription = subscribe(channel("a"), channel("b", "b"), channel("c", "c"), limit=1_000)
    reading = await world.reader.read(subscription, await world.reader.begin(subscription, None, EARLIEST))
    read = [(topic, partition) for what, topic, partition, *_ in world.kafka.asked if what == "read"]
    assert len(read) == 8
    assert {("a", 0), ("b", 0), ("c", 0), ("c", 1)} <= set(read)
    assert {("a" if topic == "a" else topic, p) for topic, p, _ in shown(reading)} == set(read)
    assert not reading.failed


async def test_more_topics_than_that_get_a_block_each(world: World) -> None:
    names = "abcdefghij"
    for name in names:
        world.kafka.create(name, 2)
        for partition in range(2):
            world.history(name, partition, 5)
    subscription = subscribe(*(channel(name, name) for name in names), limit=1_000)
    await world.reader.read(subscription, await world.reader.begin(subscription, None, EARLIEST))
    assert [(topic, p) for what, topic, p, *_ in world.kafka.asked if what == "read"] == [(name, 0) for name in names]


async def test_a_block_that_does_not_fit_the_log_any_more_is_looked_at_again_later(world: World) -> None:
    """The second answer for one place does not hold its offset either: give up, and keep the place."""
    world.kafka.create("a", 1)
    world.history("a", 0, 9)
    calls: list[int] = []

    async def above(topic: str, partition: int, offset: int, until: int) -> Block:
        calls.append(offset)
        return Block(offset + 2, offset + 4, [], 0, 99)

    world.kafka.read = above
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 3})})
    assert (calls, reading.failed, offsets(reading.position)) == ([3, 3], True, {0: 3})


async def test_a_bug_below_is_not_hidden(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 9)
    world.kafka.meanwhile = [lambda: 1 // 0]
    with pytest.raises(ZeroDivisionError):
        await world.reader.read(ALL, {"a": TopicPosition(0, {0: 3})})


# --- loss ---


async def test_loss_is_reported_and_reading_goes_on(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 20)
    world.kafka.partition("a", 0).trim(12)
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 3})})
    assert [entry.document() for entry in reading.lost] == [{"channel": "a", "partition": 0, "from": 3, "to": 12}]
    assert shown(reading)[0] == ("a", 0, 12)


async def test_loss_without_records_is_told_at_once(world: World) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 20)
    world.kafka.partition("a", 0).trim(20)
    world.kafka.feed("a", 0)
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 3})})
    assert (len(reading.lost), reading.messages, reading.up_to_date, offsets(reading.position)) == (1, [], True, {0: 20})


async def test_on_loss_fail_gives_a_cursor_that_skips_what_is_lost_and_nothing_else(world: World) -> None:
    world.kafka.create("a", 3)
    for partition in range(2):
        world.history("a", partition, 20)
    world.kafka.say("a", 2, None, None)
    world.kafka.partition("a", 0).trim(12)
    subscription = subscribe(channel("a", on_loss="fail"), channel("x", key=b"x"))
    hash_ = world.hub.topics["a"].id_hash
    with pytest.raises(CursorExpired) as raised:
        await world.reader.read(subscription, {"a": TopicPosition(hash_, {0: 3, 1: 5, 2: 1})})
    earliest = bind(decode(raised.value.extra["cursor"]), ["a"])
    assert earliest == {"a": TopicPosition(hash_, {0: 12, 1: 5, 2: 1})}
    assert raised.value.extra["lost"] == [
        {"channel": "a", "partition": 0, "from": 3, "to": 12},
        {"channel": "x", "partition": 0, "from": 3, "to": 12},
    ]
    reading = await world.reader.read(subscription, earliest)
    assert {("a", 0, 12), ("a", 1, 5), ("a", 2, 1)} <= set(shown(reading))


async def test_loss_on_another_channel_does_not_fail_a_reader_that_asked_for_failing(world: World) -> None:
    """Only a channel that lost something ends the poll."""
    for name in "ab":
        world.kafka.create(name, 1)
        world.history(name, 0, 20)
    world.kafka.partition("b", 0).trim(12)
    subscription = subscribe(channel("a", on_loss="fail"), channel("b", "b"))
    reading = await world.reader.read(subscription, {"a": TopicPosition(0, {0: 19}), "b": TopicPosition(0, {0: 3})})
    assert len(reading.lost) == 1


# --- resets ---


def recreate(world: World, *, count: int = 1, records: int = 3) -> None:
    world.kafka.create("a", count)
    for partition in range(count):
        world.kafka.say("a", partition, *[b"new"] * records)


async def test_a_topic_that_was_created_again_is_a_reset_to_its_current_end(world: World) -> None:
    world.kafka.create("a", 1)
    world.kafka.create("b", 1)
    subscription = subscribe(channel("a"), channel("b", "b"))
    position = await world.reader.begin(subscription, None, LATEST)
    recreate(world, count=2)
    world.kafka.say("b", 0, None)
    assert world.reader.peek(subscription, position) is None
    with pytest.raises(CursorReset) as raised:
        await world.reader.read(subscription, position)
    fresh = bind(decode(raised.value.extra["cursor"]), subscription.topics)
    assert fresh == {"a": world.hub.topics["a"].position, "b": position["b"]}
    assert shown(await world.reader.read(subscription, fresh)) == [("b", 0, 0)]


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (["earliest"], [("c0", 0, n) for n in range(3)]),
        (["latest"], []),
        (["earliest", "latest"], [(c, 0, n) for n in range(3) for c in ("c0", "c1")]),
        (["earliest", "fail"], None),
        (["latest", "fail"], None),
    ],
)
async def test_on_reset_says_where_to_go_on(world: World, policies: list[str], expected: list[object] | None) -> None:
    world.kafka.create("a", 1)
    world.history("a", 0, 9)
    subscription = subscribe(*(channel(f"c{n}", on_reset=policy) for n, policy in enumerate(policies)))
    position = await world.reader.begin(subscription, None, LATEST)
    recreate(world)
    if expected is None:
        with pytest.raises(CursorReset):
            await world.reader.read(subscription, position)
        return
    reading = await world.reader.read(subscription, position)
    assert shown(reading) == expected
    assert reading.position == {"a": world.hub.topics["a"].position}


async def test_a_partition_that_is_gone_is_a_reset(world: World) -> None:
    world.kafka.create("a", 1)
    with pytest.raises(CursorReset):
        await world.reader.read(ALL, {"a": TopicPosition(0, {0: 0, 1: 0})})


async def test_a_partition_of_which_only_another_instance_has_heard_is_no_reset(world: World) -> None:
    """The brokers are asked what the topic is now, before a reader is told that its log is gone."""
    world.kafka.create("a", 2)
    world.kafka.partition("a", 1).write(None)
    world.hub.forget("a")
    world.hub.describe("a", topic_id=None, partitions=1)
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 0, 1: 1})})
    assert world.kafka.asked == [("renew", "a")]
    assert offsets(reading.position) == {0: 0, 1: 1}


async def test_whether_a_topic_was_created_again_is_not_said_without_a_broker(world: World) -> None:
    world.kafka.create("a", 1)
    world.kafka.away = True
    with pytest.raises(BrokerUnavailable):
        await world.reader.read(ALL, {"a": TopicPosition(0, {0: 0, 1: 0})})


async def test_a_key_is_read_wherever_it_was_written_while_its_topic_grew(world: World) -> None:
    """Also under numbers of partitions that the reader has never seen; the number is noted once its partitions are named."""
    keyed = subscribe(channel("k", key=b"k", partitioner="murmur2"))
    world.kafka.create("a", 1)
    begin = await world.reader.begin(keyed, None, EARLIEST)
    world.kafka.create("a", 6, described=False)
    world.kafka.describe("a")
    places = {count: partition_for(b"k", count) for count in range(1, 7)}
    for partition in set(places.values()):
        world.kafka.partition("a", partition).write(b"k")
    not_open = await world.reader.read(keyed, {"a": begin["a"]._replace(id_hash=0)})
    assert not_open.position["a"].partition_count == 1
    for partition in range(6):
        world.kafka.open("a", partition)
    reading = await world.reader.read(keyed, again(keyed, not_open.position))
    assert {m.partition for m in reading.messages} == set(places.values())
    assert reading.position["a"].partition_count == 6


@pytest.mark.parametrize("offset", [9, 12])
async def test_ahead_of_the_tail_but_in_the_log_is_no_reset(world: World, offset: int) -> None:
    world.kafka.create("a", 1)
    for _ in range(12):
        world.kafka.partition("a", 0).write(None)
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: offset})})
    assert (reading.up_to_date, reading.at_tail, offsets(reading.position)) == (True, False, {0: offset})
    assert world.kafka.asked == [("end", "a", 0)]


async def test_beyond_the_end_that_the_leader_tells_is_a_reset(world: World) -> None:
    world.kafka.create("a", 1)
    world.kafka.say("a", 0, *[None] * 12)
    with pytest.raises(CursorReset) as raised:
        await world.reader.read(ALL, {"a": TopicPosition(0, {0: 13})})
    assert bind(decode(raised.value.extra["cursor"]), ["a"]) == {"a": world.hub.topics["a"].position}
    subscription = subscribe(channel("a", on_reset="earliest"))
    assert len((await world.reader.read(subscription, {"a": TopicPosition(0, {0: 13})})).messages) == 12


async def test_a_leader_that_cannot_be_asked_proves_nothing(world: World) -> None:
    world.kafka.create("a", 1)
    world.kafka.partition("a", 0).reachable = False
    reading = await world.reader.read(ALL, {"a": TopicPosition(0, {0: 13})})
    assert (reading.messages, reading.up_to_date, offsets(reading.position)) == ([], True, {0: 13})


async def test_a_block_of_the_old_log_is_not_delivered_as_the_new_ones(world: World) -> None:
    """The topic is created again while its archive is read."""
    world.kafka.create("a", 1)
    world.history("a", 0, 9, b"old")
    subscription = subscribe(channel("a", on_reset="earliest"))
    position = await world.reader.begin(subscription, None, EARLIEST)

    def happen() -> None:
        world.kafka.create("a", 1)
        world.history("a", 0, 7, b"new")

    world.kafka.meanwhile = [happen]
    reading = await world.reader.read(subscription, position)
    assert reading.messages
    assert {m.record.key for m in reading.messages} == {b"new"}


async def test_a_block_of_a_log_that_was_cut_is_not_delivered_either(world: World) -> None:
    """While the archive is read, the leader changes to one that has less, and other records."""
    world.kafka.create("a", 1)
    world.history("a", 0, 9, b"old")
    subscription = subscribe(channel("a", on_reset="earliest"))

    def happen() -> None:
        world.kafka.topics["a"].partitions[0] = FakePartition()
        world.history("a", 0, 2, b"new")

    world.kafka.meanwhile = [happen]
    own = world.hub.topics["a"].position
    reading = await world.reader.read(subscription, {"a": own._replace(offsets={0: 3})})
    assert [m.record.key for m in reading.messages] == [b"new", b"new"]


async def test_a_reset_without_a_broker_is_unavailable(world: World) -> None:
    world.kafka.create("a", 1)
    position = await world.reader.begin(ALL, None, LATEST)
    world.kafka.topics["a"].topic_id = b"\x07" * 16
    world.kafka.describe("a")
    world.kafka.away = True
    with pytest.raises(BrokerUnavailable):
        await world.reader.read(ALL, position)


# --- the last look and the return are one stretch ---


async def test_after_a_read_the_caller_may_park_at_once(world: World) -> None:
    """Between the last look and the caller's next line no other task has run."""
    world.kafka.create("a", 1)
    world.history("a", 0, 9)
    other_ran: list[int] = []

    async def other() -> None:
        while True:
            other_ran.append(world.hub.topics["a"].tails[0].end)
            await asyncio.sleep(0)

    looks: list[int] = []
    survey: Callable[..., object] = world.reader._look

    async def look(subscription: Subscription, position: Position) -> object:
        found = await survey(subscription, position)
        looks.append(len(other_ran))
        return found

    world.reader._look = look

    async def slow(topic: str, partition: int, offset: int, until: int) -> Block:
        await asyncio.sleep(0)
        return Block(offset, until, [Record(offset, 0, None, b"")], 0, until)

    world.kafka.read = slow
    async with asyncio.TaskGroup() as group:
        task = group.create_task(other())
        await asyncio.sleep(0)
        await world.reader.read(ALL, {"a": TopicPosition(id_hash(world.kafka.topics["a"].topic_id), {0: 3})})
        assert looks[-1] == len(other_ran)
        assert other_ran
        task.cancel()


# --- what nobody can read ---


async def damaged(world: World, *selections: Selection) -> tuple[Subscription, Position]:
    """Fill a tail with a record of x, a hole, and a record of y; return a position before them."""
    world.kafka.create("a", 1)
    subscription = subscribe(*selections)
    position = await world.reader.begin(subscription, None, LATEST)
    records = [Record(0, 5, b"x", b"1"), Record.hole(1, 4), Record(4, 5, b"y", b"1")]
    world.hub.append("a", 0, records, end=5, log_start=0)
    return subscription, position


async def test_offsets_that_cannot_be_read_are_told_as_lost(world: World) -> None:
    subscription, position = await damaged(world, channel("x", key=b"x"), channel("y", key=b"y"))
    reading = world.reader.peek(subscription, position)
    assert reading is not None
    assert [m.record.offset for m in reading.messages] == [0, 4]
    assert [entry.document() for entry in reading.lost] == [
        {"channel": name, "partition": 0, "from": 1, "to": 4} for name in ("x", "y")
    ]
    assert offsets(reading.position) == {0: 5}
    assert reading.up_to_date


async def test_a_hole_is_told_once_and_not_before_its_turn(world: World) -> None:
    subscription, position = await damaged(world, channel("a"))
    subscription = subscribe(*subscription.selections, limit=1)
    told = []
    for _ in range(3):
        reading = world.reader.peek(subscription, position)
        assert reading is not None
        told.append(([m.record.offset for m in reading.messages], [entry.start for entry in reading.lost]))
        position = reading.position
    assert told == [([0], []), ([], [1]), ([4], [])]


async def test_on_loss_fail_stops_at_a_hole_and_goes_on_behind_it(world: World) -> None:
    subscription, position = await damaged(world, channel("a", on_loss="fail"))
    before = await world.reader.read(subscription, position)
    assert [m.record.offset for m in before.messages] == [0]
    assert not before.up_to_date
    assert world.reader.peek(subscription, before.position) is None
    with pytest.raises(CursorExpired) as raised:
        await world.reader.read(subscription, before.position)
    after = bind(decode(str(raised.value.extra["cursor"])), subscription.topics)
    reading = world.reader.peek(subscription, after)
    assert reading is not None
    assert [m.record.offset for m in reading.messages] == [4]
