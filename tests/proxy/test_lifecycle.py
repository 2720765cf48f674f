"""Deprecation and sunset are announced, and the end comes with what follows."""

from __future__ import annotations

import pytest

from gateway.errors import Gone
from gateway.proxy.lifecycle import Lifecycle


def test_a_route_in_its_best_years_says_nothing():
    lifecycle = Lifecycle("v1")
    assert lifecycle.fields == ()
    lifecycle.check(1e12)


def test_the_fields_are_as_the_rfcs_have_them():
    """The examples of RFC 9745, section 2.1, and RFC 8594, section 3."""
    lifecycle = Lifecycle("v1", 1688169599.5, "https://developer.example.com/deprecation", 1719784799.0, "/v2/orders")
    assert lifecycle.fields == (
        ("Deprecation", "@1688169599"),
        ("Sunset", "Sun, 30 Jun 2024 21:59:59 GMT"),
        ("Link", '<https://developer.example.com/deprecation>; rel="deprecation"'),
        ("Link", '</v2/orders>; rel="successor-version"'),
    )


def test_from_the_sunset_on_it_is_gone():
    lifecycle = Lifecycle(sunset=1_000.0)
    lifecycle.check(999.9)
    with pytest.raises(Gone) as caught:
        lifecycle.check(1_000.0)
    assert caught.value.extra == {}


def test_what_is_gone_names_its_successor():
    with pytest.raises(Gone) as caught:
        Lifecycle(sunset=1_000.0, successor="/v2/orders").check(1_001.0)
    assert caught.value.extra == {"successor": "/v2/orders"}


def test_the_sunset_is_not_before_the_deprecation():
    """RFC 9745, section 4."""
    Lifecycle(deprecated=5.0, sunset=5.0)
    with pytest.raises(ValueError, match="not before"):
        Lifecycle(deprecated=5.0, sunset=4.0)


@pytest.mark.parametrize("link", ["", "a b", "/a>; rel=x", '/"', "/a\r\nX: y", "/é", "/a,<b>"])
def test_a_link_is_a_uri_reference(link):
    with pytest.raises(ValueError, match="a path or a URL"):
        Lifecycle(successor=link)
    with pytest.raises(ValueError, match="a path or a URL"):
        Lifecycle(deprecation_info=link)
