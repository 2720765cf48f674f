"""A lane: what of the bytes of a connection is a poll, what is kept, what is given back to the framework."""

from __future__ import annotations

import asyncio

import pytest
from server.laneworld import Client, Transport, World

from gateway.server.arming import MAX_HEAD


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_connection_comes_to_its_lane_parked(world: World):
    """Its transport tells at once when the socket does not take all."""
    client = world.client()
    assert client.parked
    assert client.transport.high_water == 0
    assert repr(client.lane).startswith("<Lane parked of <Armed ('test', 'ann') for <Crowd a wait=30 <Cohort of 1 parked>>>")
    assert repr(client.lane).endswith(", 0 bytes held>")


async def test_the_next_poll_is_taken_in_one_piece(world: World):
    """With whatever cursor."""
    client = world.client()
    world.say()
    await world.turn()
    assert (client.outcomes, client.parked) == ([200], False)
    client.poll()
    assert client.parked
    world.say()
    await world.turn()
    assert [answer.offsets for answer in client.answers] == [[0], [1]]


def fragments(data: bytes) -> list[list[bytes]]:
    return [
        [data[:1], data[1:]],
        [data[:-1], data[-1:]],
        [data[:-3], data[-3:]],
        [data[:60], data[60:90], data[90:]],
        [data[n : n + 1] for n in range(len(data))],
    ]


@pytest.mark.parametrize("which", range(5))
async def test_a_head_in_pieces_is_joined(world: World, which: int):
    """Off loopback a token and a browser's fields exceed one segment."""
    client = world.client(wait=0)
    for piece in fragments(client.request())[which]:
        assert client.outcomes == [204]
        client.send(piece)
    assert client.outcomes == [204, 204]
    assert not client.lane.holds


async def test_another_armed_head_is_found(world: World):
    """A proxy sends any client's next poll over any of its connections."""
    ann, bob = world.client(wait=0), world.client("b", wait=0, subject="bob")
    ann.send(bob.request())
    assert ann.outcomes == [204, 204]
    assert ann.answer.cursor == world.end("b")
    assert ann.lane.armed is bob.lane.armed
    ann.send(bob.request())
    assert ann.outcomes == [204, 204, 204]


async def test_a_field_that_is_ignored_may_differ(world: World):
    """The head is found, and the lane goes on with it."""
    client = world.client(wait=0, more="X-Request-Id: 1\r\n")
    client.send(client.request().replace(b"X-Request-Id: 1", b"X-Request-Id: 2"))
    assert client.outcomes == [204, 204]


@pytest.mark.parametrize(
    "other",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/publish HTTP/1.1\r\nContent-Len",
        b"HEAD ",
        b"\r\n",
        b"GEX",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\n\r\nGET ",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\n1",
        b"GET /" + b"a" * MAX_HEAD,
    ],
)
async def test_what_is_no_armed_head_is_replayed(world: World, other: bytes):
    """The framework gets the transport as it was, and the bytes as if nobody had looked at them."""
    client = world.client(wait=0)
    client.send(other)
    assert client.replayed == other
    assert client.transport.protocol.transport is client.transport
    assert client.transport.high_water is None
    assert len(world.lanes) == 0
    assert client.outcomes == [204]


@pytest.mark.parametrize(
    "broken", [b"GET / HTTP/1.1\nHost", b"GET / HTTP/1.1\r\r", b"GET /\rx", b"GET /\x00", b"GET / HTTP/1.1\r\nA: \x7f"]
)
async def test_what_no_head_can_begin_with_is_replayed_at_once(world: World, broken: bytes):
    """The framework refuses it, and does not wait for the rest."""
    client = world.client(wait=0)
    client.send(broken)
    assert client.replayed == broken


