"""All lanes: what becomes of polls, limits, clocks, ends, and what is counted."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from multidict import CIMultiDict
from server.laneworld import ADDRESS, PEER, Client, World, held

from gateway import draining
from gateway.auth.principal import KeyRef, Principal
from gateway.fanout.cursor import encode
from gateway.fanout.subscription import Selection, Subscription
from gateway.limits import TokenBuckets
from gateway.metrics import Reading
from gateway.server import lanes as lanes_module
from gateway.server.arming import Cut
from gateway.server.deliveries import SLICE_SECONDS
from gateway.server.lanes import Facts
from gateway.server.sweep import STUCK_SECONDS

OLD = KeyRef("test", "old", "HS256", "fingerprint of old")
NEW = KeyRef("test", "new", "HS256", "fingerprint of new")


@pytest.fixture
async def world() -> World:
    return World()


# --- a poll's fate ---


async def test_a_poll_with_something_to_read_is_answered_at_once(world: World):
    """As it is handed over, and from then on."""
    for _ in range(3):
        world.say()
    client = world.client(cursor=world.at("a", 1, 0))
    assert client.answer.offsets == [1, 2]
    client.poll(world.at("a", 2, 0))
    assert client.answer.offsets == [2]
    assert client.answer.cursor == world.end("a")
    assert held(world) == (0, 0)


async def test_a_poll_with_nothing_to_read_parks_until_there_is(world: World):
    """With all others of its crowd, as one waiter of the hub."""
    clients = [world.client() for _ in range(5)]
    assert (held(world), world.hub.parked) == ((5, 5), 1)
    world.say(partition=1)
    assert held(world) == (5, 5)
    await world.turn()
    assert {client.transport.written for client in clients} == {clients[0].transport.written}
    assert clients[0].answer.offsets == [0]
    assert (held(world), world.hub.parked) == ((0, 0), 0)
    assert repr(world.lanes) == "<Lanes 5, 1 armed, 1 crowds, Slots(0 of 10000 held by 0, 1000 each)>"


async def test_one_clients_connections_share_what_their_head_came_to(world: World):
    """As long as it holds."""
    first, second, other = world.client(), world.client(), world.client(subject="bob")
    assert first.lane.armed is second.lane.armed
    assert other.lane.armed is not first.lane.armed
    world.lanes._arming.revoke()
    first.lane.armed.revoke()
    third = world.client()
    assert third.lane.armed is not first.lane.armed
    soon = [world.client("b", wait=20, expires=1.5) for _ in range(2)]
    assert soon[0].lane.armed is soon[1].lane.armed
    await world.after(0.6)
    late = world.client("b", wait=20, expires=0.9)
    assert late.lane.armed is not soon[0].lane.armed


async def test_polls_with_another_wait_or_other_fields_are_another_crowd(world: World):
    """They end at another time, or get other bytes; once nobody is left, the crowd is forgotten."""
    clients = [world.client(), world.client(wait=29), world.client("b"), world.client(key=b"k")]
    assert (len(world.lanes._crowds), world.hub.parked) == (4, 4)
    world.say("a", b"k")
    await world.turn()
    assert [len(client.answers) for client in clients] == [1, 1, 0, 1]


async def test_a_short_poll_is_never_parked(world: World):
    """It gets 204 with the cursor to read on."""
    client = world.client(wait=0)
    assert (client.outcomes, client.answer.cursor, held(world)) == ([204], world.end("a"), (0, 0))
    for _ in range(2):
        client.poll()
    assert client.outcomes == [204] * 3


async def test_a_poll_that_comes_back_to_the_end_joins_who_sleeps_there(world: World):
    """Though its cursor is older than theirs, if nothing for them came since."""
    sleeper = world.client(key=b"k")
    late = world.client(key=b"k", wait=0)
    world.say("a", b"other")
    late = world.client(key=b"k", cursor=late.answer.cursor)
    assert world.hub.parked == 1
    world.say("a", b"k")
    await world.turn()
    assert sleeper.transport.written == late.transport.written
    assert sleeper.answer.offsets == [1]


async def test_who_knows_more_than_the_tails_sleeps_apart(world: World):
    """A position names a partition that nobody could open yet: it is kept."""
    world.hub.close("a", 1)
    clients = [world.client(cursor=world.at("a", 0, 5)) for _ in range(2)]
    assert held(world) == (2, 2)
    assert world.hub.parked == 2
    world.say()
    await world.turn()
    for client in clients:
        assert client.answer.offsets == [0]
        assert client.answer.cursor == world.at("a", 1, 5)


async def test_a_cohort_that_wakes_to_nothing_parks_again(world: World):
    """Its members keep their deadlines and their places."""
    clients = [world.client()]
    await world.after(10)
    clients.append(world.client())
    world.kafka.describe("a", with_id=False)
    world.hub.open("a", 1, start=0, log_start=0)
    assert held(world) == (2, 2)
    await world.turn()
    assert (held(world), [client.outcomes for client in clients]) == ((2, 2), [[], []])
    await world.after(19.5)
    assert [client.outcomes for client in clients] == [[], []]
    await world.after(0.7)
    assert [client.outcomes for client in clients] == [[204], []]
    await world.after(9.5)
    assert [client.outcomes for client in clients] == [[204], []]
    world.say()
    await world.turn()
    assert clients[1].answer.offsets == [0]


async def test_who_wakes_to_nothing_after_his_time_ends_at_the_next_tick(world: World):
    """The wait was over while he was on the way."""
    client = world.client()
    await world.after(29.9)
    world.hub.open("a", 1, start=0, log_start=0)
    world.clock.now += 5
    await world.turn()
    assert client.parked
    world.pass_(0.2)
    await world.turn()
    assert client.outcomes == [204]


async def test_a_cohort_all_of_whose_members_have_left_is_no_cohort(world: World):
    """Neither where it slept nor on its way."""
    client, other = world.client(), world.client()
    world.hub.open("a", 1, start=0, log_start=0)
    client.lose()
    other.lose()
    await world.turn()
    assert (held(world), world.hub.parked) == ((0, 0), 0)
    client = world.client()
    world.hub.open("a", 1, start=0, log_start=0)
    await asyncio.sleep(0)
    client.lose()
    await world.turn()
    assert (held(world), world.hub.parked) == ((0, 0), 0)


# --- polls that are no lane's ---


async def test_what_the_tails_cannot_tell_is_not_taken_over(world: World):
    """Nor anything while the process drains."""
    subscription = Subscription((Selection("a", "a", "a"),))

    def offered(cursor: str) -> bool:
        facts = Facts(subscription, 30.0, Principal("test", "ann", {}, frozenset(), None, None), ADDRESS, PEER)
        return world.lanes.offer(Cut(b"", cursor.encode(), b""), facts, CIMultiDict()) is not None

    end = world.end("a")
    assert offered(end)
    assert not offered("AAAA")
    assert not offered(world.end("b"))
    assert not offered(world.at("a", 7, 0))
    world.hub.close("a", 0)
    assert offered(end)
    world.hub.close("a", 1)
    assert not offered(end)
    world.hub.forget("a")
    assert not offered(end)
    world.kafka.describe("a")
    world.kafka.open("a", 0)
    assert offered(end)
    await world.lanes.drain(0.0)
    assert not offered(end)


async def test_a_cursor_that_the_tails_cannot_tell_is_replayed(world: World):
    """With the head as it came."""
    client = world.client(wait=0)
    client.poll(world.at("a", 9, 9))
    assert client.replayed == client.request(world.at("a", 9, 9))
    assert (held(world), len(world.lanes)) == ((0, 0), 0)


async def test_who_sleeps_where_the_tails_end_no_more_is_replayed_from_there(world: World):
    """His topic was created anew: the framework tells him so; what he sent meanwhile comes after it."""
    client, other = world.client(), world.client(subject="bob")
    place = world.end("a")
    client.send(b"GET /livez HTTP/1.1\r\n\r\n")
    world.kafka.create("a", 1)
    await world.turn()
    assert client.replayed == client.request(place) + b"GET /livez HTTP/1.1\r\n\r\n"
    assert other.replayed == other.request(place)
    assert (held(world), len(world.lanes)) == ((0, 0), 0)
    assert world.counted(world.metrics.answers) == {}


async def test_a_sleeper_is_replayed_with_a_fresh_cursor(world: World):
    """What was not for him meanwhile is behind him: the old cursor would be asked of the archive."""
    client = world.client(key=b"k")
    for _ in range(5):
        world.say("a", b"other")
    place = world.end("a")
    world.hub.forget("a")
    await world.turn()
    assert client.replayed == client.request(place)


async def test_who_leaves_before_he_is_replayed_is_left_out(world: World):
    """There is nobody to be answered."""
    client, other = world.client(), world.client()
    world.hub.forget("a")
    client.lose()
    await world.turn()
    assert (client.replayed, client.outcomes) == (None, [])
    assert other.replayed
    assert held(world) == (0, 0)


async def test_topics_that_are_polled_over_lanes_stay_live(world: World):
    """Also by short polls that find nothing, and from an answer on until the next poll."""
    short, parked = world.client(wait=0), world.client("b")
    await world.after(5)
    short.poll()
    assert world.hub.topics["a"].last_polled == world.clock.now
    world.say("b")
    await world.turn()
    assert world.hub.topics["b"].last_polled == world.clock.now
    assert len(parked.answers) == 1


async def test_a_handler_that_offers_what_cannot_be_is_a_mistake(world: World):
    """Nothing can change between its look and the lane's."""
    with pytest.raises(AssertionError, match="has just looked"):
        World(quota=0).client()


