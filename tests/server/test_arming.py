"""Armed heads: where a cursor is cut out, which heads are the same, and how long what they came to holds."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.auth.principal import KeyRef, Principal
from gateway.limits import Bucket, Holder
from gateway.server.arming import Armed, Arming, Cut, cut

QUERY = b"GET /v1/subscribe?channel=news&cursor=%b HTTP/1.1\r\nHost: a\r\n\r\n"
FIELD = b"GET /v1/subscribe?channel=news HTTP/1.1\r\nHost: a\r\nCursor: %b\r\n\r\n"
OLD, NEW = KeyRef("test", "old", "HS256", "1"), KeyRef("test", "new", "HS256", "2")


def armed(head: bytes, *, peer: str = "192.0.2.1", key: KeyRef | None = None, wait: float = 30.0) -> Armed:
    parts = cut(head)
    assert parts is not None
    return Armed(
        parts,
        SimpleNamespace(wait=wait),
        principal=Principal("test", "ann", {}, frozenset(), None, key),
        peer=peer,
        address="198.51.100.7",
        bucket=Bucket(0.0),
        address_bucket=Bucket(0.0),
        holder=Holder(),
    )


def knowing(*heads: bytes, ignored: tuple[str, ...] = (), bound: int = 10) -> tuple[Arming, list[Armed]]:
    arming = Arming(bound=bound, ignored=ignored, secret=b"s")
    known = [armed(head) for head in heads]
    for one in known:
        arming.add(Cut(one.before, b"", one.behind), one)
    return arming, known


def fits(arming: Arming, head: bytes, peer: str = "192.0.2.1") -> bool:
    return arming.find(peer, head) is not None


# --- cutting ---


@pytest.mark.parametrize(
    "head",
    [
        QUERY,
        FIELD,
        b"GET /v1/subscribe?cursor=%b&channel=news HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/subscribe?cursor=%b HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\ncURSOR:%b\r\n\r\n",
        b"GET / HTTP/1.1\r\nCursor:\t %b \t\r\nHost: a\r\n\r\n",
    ],
)
def test_the_cursor_is_cut_out_of_the_query_or_its_field(head: bytes) -> None:
    """What stands before and behind it is kept to the byte, blanks of the field included."""
    before, behind = head.split(b"%b")
    assert cut(head % b"Ab-_9") == Cut(before, b"Ab-_9", behind)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET / HTTP/1.1",
        b"GET /?cursor=abc HTTP/1.1",  # no line ends here
        b"GET /?channel=news HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?%63ursor=abc HTTP/1.1\r\n\r\n",
        b"GET /?cursor=a%62c HTTP/1.1\r\n\r\n",
        b"GET /?cursor= HTTP/1.1\r\n\r\n",
        b"GET /?Cursor=abc HTTP/1.1\r\n\r\n",
        b"GET /?precursor=abc HTTP/1.1\r\n\r\n",
        b"GET /?cursor=abc#part HTTP/1.1\r\n\r\n",
        b"GET /?cursor=" + b"a" * 2_049 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nReferer: /?cursor=abc \r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a?cursor=abc&\r\n\r\n",
        b"GET / HTTP/1.1\r\nCursor: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nCursor: \r\n\r\n",
        b"GET / HTTP/1.1\r\nCursor : abc\r\n\r\n",
        b"GET / HTTP/1.1\r\nNext-Cursor: abc\r\n\r\n",
        b"GET / HTTP/1.1\nCursor: abc\n\n",
    ],
)
def test_other_spellings_are_not_found(head: bytes) -> None:
    """They mean a cursor to aiohttp, or none at all: it shall decide."""
    assert cut(head) is None


def test_of_several_cursors_the_first_of_the_query_is_cut_out() -> None:
    """The others are bytes like all others; whether such a request is a poll was decided before it was armed."""
    head = b"GET /?cursor=a&cursor=b HTTP/1.1\r\nCursor: c\r\n\r\n"
    assert cut(head) == Cut(b"GET /?cursor=", b"a", b"&cursor=b HTTP/1.1\r\nCursor: c\r\n\r\n")


PIECES = [
    b"GET ",
    b"/",
    b"?",
    b"&",
    b"cursor=",
    b"abc",
    b"-",
    b" ",
    b"\t",
    b" HTTP/1.1",
    b"\r\n",
    b"Cursor:",
    b"cursor: x",
    b"\r",
    b"%",
]


@given(
    st.one_of(st.binary(), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)),
    st.from_regex(r"\A[A-Za-z0-9_-]{1,9}\Z"),
)
@example(QUERY % b"a", "b")
@example(FIELD % b"a", "b")
def test_any_bytes_give_nothing_or_a_cut_that_joins_to_them(head: bytes, other: str) -> None:
    """And another cursor in its place is cut out at the same place: a head that fits cannot mean anything else."""
    parts = cut(head)
    if parts is not None:
        assert b"".join(parts) == head
        assert re.fullmatch(rb"[A-Za-z0-9_-]{1,2048}", parts.cursor)
        assert cut(parts.before + other.encode() + parts.behind) == parts._replace(cursor=other.encode())


# --- which heads are the same ---


@pytest.mark.parametrize("head", [QUERY, FIELD])
def test_a_head_is_known_again_with_any_cursor(head: bytes) -> None:
    """It comes with the cursor that it carries now."""
    arming, [known] = knowing(head % b"first")
    assert arming.find("192.0.2.1", head % b"second") == (known, b"second")
    assert known.head(b"third") == head % b"third"


@pytest.mark.parametrize(
    "other",
    [
        QUERY.replace(b"GET", b"get"),
        QUERY.replace(b"news", b"News"),
        QUERY.replace(b"Host: a", b"Host:  a"),
        QUERY.replace(b"Host: a", b"Host: a\r\nX: y"),
        QUERY.replace(b"HTTP/1.1", b"HTTP/1.0"),
        QUERY.replace(b"&cursor=%b", b"&wait=1&cursor=%b"),
        FIELD,
        QUERY.replace(b"cursor", b"curs0r"),
    ],
)
def test_every_other_byte_counts(other: bytes) -> None:
    """Method, target, and each field with its blanks."""
    arming, _ = knowing(QUERY % b"first")
    assert not fits(arming, other.replace(b"%b", b"first"))


def test_the_peer_counts() -> None:
    """The client's address comes from there, so another one's same bytes are another request."""
    arming, _ = knowing(QUERY % b"first")
    assert fits(arming, QUERY % b"first")
    assert not fits(arming, QUERY % b"first", "192.0.2.2")


def test_the_same_bytes_cut_elsewhere_are_another_request() -> None:
    """What is left is equal, but not where the cursor was."""
    first, second = b"GET /?cursor=x&cursor= HTTP/1.1\r\n\r\n", b"GET /?cursor=&cursor=x HTTP/1.1\r\n\r\n"
    arming, _ = knowing(first)
    assert fits(arming, first)
    assert not fits(arming, second)


def test_the_secret_keys_the_digests() -> None:
    """Nobody outside can search for two heads with one digest."""
    parts = Cut(b"a", b"b", b"c")
    digests = {Arming(bound=1, ignored=(), secret=secret)._digest("peer", parts) for secret in (b"1", b"2")}
    assert len(digests) == 2


IGNORED = ("X-Request-Id", "traceparent")
PLAIN = b"GET /v1/subscribe?channel=news&cursor=%b HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        PLAIN,
        PLAIN.replace(b"Host: a", b"X-Request-Id: 1\r\nHost: a"),
        PLAIN.replace(b"Host: a", b"Host: a\r\nX-Request-Id: 2"),
        PLAIN.replace(b"A: b", b"A: b\r\nx-rEQUEST-iD:3"),
        PLAIN.replace(b"A: b", b"A: b\r\nTraceparent: \t4 \xe4 5"),
        PLAIN.replace(b"Host: a", b"X-Request-Id: 1\r\ntraceparent: 2\r\nX-Request-Id:\r\nHost: a\r\ntraceparent: 3"),
    ],
)
def test_ignored_fields_do_not_count(head: bytes) -> None:
    """In any case of their names, wherever they stand, and however many there are."""
    for one, other in ((head, PLAIN), (PLAIN, head)):
        arming, [known] = knowing(one % b"first", ignored=IGNORED)
        assert arming.find("192.0.2.1", other % b"second") == (known, b"second")


@pytest.mark.parametrize(
    ("ignored", "line"),
    [
        (IGNORED, b"X-Request-Id: 1\x00"),
        (IGNORED, b"X-Request-Id: 1\n2"),
        (IGNORED, b"X-Request-Id: 1\x7f"),
        (IGNORED, b"X-Request-Id : 1"),
        (IGNORED, b"X-Request-Ids: 1"),
        (IGNORED, b"My-X-Request-Id: 1"),
        (IGNORED, b" X-Request-Id: 1"),
        (("X.Request.Id",), b"X-Request-Id: 1"),
        ((), b"X-Request-Id: 1"),
    ],
)
def test_what_is_no_ignored_field_counts(ignored: tuple[str, ...], line: bytes) -> None:
    """Control characters in a value might end a line for somebody; names are names and no patterns."""
    arming, _ = knowing(PLAIN % b"first", ignored=ignored)
    assert not fits(arming, PLAIN.replace(b"A: b", b"A: b\r\n" + line) % b"first")


@pytest.mark.parametrize(("length", "ignored"), [(510, True), (511, False)])
def test_a_long_field_is_not_ignored(length: int, ignored: bool) -> None:
    """The framework has a bound for fields, and shall apply it; the blank before the value counts."""
    arming, _ = knowing(PLAIN % b"first", ignored=IGNORED)
    line = b"X-Request-Id: " + b"x" * (length + 1)
    assert fits(arming, PLAIN.replace(b"A: b", b"A: b\r\n" + line) % b"first") is ignored


def test_a_bare_head_is_one_without_the_ignored_fields() -> None:
    """Everything else stays, to the byte."""
    head = b"GET / HTTP/1.1\r\nX-Request-Id: 1\r\nHost: a\r\nTRACEPARENT:\r\n\r\n"
    assert knowing(ignored=IGNORED)[0].bare(head) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert knowing()[0].bare(head) == head


def test_ignored_fields_before_a_cursor_field() -> None:
    """The cut is in the middle of a line then; that line stays."""
    head = b"GET / HTTP/1.1\r\n%bCursor: %b\r\n%b\r\n"
    arming, _ = knowing(head % (b"X-Request-Id: 1\r\n", b"first", b"traceparent: 2\r\n"), ignored=IGNORED)
    assert fits(arming, head % (b"", b"second", b"X-Request-Id: 3\r\n"))
    assert not fits(arming, head.replace(b"Cursor: ", b"Cursor:") % (b"", b"second", b""))


# --- the table ---


def test_what_is_not_armed_is_not_found() -> None:
    """No head, none with a cursor, none like it."""
    arming, _ = knowing()
    for head in (b"", b"GET / HTTP/1.1\r\n\r\n", QUERY % b"a"):
        assert arming.find("192.0.2.1", head) is None


def test_a_head_that_is_armed_again_takes_the_place_of_the_old_one() -> None:
    """The newest says what holds now, the token's life for instance."""
    arming, [_, new] = knowing(QUERY % b"a", QUERY % b"b")
    assert arming.find("192.0.2.1", QUERY % b"c") == (new, b"c")
    assert list(arming) == [new]


