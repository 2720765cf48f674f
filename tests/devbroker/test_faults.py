"""Which requests a fault matches, how often, and how tests wait for it."""

import asyncio

import pytest

from gateway.devbroker.faults import Faults
from gateway.devbroker.schemas import Api

PLACES = [("t", None), ("t", 3)]


@pytest.fixture
def changes() -> list[int]:
    return []


@pytest.fixture
def faults(changes) -> Faults:
    return Faults(lambda: changes.append(1))


@pytest.mark.parametrize(
    ("kwargs", "matches"),
    [
        ({}, True),
        ({"api": Api.FETCH}, True),
        ({"api": Api.PRODUCE}, False),
        ({"topic": "t"}, True),
        ({"topic": "u"}, False),
        ({"topic": "t", "partition": 3}, True),
        ({"topic": "t", "partition": 4}, False),
        ({"partition": 3}, True),
        ({"node": 1}, True),
        ({"node": 2}, False),
    ],
)
def test_matching(faults, kwargs, matches):
    fault = faults.stall(**kwargs)
    assert (faults.find("stall", Api.FETCH, 1, PLACES) is fault) is matches
    assert faults.find("drop", Api.FETCH, 1, PLACES) is None


def test_an_error_is_given_so_many_times(faults, changes):
    fault = faults.error(6, Api.FETCH, topic="t", partition=3, times=2)
    assert [faults.code(Api.FETCH, 1, "t", index) for index in (2, 3, 3, 3)] == [0, 6, 6, 0]
    assert fault.hits == 2
    assert len(changes) == 2


def test_the_oldest_fault_comes_first(faults):
    faults.error(6, times=1)
    faults.error(7)
    assert [faults.code(Api.FETCH, 1, None, None) for _ in range(2)] == [6, 7]


def test_faults_end_with_their_context_or_all_at_once(faults):
    with faults.slow(1.0) as fault:
        assert faults.find("slow", Api.FETCH, 1) is fault
    assert faults.find("slow", Api.FETCH, 1) is None
    faults.drop()
    faults.drop(processed=True)
    faults.clear()
    assert faults.find("drop", Api.FETCH, 1) is faults.find("lose", Api.FETCH, 1) is None


async def test_waiting_for_hits_and_for_the_release(faults):
    fault = faults.error(6)
    async with asyncio.TaskGroup() as group:
        group.create_task(fault.hit(2))
        released = group.create_task(fault.wait_released())
        await asyncio.sleep(0)
        for _ in range(3):
            faults.code(Api.FETCH, 1, None, None)
        await fault.hit()
        assert not released.done()
        fault.release()


def test_a_fault_says_what_it_is(faults):
    fault = faults.stall(Api.FETCH, topic="t")
    assert repr(fault) == "<Fault stall FETCH t/None 0 hits>"
    assert repr(faults.drop()) == "<Fault drop any None/None 0 hits>"