async def test_what_is_replayed_at_once_is_replayed_as_it_came(world: World):
    """With its own request id, not the one of the head that was armed."""
    client = world.client(wait=0, more="X-Request-Id: 1\r\n")
    head = client.request(world.at("a", 9, 9)).replace(b"X-Request-Id: 1", b"X-Request-Id: 2")
    client.send(head)
    assert client.replayed == head


async def test_what_is_replayed_later_has_no_field_that_is_ignored(world: World):
    """The head that was armed had those of another poll."""
    client = world.client(more="X-Request-Id: 1\r\n")
    place = world.end("a")
    world.hub.forget("a")
    await world.turn()
    assert client.replayed == client.request(place).replace(b"X-Request-Id: 1\r\n", b"")


# --- limits ---


async def test_each_poll_on_a_lane_is_charged_once_to_the_principal_and_once_to_the_address():
    """The first poll was charged where it came in."""
    polls, addresses = TokenBuckets("polls", quota=5, window=60), TokenBuckets("address", quota=9, window=60)
    world = World(polls=polls, addresses=addresses)
    client = world.client(wait=0)
    for _ in range(3):
        client.poll()
    assert polls.take(("test", "ann"), world.clock.now).remaining == 1
    assert addresses.take(ADDRESS, world.clock.now).remaining == 5


