"""Deprecation and sunset are announced, and the end comes with what follows."""

from __future__ import annotations

import pytest

from gateway.errors import Gone
from gateway.lifecycle import ENDLESS, Announcement, Lifecycle, announce


def test_what_is_in_its_best_years_says_nothing():
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


@pytest.mark.parametrize(
    ("now", "state"), [(0.0, "active"), (99.9, "active"), (100.0, "deprecated"), (199.9, "deprecated"), (200.0, "gone")]
)
def test_it_goes_from_active_to_gone(now, state):
    """Both dates belong to what they begin."""
    assert Lifecycle(deprecated=100.0, sunset=200.0).state(now) == state


def test_an_end_may_come_without_a_deprecation():
    """What is only to end is active until then."""
    assert [Lifecycle(sunset=200.0).state(now) for now in (199.0, 200.0)] == ["active", "gone"]


def test_who_asks_adds_facts_to_the_end():
    with pytest.raises(Gone) as caught:
        Lifecycle(sunset=1.0, successor="/v2").check(2.0, channel="news")
    assert caught.value.extra == {"channel": "news", "successor": "/v2"}


def test_a_list_shows_times_as_people_write_them():
    """RFC 3339, in UTC."""
    assert Lifecycle("v1", 1688169599.5, "https://a.test/", 1719784799.0, "/v2").listed(1.7e9) == {
        "state": "deprecated",
        "deprecated": "2023-06-30T23:59:59.500000Z",
        "deprecation_info": "https://a.test/",
        "sunset": "2024-06-30T21:59:59Z",
        "successor": "/v2",
    }
    assert ENDLESS.listed(0.0) == dict.fromkeys(("deprecated", "deprecation_info", "sunset", "successor"), None) | {
        "state": "active"
    }


class TestSeveral:
    def test_what_has_nothing_to_say_says_nothing(self):
        assert announce([]) == announce([ENDLESS, Lifecycle("v1")]) == Announcement((), None)

    def test_one_says_what_it_says_alone(self):
        one = Lifecycle(deprecated=1.0, deprecation_info="https://a.test/", sunset=2.0, successor="/v2")
        assert announce([ENDLESS, one, one]) == Announcement(one.fields, 2.0)

    def test_the_first_dates_and_all_links_count(self):
        links = [("Link", f'<https://{name}.test/>; rel="deprecation"') for name in "ab"]
        one = Lifecycle(deprecated=100.0, deprecation_info="https://a.test/", sunset=500.0)
        other = Lifecycle(deprecated=200.0, deprecation_info="https://b.test/", sunset=300.0)
        third = Lifecycle(deprecated=200.0, deprecation_info="https://b.test/")
        assert announce([one, other, third]) == Announcement(
            (("Deprecation", "@100"), ("Sunset", "Thu, 01 Jan 1970 00:05:00 GMT"), *links), 300.0
        )

    def test_a_deprecation_after_the_first_sunset_is_not_told(self):
        """RFC 9745, section 4: no answer has a sunset before its deprecation."""
        ends, begins = Lifecycle(sunset=100.0), Lifecycle(deprecated=200.0)
        assert announce([ends, begins]) == Announcement((("Sunset", "Thu, 01 Jan 1970 00:01:40 GMT"),), 100.0)

    def test_one_that_is_only_deprecated_never_ends(self):
        assert announce([Lifecycle(deprecated=1.0)]).sunset is None
