"""Deliveries: slices, who is left out of them, and what becomes of those who cannot be told."""

from __future__ import annotations

import asyncio

import pytest
from server.laneworld import World, held

from gateway.server.deliveries import SLICE_SECONDS


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_broadcast_is_delivered_in_slices(world: World):
    """Between two of them the loop turns; nobody is left out or told twice."""
    clients = [world.client() for _ in range(200)]
    world.clock.step = SLICE_SECONDS / 3
    world.say()
    turns = await world.turn()
    assert turns > 5
    assert {client.transport.written for client in clients} == {clients[0].transport.written}
    assert len(clients[0].answers) == 1
    assert held(world) == (0, 0)
    assert world.counted(world.metrics.answers) == {"messages": 200}


async def test_each_slice_reads_for_itself(world: World):
    """Records that came meanwhile go out with the rest of it."""
    clients = [world.client() for _ in range(64)]
    world.clock.step = SLICE_SECONDS
    world.say()
    while not clients[0].answers:
        await asyncio.sleep(0)
    assert not clients[-1].answers
    world.say()
    await world.turn()
    assert clients[0].answer.offsets == [0]
    assert clients[-1].answer.offsets == [0, 1]


async def test_the_rest_of_a_slice_may_have_to_be_replayed(world: World):
    """Where the topic went away in the middle of it."""
    clients = [world.client() for _ in range(64)]
    place = world.end("a")
    world.clock.step = SLICE_SECONDS
    world.say()
    while not clients[0].answers:
        await asyncio.sleep(0)
    world.hub.forget("a")
    await world.turn()
    told = [client for client in clients if client.answers]
    assert 0 < len(told) < 64
    assert all(client.replayed == client.request(place) for client in clients if client not in told)
    assert held(world) == (0, 0)


async def test_many_small_cohorts_are_slices_too(world: World):
    """A thousand readers of a thousand keys wake at once as well."""
    clients = [world.client(key=b"%d" % n) for n in range(60)]
    world.clock.step = SLICE_SECONDS
    world.kafka.say("a", 0, *(b"%d" % n for n in range(60)))
    assert await world.turn() > 50
    assert [client.answer.offsets for client in clients] == [[n] for n in range(60)]


async def test_replays_are_slices_too(world: World):
    """Each of them costs as much as a request."""
    clients = [world.client() for _ in range(20)]
    world.clock.step = SLICE_SECONDS
    world.hub.forget("a")
    assert await world.turn() > 15
    assert all(client.replayed for client in clients)
    assert held(world) == (0, 0)


async def test_a_topic_that_was_followed_anew_while_its_readers_were_on_the_way(world: World):
    """What they were woken for came before its new tails begin: they are replayed from where they stood."""
    client, place = world.client("b"), world.end("b")
    world.say("b")
    world.hub.forget("b")
    world.kafka.describe("b")
    world.kafka.open("b", 0)
    for _ in range(3):
        world.say("b")
    await world.turn()
    assert client.outcomes == []
    assert client.replayed == client.request(place)


async def test_who_leaves_while_others_are_answered_is_left_out(world: World):
    """And his slot was given back once."""
    clients = [world.client() for _ in range(64)]
    world.clock.step = SLICE_SECONDS
    world.say()
    while not clients[0].answers:
        await asyncio.sleep(0)
    clients[-1].lose()
    await world.turn()
    assert clients[-1].answers == []
    assert len(clients[-2].answers) == 1
    assert held(world) == (0, 0)
    assert world.counted(world.metrics.answers) == {"messages": 63, "closed_by_client": 1}


async def test_a_failing_write_does_not_end_the_slice_for_others(world: World):
    """Only its own connection is cut off."""
    clients = [world.client() for _ in range(3)]
    clients[1].transport.failing = OSError("gone")
    world.say()
    await world.turn()
    assert [client.transport.ended for client in clients] == ["", "aborted", ""]
    assert [client.outcomes for client in clients] == [[200], [], [200]]
    assert held(world) == (0, 0)


async def test_a_poll_that_comes_while_others_of_its_crowd_are_answered_sleeps_elsewhere(world: World):
    """It is not told what it has read."""
    client = world.client()
    world.say()
    late = world.client()
    await world.turn()
    assert (client.outcomes, late.outcomes, late.parked) == ([200], [], True)


async def test_a_delivery_that_fails_ends_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Its connections are cut, and the next delivery goes out."""
    world = World()
    broken, whole = world.client("a"), world.client("b")
    look = type(broken.lane.armed.crowd).look_after

    def fail(crowd, number):
        if crowd is broken.lane.armed.crowd:
            raise RuntimeError("no such thing")
        return look(crowd, number)

    monkeypatch.setattr("gateway.server.crowd.Crowd.look_after", fail)
    world.say("a")
    world.say("b")
    await world.turn()
    assert "a delivery failed" in caplog.text
    assert whole.transport.written.startswith(b"HTTP/1.1 200")
    assert not broken.transport.written


async def test_a_slice_is_scheduled_once_for_all_that_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch):
    """And none where nothing is."""
    loop = asyncio.get_running_loop()
    soon, call_soon = [], loop.call_soon

    def noted(callback, *args, **kw):
        if callback == world.lanes._deliveries._slice:
            soon.append(callback)
        return call_soon(callback, *args, **kw)

    monkeypatch.setattr(loop, "call_soon", noted)
    clients = [world.client(), world.client("b"), world.client(key=b"k")]
    world.lanes._cohorts.end([client.lane for client in clients], "timeout")
    assert repr(world.lanes._deliveries) == "<Deliveries, 3 under way>"
    await world.turn()
    assert (len(soon), repr(world.lanes._deliveries)) == (1, "<Deliveries, 0 under way>")
    world.lanes._deliveries.closing = True
    assert repr(world.lanes._deliveries) == "<Deliveries, 0 under way closing>"