@pytest.mark.parametrize("wait", [0.0, 30.0])
@pytest.mark.parametrize(("quota", "others"), [(3, 100), (100, 3)])
async def test_a_poll_over_a_limit_is_replayed_and_nothing_is_taken_for_it(wait: float, quota: int, others: int):
    """The framework charges it itself, refuses it, and says so; of two limits neither is charged."""
    polls, addresses = TokenBuckets("polls", quota=quota, window=60), TokenBuckets("address", quota=others, window=60)
    world = World(polls=polls, addresses=addresses)
    sleeper = world.client(subject="bob")
    client = world.client(wait=wait)
    for _ in range(3):
        if wait:
            world.lanes._cohorts.end([client.lane], "timeout")
            await world.turn()
        client.poll()
        assert client.replayed is None
    if wait:
        world.lanes._cohorts.end([client.lane], "timeout")
        await world.turn()
    levels = [bucket.full_at for table in (polls, addresses) for bucket in table._buckets.values()]
    client.poll()
    assert client.replayed == client.request()
    assert [bucket.full_at for table in (polls, addresses) for bucket in table._buckets.values()] == levels
    assert sleeper.parked
    held(world)


async def test_tokens_come_back_with_time():
    """As everywhere."""
    world = World(polls=TokenBuckets("polls", quota=1, window=10))
    client = world.client(wait=0)
    client.poll()
    await world.after(10)
    client.poll()
    assert client.outcomes == [204] * 3


async def test_a_sleeper_that_is_replayed_gets_his_tokens_back():
    """The framework charges the poll once more."""
    polls, addresses = TokenBuckets("polls", quota=9, window=60), TokenBuckets("address", quota=9, window=60)
    world = World(polls=polls, addresses=addresses)
    client = world.client(wait=30)
    world.say()
    await world.turn()
    client.poll()
    assert client.parked
    world.hub.forget("a")
    await world.turn()
    assert client.replayed
    assert polls.take(("test", "ann"), world.clock.now).remaining == 8
    assert addresses.take(ADDRESS, world.clock.now).remaining == 8


async def test_buckets_that_the_tables_dropped_are_asked_for_again():
    """A table that is full drops the fullest, also of those whose lanes are open."""
    polls, addresses = TokenBuckets("polls", quota=9, window=60, bound=1), TokenBuckets("address", quota=9, window=60, bound=1)
    world = World(polls=polls, addresses=addresses)
    client = world.client(wait=0)
    for _ in range(2):
        polls.check("flood", world.clock.now)
        addresses.check("flood", world.clock.now)
        assert client.lane.armed.bucket.dropped
        assert client.lane.armed.address_bucket.dropped
        client.poll()
    assert client.outcomes == [204] * 3
    assert set(polls._buckets) == {("test", "ann")}
    assert set(addresses._buckets) == {ADDRESS}