def test_the_longest_unused_gives_way() -> None:
    """Looking for one, or arming it again, is a use."""
    heads = [QUERY.replace(b"news", name) % b"a" for name in (b"n1", b"n2", b"n3", b"n4")]
    arming, known = knowing(*heads[:3], bound=3)
    arming.add(Cut(known[0].before, b"", known[0].behind), known[0])
    assert fits(arming, heads[1])
    arming.add(cut(heads[3]), armed(heads[3]))
    assert len(arming) == 3
    assert [fits(arming, head) for head in heads] == [True, True, False, True]


def test_without_room_nothing_is_remembered() -> None:
    """A bound of zero switches the table off; a lane still knows the head that it saw last."""
    arming, _ = knowing(QUERY % b"a", bound=0)
    assert len(arming) == 0


def test_a_withdrawn_key_voids_its_own_heads() -> None:
    """They are forgotten, and whoever keeps one answers nothing by it; others stand."""
    arming = Arming(bound=9, ignored=(), secret=b"s")
    heads = [QUERY.replace(b"news", name) % b"a" for name in (b"n1", b"n2", b"n3")]
    mine, other, anonymous = known = [armed(head, key=key) for head, key in zip(heads, (OLD, NEW, None), strict=True)]
    for head, one in zip(heads, known, strict=True):
        arming.add(cut(head), one)
    arming.revoke(OLD)
    assert [one.void for one in known] == [True, False, False]
    assert list(arming) == [other, anonymous]
    arming.revoke()
    assert len(arming) == 0
    assert all(one.void for one in (mine, other, anonymous))


