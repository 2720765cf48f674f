"""The breaker's table row by row, and what it does with time and trials."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gateway.proxy.breaker import TRANSITIONS, Breaker, Event, State
from gateway.proxy.verdict import Verdict

OK, ERROR, FAILURE, NEUTRAL = Verdict


def breaker(**options: Any) -> Breaker:
    return Breaker(**({"consecutive": 3, "open": 5.0, "max_open": 15.0, "trials": 1} | options))


def in_state(state: State, failures: int = 0) -> Breaker:
    """Bring a breaker into a state by way of what it is told; the clock stands at 100 then."""
    made = breaker()
    if state is not State.CLOSED:
        for _ in range(3):
            made.record(FAILURE, 95.0)
    if state is State.HALF_OPEN:
        made.look(100.0)
        made.begin(100.0)
    for _ in range(failures):
        made.record(FAILURE, 100.0)
    assert made.state is state
    return made


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (State.CLOSED, Event.SUCCESS, State.CLOSED),
        (State.CLOSED, Event.FAILURE, State.CLOSED),
        (State.CLOSED, Event.LAST_FAILURE, State.OPEN),
        (State.CLOSED, Event.RESTED, State.CLOSED),
        (State.OPEN, Event.SUCCESS, State.OPEN),
        (State.OPEN, Event.FAILURE, State.OPEN),
        (State.OPEN, Event.LAST_FAILURE, State.OPEN),
        (State.OPEN, Event.RESTED, State.HALF_OPEN),
        (State.HALF_OPEN, Event.SUCCESS, State.CLOSED),
        (State.HALF_OPEN, Event.FAILURE, State.OPEN),
        (State.HALF_OPEN, Event.LAST_FAILURE, State.OPEN),
        (State.HALF_OPEN, Event.RESTED, State.HALF_OPEN),
    ],
)
def test_the_table(state: State, event: Event, after: State) -> None:
    """Each state answers each event, and a breaker goes where the table says."""
    assert TRANSITIONS[state, event] is after
    made = in_state(state)
    made._happens(event, 100.0)
    assert made.state is after


def test_the_table_is_whole() -> None:
    """There is no state without an answer to an event."""
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}


@pytest.mark.parametrize(
    ("state", "verdict", "after"),
    [
        (State.CLOSED, OK, State.CLOSED),
        (State.CLOSED, FAILURE, State.CLOSED),
        (State.CLOSED, NEUTRAL, State.CLOSED),
        (State.OPEN, OK, State.OPEN),
        (State.OPEN, FAILURE, State.OPEN),
        (State.OPEN, NEUTRAL, State.OPEN),
        (State.HALF_OPEN, OK, State.CLOSED),
        (State.HALF_OPEN, FAILURE, State.OPEN),
        (State.HALF_OPEN, NEUTRAL, State.HALF_OPEN),
    ],
)
def test_verdicts_are_events(state: State, verdict: Verdict, after: State) -> None:
    """An end of an exchange moves the breaker by its verdict; a neutral one never does."""
    made = in_state(state)
    made.record(verdict, 99.0)
    assert made.state is after


def test_only_failures_in_a_row_open_it() -> None:
    """A success in between starts the count anew, a client that leaves does not."""
    made = breaker()
    for verdict in (FAILURE, FAILURE, OK, FAILURE, FAILURE, NEUTRAL):
        made.record(verdict, 0.0)
    assert made.allows(0.0)
    assert repr(made) == "<Breaker closed, 2 of 3 failures>"
    made.record(FAILURE, 0.0)
    assert not made.allows(0.0)
    assert made.state is State.OPEN


def test_an_error_is_an_answer() -> None:
    """500 may tell of the request alone: it opens nothing, and shows that the target is there."""
    made = breaker()
    for verdict in (FAILURE, FAILURE, ERROR, FAILURE, FAILURE, *[ERROR] * 5):
        made.record(verdict, 0.0)
    assert made.state is State.CLOSED
    trial = in_state(State.HALF_OPEN)
    trial.record(ERROR, 100.0)
    assert trial.state is State.CLOSED


def test_it_opens_for_its_time() -> None:
    """Nothing passes until the rest is over, then one trial at a time."""
    made = in_state(State.OPEN)
    assert (made.due, made.rest) == (100.0, 5.0)
    assert not made.allows(99.9)
    assert made.allows(100.0)
    made.look(99.9)
    assert made.state is State.OPEN
    made.begin(100.0)
    assert made.state is State.HALF_OPEN
    assert not made.allows(100.0)
    assert made.due == math.inf


def test_rest_doubles_up_to_its_bound() -> None:
    """Each failed trial makes the next rest twice as long, at most `max_open`; closing makes it short again."""
    made, now, rests = in_state(State.OPEN), 95.0, []
    for _ in range(4):
        rests.append(made.rest)
        now = made.due
        made.begin(now)
        made.record(FAILURE, now)
    assert rests == [5.0, 10.0, 15.0, 15.0]
    now = made.due
    made.begin(now)
    made.record(OK, now)
    assert (made.state, made.rest, made.due) == (State.CLOSED, 5.0, math.inf)


def test_a_client_that_leaves_frees_its_trial() -> None:
    """The next exchange may be the trial then."""
    made = in_state(State.HALF_OPEN)
    assert not made.allows(100.0)
    made.record(NEUTRAL, 101.0)
    assert made.allows(101.0)


def test_trials_are_bounded() -> None:
    """As many pass as there are trials; to begin one more is a mistake of the caller."""
    made = breaker(trials=2, consecutive=1)
    made.record(FAILURE, 0.0)
    made.begin(5.0)
    assert made.allows(5.0)
    assert repr(made) == "<Breaker half-open, 1 of 2 trials>"
    made.begin(5.0)
    assert not made.allows(5.0)
    with pytest.raises(AssertionError, match="does not allow"):
        made.begin(5.0)


def test_a_closed_breaker_counts_no_trials() -> None:
    """Any number may begin."""
    made = breaker()
    made.begin(0.0)
    made.begin(0.0, held=True)
    assert (made.taken, made.due) == (0, math.inf)


def test_a_held_trial_succeeds_by_silence() -> None:
    """A long poll of which nothing is heard for the base open time closes the breaker; a working one does not."""
    made = in_state(State.OPEN)
    made.begin(100.0, held=True)
    made.look(104.9)
    assert (made.state, made.allows(104.9)) == (State.HALF_OPEN, False)
    assert made.allows(105.0)
    made.look(105.0)
    assert made.state is State.CLOSED
    working = in_state(State.HALF_OPEN)
    working.look(1e6)
    assert working.state is State.HALF_OPEN


def test_the_first_held_trial_decides() -> None:
    """A later one does not put it off."""
    made = breaker(trials=2, consecutive=1)
    made.record(FAILURE, 0.0)
    made.begin(5.0, held=True)
    made.begin(7.0, held=True)
    assert made.due == 10.0


@pytest.mark.parametrize("options", [{"consecutive": 0}, {"trials": 0}, {"open": 0.0}, {"open": 20.0}])
def test_bounds(options: dict[str, Any]) -> None:
    """Figures that make no sense are refused."""
    with pytest.raises(ValueError, match="expected"):
        breaker(**options)