@pytest.mark.parametrize(("quota", "total"), [(2, 100), (100, 3)])
async def test_a_poll_beyond_the_slots_is_replayed(quota: int, total: int):
    """Those of the principal, or those of the process: the framework refuses it."""
    world = World(quota=quota, total=total)
    other = world.client("b", subject="bob")
    clients = [world.client(wait=0) for _ in range(2)]
    parked = [world.client() for _ in range(2)]
    polling = Client(world, parked[0].head)
    clients[0].send(polling.request())
    assert clients[0].replayed == polling.request()
    clients[1].poll()
    assert clients[1].replayed == clients[1].request()
    assert held(world) == (3, 3)
    assert other.parked


async def test_a_slot_is_given_back_on_every_way_out():
    """Answer, timeout, the client's leaving, the token's end, the key's withdrawal, the drain, and the way back."""
    world = World()
    ways = {
        "answer": world.client("b"),
        "left": world.client(),
        "expiry": world.client(expires=5.0),
        "key": world.client(signed_by=OLD),
        "timeout": world.client(wait=7),
        "drain": world.client(signed_by=NEW),
    }
    assert held(world) == (6, 6)
    world.say("b")
    await world.turn()
    assert held(world) == (5, 5)
    ways["left"].lose()
    assert held(world) == (4, 4)
    await world.after(5.2)
    assert held(world) == (3, 3)
    world.lanes.withdraw(OLD)
    await world.turn()
    assert held(world) == (2, 2)
    await world.after(2.0)
    assert held(world) == (1, 1)
    moved = world.client("b", subject="moved")
    world.hub.forget("b")
    await world.turn()
    assert moved.replayed
    assert held(world) == (1, 1)
    await world.lanes.drain(0.0)
    await world.turn()
    assert held(world) == (0, 0)
    assert [client.outcomes for client in ways.values()] == [[200], [], [204], [204], [204], [204]]


async def test_a_holder_that_was_dropped_is_asked_for_again(world: World):
    """It was swept out while its lane was open and no poll parked."""
    client = world.client()
    world.say()
    await world.turn()
    world.slots._sweep()
    assert client.lane.armed.holder.dropped
    client.poll()
    assert client.parked
    assert held(world) == (1, 1)
    assert world.slots.of(("test", "ann")) == 1


# --- time ---


@pytest.mark.parametrize("wait", [0.3, 1.0, 30.0])
async def test_a_wait_ends_within_a_tick(world: World, wait: float):
    """With 204 and the end of the tails as they are then."""
    client = world.client(wait=wait, key=b"k")
    await world.after(wait - 0.1)
    world.say("a", b"other")
    assert client.outcomes == []
    await world.after(0.3)
    assert client.outcomes == [204]
    assert client.answer.cursor == world.end("a")
    assert (held(world), world.hub.parked) == ((0, 0), 0)


async def test_of_a_cohort_each_has_his_own_wait(world: World):
    """Only the first one's is watched at a time, and the cohort sleeps on without him."""
    clients = []
    for _ in range(6):
        clients.append(world.client(wait=3))
        await world.after(1)
    assert [len(client.answers) for client in clients] == [1, 1, 1, 0, 0, 0]
    assert world.hub.parked == 1
    clients[0].poll()
    assert world.hub.parked == 1
    for n in range(3, 7):
        await world.after(1)
        assert [len(client.answers) for client in clients] == [1 + (n == 6)] + [int(i <= n) for i in range(1, 6)]


async def test_a_member_that_left_does_not_hold_up_the_others(world: World):
    """Nor does the first of them."""
    clients = [world.client(wait=3) for _ in range(3)]
    clients[0].lose()
    await world.after(1)
    clients.append(world.client(wait=3))
    clients[1].lose()
    await world.after(2.2)
    assert [len(client.answers) for client in clients] == [0, 0, 1, 0]
    await world.after(1)
    assert [len(client.answers) for client in clients] == [0, 0, 1, 1]


async def test_an_alarm_of_those_who_left_is_set_anew_for_who_came_after_them(world: World):
    """It comes when nobody's time is over."""
    early = [world.client(wait=3) for _ in range(2)]
    await world.after(1)
    late = world.client(wait=3)
    for client in early:
        client.lose()
    await world.after(2.5)
    assert late.outcomes == []
    await world.after(0.7)
    assert late.outcomes == [204]


