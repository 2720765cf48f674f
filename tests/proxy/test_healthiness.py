"""Rise and fall."""

from __future__ import annotations

import pytest

from gateway.proxy.healthiness import Healthiness


def test_it_falls_and_rises() -> None:
    """Three failures in a row and it is unhealthy, two good checks in a row and it is well."""
    health = Healthiness(rise=2, fall=3)
    checks = (False, False, True, False, False, False, False, True, False, True, True)
    changed = [health.record(ok) for ok in checks]
    assert [index for index, change in enumerate(changed) if change] == [5, 10]
    assert health.healthy


def test_it_is_healthy_until_checked() -> None:
    """Requests are served before the first check is back."""
    health = Healthiness(rise=2, fall=1)
    assert health.healthy
    assert repr(health) == "<Healthiness healthy, 0 of 1 against>"
    assert health.record(False)
    assert not health.record(True)
    assert repr(health) == "<Healthiness unhealthy, 1 of 2 against>"


@pytest.mark.parametrize(("rise", "fall"), [(0, 1), (1, 0)])
def test_bounds(rise: int, fall: int) -> None:
    """It takes at least one check to move."""
    with pytest.raises(ValueError, match="expected"):
        Healthiness(rise=rise, fall=fall)
