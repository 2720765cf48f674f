"""Parked polls: slices, deadlines, withdrawals, the end."""

import asyncio
import itertools

import pytest
from waiting import eventually

from gateway.auth.principal import KeyRef, Principal
from gateway.fanout.cursor import TopicPosition
from gateway.fanout.hub import Hub, Interest
from gateway.records import Record
from gateway.server import parking as parking_module
from gateway.server.parking import DRAINED, REVOKED, Parking, Poll


def key(kid: str) -> KeyRef:
    return KeyRef("test", kid, "HS256", f"fingerprint of {kid}")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def built(clock: Clock | None = None) -> tuple[Hub, Parking]:
    parking = Parking(clock=clock or Clock())
    hub = Hub(budget=2**20, tail_budget=2**20, on_woken=parking.woken)
    parking.attach(hub)
    hub.describe("t", topic_id=None, partitions=1)
    hub.open("t", 0, start=0, log_start=0)
    return hub, parking


def park(hub: Hub, deadline: float = 9_000.0, signed_by: str = "k") -> Poll:
    principal = Principal("test", "ann", {}, frozenset(), None, key(signed_by))
    poll = Poll((Interest("t", None),), ("t",), principal, asyncio.get_running_loop().create_future())
    hub.park(poll, {"t": TopicPosition(0, {0: 0})}, at_tail=True, deadline=deadline)
    return poll


def append(hub: Hub, offset: int = 0) -> None:
    hub.append("t", 0, [Record(offset, 0, None, b"1")], end=offset + 1, log_start=0)


def done(polls: list[Poll]) -> int:
    return sum(poll.future.done() for poll in polls)


async def test_a_broadcast_is_woken_in_slices():
    """Between two slices the loop turns, so nobody else waits for a hundred thousand."""
    hub, _ = built()
    polls = [park(hub) for _ in range(2 * parking_module.SLICE + 50)]
    append(hub)
    assert done(polls) == 0
    counts = []
    while done(polls) < len(polls):
        await asyncio.sleep(0)
        counts.append(done(polls))
    assert counts == [200, 400, 450]


async def test_what_wakes_meanwhile_comes_in_the_same_run():
    """One slice is scheduled at a time, however often the hub asks."""
    hub, parking = built()
    polls = [park(hub) for _ in range(parking_module.SLICE)]
    append(hub)
    polls.append(park(hub))
    append(hub, 1)
    parking.woken()
    for _ in range(3):
        await asyncio.sleep(0)
    assert done(polls) == len(polls)


async def test_a_handler_that_was_cancelled_is_left_alone():
    """Its future has ended before the slice came."""
    hub, _ = built()
    gone, other = park(hub), park(hub)
    append(hub)
    gone.future.cancel()
    await asyncio.sleep(0)
    assert other.future.done()
    assert gone.future.cancelled()


async def test_run_ends_polls_at_their_time():
    """Within a tick."""
    clock = Clock()
    hub, parking = built(clock)
    soon, late = park(hub, deadline=1_000.05), park(hub, deadline=2_000.0)
    running = asyncio.ensure_future(parking.run())
    clock.now = 1_000.2
    await asyncio.wait_for(soon.future, 5)
    assert soon.why == "timeout"
    assert not late.future.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_withdrawn_key_ends_its_own_polls():
    """And no others."""
    hub, parking = built()
    mine, other = park(hub, signed_by="old"), park(hub, signed_by="new")
    parking.withdraw(key("old"))
    await asyncio.wait_for(mine.future, 5)
    assert mine.why == REVOKED
    assert not other.future.done()


async def test_draining_spreads_the_ends_over_its_window():
    """About equally many each tick, those with the nearest deadline first; nobody is left at the end."""
    clock = Clock()
    hub, parking = built(clock)
    polls = [park(hub, deadline=2_000.0 + n) for n in range(100)]
    ended: list[int] = []

    async def advance() -> None:
        # The window is ten ticks of the loop's time; the clock goes along.
        start = asyncio.get_running_loop().time()
        while done(polls) < 100:
            clock.now = 1_000.0 + asyncio.get_running_loop().time() - start
            ended.append(done(polls))
            await asyncio.sleep(0.005)

    advancing = asyncio.ensure_future(advance())
    assert not parking.draining
    await parking.drain(0.5)
    await advancing
    assert parking.draining
    assert {poll.why for poll in polls} == {DRAINED}
    steps = sorted(set(ended) | {100})
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 40
    assert len(steps) >= 4
    order = [poll for poll in polls if poll.future.done()]
    assert order == polls


async def test_draining_without_a_window_ends_all_at_once():
    """A window of zero."""
    hub, parking = built()
    polls = [park(hub) for _ in range(10)]
    await parking.drain(0.0)
    await eventually(lambda: done(polls) == 10)
    assert "draining" in repr(parking)


async def test_draining_nothing_returns_at_once():
    """Nothing is parked."""
    _, parking = built()
    await asyncio.wait_for(parking.drain(60.0), 5)


def test_a_parking_without_a_hub_is_a_mistake():
    """It is attached when it is built."""
    with pytest.raises(AssertionError):
        _ = Parking().hub
