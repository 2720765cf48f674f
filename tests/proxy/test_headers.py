"""Heads on their way to a backend and back, rule by rule."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from aiohttp.http_parser import RawResponseMessage
from aiohttp.http_writer import HttpVersion
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.errors import Forbidden, UpstreamFailed
from gateway.proxy.forwarding import Hop
from gateway.proxy.headers import (
    ends_here,
    forwarded_head,
    head_bytes,
    returned_head,
    returned_trailers,
    stripped_names,
    well_formed,
)

CLIENT = Hop("198.51.100.7", trusted=False, scheme="https", host="api.example.com")
PROXY = CLIENT._replace(peer="10.0.0.7", trusted=True)
OWN = ("via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded", "traceparent")

Fields = list[tuple[str, str]]


def raw(*fields: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields]


def forward(*fields: tuple[str, str], hop: Hop = CLIENT, method: str = "GET", **given: Any) -> CIMultiDict[str]:
    return forwarded_head(raw(*fields), hop, method=method, random=lambda count: b"\1" * count, **given)


def left(*fields: tuple[str, str], **given: Any) -> Fields:
    """Return what is left of the client's fields."""
    head = forward(*fields, **given)
    assert next(iter(head)) == "Host"
    return [(name, value) for name, value in list(head.items())[1:] if name.lower() not in OWN]


def back(*fields: tuple[str, str], **given: Any) -> Fields:
    """Return what is left of the backend's fields."""
    head = list(returned_head(raw(*fields), **given).items())
    assert head.pop()[0] == "Via"
    return head


def test_end_to_end_fields_keep_their_order_repetitions_spelling_and_bytes():
    """RFC 9110, section 5.3: the order of fields of one name matters; section 5.5: obs-text is opaque."""
    fields = (("ACCEPT", "a"), ("x-one", "1"), ("Accept", "b"), ("X-One", "\udcff\udcfe"), ("cookie", "ü=1"), ("x_two", ""))
    assert left(*fields) == list(fields)
    assert back(*fields) == list(fields)


def test_the_host_comes_first_as_sent_or_rewritten():
    """RFC 9110, section 7.2: Host is control data and goes first."""
    assert forward(("Accept", "*/*"), ("Host", "x")).getall("Host") == ["api.example.com"]
    assert forward(("Host", "x"), host="shop.internal").getall("Host") == ["shop.internal"]


HOP_BY_HOP: Fields = [
    ("Connection", "close"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authorization", "Basic YQ=="),
    ("Proxy-Authentication-Info", "x"),
    ("TE", "gzip"),
    ("Trailer", "X-Sum"),
    ("Transfer-Encoding", "chunked"),
    ("Upgrade", "websocket"),
    ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
]


@pytest.mark.parametrize("field", HOP_BY_HOP, ids=lambda field: field[0])
def test_fields_of_one_connection_stay_on_it(field: tuple[str, str]):
    """RFC 9110, sections 7.6.1 and 11.7; RFC 9113, section 3.1."""
    for name in (field[0], field[0].lower(), field[0].upper()):
        assert left((name, field[1]), ("A", "1")) == [("A", "1")]
        assert back((name, field[1]), ("A", "1")) == [("A", "1")]


def test_expect_is_between_client_and_gateway():
    """RFC 9110, section 10.1.1: the gateway has answered 100 itself by the time it forwards a body."""
    assert left(("Expect", "100-continue")) == []


def test_what_connection_names_is_dropped():
    """RFC 9110, section 7.6.1: for each option the field of the same name; several fields are one list, in any case."""
    fields = (("X-Hop", "1"), ("Connection", "x-HOP , close,,"), ("x-other", "2"), ("connection", "X-Other"), ("A", "3"))
    assert left(*fields) == [("A", "3")]
    assert back(*fields) == [("A", "3")]


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "Content-Type", "Content-Encoding", "Cache-Control", "Idempotency-Key", "X-API-Key"]
)
def test_what_all_recipients_need_cannot_be_named_away(name: str):
    """RFC 9110, section 7.6.1: a sender must not name a field that is intended for all recipients of the content."""
    fields = ((name, "1"), ("Connection", f"{name}, X-Hop"), ("X-Hop", "2"))
    assert left(*fields, stripped=stripped_names(authorization=True)) == [(name, "1")]


