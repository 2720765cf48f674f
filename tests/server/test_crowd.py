"""Crowds: what is found out once for all, the bytes of the answers, the cursors that are known, who sleeps together."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fanout.fakekafka import FakeKafka

from gateway.fanout.cursor import Position, TopicPosition, encode
from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Selection, Subscription
from gateway.server.crowd import CURSOR, Cohort, Crowd, Kept, Shape
from gateway.server.outcome import Dates, Outcome
from gateway.server.places import Places
from gateway.wire import MAX_LINKED_CURSOR

FIELDS = (
    ("Content-Type", "application/json"),
    ("Next-Cursor", CURSOR),
    ("Cache-Control", "private, no-store"),
    ("Link", f'</v1/subscribe?channel=news&wait=30&cursor={CURSOR}>; rel="next"'),
    ("Server", "x"),
)


class Clock:
    """Unix time that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_795_334_400.0

    def __call__(self) -> float:
        return self.now


class World:
    """Topics a (partitions 0 and 1) and b, and the crowds that read them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.hub = Hub(budget=2**20, tail_budget=2**20)
        self.kafka = FakeKafka(self.hub)
        self.places = Places()
        self.kept = Kept()
        self.reader = Reader(self.hub, self.kafka)
        self.dates = Dates(self.clock)
        self.peeked = 0
        for name, partitions in (("a", 2), ("b", 1)):
            self.kafka.create(name, partitions)

    def peek(self, subscription: Subscription, position: Position) -> Any:
        self.peeked += 1
        return self.reader.peek(subscription, position)

    def crowd(
        self, *topics: str, wait: float = 30.0, fields: Any = FIELDS, key: bytes | None = None, limit: int = 100
    ) -> Crowd:
        selections = tuple(Selection(name, f"{name}/{{x}}", name, key) for name in topics or ("a",))
        shape = Shape(Subscription(selections, limit), wait, fields)
        return Crowd(shape, hub=self.hub, reader=self, places=self.places, kept=self.kept, dates=self.dates)

    def end(self, *topics: str) -> bytes:
        return encode({name: self.hub.topics[name].position for name in topics or ("a",)}).encode()


@pytest.fixture
def world() -> World:
    return World()


def parsed(data: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return line, [tuple(field.split(": ", 1)) for field in fields], body


def looked(crowd: Crowd, cursor: bytes) -> Outcome:
    outcome = crowd.look(cursor, 0.0)
    assert outcome is not None
    return outcome


# --- looking ---


def test_a_crowd_looks_once_for_each_cursor(world: World) -> None:
    """All who come with it share what was found, until one of the topics changes."""
    crowd, cursor = world.crowd("a", "b"), world.end("a", "b")
    assert crowd.known(cursor) is None
    found = looked(crowd, cursor)
    assert crowd.known(cursor) is looked(crowd, cursor) is found
    assert (found.status, found.at_tail, found.cursor, world.peeked) == (204, True, cursor, 1)
    world.kafka.say("b", 0, b"k")
    assert crowd.known(cursor) is None
    again = looked(crowd, cursor)
    assert again.status == 200
    assert json.loads(again.answer.body)["messages"][0]["channel"] == "b"
    assert crowd.known(cursor) is again
    assert world.peeked == 2


def test_what_became_of_other_topics_is_nothing_to_a_crowd(world: World) -> None:
    """Their changes void nothing."""
    crowd, cursor = world.crowd("a"), world.end("a")
    found = looked(crowd, cursor)
    world.kafka.say("b", 0, b"k")
    assert crowd.known(cursor) is found


def test_outcomes_of_before_a_change_are_forgotten(world: World) -> None:
    """At the next look, with whatever cursor."""
    crowd, first = world.crowd("a"), world.end("a")
    looked(crowd, first)
    world.kafka.say("a", 0, b"k")
    looked(crowd, world.end("a"))
    assert crowd.known(first) is None
    assert len(crowd._outcomes) == 1


def test_a_topic_that_was_forgotten_and_followed_again_is_another(world: World) -> None:
    """Though it has changed as often as the old one had."""
    crowd, cursor = world.crowd("b"), world.end("b")
    version, found = world.hub.topics["b"].version, looked(crowd, cursor)
    world.hub.forget("b")
    assert crowd.known(cursor) is None
    world.kafka.describe("b")
    world.kafka.open("b", 0)
    assert world.hub.topics["b"].version == version
    assert crowd.known(cursor) is None
    assert looked(crowd, cursor) is not found


def test_a_look_notes_that_its_topics_are_polled(world: World) -> None:
    """Or nobody would follow them any longer."""
    world.crowd("a", "b").look(world.end("a", "b"), 77.0)
    assert [world.hub.topics[name].last_polled for name in "ab"] == [77.0, 77.0]


def test_its_topics_can_be_kept_live_without_a_look(world: World) -> None:
    """Those that are there."""
    crowd = world.crowd("a", "b")
    world.hub.forget("b")
    crowd.touch(78.0)
    assert world.hub.topics["a"].last_polled == 78.0
    assert world.hub.topic("b") is None


def test_what_crowds_keep_is_bounded_in_bytes(world: World) -> None:
    """Clients that come with ever other cursors do not fill the memory: who looked longest ago forgets first."""
    world.kept = Kept(max_bytes=14_000)
    first, second = world.crowd("b"), world.crowd("b", wait=1.0)
    for _ in range(5):
        world.kafka.say("b", 0, b"k")
    cursors = [encode({"b": world.hub.topics["b"].position._replace(offsets={0: n})}).encode() for n in range(5)]
    found = [looked(first, cursor) for cursor in cursors]
    assert [first.known(cursor) for cursor in cursors] == found
    found = [looked(second, cursor) for cursor in cursors]
    assert [first.known(cursor) for cursor in cursors] == [None] * 5
    assert [second.known(cursor) for cursor in cursors] == found
    assert 0 < world.kept.cost <= 14_000
    world.kafka.say("b", 0, b"k")
    looked(second, cursors[0])
    assert world.kept.cost < 7_000


def test_wide_cursors_are_remembered_for_a_shorter_time() -> None:
    """The bound is on partitions as well as on cursors."""
    places = Places(most_partitions=600)
    wide = [{"b": TopicPosition(0, dict.fromkeys(range(250), offset))} for offset in range(3)]
    first, _, third = (places.cursor(position) for position in wide)
    assert len(places) == 1
    assert places.position(third, ("b",)) is wide[2]
    assert places.position(first, ("b",)) == wide[0]


def test_a_limited_look_goes_on_where_it_ended(world: World) -> None:
    """More is there: that is told, and no reason to sleep."""
    for _ in range(3):
        world.kafka.say("b", 0, b"k")
    start = encode({"b": world.hub.topics["b"].position._replace(offsets={0: 0})}).encode()
    found = looked(world.crowd("b", limit=2), start)
    body = json.loads(found.answer.body)
    assert (body["up_to_date"], found.at_tail, body["cursor"].encode()) == (False, False, found.cursor)
    rest = looked(world.crowd("b", limit=2), found.cursor)
    assert [m["offset"] for m in (*body["messages"], *json.loads(rest.answer.body)["messages"])] == [0, 1, 2]


def test_somebody_at_a_position_is_told_what_his_cursor_would_be(world: World) -> None:
    """Whether the tails ended there just now or are past it."""
    crowd, here = world.crowd("a"), {"a": world.hub.topics["a"].position}
    cursor, after = world.end("a"), world.hub.topics["a"].moves.number

    def all_ways() -> list[tuple[int, bytes, bytes, bool]]:
        looked = crowd.look_after(after), crowd.look_from(here, 5.0), crowd.look(cursor, 5.0)
        return [(found.status, found.cursor, found.answer.body, found.at_tail) for found in looked if found is not None]

    assert all_ways() == [(204, cursor, b"", True)] * 3
    world.kafka.say("a", 1, b"k")
    ways = all_ways()
    assert ways == [ways[0]] * 3
    assert (ways[0][0], ways[0][1], ways[0][3]) == (200, world.end("a"), True)
    world.hub.forget("a")
    assert all_ways() == []


def ended(world: World, crowd: Crowd, topic: str) -> bytes:
    """Return the cursor of somebody who was told where the tails end now, as woken readers are."""
    found = crowd.look_after(world.hub.topics[topic].moves.number)
    assert found is not None
    return found.cursor


def test_a_reader_of_a_key_is_told_what_the_last_moves_brought_for_it(world: World) -> None:
    """Also where keys were of no interest when they were made; from two partitions it is merged by time, as everywhere."""
    crowd = world.crowd("a", key=b"k")
    cursor = ended(world, crowd, "a")
    world.kafka.say("a", 0, b"other")
    assert (looked(crowd, cursor).status, looked(crowd, cursor).cursor) == (204, world.end("a"))
    world.kafka.say("a", 0, b"k", at=2)
    world.kafka.say("a", 1, b"k", at=1)
    body = json.loads(looked(crowd, cursor).answer.body)
    assert [(m["partition"], m["offset"]) for m in body["messages"]] == [(1, 0), (0, 1)]
    assert body["cursor"].encode() == world.end("a")


def test_more_than_an_answer_holds_is_not_told_from_moves(world: World) -> None:
    """It is read from the tails, in parts."""
    crowd = world.crowd("b", limit=2)
    cursor = ended(world, crowd, "b")
    for _ in range(3):
        world.kafka.say("b", 0, b"k")
    found = looked(crowd, cursor)
    assert [message["offset"] for message in json.loads(found.answer.body)["messages"]] == [0, 1]
    assert not found.at_tail


def test_ends_of_tails_are_bounded(world: World) -> None:
    """Forgetting one costs another look and nothing else."""
    world.places = Places(3)
    crowd, cursors = world.crowd("b"), []
    for _ in range(6):
        cursors.append(ended(world, crowd, "b"))
        world.kafka.say("b", 0, b"k")
        assert len(world.places._ends) <= 3
    told = [json.loads(looked(crowd, cursor).answer.body)["messages"] for cursor in cursors]
    assert [[message["offset"] for message in messages] for messages in told] == [list(range(n, 6)) for n in range(6)]


def test_an_empty_answer_needs_no_look(world: World) -> None:
    """It says where the client reads on."""
    position = {"a": TopicPosition(0, {0: 5})}
    nothing = world.crowd("a").nothing(position)
    assert (nothing.status, nothing.cursor.decode(), nothing.at_tail) == (204, encode(position), False)
    assert nothing.answer.body == b""


def position(world: World, topic: str, **offsets: int) -> bytes:
    named = {int(partition[1:]): offset for partition, offset in offsets.items()}
    return encode({topic: world.hub.topics[topic].position._replace(offsets=named)}).encode()


@pytest.mark.parametrize("cursor", [b"", b"AAAA", b"\xff", b"a b", b"x HTTP/1.1\r\n\r\nGET /?cursor=y"])
def test_a_cursor_that_is_none_is_not_for_a_crowd(world: World, cursor: bytes) -> None:
    """Its refusal is not, either."""
    assert world.crowd("a").look(cursor, 0.0) is None


def test_what_needs_more_than_the_tails_is_not_for_a_crowd(world: World) -> None:
    """The archive, a loss, a reset, a start, a question to Kafka: `Reader.read` sees to them."""
    for _ in range(9):
        world.kafka.say("b", 0, b"k")
    world.kafka.create("grown", 257)
    for cursor, topics in (
        (position(world, "b", p0=50), "b"),  # ahead
        (position(world, "b", p0=0, p7=0), "b"),  # a partition that is gone
        (encode({"b": TopicPosition(99, {0: 0})}).encode(), "b"),  # another topic of that name
        (world.end("a"), "b"),  # none of its topics
        (world.end("a"), "ab"),  # where the other one starts is not said
        (position(world, "grown", p0=0), ["grown"]),  # no cursor can hold it any more
    ):
        assert world.crowd(*topics).look(cursor, 0.0) is None
    crowd, end = world.crowd("b"), world.end("b")
    world.kafka.open("b", 0)
    assert crowd.look(position(world, "b", p0=8), 0.0) is None  # the archive
    world.kafka.partition("b", 0).trim(9)
    world.kafka.open("b", 0)
    assert crowd.look(position(world, "b", p0=8), 0.0) is None  # a loss
    assert crowd.look(end, 0.0) is not None
    world.hub.close("b", 0)
    assert crowd.look(end, 0.0) is None  # no tail
    world.hub.forget("b")
    assert crowd.look(end, 0.0) is None  # nobody follows it


# --- bytes ---


def test_an_answer_is_the_fields_in_their_order_then_length_date_and_body(world: World) -> None:
    """With the cursor in its places."""
    crowd, cursor = world.crowd("b"), world.end("b")
    world.kafka.say("b", 0, b"k")
    found = looked(crowd, cursor)
    line, fields, body = parsed(found.data(crowd))
    new = found.cursor.decode()
    assert line == "HTTP/1.1 200 OK"
    assert fields == [
        ("Content-Type", "application/json"),
        ("Next-Cursor", new),
        ("Cache-Control", "private, no-store"),
        ("Link", f'</v1/subscribe?channel=news&wait=30&cursor={new}>; rel="next"'),
        ("Server", "x"),
        ("Content-Length", str(len(body))),
        ("Date", "Sun, 22 Nov 2026 08:00:00 GMT"),
    ]
    assert body == found.answer.body
    assert json.loads(body)["cursor"] == new


def test_an_empty_answer_has_neither_type_nor_length(world: World) -> None:
    """RFC 9110, section 8.6: a server must not send Content-Length with 204."""
    crowd, cursor = world.crowd("b"), world.end("b")
    line, fields, body = parsed(looked(crowd, cursor).data(crowd))
    assert (line, body) == ("HTTP/1.1 204 No Content", b"")
    assert [name for name, _ in fields] == ["Next-Cursor", "Cache-Control", "Link", "Server", "Date"]


@pytest.mark.parametrize(("length", "linked"), [(MAX_LINKED_CURSOR, True), (MAX_LINKED_CURSOR + 1, False)])
@pytest.mark.parametrize("status", [200, 204])
def test_long_cursors_are_not_linked(world: World, length: int, linked: bool, status: int) -> None:
    """They stand in Next-Cursor alone; a link that holds no cursor stays."""
    crowd = world.crowd("b", fields=(*FIELDS, ("Link", "</docs>; rel=help")))
    head = crowd.head(status, b"c" * length)
    assert head.count(b"c" * length) == 1 + linked
    assert head.count(b"Link: ") == 1 + linked
    assert crowd.head(status, b"short").count(b"short") == 2


def test_fields_are_sent_as_utf8(world: World) -> None:
    """As aiohttp sends them."""
    assert "X: ä\r\n".encode() in world.crowd("b", fields=(("X", "ä"),)).head(200, b"")


def test_the_date_changes_by_the_second(world: World) -> None:
    """Within one, everybody gets the very same bytes."""
    crowd = world.crowd("b")
    found = looked(crowd, world.end("b"))
    first = found.data(crowd)
    world.clock.now += 0.9
    assert found.data(crowd) is first
    world.clock.now += 0.1
    assert found.data(crowd) == first.replace(b"08:00:00", b"08:00:01")
    assert world.dates.line()[1] is world.dates.line()[1]


# --- places ---


def test_a_cursor_that_was_given_is_known_when_it_comes_back(world: World) -> None:
    """It is not decoded again."""
    here = {"a": world.hub.topics["a"].position}
    cursor = world.places.cursor(here)
    assert world.places.position(cursor, ("a",)) is here
    assert world.places.position(world.end("b"), ("b",)) is world.places.position(world.end("b"), ("b",))


def test_a_cursor_means_to_each_subscription_what_it_says_of_its_topics(world: World) -> None:
    """Whoever came with it first; nothing where it does not say all."""
    both, here = world.end("a", "b"), {name: world.hub.topics[name].position for name in "ab"}
    for topics in (("a", "b"), ("a",), ("b",), ("a", "b")):
        assert world.places.position(both, topics) == {name: here[name] for name in topics}
    assert world.places.position(both, ("a", "c")) is None
    assert world.places.position(both, ("c",)) is None
    only = world.end("b")
    assert world.places.position(only, ("b",)) == {"b": here["b"]}
    assert world.places.position(only, ("a", "b")) is None


def test_a_cursor_for_more_topics_is_not_cut_short_by_who_came_first(world: World) -> None:
    """One that is known by one topic of two is decoded again for the subscription of both."""
    both = world.end("a", "b")
    assert world.places.position(both, ("b",)).keys() == {"b"}
    assert world.places.position(both, ("a", "b")).keys() == {"a", "b"}


def test_places_are_bounded(world: World) -> None:
    """Forgetting costs another decoding and nothing else."""
    places = Places(3)
    cursors = [places.cursor({"b": TopicPosition(0, {0: n})}) for n in range(10)]
    assert len(places) <= 3
    assert [places.position(cursor, ("b",)) for cursor in cursors] == [{"b": TopicPosition(0, {0: n})} for n in range(10)]
    assert len(places) <= 3


# --- cohorts ---


def member(cohort: Cohort) -> SimpleNamespace:
    one = SimpleNamespace(cohort=cohort)
    cohort.members.append(one)
    return one


def parked(world: World, crowd: Crowd, **given: Any) -> tuple[Cohort, list[Cohort]]:
    woken: list[Cohort] = []
    cohort = Cohort(crowd, woken.append)
    topics = crowd.subscription.topics
    here = given.get("here") or {name: world.hub.topics[name].position for name in topics}
    world.hub.park(cohort, here, at_tail="here" not in given, deadline=None)
    return cohort, woken


def test_a_cohort_wakes_as_one(world: World) -> None:
    """Its shell is told once; all of them stand where the tails ended then, however long they slept."""
    crowd = world.crowd("a", key=b"k")
    cohort, woken = parked(world, crowd)
    for _ in range(3):
        member(cohort)
    assert repr(cohort) == "<Cohort of 3 parked>"
    world.kafka.say("a", 0, b"other", b"other")
    assert world.hub.take(9) == []
    world.kafka.say("a", 0, b"k")
    [waiter] = world.hub.take(9)
    waiter.wake()
    assert woken == [cohort]
    assert cohort.position()["a"].offsets == {0: 2, 1: 0}
    assert repr(cohort) == "<Cohort of 3>"


def test_a_cohort_with_a_position_of_its_own_moves_on_with_the_tails(world: World) -> None:
    """What it knows better than they do it keeps."""
    here = {"a": world.hub.topics["a"].position._replace(offsets={0: 0, 1: 9})}
    cohort, _ = parked(world, world.crowd("a"), here=here)
    moment = {"a": here["a"]._replace(offsets={0: 4, 1: 4})}
    assert cohort.position_at(moment)["a"].offsets == {0: 4, 1: 9}


def test_who_leaves_a_cohort_is_counted_and_forgotten_in_bulk(world: World) -> None:
    """Leaving costs nothing; when more than half of the list has gone, it is made anew, in its order."""
    cohort, _ = parked(world, world.crowd("a"))
    members = [member(cohort) for _ in range(200)]
    for gone in members[:100]:
        gone.cohort = None
        cohort.leave()
    assert (len(cohort), len(cohort.members), cohort.gone) == (100, 200, 100)
    members[100].cohort = None
    cohort.leave()
    assert (len(cohort), cohort.gone) == (99, 0)
    assert cohort.members == members[101:]


def test_a_small_cohort_is_not_made_anew(world: World) -> None:
    """Sixty that have gone are not worth a pass."""
    cohort, _ = parked(world, world.crowd("a"))
    for gone in [member(cohort) for _ in range(60)]:
        gone.cohort = None
        cohort.leave()
    assert (len(cohort), cohort.gone) == (0, 60)


def test_a_cohort_that_is_being_answered_keeps_its_list(world: World) -> None:
    """Somebody goes along it."""
    cohort, _ = parked(world, world.crowd("a"))
    members = [member(cohort) for _ in range(100)]
    world.hub.unpark(cohort)
    for gone in members:
        gone.cohort = None
        cohort.leave()
    assert cohort.members == members
    assert len(cohort) == 0


def test_the_state_of_a_crowd_can_be_read_from_its_repr(world: World) -> None:
    """Its channels, the wait, and who sleeps."""
    crowd = world.crowd("a", "b")
    assert repr(crowd) == "<Crowd a b wait=30 None>"
    crowd.cohort, _ = parked(world, crowd)
    assert repr(crowd) == "<Crowd a b wait=30 <Cohort of 0 parked>>"


def test_bare_values_are_told_from_the_last_moves_too(world: World) -> None:
    """Of one partition as they came, of several the older first."""
    shape = Shape(Subscription((Selection("a", "a", "a", b"k"),), view="value"), 30.0, FIELDS)
    crowd = Crowd(shape, hub=world.hub, reader=world, places=world.places, kept=world.kept, dates=world.dates)
    cursor = ended(world, crowd, "a")
    world.kafka.say("a", 0, b"k", value=b"1", at=5)
    assert json.loads(looked(crowd, cursor).answer.body)["messages"] == [1]
    world.kafka.say("a", 1, b"k", value=b"2", at=4)
    assert json.loads(looked(crowd, cursor).answer.body)["messages"] == [2, 1]