async def test_alarms_of_cohorts_that_woke_are_no_alarms(world: World):
    """They come when nobody sleeps there."""
    client = world.client(wait=3)
    world.say()
    await world.turn()
    await world.after(4)
    assert client.outcomes == [200]


@pytest.mark.parametrize("end", ["wait", "token", "key"])
async def test_whoever_was_woken_is_on_the_way_to_an_answer(world: World, end: str):
    """His time, his token or its key may end meanwhile: what woke him is told all the same."""
    client = world.client(wait=3, expires=2.5 if end == "token" else None, signed_by=OLD)
    world.say()
    if end == "key":
        world.lanes.withdraw(OLD)
    else:
        world.pass_(4)
    await world.turn()
    assert (client.outcomes, client.answer.offsets) == ([200], [0])
    assert held(world) == (0, 0)


async def test_a_token_that_ends_before_the_wait_ends_the_poll(world: World):
    """Within a tick; those of others with the same cursor sleep on."""
    client, other = world.client(expires=5.0), world.client()
    await world.after(4.9)
    assert client.outcomes == []
    await world.after(0.3)
    assert (client.outcomes, other.outcomes) == ([204], [])
    assert not client.answer.closes
    assert world.counted(world.metrics.answers) == {"expired": 1}
    client.poll()
    assert client.replayed == client.request()


async def test_a_token_ends_each_poll_that_parks_by_it(world: World):
    """Also one that comes back to the cohort that it had been in."""
    client, other = world.client(expires=5.0, wait=3), world.client(wait=100)
    await world.after(1)
    assert other.parked
    world.say()
    await world.turn()
    client.poll()
    await world.after(3.2)
    assert client.outcomes == [200, 204]
    client.poll()
    assert client.replayed is not None


async def test_a_member_of_a_cohort_that_ends_early_twice(world: World):
    """It ended by its wait, came back into the cohort, and its token ends there: one answer, and one slot given back."""
    first, client = world.client(wait=3), world.client(wait=3, expires=5.0)
    await world.after(2)
    keeps = world.client(wait=3)
    await world.after(1.3)
    assert (first.outcomes, client.outcomes) == ([204], [204])
    client.poll()
    assert client.lane.cohort is keeps.lane.cohort
    await world.after(1.2)
    assert client.outcomes == [204]
    await world.after(0.8)
    assert client.outcomes == [204, 204]
    held(world)


async def test_who_is_alone_on_a_channel_sleeps_in_the_same_cohort_again(world: World):
    """And for as long as anybody: the alarm of the time before does not end the poll."""
    client = world.client(key=b"k", wait=3)
    cohort = client.lane.cohort
    await world.after(2)
    world.say("a", b"k")
    await world.turn()
    client.poll()
    assert client.lane.cohort is cohort
    await world.after(2)
    assert client.outcomes == [200]
    await world.after(1.2)
    assert client.outcomes == [200, 204]
    client.poll()
    world.say("a", b"k")
    await world.turn()
    assert client.outcomes == [200, 204, 200]


async def test_a_cohort_that_is_parked_again_does_not_know_its_old_place(world: World):
    """Who comes with the cursor of the time before is told what came since."""
    client, other = world.client(key=b"k"), world.client(key=b"k", subject="bob")
    before = client.request()
    world.say("a", b"k")
    await world.turn()
    other.poll()
    client.send(before)
    assert client.outcomes == [200, 200]
    assert other.parked


async def test_a_lane_that_comes_back_with_another_token_does_not_end_with_the_first(world: World):
    """Its connection may be a proxy's, on which others' polls come as well."""
    client, other = world.client(expires=5.0), world.client(subject="bob")
    cohort = client.lane.cohort
    world.say()
    await world.turn()
    client.send(other.request())
    assert client.lane.cohort is cohort
    await world.after(6)
    assert client.outcomes == [200]


async def test_a_poll_that_its_token_would_end_within_a_second_is_replayed(world: World):
    """It is refused as expired: it could only come back refused. A short poll is good until the end."""
    client, short = world.client(expires=5.0), world.client(expires=5.0, wait=0)
    world.say()
    await world.turn()
    await world.after(3.9)
    client.poll()
    assert client.parked
    world.say()
    await world.turn()
    await world.after(0.3)
    client.poll()
    assert client.replayed == client.request()
    await world.after(0.7)
    short.poll()
    assert len(short.answers) == 2
    await world.after(0.3)
    short.poll()
    assert short.replayed == short.request()


