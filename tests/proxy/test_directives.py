"""Cache-Control is read strictly, and fast, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy.caches import head

from gateway.proxy.directives import FOREVER, directives, http_date, mended


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('private="a", private="b"', 'private="a, b"'),
        ('private="a", private', "private"),
        ('private, private="a"', "private"),
        ('no-cache="a, b" , max-age = 5', 'no-cache="a, b", max-age=5'),
        ("max-stale, min-fresh=a, stale-if-error", "max-stale"),
        ("max-age=007", "max-age=7"),
        ("s-maxage=99999999999", f"s-maxage={FOREVER}"),
        ("max-age=\u0663", "max-age=0"),
        ("max-age=1_0", "max-age=0"),
        ('private="a, max-age=5', "private, max-age=5"),
        ('"max-age=5, private', "private"),
        ("", ""),
    ],
)
def test_what_is_doubtful_is_mended(value: str, read: str) -> None:
    """Each directive stands once, with an argument that means something, in its stricter reading."""
    assert mended(head(("Cache-Control", value))) == read


def test_fields_of_both_are_private() -> None:
    """RFC 9111, 5.2.2.7: two lists forbid what each of them forbids."""
    assert directives(head(("Cache-Control", "private=a"), ("Cache-Control", 'private="b"'))).private == ["A", "B"]


@given(st.text('",=\\ aA0-\tprivatemax', max_size=60))
def test_any_value_can_be_read(value: str) -> None:
    """No value raises, and reading what was mended changes nothing."""
    fields = head(("Cache-Control", value))
    directives(fields)
    assert mended(head(("Cache-Control", mended(fields)))) == mended(fields)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        ("Sun Nov  6 08:49:37 1994", 784_111_777),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("0", None),
        ("", None),
        (None, None),
    ],
)
def test_dates(value: str | None, seconds: int | None) -> None:
    """RFC 9110, 5.6.7: three formats, all in GMT; anything else is no date."""
    assert http_date(value) == seconds
