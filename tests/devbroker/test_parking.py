"""Parked fetches: woken by their partitions, by the end of time, by the peer's leaving."""

import asyncio

from waiting import eventually

from gateway.devbroker.parking import Parking

LONG = 60.0


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_change_wakes_who_waits_for_it_and_no_one_else():
    parking = Parking()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(parking.wait([("t", 0), ("t", 1)], LONG, never()))
        second = group.create_task(parking.wait([("t", 1)], LONG, never()))
        await parking.until_parked("t", 1, 2)
        assert (parking.count("t", 0), parking.count("t", 1), parking.count("u", 0)) == (1, 2, 0)
        parking.wake("t", 0)
        parking.wake("t", 0)
        parking.wake("u", 0)
        await first
        assert not second.done()
        assert (parking.count("t", 0), parking.count("t", 1)) == (0, 1)
        parking.wake_all()


async def test_time_and_a_leaving_peer_end_the_wait():
    parking = Parking()
    await parking.wait([("t", 0)], 0.01, never())
    gone = never()
    async with asyncio.TaskGroup() as group:
        group.create_task(parking.wait([("t", 0)], LONG, gone))
        await parking.until_parked("t", 0)
        gone.set_result(None)
    assert parking.count("t", 0) == 0


async def test_a_cancelled_wait_leaves_nothing_behind():
    parking = Parking()
    task = asyncio.ensure_future(parking.wait([("t", 0)], LONG, never()))
    observer = asyncio.ensure_future(parking.until_parked("t", 0, 2))
    await parking.until_parked("t", 0)
    task.cancel()
    observer.cancel()
    await asyncio.gather(task, observer, return_exceptions=True)
    assert task.cancelled()
    await eventually(lambda: parking.count("t", 0) == 0)