@pytest.mark.parametrize("name", ["Set-Cookie", "Content-Type", "Vary", "Cache-Control", "WWW-Authenticate", "Date"])
def test_nor_what_all_need_of_an_answer(name: str):
    """The same of a backend: a cache that lost its Vary would give one client's answer to another."""
    assert back((name, "1"), ("Connection", name)) == [(name, "1")]


def test_what_the_gateway_sets_cannot_be_named_away():
    """Else a client could be nobody, or be the gateway itself, in the eyes of a backend."""
    named = "Host, Content-Length, X-User, X-Forwarded-For, X-Forwarded-Proto, Forwarded, Via, traceparent"
    given = {"stripped": stripped_names(["X-User"]), "vouched": [("X-User", "ann")]}
    head = forward(("Connection", named), ("Content-Length", "5"), ("X-User", "root"), **given)
    assert head["Host"] == "api.example.com"
    assert (head["Content-Length"], head.getall("X-User")) == ("5", ["ann"])
    assert head["X-Forwarded-For"] == "198.51.100.7"
    assert all(name in head for name in OWN)


def test_what_a_trusted_proxy_says_cannot_be_named_away_by_its_client():
    """Connection comes from the client where the proxy does not look at it."""
    head = forward(
        ("Connection", "X-Forwarded-For, X-Forwarded-User, X-Real-IP"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-User", "ann"),
        ("X-Real-IP", "192.0.2.1"),
        hop=PROXY,
    )
    assert head["X-Forwarded-For"] == "192.0.2.1, 10.0.0.7"
    assert (head["X-Forwarded-User"], head["X-Real-IP"]) == ("ann", "192.0.2.1")


def test_a_length_does_not_go_on_beside_a_transfer_coding():
    """RFC 9112, section 6.3: else two parties could see two ends of one message."""
    assert left(("Content-Length", "5")) == [("Content-Length", "5")] == back(("content-length", "5"))
    assert left(("Content-Length", "5"), ("Transfer-Encoding", "chunked")) == []
    assert back(("Transfer-Encoding", "chunked"), ("Content-Length", "5")) == []


@pytest.mark.parametrize("te", ["trailers", "Trailers", "gzip, trailers", "deflate;q=0.5 ,trailers"])
def test_of_te_only_trailers_goes_on(te: str):
    """RFC 9110, section 10.1.4: codings are for one connection, and TE needs its own connection option."""
    assert left(("TE", te), ("Connection", "TE")) == [("TE", "trailers"), ("Connection", "TE")]
    assert back(("TE", te)) == []


@pytest.mark.parametrize("te", ["", "gzip", "xtrailers", "trailers-x"])
def test_other_transfer_codings_do_not(te: str):
    """RFC 9110, section 10.1.4: the same."""
    assert left(("TE", te)) == []


def test_trailer_goes_with_trailers():
    """RFC 9110, section 6.6.2: who drops the trailers does not announce them."""
    assert left(("Trailer", "X-Sum")) == [] == back(("Trailer", "X-Sum"))
    assert left(("Trailer", "X-Sum"), trailers=True) == [("Trailer", "X-Sum")] == back(("Trailer", "X-Sum"), trailers=True)
    assert left(trailers=True) == []


def test_upgrade_goes_on_where_the_connection_does():
    """RFC 9110, section 7.8: it needs its connection option, both ways, and is ignored without."""
    asked = (("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket"))
    assert left(*asked, upgrade=True) == [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    assert back(*asked, upgrade=True) == [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    assert left(*asked) == [] == back(*asked)
    assert left(("Upgrade", "websocket"), upgrade=True) == []
    assert left(("Connection", "upgrade"), upgrade=True) == []
    both = left(*asked, ("TE", "trailers"), upgrade=True)
    assert both == [("Upgrade", "websocket"), ("TE", "trailers"), ("Connection", "Upgrade, TE")]


def test_via_is_appended_both_ways():
    """RFC 9110, section 7.6.3: in the order of the hops, each with the version in which it received the message."""
    assert forward()["Via"] == "1.1 longpoll-gateway"
    told = (("Via", "1.0 fred"), ("via", "2 edge"))
    assert forward(*told, hop=CLIENT._replace(version="1.0")).getall("Via") == ["1.0 fred, 2 edge, 1.0 longpoll-gateway"]
    assert returned_head(raw(*told)).getall("Via") == ["1.0 fred, 2 edge, 1.1 longpoll-gateway"]
    assert returned_head([], version="1.0")["Via"] == "1.0 longpoll-gateway"


def test_a_request_that_goes_in_circles_ends():
    """RFC 9110, section 7.6.3: Via is there to avoid loops; some gateways in a row are none."""
    passed = ", ".join(["1.1 longpoll-gateway"] * 7)
    assert forward(("Via", passed))["Via"].count("longpoll-gateway") == 8
    with pytest.raises(UpstreamFailed, match="in circles"):
        forward(("Via", passed), ("Via", "1.1 longpoll-gateway"))


@pytest.mark.parametrize(
    ("method", "value", "ends", "sent"),
    [
        ("OPTIONS", "0", True, ["0"]),
        ("TRACE", "000", True, ["0"]),
        ("OPTIONS", "10", False, ["9"]),
        ("TRACE", "1", False, ["0"]),
        ("OPTIONS", "x", False, []),
        ("OPTIONS", "-1", False, []),
        ("OPTIONS", "9" * 10, False, []),
        ("GET", "0", False, []),
    ],
)
def test_max_forwards_counts_down(method: str, value: str, ends: bool, sent: list[str]):
    """RFC 9110, section 7.6.2: for OPTIONS and TRACE; at 0 the gateway answers itself. Elsewhere it may be ignored."""
    assert ends_here(method, raw(("max-forwards", value))) is ends
    assert forward(("Max-Forwards", value), method=method).getall("Max-Forwards", []) == sent


def test_two_bounds_are_none():
    """RFC 9110, section 5.3: a field with one value does not come twice."""
    assert "Max-Forwards" not in forward(("Max-Forwards", "3"), ("Max-Forwards", "4"), method="TRACE")
    assert not ends_here("TRACE", [])


SPELLINGS = ["X-User", "x-user", "X_User", "x_USER", "X.User", "X_user"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_claims_are_the_gateways_to_tell(name: str):
    """No spelling that a CGI-like backend would take for the same gets through (RFC 3875, section 4.1.18)."""
    head = forward((name, "root"), stripped=stripped_names(["X-User"]), vouched=[("X-User", "ann")])
    assert [(key, value) for key, value in head.items() if "user" in key.lower()] == [("X-User", "ann")]
    assert left((name, "root"), stripped=stripped_names(["X_User"])) == []


@pytest.mark.parametrize("name", ["Authorization", "authorization", "X-API-Key", "x_api_key"])
def test_identity_is_not_passed_unless_asked(name: str):
    """RFC 9110, section 11.6.2: credentials are for the gateway; a route may say that the backend wants them too."""
    assert left((name, "x")) == []
    assert left((name, "x"), stripped=stripped_names(authorization=True)) == [(name, "x")]


@pytest.mark.parametrize(
    "value", ["a\r\nX-Admin: 1", "a\nb", "a\0", "\x7f", "\x85", " admin", "admin\t", "admin\u3000", "a\x1fb"]
)
def test_a_claim_that_is_no_field_value_opens_nothing(value: str):
    """RFC 9110, section 5.5: no control characters, and blanks at the ends are not part of a value."""
    with pytest.raises(Forbidden):
        forward(vouched=[("X-User", value)])


@pytest.mark.parametrize("value", ["ann", "a b", "", "Jürgen", "a,b"])
def test_other_claims_are_told_as_they_are(value: str):
    """Nothing is converted."""
    assert forward(vouched=[("X-User", value)])["X-User"] == value


@pytest.mark.parametrize("name", ["Host", "content_length", "Via", "X-Forwarded-For", "Connection"])
def test_claims_have_fields_of_their_own(name: str):
    """A claim is no framing."""
    with pytest.raises(ValueError, match="does not set itself"):
        stripped_names([name])


@pytest.mark.parametrize("name", ["Content_Length", "Transfer_Encoding", "x_forwarded_for", "X.Forwarded-Proto"])
def test_what_is_spelled_like_one_of_the_gateways_fields_is_dropped(name: str):
    """Underscores are how a field gets past the one who only knows hyphens, also behind a proxy."""
    assert left((name, "1")) == [] == left((name, "1"), hop=PROXY)


@pytest.mark.parametrize(
    "name", ["X-Real-IP", "x_real_ip", "X-Forwarded-User", "X_Forwarded_Prefix", "X-Original-URL", "True-Client-IP"]
)
def test_what_only_a_proxy_knows_is_believed_of_proxies_only(name: str):
    """RFC 7239, section 8.1, for all the fields that came before it."""
    assert left((name, "1")) == []
    assert left((name, "1"), hop=PROXY) == [(name, "1")]


def test_forwarded_and_trace_context_are_written_anew():
    """RFC 7239 and W3C Trace Context have tests of their own; here: each field is there once."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    told = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6"), ("Traceparent", parent), ("Tracestate", "a=1")]
    head = forward(*told)
    assert {name: head.getall(name) for name in (*OWN, "tracestate")} == {
        "via": ["1.1 longpoll-gateway"],
        "x-forwarded-for": ["198.51.100.7"],
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["api.example.com"],
        "x-forwarded-port": ["443"],
        "forwarded": ["for=198.51.100.7;host=api.example.com;proto=https"],
        "traceparent": [parent],
        "tracestate": ["a=1"],
    }
    anew = forward(*told, new_parent=True)["traceparent"]
    assert anew == f"00-0af7651916cd43dd8448eb211c80319c-{'01' * 8}-01"
    assert forward(sampled=False)["traceparent"].endswith("-00")


def test_an_answer_keeps_its_cookies_apart_and_its_origins_words():
    """RFC 6265, section 3: Set-Cookie is not to be folded; RFC 9110, sections 6.6.1 and 10.2.4: Date, Server are the origin's."""
    fields = (("Date", "Tue, 15 Nov 1994 08:12:31 GMT"), ("Server", "shop"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"))
    assert back(*fields) == list(fields)


NAMES = st.sampled_from(
    ["Connection", "TE", "Upgrade", "Via", "X-User", "x_user", "Accept", "Host", "Content-Length", "Transfer-Encoding", "X-A"]
)
VALUES = st.sampled_from(["", "close", "x-user, host", "accept", "trailers", "upgrade, te", "1", ",", "via,x-a", "\udcff"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


@given(FIELDS, st.booleans(), st.booleans(), st.booleans())
def test_whatever_comes_nothing_of_the_connection_goes(fields: Fields, upgrade: bool, trailers: bool, trusted: bool):
    """One Host, one Via, the gateway's claim alone; and what Connection says goes with it."""
    given = {"upgrade": upgrade, "trailers": trailers}
    own = {"stripped": stripped_names(["X-User"]), "vouched": [("X-User", "ann")]}
    head = forward(*fields, hop=PROXY if trusted else CLIENT, **given, **own)
    for name in ("Host", "Via", "X-User", "Forwarded", "traceparent"):
        assert len(head.getall(name)) == 1
    assert "x_user" not in head
    for each in (head, returned_head(raw(*fields), **given)):
        assert "Transfer-Encoding" not in each
        options = list(itertools.chain(*(value.split(", ") for value in each.getall("Connection", []))))
        assert set(options) <= {"Upgrade", "TE"}
        assert ("Upgrade" in each) == ("Upgrade" in options)
        assert ("TE" in each) == ("TE" in options)


# --- whole heads ---


def answered(*fields: tuple[str, str], version: tuple[int, int] = (1, 1), code: int = 200, reason: str = "OK") -> bool:
    """Tell what becomes of an answer with this head."""
    headers = CIMultiDictProxy(CIMultiDict(fields))
    chunked = "Transfer-Encoding" in headers
    return well_formed(
        RawResponseMessage(HttpVersion(*version), code, reason, headers, tuple(raw(*fields)), False, None, False, chunked)
    )


def test_answers_that_are_well_formed():
    """What the RFCs let a server send is passed on, bytes over 127 included."""
    assert answered()
    assert answered(("X-A", "caf\udce9\t1"), ("x!#$%&'*+.^_`|~9", ""), reason="")
    assert answered(version=(1, 0), code=799, reason="caf\udce9")
    assert answered(("Transfer-Encoding", "Chunked"))


@pytest.mark.parametrize(
    "given",
    [
        {"version": (2, 0)},
        {"version": (0, 9)},
        {"code": 99},
        {"code": 0},
        {"reason": "O\0K"},
        {"reason": "O\rK"},
    ],
)
def test_answers_of_which_the_first_line_is_none(given: dict[str, Any]):
    """RFC 9112, section 4: a version that is spoken, a status of three digits, a reason without control characters."""
    assert not answered(**given)


@pytest.mark.parametrize("field", [("X ", "1"), ("X", "a\0b"), ("X", "a\rb"), ("X", "a\x7fb"), ("X\xa0", "1")])
def test_answers_with_a_field_that_is_none(field: tuple[str, str]):
    """RFC 9112, section 5.1, and RFC 9110, section 5.5."""
    assert not answered(("A", "1"), field, ("B", "2"))


def test_answers_with_a_coding_that_is_not_known():
    """RFC 9112, section 6.1: chunked alone, and not with HTTP/1.0."""
    assert not answered(("Transfer-Encoding", "gzip, chunked"))
    assert not answered(("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked"))
    assert not answered(("Transfer-Encoding", "identity"))
    assert not answered(("Transfer-Encoding", "chunked"), version=(1, 0))


def test_a_head_is_sent_as_it_came():
    """RFC 9110, section 5.5: obs-text is opaque data."""
    assert head_bytes("HTTP/1.1 200 OK", [("A", "1"), ("B", "caf\udce9")]) == b"HTTP/1.1 200 OK\r\nA: 1\r\nB: caf\xe9\r\n\r\n"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\r\nB: 1", "a\0b"])
def test_no_value_splits_a_head(value: str):
    """RFC 9112, section 11.1."""
    with pytest.raises(ValueError, match="line break"):
        head_bytes("GET / HTTP/1.1", [("A", value)])


def test_trailers_that_may_be_passed_on():
    """RFC 9110, section 6.5.1: never what frames, routes, proves or controls."""
    fields = CIMultiDict([("X-Sum", "1"), ("Set-Cookie", "a=b"), ("connection", "x"), ("Content_Length", "9"), ("x-sum", "2")])
    kept = returned_trailers(fields)
    assert kept is not None
    assert list(kept.items()) == [("X-Sum", "1"), ("x-sum", "2")]
    assert returned_trailers(CIMultiDict([("Cache-Control", "no-store"), ("X-Request-Id", "1")])) is None
    assert returned_trailers(None) is None