async def test_a_token_that_ends_while_its_cohort_moves_ends_the_poll_there(world: World):
    """The new cohort knows of it."""
    client = world.client(expires=5.0)
    await world.after(1)
    world.hub.open("a", 1, start=0, log_start=0)
    await world.turn()
    assert client.parked
    await world.after(4.3)
    assert client.outcomes == [204]


async def test_a_sunset_before_the_waits_end_ends_the_poll(world: World):
    """As the end of a token does, within a tick; the next poll is for the framework, which says why."""
    client = world.client("a", sunset=5.0)
    await world.after(4.9)
    assert client.outcomes == []
    await world.after(0.3)
    assert client.outcomes == [204]
    assert not client.answer.closes
    assert world.counted(world.metrics.answers) == {"expired": 1}
    client.poll()
    assert client.replayed == client.request()
    held(world)


async def test_a_poll_is_good_until_the_sunset(world: World):
    """Unlike one that its token would end within a second: what comes after a 204 is announced in it."""
    client = world.client("a", sunset=5.0)
    world.say()
    await world.turn()
    await world.after(4.9)
    client.poll()
    assert client.parked
    await world.after(0.3)
    assert client.outcomes == [200, 204]


async def test_the_first_end_counts(world: World):
    """That of the token, or that of the channel."""
    late, early = world.client("a", sunset=9.0, expires=5.0), world.client("b", sunset=5.0, expires=9.0)
    await world.after(5.3)
    assert (late.outcomes, early.outcomes) == ([204], [204])


async def test_all_answers_of_a_lane_tell_of_the_sunset(world: World):
    """The head that a crowd shares has all the fields, also two of one name."""
    client = world.client("a", sunset=50.0, wait=3)
    world.say()
    await world.turn()
    client.poll()
    await world.after(3.2)
    assert client.outcomes == [200, 204]
    for answer in client.answers:
        assert answer.fields["Sunset"] == "Sun, 22 Nov 2026 08:00:50 GMT"
    assert client.transport.written.count(b'rel="next"\r\nSunset: ') == 2
    assert client.transport.written.count(b'\r\nLink: </v2>; rel="successor-version"\r\n') == 2


async def test_a_wait_that_ends_before_the_token_is_nothing_early(world: World):
    """It is noted for neither."""
    world.client(expires=50.0)
    world.hub.open("a", 1, start=0, log_start=0)
    await world.turn()
    assert world.lanes._cohorts._wheel._early == {}


async def test_half_a_head_times_out(world: World):
    """From its first byte, however slowly the rest drips in."""
    client, other = world.client(wait=0), world.client(wait=0)
    for n in range(12):
        client.send(b"GET / "[n : n + 1] or b"a")
        other.poll()
        assert client.transport.ended == ("closed" if n >= 10 else ""), n
        world.pass_(1)
    assert other.transport.ended == ""


async def test_an_idle_lane_is_closed_after_keepalive():
    """Counted from its last answer; one that is parked is not idle."""
    world = World(keepalive=20.0)
    idle, parked, busy = world.client(wait=0), world.client(wait=55), world.client(wait=0)
    await world.after(15)
    busy.poll()
    await world.after(4.9)
    assert idle.transport.ended == ""
    await world.after(1.2)
    assert [client.transport.ended for client in (idle, parked, busy)] == ["closed", "", ""]
    idle.lose()
    await world.after(1)
    assert len(world.lanes) == 2


async def test_a_keepalive_shorter_than_the_time_of_a_head_is_kept():
    """And half a head has its own time all the same."""
    world = World(keepalive=3.0)
    idle, half = world.client(wait=0), world.client(wait=0)
    half.send(b"GET")
    await world.after(4.2)
    assert (idle.transport.ended, half.transport.ended) == ("closed", "")


async def test_a_client_that_takes_nothing_is_cut_off(world: World):
    """After half a minute without progress; whoever takes an answer little by little goes on."""
    still, slow, free = clients = [world.client() for _ in range(3)]
    for client in clients:
        client.transport.full = True
    world.say()
    await world.turn()
    await world.after(STUCK_SECONDS - 5)
    slow.transport.unsent -= 1
    free.drained()
    free.transport.full = True
    free.poll(world.at("a", 0, 0))
    assert [client.transport.ended for client in clients] == ["", "", ""]
    await world.after(6.2)
    assert [client.transport.ended for client in clients] == ["aborted", "", ""]
    still.lose()
    await world.after(STUCK_SECONDS)
    assert [client.transport.ended for client in clients] == ["aborted", "aborted", "aborted"]


