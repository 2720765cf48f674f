"""What is attempted again, after which pause, and how often in all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.retry import IDEMPOTENT, Attempted, Budget, backoff, may_retry

NOT_CONNECTED, NOT_SENT, SENT, STATUS = Attempted
METHODS = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get")


@pytest.mark.parametrize(
    ("attempted", "method", "key", "replayable", "may"),
    [
        (NOT_CONNECTED, "GET", False, True, True),
        (NOT_CONNECTED, "POST", False, False, True),
        (NOT_SENT, "GET", False, True, True),
        (NOT_SENT, "POST", False, True, False),
        (NOT_SENT, "POST", True, True, True),
        (NOT_SENT, "PUT", False, False, False),
        (SENT, "PUT", False, True, True),
        (SENT, "PUT", False, False, False),
        (SENT, "PATCH", False, True, False),
        (SENT, "PATCH", True, True, True),
        (SENT, "POST", True, False, False),
        (STATUS, "DELETE", False, True, True),
        (STATUS, "POST", False, True, False),
    ],
)
def test_what_may_be_repeated(attempted: Attempted, method: str, key: bool, replayable: bool, may: bool) -> None:
    """Anything that reached nobody; else what may be done twice and can be sent twice."""

    def ask(done: int) -> bool:
        return may_retry(attempted, method, has_idempotency_key=key, body_replayable=replayable, attempts_done=done, limit=3)

    assert [ask(1), ask(2), ask(3)] == [may, may, False]


def test_idempotent_methods() -> None:
    """Those of RFC 9110, section 9.2.2; methods are case-sensitive."""
    assert {method for method in METHODS if method in IDEMPOTENT} == {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}


def test_pauses_grow_to_their_bound() -> None:
    """The longest possible pause doubles with each attempt, however many there were."""
    longest = [backoff(attempt, 0.025, 0.25, lambda: 1.0) for attempt in (1, 2, 3, 4, 5, 5_000)]
    assert longest == [0.025, 0.05, 0.1, 0.2, 0.25, 0.25]


@given(st.integers(1, 50), st.integers())
def test_pauses_are_random(attempt: int, seed: int) -> None:
    """Anything from nothing to the longest: full jitter."""
    pause = backoff(attempt, 0.025, 0.25, random.Random(seed).random)
    assert 0 <= pause < 0.25


def spent(budget: Budget, now: float) -> int:
    """Take all retries there are."""
    taken = 0
    while budget.take(now):
        taken += 1
    return taken


def test_a_quiet_upstream_is_retried_too() -> None:
    """So many per second of the window, at once or one after the other, then none until they have aged."""
    budget = Budget(0.2, 10, window=10.0)
    assert spent(budget, 100.0) == 100
    assert spent(budget, 109.0) == 0
    assert spent(budget, 110.0) == 100


def test_a_share_of_the_requests() -> None:
    """A fifth of the last window's requests, and not one more."""
    budget = Budget(0.2, 0)
    assert not budget.take(100.0)
    for _ in range(1_000):
        budget.note_request(100.0)
    assert repr(budget) == "<Budget 0.2 of requests, reserve 0, <Window 200 in 10 s>>"
    assert spent(budget, 105.0) == 200


def test_old_requests_are_worth_nothing() -> None:
    """What was not taken within the window is not saved up."""
    budget = Budget(0.2, 0)
    for _ in range(1_000):
        budget.note_request(100.0)
    assert spent(budget, 110.0) == 0


def test_fractions_add_up() -> None:
    """Ten requests at a tenth are one retry, though 0.1 ten times is less than 1 in floating point."""
    budget = Budget(0.1, 0)
    for _ in range(10):
        budget.note_request(100.0)
    assert spent(budget, 100.0) == 1


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_retries_never_exceed_their_share(steps: list[tuple[float, bool]]) -> None:
    """In any window: at most the share of twice its requests' time, and twice the least number."""
    budget, now, requests, retries = Budget(0.5, 1, window=4.0), 0.0, [], []
    for passed, request in steps:
        now += passed
        if request:
            budget.note_request(now)
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
        recent = sum(at > now - 4.0 for at in retries)
        assert recent <= 2 * 4 + 0.5 * sum(at > now - 8.0 for at in requests)


@pytest.mark.parametrize("figures", [(-0.1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_bounds(figures: tuple[float, float, float]) -> None:
    """Figures that make no sense are refused."""
    with pytest.raises(ValueError, match="expected"):
        Budget(*figures)
