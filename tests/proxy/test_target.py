"""One address: its load, its judges, its weight in slow start."""

from __future__ import annotations

import pytest

from gateway.proxy.breaker import Breaker
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.outliers import Outliers
from gateway.proxy.target import Endpoint, Target, join_address, split_address
from gateway.proxy.verdict import Verdict


def judged(*, breaker: bool = False, outliers: bool = False, healthiness: bool = False) -> Target:
    target = Target(Endpoint("a.test:80"))
    if breaker:
        target.breaker = Breaker(consecutive=1, open=5.0, max_open=60.0, trials=1)
    if outliers:
        target.outliers = Outliers(consecutive=1, rate=1.0, least_requests=1, window=10.0, ejection=10.0, max_ejection=60.0)
    if healthiness:
        target.healthiness = Healthiness(rise=1, fall=1)
    return target


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("10.0.0.1:8080", "10.0.0.1", 8080), ("shop.internal:80", "shop.internal", 80), ("[::1]:65535", "::1", 65535)],
)
def test_addresses(address: str, host: str, port: int) -> None:
    """Host and port, IPv6 in brackets, there and back."""
    assert split_address(address) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize(
    "address",
    ["", "a", "a:", ":80", "a:0", "a:65536", "a:-1", "a:x", "a:٣", "::1:80", "[]:80x"],  # a digit, not ASCII
)
def test_no_addresses(address: str) -> None:
    """What cannot be dialled is refused."""
    with pytest.raises(ValueError, match="expected"):
        split_address(address)


def test_its_name() -> None:
    """The host it was resolved from, or is configured with."""
    assert Target(Endpoint("10.0.0.1:80", name="shop.internal")).name == "shop.internal"
    assert Target(Endpoint("10.0.0.1:80")).name == "10.0.0.1"


def test_load() -> None:
    """Sixteen held exchanges weigh as much as a working one."""
    target = Target(Endpoint("a.test:80"))
    target.working, target.held = 2, 8
    assert target.load == 2.5
    assert repr(target) == "<Target a.test:80 available, 2 working, 8 held>"


def test_without_judges_it_is_available() -> None:
    """Nobody objects."""
    target = judged()
    assert (target.available(0.0), target.healthy, target.state, target.wait(0.0)) == (True, True, "available", 0.0)


def test_judges_that_do_not_object() -> None:
    """All three are asked."""
    target = judged(breaker=True, outliers=True, healthiness=True)
    assert (target.available(0.0), target.state, target.wait(0.0)) == (True, "available", 0.0)


def test_unhealthy() -> None:
    """Checks decide first."""
    target = judged(healthiness=True)
    assert target.healthiness
    target.healthiness.record(False)
    assert (target.available(0.0), target.state) == (False, "unhealthy")


def test_ejected() -> None:
    """Until its time is over."""
    target = judged(outliers=True)
    assert target.outliers
    target.outliers.eject(100.0)
    assert (target.available(109.9), target.available(110.0)) == (False, True)
    assert (target.state, target.wait(104.0), target.wait(200.0)) == ("ejected", 6.0, 0.0)


def test_open() -> None:
    """Until its breaker lets it through; half-open counts as open."""
    target = judged(breaker=True)
    assert target.breaker
    target.breaker.record(Verdict.FAILURE, 100.0)
    assert (target.available(104.9), target.available(105.0), target.state, target.wait(104.0)) == (False, True, "open", 1.0)
    target.breaker.look(105.0)
    assert (target.state, target.wait(105.0)) == ("open", 0.0)


def test_slow_start() -> None:
    """A tenth of the weight at first, all of it in the end, evenly in between."""
    target = Target(Endpoint("a.test:80", weight=10))
    assert target.share(0.0, 30.0) == 10
    target.back_at = 100.0
    assert [target.share(now, 30.0) for now in (100.0, 110.0, 120.0, 130.0, 500.0)] == pytest.approx([1, 4, 7, 10, 10])


def test_latency_is_smoothed() -> None:
    """The first is taken as it is, of each further one an eighth."""
    target = judged()
    target.note_latency(0.8)
    target.note_latency(1.6)
    assert target.latency == pytest.approx(0.9)


def test_a_new_listing() -> None:
    """Weight, priority and name are taken over, and it is told whether any of them is another."""
    target = Target(Endpoint("10.0.0.1:80"))
    assert not target.adopt(Endpoint("10.0.0.1:80"))
    assert target.adopt(Endpoint("10.0.0.1:80", weight=2))
    assert target.adopt(Endpoint("10.0.0.1:80", weight=2, priority=1))
    assert target.adopt(Endpoint("10.0.0.1:80", weight=2, priority=1, name="a"))
    assert (target.weight, target.priority, target.name) == (2, 1, "a")