async def test_a_lane_is_idle_from_when_its_answer_was_out():
    """However long the socket took."""
    world = World(keepalive=20.0)
    client = world.client(wait=0)
    client.transport.full = True
    client.poll()
    await world.after(19)
    client.drained()
    await world.after(18)
    assert client.transport.ended == ""
    await world.after(3.2)
    assert client.transport.ended == "closed"


async def test_a_lane_that_was_replayed_is_swept_no_more():
    """Its connection's time is the framework's now, also where a sweep was under way."""
    world = World(keepalive=20.0)
    clients = [world.client(wait=0) for _ in range(30)]
    world.pass_(19.9)
    while not any(client.transport.ended for client in clients):
        world.pass_(0.1)
    idle = [client for client in clients if not client.transport.ended]
    assert 0 < len(idle) < 30
    for client in idle:
        client.send(b"x")
    world.pass_(3)
    assert {client.transport.ended for client in idle} == {""}


@pytest.mark.parametrize("step", [3_600.0, -3_600.0])
async def test_a_step_of_the_wall_clock_voids_what_was_computed_by_it(world: World, step: float):
    """Who is parked sleeps on; each next poll goes through the framework, and is armed anew by the clock as it is."""
    client = world.client(expires=10_000.0)
    world.unix.now += step
    await world.after(0.1)
    assert (client.parked, len(world.lanes._arming)) == (True, 0)
    world.say()
    await world.turn()
    assert client.outcomes == [200]
    client.poll()
    assert client.replayed == client.request()
    again = world.client(expires=10.0)
    assert again.lane.armed.expires == pytest.approx(world.clock.now + 10.0)


async def test_a_clock_that_drifts_is_let_be(world: World):
    """Less than a second is what leeway is for."""
    world.client()
    world.unix.now += 0.9
    await world.after(0.1)
    assert len(world.lanes._arming) == 1


async def test_run_ticks_until_it_is_cancelled(world: World, monkeypatch: pytest.MonkeyPatch):
    """Once a tick."""
    monkeypatch.setattr(lanes_module, "TICK", 0.001)
    client = world.client(wait=1)
    client.lane.cohort.alarm = 1
    world.lanes._cohorts._wheel._alarms = {1: [client.lane.cohort]}
    running = asyncio.ensure_future(world.lanes.run())
    world.clock.now += 2
    async with asyncio.timeout(10):
        while not client.answers:
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# --- ends ---


async def test_a_withdrawn_key_ends_its_polls_and_voids_its_heads(world: World):
    """204, and the connection closes; the next poll learns the reason. Others sleep on."""
    mine, other, anonymous = world.client(signed_by=OLD), world.client(signed_by=NEW, subject="bob"), world.client(subject="x")
    idle = world.client(signed_by=OLD, wait=0)
    world.lanes.withdraw(OLD)
    await world.turn()
    assert (mine.outcomes, mine.answer.closes, mine.transport.ended) == ([204], True, "closed")
    assert (other.parked, anonymous.parked) == (True, True)
    idle.poll()
    assert idle.replayed == idle.request()
    assert len(world.lanes._arming) == 2
    assert world.counted(world.metrics.answers) == {"empty": 1, "revoked": 1}
    assert held(world) == (2, 2)


async def test_a_key_withdrawn_while_its_poll_was_on_the_way_to_an_answer(world: World):
    """There turns out to be none: the poll does not sleep on."""
    mine, other = world.client(signed_by=OLD), world.client(signed_by=NEW, subject="bob")
    world.hub.open("a", 1, start=0, log_start=0)
    world.lanes.withdraw(OLD)
    assert mine.outcomes == []
    await world.turn()
    assert (mine.outcomes, mine.answer.closes, other.parked) == ([204], True, True)
    assert held(world) == (1, 1)


async def test_a_poll_that_was_forgotten_by_the_table_is_withdrawn_all_the_same():
    """Its lane still knows it."""
    world = World(armed=1)
    mine, idle = world.client(signed_by=OLD), world.client(signed_by=OLD, wait=0)
    other = world.client("b", subject="bob")
    assert len(world.lanes._arming) == 1
    world.lanes.withdraw(OLD)
    await world.turn()
    assert (mine.outcomes, other.parked) == ([204], True)
    idle.poll()
    assert idle.replayed
    again = world.client(signed_by=NEW, wait=0)
    world.client("b", subject="bob")
    again.poll()
    assert again.outcomes == [204, 204]


