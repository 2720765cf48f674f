"""What a poll asks for is plain data, compared and grouped by value."""

import pytest

from gateway.errors import Gone
from gateway.fanout.cursor import TopicPosition, partition_for
from gateway.fanout.hub import Interest
from gateway.fanout.subscription import Selection, Subscription
from gateway.lifecycle import Announcement, Lifecycle


def channel(name: str, topic: str = "a", key: bytes | None = None, **more: object) -> Selection:
    return Selection(name, name.split("/", maxsplit=1)[0], topic, key, **more)


def subscribe(*selections: Selection, **more: int) -> Subscription:
    return Subscription(selections, **more)


ALL = subscribe(channel("a"))


def test_equal_subscriptions_are_equal_keys() -> None:
    first, second = subscribe(channel("a"), channel("b"), limit=5), subscribe(channel("a"), channel("b"), limit=5)
    assert first == second
    assert hash(first) == hash(second)
    assert {first: 1}[second] == 1
    assert first != subscribe(channel("a"), channel("b"), limit=6)


def test_topics_labels_and_selections_are_ordered() -> None:
    subscription = subscribe(channel("q/1", "b", priority=200), channel("q/2", "b"), channel("p", "a"), channel("o", "b"))
    assert subscription.topics == ("a", "b")
    assert subscription.labels == ("q", "p", "o")
    assert [s.channel for s in subscription.by_topic["b"]] == ["o", "q/2", "q/1"]


def test_interests_are_merged() -> None:
    subscription = subscribe(
        channel("x", "a", b"x"), channel("x2", "a", b"x"), channel("y", "b", b"y"), channel("all", "b"), channel("c", "c", b"x")
    )
    assert set(subscription.interests) == {Interest("a", b"x"), Interest("b", None), Interest("c", b"x")}
    assert len(subscription.interests) == 3


def test_a_partitioner_counts_only_where_all_channels_of_the_topic_have_keys() -> None:
    keyed = channel("k", key=b"k", partitioner="murmur2")
    assert subscribe(keyed).follows_partitioner("a")
    assert not subscribe(keyed, channel("a")).follows_partitioner("a")
    assert not subscribe(channel("a", partitioner="murmur2")).follows_partitioner("a")
    assert subscribe(keyed).wanted("a", 4) == {partition_for(b"k", 4)}
    assert list(subscribe(keyed).wanted("a", 0)) == []
    assert list(ALL.wanted("a", 3)) == [0, 1, 2]


def test_the_position_of_a_sleeper_is_the_moment_of_its_topics() -> None:
    moment = {name: TopicPosition(1, {0: n}) for n, name in enumerate("abc")}
    assert subscribe(channel("b", "b"), channel("a")).position_at(moment) == {"a": moment["a"], "b": moment["b"]}


def test_the_life_of_channels_is_told_but_makes_no_difference() -> None:
    """Who reads the same gets the same bytes; a subscription is gone when one of its channels is."""
    plain, ending = Selection("a", "a", "a"), Selection("b", "b/{x}", "b", lifecycle=Lifecycle(sunset=100.0))
    assert Selection("b", "b/{x}", "b") == ending
    assert Subscription((plain,)).announcement == Announcement()
    both = Subscription((plain, ending))
    assert both.announcement.sunset == 100.0
    both.check(99.0)
    with pytest.raises(Gone) as caught:
        both.check(100.0)
    assert caught.value.extra == {"channel": "b/{x}"}