# --- what a head came to ---


def test_without_an_end_of_the_token_a_head_holds_for_ever() -> None:
    """All its times are infinite."""
    one = armed(QUERY % b"a")
    assert one.over == one.near == one.expires == float("inf")
    assert one.size == len(QUERY % b"")


@pytest.mark.parametrize(
    ("wait", "near", "over"),
    [(30.0, 970.0, 999.0), (1.0, 999.0, 999.0), (0.5, 999.5, 999.5), (0.0, 1_000.0, 1_000.0)],
)
def test_the_end_of_a_token_is_near_when_it_comes_before_the_waits_end(wait: float, near: float, over: float) -> None:
    """It is over when the poll would be held for less than a second because of it, or less than its whole wait."""
    one = armed(QUERY % b"a", wait=wait)
    one.expire(1_000.0, 1.0)
    assert (one.expires, one.near, one.over) == (1_000.0, near, over)


def test_of_two_ends_the_first_counts() -> None:
    """That of the token or that of a channel, in any order; which is refused ahead is each one's own."""
    ends = [(1_000.0, 1.0), (1_000.5, 0.0)]
    for order in (ends, ends[::-1]):
        one = armed(QUERY % b"a", wait=30.0)
        for at, least in order:
            one.expire(at, least)
        assert (one.expires, one.near, one.over) == (1_000.0, 970.0, 999.0)


def test_a_revoked_head_answers_nothing() -> None:
    """At no time; its token's end stays, for the poll that is parked by it."""
    one = armed(QUERY % b"a")
    one.expire(1_000.0, 1.0)
    assert repr(one) == "<Armed ('test', 'ann') for namespace(wait=30.0)>"
    one.revoke()
    assert one.near == one.over == float("-inf")
    assert one.expires == 1_000.0
    assert repr(one).endswith(" void>")