async def test_draining_spreads_the_ends_over_its_window(world: World):
    """About equally many each tick; each answer closes its connection."""
    clients = [world.client() for _ in range(40)]
    steps: list[int] = []

    async def sleep(seconds: float) -> None:
        world.clock.now += seconds
        await world.turn()
        steps.append(sum(len(client.answers) for client in clients))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draining, "asyncio", _Asyncio(sleep))
        await world.lanes.drain(1.0)
    assert steps[-1] == 40
    assert len(steps) in (9, 10, 11)
    assert max(after - before for before, after in itertools.pairwise([0, *steps])) <= 6
    assert {client.transport.ended for client in clients} == {"closed"}
    assert all(client.answer.closes for client in clients)
    assert world.counted(world.metrics.answers) == {"drained": 40}
    assert held(world) == (0, 0)


class _Asyncio:
    """Stands for asyncio in a module, with another sleep."""

    def __init__(self, sleep: object) -> None:
        self.sleep = sleep
        self.get_running_loop = asyncio.get_running_loop


async def test_while_the_process_drains_every_poll_is_the_frameworks(world: World):
    """It closes the connections."""
    client, other = world.client(wait=0), world.client(wait=0)
    await world.lanes.drain(0.0)
    client.poll()
    assert client.replayed == client.request()
    other.send(client.request())
    assert other.replayed == client.request()


async def test_who_wakes_to_nothing_while_the_process_drains_ends(world: World):
    """He was on the way to an answer when the others were told."""
    client = world.client()
    world.hub.open("a", 1, start=0, log_start=0)
    await world.lanes.drain(0.0)
    await world.turn()
    assert (client.outcomes, client.answer.closes) == ([204], True)
    assert world.counted(world.metrics.answers) == {"drained": 1}


async def test_who_is_told_something_while_the_process_drains_is_told_to_go_too(world: World):
    """His connection closes, as those of all others."""
    client = world.client()
    world.say()
    await world.lanes.drain(0.0)
    await world.turn()
    assert (client.outcomes, client.answer.closes, client.transport.ended) == ([200], True, "closed")


async def test_closing_ends_everything(world: World):
    """Parked polls get their answer, also in many slices."""
    idle, parked = world.client(wait=0), [world.client() for _ in range(64)]
    world.clock.step = SLICE_SECONDS
    await world.lanes.close()
    assert {client.transport.ended for client in (idle, *parked)} == {"closed"}
    assert [client.outcomes for client in parked] == [[204]] * 64
    assert held(world) == (0, 0)
    for client in (idle, *parked):
        client.lose()
    assert len(world.lanes) == 0


async def test_what_a_client_sent_before_its_connection_closes_is_not_looked_at(world: World):
    """It learned that the connection closes."""
    client = world.client()
    client.send(client.request())
    await world.lanes.close()
    assert client.outcomes == [204]
    assert client.replayed is None


# --- what is told and read ---


async def test_parked_polls_are_read_by_channel_pattern(world: World):
    """Several channels count each; who is on the way to an answer counts still."""
    clients = [world.client(), world.client(), world.client("a", "b"), world.client(wait=0)]

    def readings() -> dict[str, float]:
        found: dict[str, float] = {}
        for reading in world.lanes.readings():
            assert isinstance(reading, Reading)
            assert reading.name == "gateway_parked_waiters"
            found[reading.labels[0]] = found.get(reading.labels[0], 0) + reading.value
        return found

    assert readings() == {"a": 3, "b": 1}
    world.say()
    assert readings() == {"a": 3, "b": 1}
    await world.turn()
    assert readings() == {"a": 0, "b": 0}
    assert len(clients[0].answers) == 1


async def test_a_field_for_one_client_is_in_no_shared_answer(world: World):
    """A request id, and what is left of a limit, are told where the framework answers."""
    client = world.client(wait=0)
    assert client.answer.fields.keys() == {"Next-Cursor", "Link", "Date"}
    world.say()
    client.poll()
    assert client.answer.fields.keys() == {"Content-Type", "Next-Cursor", "Link", "Content-Length", "Date"}


async def test_a_position_can_be_of_several_topics(world: World):
    """And an answer tells of all."""
    client = world.client("a", "b")
    world.say("b")
    await world.turn()
    world.say("a")
    client.poll()
    assert [answer.offsets for answer in client.answers] == [[0], [0]]
    assert client.answer.cursor == world.end("a", "b") == encode({n: world.hub.topics[n].position for n in "ab"})
