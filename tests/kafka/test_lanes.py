"""How long records gather until they are fetched."""

import pytest

from gateway.kafka.lanes import Gathering


class Clocks:
    """The time, and what of it the thread has spent."""

    def __init__(self) -> None:
        self.now = self.spent = 0.0

    def pass_(self, seconds: float, load: float) -> None:
        self.now += seconds
        self.spent += seconds * load


def after(load: float, turns: int = 400) -> Gathering:
    clocks = Clocks()
    gathering = Gathering(lambda: clocks.now, lambda: clocks.spent)
    for _ in range(turns):
        clocks.pass_(0.01, load)
        gathering.look()
    return gathering


def test_an_idle_loop_fetches_at_once():
    """Nearly: what comes within a millisecond comes together."""
    assert after(0.0).seconds == pytest.approx(0.001)
    assert repr(after(0.0)) == "<Gathering 1.0 ms at load 0.00>"


def test_a_loop_that_never_rests_gathers():
    """More than all of the time cannot be spent, whatever the clocks say."""
    assert after(1.0).seconds == pytest.approx(0.013)
    assert after(1.5).seconds == pytest.approx(0.013)


def test_between_them_the_square_of_the_load_counts():
    assert after(0.5).seconds == pytest.approx(0.004)


def test_one_busy_moment_changes_little():
    assert after(1.0, turns=1).seconds < 0.0012


def test_a_look_at_the_same_moment_changes_nothing():
    gathering = Gathering(lambda: 1.0, lambda: 1.0)
    gathering.look()
    assert gathering.seconds == pytest.approx(0.001)