@pytest.mark.parametrize(
    "half", [b"G", b"GET /?a=\xe4", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nA:\tb\r\n", b"GET / HTTP/1.1\r\n\r"]
)
async def test_what_a_head_can_begin_with_is_kept(world: World, half: bytes):
    """Wherever it was cut."""
    client = world.client(wait=0)
    client.send(half)
    assert client.lane.holds


async def test_half_a_head_that_turns_out_to_be_another_is_replayed_whole(world: World):
    """From its first byte."""
    client = world.client(wait=0)
    client.send(b"GET /livez HT")
    assert client.lane.holds
    client.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert client.replayed == b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_poll_behind_half_a_head_is_none(world: World):
    """The bytes before it belong to it."""
    client = world.client(wait=0)
    client.send(b"GET /")
    client.poll()
    assert client.replayed == b"GET /" + client.request()


async def test_two_polls_at_once_are_replayed(world: World):
    """Also where the first one begins as the armed head does and the second one ends so."""
    client = world.client(wait=0)
    two = client.request() * 2
    client.send(two)
    assert client.replayed == two


async def test_a_body_behind_a_poll_is_replayed(world: World):
    """With the poll before it."""
    client = world.client(wait=0)
    client.send(client.request() + b"x")
    assert client.replayed == client.request() + b"x"


async def test_the_armed_head_without_a_cursor_is_replayed(world: World):
    """It is no poll that a lane knows."""
    client = world.client(wait=0)
    client.send(client.head.replace(b"%", b""))
    assert client.replayed == client.head.replace(b"%", b"")


async def test_a_head_longer_than_any_that_is_armed_is_replayed(world: World):
    """The framework has its own bounds, and errors that name them."""
    client = world.client(wait=0)
    client.send(b"GET /" + b"a" * (MAX_HEAD - 5))
    assert client.lane.holds
    client.send(b"a")
    assert client.replayed == b"GET /" + b"a" * (MAX_HEAD - 4)


# --- one answer at a time ---


async def test_what_comes_while_a_poll_is_parked_waits_for_its_answer(world: World):
    """In the order in which it came."""
    client = world.client()
    client.send(client.request(world.at("a", 0, 0))[:20])
    client.send(client.request(world.at("a", 0, 0))[20:])
    assert client.parked
    assert client.lane.holds
    world.say()
    await world.turn()
    assert [answer.offsets for answer in client.answers] == [[0], [0]]
    assert not client.lane.holds


async def test_a_poll_that_waited_may_park(world: World):
    """It has its own wait."""
    client = world.client()
    client.send(client.request(world.at("a", 1, 0)))
    world.say()
    await world.turn()
    assert client.outcomes == [200]
    assert client.parked
    world.say()
    await world.turn()
    assert [answer.offsets for answer in client.answers] == [[0], [1]]


async def test_another_request_that_waited_is_replayed(world: World):
    """Once the answer is out."""
    client = world.client()
    client.send(b"GET /livez HTTP/1.1\r\n\r\n")
    assert client.parked
    world.say()
    await world.turn()
    assert client.replayed == b"GET /livez HTTP/1.1\r\n\r\n"
    assert client.outcomes == [200]


async def test_a_parked_client_that_goes_on_sending_is_cut_off(world: World):
    """Beyond the bytes of one head."""
    client = world.client()
    client.send(b"x" * MAX_HEAD)
    assert client.transport.ended == ""
    client.send(b"x")
    assert client.transport.ended == "aborted"
    client.lose()
    assert (len(world.lanes), world.slots.held) == (0, 0)


async def test_while_the_socket_does_not_take_an_answer_nothing_is_read_on(world: World):
    """Neither answered nor replayed: the framework's flow control expects an empty write buffer."""
    client = world.client()
    client.transport.full = True
    world.say()
    await world.turn()
    assert client.outcomes == [200]
    assert "stuck" in repr(client.lane)
    client.send(client.request())
    client.send(b"GET /livez HTTP/1.1\r\n\r\n")
    assert client.outcomes == [200]
    assert client.lane.holds
    client.drained()
    assert client.replayed == client.request() + b"GET /livez HTTP/1.1\r\n\r\n"


async def test_a_poll_that_came_meanwhile_is_answered_when_the_socket_is_free(world: World):
    """As if it had come then."""
    client = world.client(wait=0)
    client.transport.full = True
    client.poll()
    client.poll()
    assert client.outcomes == [204, 204]
    client.drained()
    assert client.outcomes == [204, 204, 204]
    client.poll()
    assert len(client.outcomes) == 4
    assert "open" in repr(client.lane)


async def test_a_stuck_client_that_goes_on_sending_is_cut_off(world: World):
    """Beyond the bytes of one head."""
    client = world.client(wait=0)
    client.transport.full = True
    client.poll()
    client.send(b"x" * (MAX_HEAD + 1))
    assert client.transport.ended == "aborted"


async def test_a_failing_write_cuts_off(world: World, caplog: pytest.LogCaptureFixture):
    """There is no other way to tell the client that its answer is lost."""
    client = world.client(wait=0)
    client.transport.failing = RuntimeError("broken")
    client.poll()
    assert client.transport.ended == "aborted"
    assert "an answer could not be written" in caplog.text


@pytest.mark.parametrize("held", [b"", b"GET /"])
async def test_a_lost_connection_leaves_nothing_behind(world: World, held: bytes):
    """Nor is anything done with what it held."""
    client = world.client()
    client.send(held)
    client.lose()
    client.lose()
    assert (len(world.lanes), world.slots.held, world.hub.parked) == (0, 0, 0)
    assert client.lane.holds is False
    world.say()
    await world.turn()
    assert client.outcomes == []


async def test_a_lane_asks_nobody_to_make_connections_before_one_came(world: World):
    """The first one says of which server they are."""
    with pytest.raises(AssertionError, match="no lane without a connection"):
        world.lanes.connection()


async def test_a_transport_stays_with_its_client(world: World):
    """Each gets its own answers, and nothing of the other's."""
    clients: list[Client] = [world.client("a"), world.client("b")]
    for n in range(50):
        for topic, client in zip("ab", clients, strict=True):
            world.say(topic)
            await world.turn()
            assert client.answer.body["messages"][0]["channel"] == topic
            assert len(client.answers) == n + 1
            client.poll()
    assert all(isinstance(client.transport, Transport) for client in clients)
    assert asyncio.all_tasks() == {asyncio.current_task()}
