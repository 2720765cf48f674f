"""All crowds: one for each shape, as long as somebody is of it."""

from __future__ import annotations

import gc

import pytest
from fanout.fakekafka import FakeKafka

from gateway.fanout.cursor import encode
from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Selection, Subscription
from gateway.server.crowd import Shape
from gateway.server.crowds import Crowds


class World:
    """Topics a (two partitions) and b, and their crowds."""

    def __init__(self) -> None:
        self.hub = Hub(budget=2**20, tail_budget=2**20)
        self.kafka = FakeKafka(self.hub)
        for name, partitions in (("a", 2), ("b", 1)):
            self.kafka.create(name, partitions)
        self.crowds = Crowds(self.hub, Reader(self.hub, self.kafka), lambda: 0.0)

    def end(self, *topics: str) -> bytes:
        return encode({name: self.hub.topics[name].position for name in topics}).encode()


@pytest.fixture
def world() -> World:
    return World()


def subscription(*topics: str) -> Subscription:
    return Subscription(tuple(Selection(name, f"{name}/{{x}}", name, None) for name in topics))


def test_polls_of_one_shape_are_of_one_crowd(world: World) -> None:
    """Another wait, another subscription or another field make another one."""
    shapes = [
        Shape(subscription("a"), 30.0, ()),
        Shape(subscription("b"), 30.0, ()),
        Shape(subscription("a"), 20.0, ()),
        Shape(subscription("a"), 30.0, (("Server", "x"),)),
    ]
    found = [world.crowds.crowd(shape) for shape in shapes]
    assert len(set(found)) == 4
    assert [world.crowds.crowd(shape) for shape in shapes] == found
    assert (len(world.crowds), repr(world.crowds)) == (4, "<Crowds, 4>")


def test_a_crowd_of_nobody_is_forgotten(world: World) -> None:
    """Its labels are not: what was counted once is counted on, down to nought."""
    crowd = world.crowds.crowd(Shape(subscription("a"), 30.0, ()))
    assert world.crowds.labels == {"a/{x}"}
    del crowd
    gc.collect()
    assert len(world.crowds) == 0
    assert world.crowds.labels == {"a/{x}"}


def test_the_tails_can_tell_where_they_have_what_is_asked_for(world: World) -> None:
    """Not of another topic's cursor, of what is none, of what lies ahead or behind, or of topics that nobody follows."""
    one, two = subscription("a"), subscription("a", "b")
    here = world.hub.topics["a"].position
    assert world.crowds.can_tell(one, world.end("a"))
    assert world.crowds.can_tell(two, world.end("a", "b"))
    assert not world.crowds.can_tell(one, world.end("b"))
    assert not world.crowds.can_tell(one, b"AAAA")
    assert not world.crowds.can_tell(one, encode({"a": here._replace(offsets={0: 7, 1: 0})}).encode())
    end = world.end("a", "b")
    world.hub.close("b", 0)
    assert not world.crowds.can_tell(two, end)
    world.hub.forget("b")
    assert not world.crowds.can_tell(two, end)
