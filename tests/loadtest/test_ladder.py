"""How many clients come next, and what a step was worth: decided without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.ladder import Bounds, Ladder, Step, judged
from gateway.loadtest.tally import Tally, quantile

BOUNDS = Bounds(settle=15.0, latency=1.0, errors=0.01)


def step(clients: int, tally: Tally | None = None, settled_in: float | None = 0.5, own: float = 0.1) -> Step:
    tally = tally or Tally(polls=100, settled=clients)
    return judged(clients, tally, settled_in, 2.0, own, BOUNDS)


def failing(clients: int, **more: object) -> Step:
    tally = Tally(polls=10, settled=clients)
    tally.refusals["503 overloaded"] = 10
    return step(clients, tally, **more)


class TestJudging:
    def test_a_step_that_is_held(self) -> None:
        """All are parked in time, nothing failed, all probes came."""
        tally = Tally(polls=100, settled=10, expected=100, latencies=[0.1] * 98 + [0.5] * 2)
        held = step(10, tally)
        assert held.held
        assert (held.polls_per_second, held.p50, held.p99) == (50.0, 0.1, 0.5)
        assert held.document() | {"why": ""} == held.document()
        assert held.document()["held"] is True
        assert judged(1, Tally(), 0.0, 0.0, 0.0, BOUNDS).polls_per_second == 0.0

    def test_errors(self) -> None:
        """A share of them is borne; beyond it the most frequent is named."""
        tally = Tally(polls=1_000, settled=10)
        tally.failures["ClientOSError"] = 5
        assert step(10, tally).held
        tally.refusals["429 rate_limited"] = 20
        assert step(10, tally).why == "25 errors, most of them 429 rate_limited"
        assert step(10, tally).error == "429 rate_limited"

    def test_time(self) -> None:
        """Who is not held in time, and deliveries that are late or never come."""
        assert step(10, Tally(settled=7), None).why == "only 7 of 10 were held within 15 s"
        assert step(10, Tally(expected=20, latencies=[0.1] * 18)).why == "2 of 20 deliveries did not come"
        assert step(10, Tally(expected=2, latencies=[0.1, 1.5])).why == "p99 of deliveries 1.50 s, more than 1 s"
        assert Tally(expected=1, latencies=[0.1, 0.1]).undelivered == 0


class TestLadder:
    def test_it_doubles_up_to_the_most(self) -> None:
        """And says that there may be more."""
        ladder = Ladder(150)
        counts = []
        while (count := ladder.next()) is not None:
            counts.append(count)
            ladder.add(step(count))
        assert counts == [25, 50, 100, 150]
        assert ladder.verdict() == "150 clients were held, which was the most asked for; the deployment may hold more."
        assert Ladder(10).next() == 10

    @given(st.integers(1, 100_000), st.integers(0, 100_000))
    def test_it_finds_how_many_are_held(self, most: int, held: int) -> None:
        """To a tenth, in few steps, never beyond the most."""
        ladder = Ladder(most)
        while (count := ladder.next()) is not None:
            assert 1 <= count <= most
            ladder.add(step(count) if count <= held else failing(count))
        assert len(ladder.steps) < 25
        assert ladder.best <= held
        if ladder.worst is None:
            assert ladder.best == most
        else:
            assert ladder.worst > held
            assert ladder.worst - ladder.best <= max(3, ladder.worst * 0.11)

    def test_given_counts(self) -> None:
        """They take the place of doubling."""
        ladder = Ladder(1_000, [3, 7])
        assert ladder.next() == 3
        ladder.add(step(3))
        assert ladder.next() == 7

    def test_verdicts(self) -> None:
        """What bounds it is told, and when it is the generator itself."""
        ladder = Ladder(100)
        assert ladder.verdict() == "Nothing was measured."
        ladder.add(failing(25, own=0.95))
        assert ladder.verdict().startswith(
            "Not even the first step was held; 25 were not: 10 errors, most of them 503 overloaded."
        )
        assert "this generator was busy" in ladder.verdict()
        ladder = Ladder(100)
        ladder.add(step(25))
        tally = Tally(polls=1)
        tally.refusals["429 rate_limited"] = 10
        ladder.add(step(50, tally))
        assert ladder.verdict().startswith("25 clients were held; 50 were not")
        assert "the limits of one subject count" in ladder.verdict()


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_quantiles(share: float, value: float) -> None:
    """By nearest rank; of nothing there is none."""
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == value
    assert quantile([], share) is None


def test_the_worst_of_nothing() -> None:
    """There is no error to name."""
    assert Tally().worst() == ""
