"""The HTTP contract: problem documents, envelopes, and every parameter below, at and above its bounds."""

import base64
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors, wire
from gateway.records import Record
from gateway.wire import (
    From,
    accepts,
    answer,
    bare_history,
    bare_values,
    compact_json,
    history,
    messages,
    next_link,
    parse_from,
    parse_poll,
    parse_time_ms,
    prefer_wait,
    problem,
    single,
)

# --- problems ---

# The table of the contract, literally.
CONTRACT = {
    400: "parameter_invalid cursor_invalid cursor_mismatch subscription_too_wide body_invalid request_malformed",
    401: "token_missing token_invalid token_expired token_revoked",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "cursor_reset superseded",
    410: "cursor_expired gone",
    411: "length_required",
    413: "body_too_large",
    414: "target_too_long",
    415: "media_type",
    422: "idempotency_mismatch",
    429: "rate_limited too_many_polls",
    431: "head_too_large",
    500: "internal_error",
    502: "upstream_failed",
    503: "overloaded broker_unavailable draining circuit_open",
    504: "upstream_timeout",
}


def test_the_codes_and_their_statuses_are_those_of_the_contract() -> None:
    assert {code: status for code, (status, _) in wire.STATUS.items()} == {
        code: status for status, codes in CONTRACT.items() for code in codes.split()
    }
    assert all(title for _, title in wire.STATUS.values())


def test_a_problem_has_the_members_of_rfc_9457_and_ours() -> None:
    made = problem(errors.ParameterInvalid("limit", "a whole number from 1 to 1000"), "req-1")
    assert made.status == 400
    assert made.headers == {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    assert json.loads(made.body) == {
        "type": "urn:gateway:problem:parameter_invalid",
        "title": "Invalid parameter",
        "status": 400,
        "detail": "limit: expected a whole number from 1 to 1000.",
        "code": "parameter_invalid",
        "request_id": "req-1",
        "parameter": "limit",
    }


def test_a_problem_may_bring_a_cursor_and_what_is_lost() -> None:
    lost: list[dict[str, object]] = [{"channel": "a", "partition": 3, "from": 12, "to": 57}]
    body = json.loads(problem(errors.CursorExpired("AbC", lost), "r").body)
    assert (body["status"], body["cursor"], body["lost"]) == (410, "AbC", lost)


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_rounded_up_and_never_zero(seconds: float, shown: str) -> None:
    limited = errors.RateLimited(policy="p", quota=1, window=1.0, retry_after=seconds)
    assert problem(limited, "r").headers["Retry-After"] == shown


def test_a_wrong_method_is_told_the_right_ones() -> None:
    assert problem(errors.MethodNotAllowed(("GET", "HEAD")), "r").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (errors.TokenMissing(), 'Bearer realm="gateway"'),
        (
            errors.TokenInvalid("why"),
            'Bearer realm="gateway", error="invalid_token", error_description="The token could not be verified."',
        ),
        (
            errors.TokenExpired(),
            'Bearer realm="gateway", error="invalid_token", error_description="The token has expired."',
        ),
        (
            errors.TokenRevoked(),
            'Bearer realm="gateway", error="invalid_token", error_description="The token has been revoked."',
        ),
        (errors.Forbidden(), 'Bearer realm="gateway", error="insufficient_scope"'),
        (errors.NotFound(), None),
    ],
)
def test_challenges_are_those_of_rfc_6750(error: errors.GatewayError, challenge: str | None) -> None:
    assert problem(error, "r").headers.get("WWW-Authenticate") == challenge


# --- compact JSON ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def outside_strings(text: bytes) -> bytes:
    """Return what of a valid JSON text is not in a string."""
    out, at = bytearray(), 0
    while at < len(text):
        if text[at : at + 1] == b'"':
            at += 1
            while text[at : at + 1] != b'"':
                at += 2 if text[at : at + 1] == b"\\" else 1
        else:
            out.append(text[at])
        at += 1
    return bytes(out)


@given(JSON, st.sampled_from((None, 0, 1, "\t")), st.booleans(), st.sampled_from(("", " ", "\r\n\t ")))
def test_compacting_changes_white_space_and_nothing_else(value: Any, indent: Any, ascii_only: bool, around: str) -> None:
    try:
        text = (around + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + around).encode()
    except UnicodeEncodeError:
        return
    compact = compact_json(text)
    if compact is None:
        # A half of a surrogate pair, escaped: not a character, so not Unicode text.
        assert "\\ud" in text.decode().lower()
        return
    assert json.loads(compact) == json.loads(text)
    assert not set(outside_strings(compact)) & set(b" \t\r\n")
    assert b"\n" not in compact
    assert b"\r" not in compact


@given(st.binary(max_size=40) | st.text('{}[]",:0123.eE+-\\ntruefalsu \n', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_not(value: bytes) -> None:
    compact = compact_json(value)
    if compact is not None:
        assert json.loads(compact) == json.loads(value.decode("utf-8"))
        assert compact_json(compact) == compact


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_64_is_the_most(opening: bytes) -> None:
    closing = {b"[": b"]"}.get(opening, b"}")

    def nested(depth: int) -> bytes:
        return opening * depth + b"1" + closing * depth

    assert compact_json(nested(64)) == nested(64)
    assert compact_json(nested(65)) is None
    assert compact_json(nested(100_000)) is None


def test_breadth_is_not_depth() -> None:
    wide = b"[" + b",".join([b"[{}]"] * 1_000) + b"]"
    assert compact_json(wide) == wide


def test_brackets_in_strings_do_not_count() -> None:
    text = b'["' + b"[{" * 500 + b'","\\"' + b"[" * 500 + b'\\\\",[]]'
    assert compact_json(text) == text
    deep = b'["' + b"]" * 500 + b'",' + b"[" * 64 + b"]" * 64 + b"]"
    assert compact_json(deep) is None


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"NaN", b"Infinity", b"-Infinity", b"01", b"1.", b".5", b"+1", b"-", b"1e", b"tru", b"nulll", b"1 2", b"'a'",
        b"[1,]", b"[,1]", b'{"a":1,}', b'{"a"}', b"{a:1}", b"{1:2}", b"[1", b"1]", b'"', b'"\\x"', b'"\\u12"', b'"\xff"', b"\xff",
        b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\x00"', b'"a\nb"', b'"a\rb"', b'"\t"', b"1\x00", b"\x0b1", b"// c\n1", b'{"a":1}}',
    ],
)  # fmt: skip
def test_what_is_not_json_is_none(text: bytes) -> None:
    assert compact_json(text) is None


@pytest.mark.parametrize(
    ("text", "compact"),
    [
        (b" [ 1 , 2 ] ", b"[1,2]"),
        (b'{ "a b" : "c  d" }', b'{"a b":"c  d"}'),
        (b"123456789012345678901234567890.10e-400", b"123456789012345678901234567890.10e-400"),
        (b"-0", b"-0"),
        (b'{"a":1,"a":2}', b'{"a":1,"a":2}'),
        (b'"\\u00e9\\/\\n"', b'"\\u00e9\\/\\n"'),
        ('"é\u2028"'.encode(), '"é\u2028"'.encode()),
        (b'"\x7f"', b'"\x7f"'),
    ],
)
def test_nothing_but_white_space_is_touched(text: bytes, compact: bytes) -> None:
    assert compact_json(text) == compact


# --- envelopes ---


def message(record: Record, partition: int, channel: str, fmt: Any, headers: Sequence[str]) -> bytes:
    return b"".join(messages([record], partition, channel, fmt, headers, first=True))


def bare_value(record: Record, fmt: Any) -> bytes:
    return b"".join(bare_values([record], fmt, first=True))


def test_an_envelope_is_the_contracts() -> None:
    record = Record(1071, 1795334400000, b"42", b'{"text": "hi"}', (("trace", b"abc"), ("other", b"x"), ("trace", None)))
    text = message(record, 3, "chat/42", "json", ("trace",))
    assert text == (
        b'{"channel":"chat/42","partition":3,"offset":1071,"timestamp":1795334400000,"key":"42",'
        b'"headers":[["trace","abc"],["trace",null]],"value":{"text":"hi"}}'
    )


VALUES = [
    ("json", b"[1]", {"value": [1]}),
    ("json", b"", {"value": "", "encoding": "base64"}),
    ("json", b"{", {"value": "ew==", "encoding": "base64"}),
    ("json", None, {"value": None, "tombstone": True}),
    ("json", b"null", {"value": None}),
    ("text", b'a\nb"', {"value": 'a\nb"'}),
    ("text", b"", {"value": ""}),
    ("text", b"\xff", {"value": "/w==", "encoding": "base64"}),
    ("text", None, {"value": None, "tombstone": True}),
    ("binary", b"\xff", {"value": "/w=="}),
    ("binary", b"", {"value": ""}),
    ("binary", None, {"value": None, "tombstone": True}),
]  # fmt: skip


@pytest.mark.parametrize(("fmt", "value", "members"), VALUES)
def test_values_in_the_channels_format_and_in_none(fmt: Any, value: bytes | None, members: dict[str, object]) -> None:
    shown = json.loads(message(Record(1, None, None, value), 0, "c", fmt, ()))
    assert {name: shown[name] for name in shown if name in ("value", "encoding", "tombstone")} == members
    assert (shown["timestamp"], shown["key"], shown["headers"]) == (None, None, [])


@pytest.mark.parametrize(
    ("key", "shown"), [(None, None), (b"", ""), ("é".encode(), "é"), (b"\xff", {"base64": "/w=="}), (b'"\n', '"\n')]
)
def test_keys_are_strings_base64_or_null(key: bytes | None, shown: object) -> None:
    envelope = json.loads(message(Record(1, 0, key, b"1", (("h", key),)), 0, "c", "json", ("h",)))
    assert envelope["key"] == shown
    assert envelope["headers"] == [["h", shown]]


BYTES = st.none() | st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value, indent=1).encode())
RECORDS = st.builds(
    Record,
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(0, 2**62),
    BYTES,
    BYTES,
    st.lists(st.tuples(st.sampled_from(("a", "b", 'quo"te')), BYTES), max_size=4).map(tuple),
)
FORMATS = st.sampled_from(("json", "text", "binary"))


@given(RECORDS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1), FORMATS)
def test_an_envelope_parses_whatever_the_record_holds(record: Record, channel: str, fmt: Any) -> None:
    text = message(record, 2, channel, fmt, ("a", 'quo"te'))
    envelope = json.loads(text)
    assert b"\n" not in text
    assert (envelope["channel"], envelope["partition"], envelope["offset"]) == (channel, 2, record.offset)
    assert envelope["timestamp"] == record.timestamp_ms
    assert [name for name, _ in envelope["headers"]] == [name for name, _ in record.headers if name != "b"]
    if record.value is None:
        assert envelope["tombstone"] is True
    elif fmt == "binary" or "encoding" in envelope:
        assert base64.b64decode(envelope["value"]) == record.value
    elif fmt == "text":
        assert envelope["value"] == record.value.decode()
    else:
        assert envelope["value"] == json.loads(record.value)


@given(st.lists(st.lists(RECORDS, min_size=1, max_size=3), max_size=3), FORMATS)
def test_runs_of_records_join_to_one_list(runs: list[list[Record]], fmt: Any) -> None:
    """Each piece in its place: what many show is what each of them shows."""
    pieces: list[bytes] = []
    bare: list[bytes] = []
    for n, run in enumerate(runs):
        pieces += messages(run, n, f"c{n}", fmt, ("a",), first=not pieces)
    single = [json.loads(message(record, n, f"c{n}", fmt, ("a",))) for n, run in enumerate(runs) for record in run]
    assert json.loads(answer("c", pieces, [], up_to_date=True))["messages"] == single
    for run in runs:
        bare += bare_values(run, fmt, first=not bare)
    assert json.loads(answer("c", bare, [], up_to_date=True))["messages"] == [
        json.loads(bare_value(record, fmt)) for run in runs for record in run
    ]


@given(st.lists(st.lists(RECORDS, min_size=1, max_size=4), max_size=3), FORMATS, st.sampled_from([(), ("a",)]))
def test_history_is_shown_like_live_records(runs: list[list[Record]], fmt: Any, headers: tuple[str, ...]) -> None:
    """Byte by byte, at first and when its values are known to be compact."""
    for _ in range(2):
        live: list[bytes] = []
        old: list[bytes] = []
        for n, run in enumerate(runs):
            live += messages(run, n, f"c{n}", fmt, headers, first=not live)
            old += history(run, n, f"c{n}", fmt, headers, first=not old)
        assert b"".join(old) == b"".join(live)
        live, old = [], []
        for run in runs:
            live += bare_values(run, fmt, first=not live)
            old += bare_history(run, fmt, first=not old)
        assert b"".join(old) == b"".join(live)


@given(st.lists(st.sampled_from('{}[]",:\\n01-.eEtrufals \t\x00\x1fé'), max_size=12).map(lambda parts: "".join(parts).encode()))
def test_a_value_without_white_space_is_checked_like_any_other(text: bytes) -> None:
    """A space in front changes nothing but the way that is taken."""
    assert compact_json(text) == compact_json(b" " + text)


def test_history_keeps_no_encoded_form() -> None:
    """What is remembered is that a value is compact: then it is not looked at again."""
    compact, spaced = Record(1, 0, b"k", b"[1]"), Record(2, 0, b"k", b"[ 1 ]")
    history([compact, spaced], 0, "c", "json", (), first=True)
    assert (compact.shown, compact.compact, spaced.shown, spaced.compact) == (None, True, None, False)
    again = Record(1, 0, b"k", b"[1]")
    bare_history([again], "text", first=True)
    assert not again.compact
    bare_history([again], "json", first=True)
    assert again.compact


@pytest.mark.parametrize(("value", "same"), [(b'{"a":[1,2]}', True), (b'{"a": [1, 2]}', False)])
def test_a_value_that_is_compact_already_is_not_kept_twice(value: bytes, same: bool) -> None:
    record = Record(1, 0, None, value)
    assert json.loads(message(record, 0, "c", "json", ()))["value"] == {"a": [1, 2]}
    assert record.shown is not None
    assert (record.shown[2] is value) is same


@given(RECORDS, FORMATS)
def test_a_bare_value_parses_whatever_the_record_holds(record: Record, fmt: Any) -> None:
    value = json.loads(bare_value(record, fmt))
    if record.value is None:
        assert value is None
    elif isinstance(value, dict) and value.keys() == {"value", "encoding"}:
        assert base64.b64decode(value["value"]) == record.value


def test_an_envelope_is_encoded_once_for_each_view() -> None:
    record = Record(1, 0, b"k", b"[1]", (("h", b"x"),))
    first = message(record, 0, "c", "json", ("h",))
    kept = record.shown
    assert message(record, 0, "d", "json", ("h",)) == first.replace(b'"c"', b'"d"')
    assert record.shown is kept
    assert json.loads(message(record, 0, "c", "text", ("h",)))["value"] == "[1]"
    assert json.loads(message(record, 0, "c", "json", ()))["headers"] == []
    assert bare_value(record, "json") == b"[1]"
    kept = record.shown
    assert bare_value(record, "json") == b"[1]"
    assert record.shown is kept
    assert bare_value(record, "binary") == b'"WzFd"'
    assert message(record, 0, "c", "json", ("h",)) == first


def test_an_answer_joins_what_is_encoded() -> None:
    assert answer("AbC", [], [], up_to_date=True) == b'{"cursor":"AbC","messages":[],"up_to_date":true}'
    lost = [{"channel": "a", "partition": 3, "from": 12, "to": 57}]
    assert json.loads(answer("AbC", [b"1", b",", b"[2]"], lost, up_to_date=False)) == {
        "cursor": "AbC",
        "messages": [1, [2]],
        "lost": lost,
        "up_to_date": False,
    }


# --- parameters ---


def poll(*pairs: tuple[str, str], **more: Any) -> wire.Poll:
    defaults: dict[str, Any] = {"cursor_header": None, "prefer": (), "default_wait": 30.0, "max_wait": 55.0}
    return parse_poll((("channel", "a"), *pairs), **{**defaults, **more})


def test_the_defaults_are_the_contracts() -> None:
    assert poll() == wire.Poll(("a",), None, From("latest"), 30.0, 100, 2**20, 0, "full", None)


GOOD: list[tuple[str, str, str, object]] = [
    ("wait", "0", "wait", 0.0),
    ("wait", "0.5", "wait", 0.5),
    ("wait", "12.125", "wait", 12.125),
    ("wait", "55", "wait", 55.0),
    ("limit", "1", "limit", 1),
    ("limit", "1000", "limit", 1_000),
    ("max_bytes", "1024", "max_bytes", 1_024),
    ("max_bytes", "8388608", "max_bytes", 8 * 2**20),
    ("linger", "0", "linger", 0),
    ("linger", "1000", "linger", 1_000),
    ("view", "full", "view", "full"),
    ("view", "value", "view", "value"),
    ("cursor", "A", "cursor", "A"),
    ("cursor", "aZ09_-" * 341, "cursor", "aZ09_-" * 341),
    ("cursor", "A" * 2_048, "cursor", "A" * 2_048),
    ("from", "latest", "start", From("latest")),
    ("from", "earliest", "start", From("earliest")),
    ("from", "-1", "start", From("newest", 1)),
    ("from", "-1000", "start", From("newest", 1_000)),
    ("from", "1970-01-01T00:00:00Z", "start", From("time", 0)),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), GOOD, ids=lambda value: str(value)[:30])
def test_parameters_at_their_bounds_are_taken(name: str, text: str, field: str, value: object) -> None:
    assert getattr(poll((name, text)), field) == value


BAD = [
    *[("wait", text) for text in ("", "-1", "55.1", "56", "1e1", "nan", "inf", " 5", "5 ", "+5", "0.1234", "5.", "٣", "00000")],
    *[("limit", text) for text in ("", "0", "1001", "-1", "1.0", "1e2", "0x10", " 1", "+1", "٣", "²", "1" * 11, "9" * 5_000)],
    *[("max_bytes", text) for text in ("1023", "8388609", "1MiB", "")],
    *[("linger", text) for text in ("-1", "1001", "0.5", "")],
    *[("view", text) for text in ("", "FULL", "bare")],
    *[("from", text) for text in ("", "-0", "-1001", "-", "--1", "-1.5", "-٣", "1", "now", "Latest", "-00001", "2024-01-01")],
    *[("unknown", "1"), ("Limit", "5"), ("channel", ""), ("channel", "x" * 1_025)],
]


@pytest.mark.parametrize(("name", "text"), BAD, ids=lambda value: value[:20])
def test_parameters_out_of_their_bounds_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(errors.ParameterInvalid) as raised:
        poll((name, text))
    assert raised.value.extra == {"parameter": name}
    assert len(raised.value.detail) < 200


@pytest.mark.parametrize("text", ["", "A" * 2_049, "A+", "A/", "A=", "A B", "é", "A\n"])
@pytest.mark.parametrize("header", [True, False])
def test_a_cursor_of_other_characters_is_invalid(text: str, header: bool) -> None:
    with pytest.raises(errors.CursorInvalid):
        poll(cursor_header=text) if header else poll(("cursor", text))


def test_the_cursor_may_come_as_a_header_but_not_twice() -> None:
    assert poll(cursor_header="AbC").cursor == "AbC"
    with pytest.raises(errors.ParameterInvalid) as raised:
        poll(("cursor", "AbC"), cursor_header="AbC")
    assert raised.value.extra == {"parameter": "cursor"}


@pytest.mark.parametrize("name", ["cursor", "from", "wait", "limit", "max_bytes", "linger", "view"])
def test_only_channels_may_be_repeated(name: str) -> None:
    value = {"from": "latest", "view": "full", "cursor": "A", "max_bytes": "1024"}.get(name, "1")
    with pytest.raises(errors.ParameterInvalid) as raised:
        poll((name, value), (name, value))
    assert raised.value.extra == {"parameter": name}
    assert poll(("channel", "b"), ("channel", "c")).channels == ("a", "b", "c")


def test_1_to_32_channels() -> None:
    assert len(poll(*[("channel", "b")] * 31).channels) == 32
    with pytest.raises(errors.ParameterInvalid):
        poll(*[("channel", "b")] * 32)
    with pytest.raises(errors.ParameterInvalid):
        parse_poll([], cursor_header=None, prefer=(), default_wait=30.0, max_wait=55.0)
    assert poll(("channel", "x" * 1_024)).channels[1] == "x" * 1_024


@pytest.mark.parametrize("name", ["", "<script>", "a b", "x" * 33, "é"])
def test_a_strange_parameter_is_not_repeated_in_the_answer(name: str) -> None:
    with pytest.raises(errors.ParameterInvalid) as raised:
        single([(name, "1")], ("limit",))
    assert raised.value.extra == {"parameter": "query"}
    assert not name or name not in raised.value.detail


def test_single_gives_values_by_name() -> None:
    assert single([("a", "1"), ("b", "2"), ("b", "3")], ("a", "b", "c"), ("b",)) == {"a": "1", "b": "3"}


def test_head_holds_nothing() -> None:
    assert poll(("wait", "20"), head=True).wait == 0.0
    with pytest.raises(errors.ParameterInvalid):
        poll(("wait", "56"), head=True)


def test_the_operators_cap_bounds_wait_and_its_default() -> None:
    assert poll(default_wait=30.0, max_wait=20.0).wait == 20.0
    assert poll(("wait", "100"), max_wait=120.0).wait == 100.0
    with pytest.raises(errors.ParameterInvalid) as raised:
        poll(("wait", "21"), max_wait=20.0)
    assert raised.value.detail == "wait: expected seconds from 0 to 20."


# --- Prefer ---


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        # The examples of RFC 7240.
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (['foo; bar=""'], None),
        (['foo; bar="', '"'], None),
        (["foo; some-parameter, wait=100"], 100),
        (["handling=lenient, wait=100, respond-async"], 100),
        # And what else may come.
        ([], None),
        ([""], None),
        ([",,"], None),
        (["wait"], None),
        (["wait="], None),
        (["WAIT=5"], 5),
        (['wait="5"'], 5),
        (["wait = 5"], 5),
        (["\twait\t=\t5\t"], 5),
        (["wait=5; strict"], 5),
        (["wait=5;"], 5),
        (["wait=5, wait=6"], 5),
        (["wait=x, wait=6"], None),
        (["wait=-5"], None),
        (["wait=5.5"], None),
        (["wait=1e3"], None),
        (["wait=٣"], None),
        (["wait=999999999"], 999_999_999),
        (["wait=1000000000"], None),
        (['wait="5'], None),
        (['wait=5"'], None),
        (["wait=5 6"], None),
        (["waiting=5, x-wait=6, wait=7"], 7),
        (['foo="a, wait=9", wait=5'], 5),
        (['foo="a\\", wait=9", wait=5'], 5),
        (['foo; bar="a, wait=9; b", wait=5'], 5),
        (["foo bar, wait=5"], 5),
        (["@@@, = , ;;, wait=5"], 5),
        (['foo="never closed, wait=9'], None),
    ],
)
def test_the_wait_preference(fields: list[str], seconds: int | None) -> None:
    assert prefer_wait(fields) == seconds


@given(st.lists(st.text() | st.text('wait=5,;"\\ '), max_size=4))
def test_any_preference_is_a_number_or_ignored(fields: list[str]) -> None:
    found = prefer_wait(fields)
    assert found is None or 0 <= found < 10**9


@pytest.mark.parametrize("part", ["a;", " ", '"', '\\"', 'x;"\\",', 'x=",', "a=", 'a;" ', ", ;"])
def test_garbage_costs_no_more_than_its_length(part: str) -> None:
    """16 KB of a header field must not hold up the loop."""
    began = time.process_time()
    for end in ("", '"', "\\", "@"):
        prefer_wait([part * (16_384 // len(part)) + end])
    assert time.process_time() - began < 0.5


def test_prefer_counts_where_wait_is_absent_and_is_clamped() -> None:
    given_ = poll(prefer=["wait=10"])
    assert (given_.wait, given_.applied) == (10.0, 10)
    clamped = poll(prefer=["wait=100"], max_wait=20.5)
    assert (clamped.wait, clamped.applied) == (20.0, 20)
    both = poll(("wait", "5"), prefer=["wait=10"])
    assert (both.wait, both.applied) == (5.0, None)
    unusable = poll(prefer=["wait=soon"])
    assert (unusable.wait, unusable.applied) == (30.0, None)
    none_held = poll(prefer=["wait=10"], head=True)
    assert (none_held.wait, none_held.applied) == (0.0, 10)


# --- times ---


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1985-04-12T23:20:50.52Z", 482196050520),
        ("1996-12-19T16:39:57-08:00", 851042397000),
        ("1990-12-31T23:59:60Z", 662688000000),
        ("1990-12-31T15:59:60.5-08:00", 662688000500),
        ("2024-02-29T00:00:00Z", 1709164800000),
        ("2024-01-01t00:00:00z", 1704067200000),
        ("2024-01-01 00:00:00Z", 1704067200000),
        ("2024-01-01T00:00:00-00:00", 1704067200000),
        ("2024-01-01T02:00:00 02:00", 1704067200000),
        ("2024-01-01T02:00:00+02:00", 1704067200000),
        ("2024-01-01T00:00:00.0000001Z", 1704067200001),
        ("2024-01-01T00:00:00.001Z", 1704067200001),
        ("2024-01-01T00:00:00.999999999Z", 1704067201000),
        ("1970-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", 253402300799000),
    ],
)
def test_rfc_3339(text: str, ms: int) -> None:
    assert parse_time_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "", "2024-01-01", "2024-01-01T00:00Z", "2024-01-01T00:00:00", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z",
        "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:61Z", "2024-01-01T00:00:00.Z", "1969-12-31T23:59:59Z",
        "2024-01-01T00:00:00.0000000001Z", "2024-01-01T00:00:00+0200", "2024-01-01T00:00:00+24:00", "24-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2024-01-01T00:00:00Z\n",
        "٢٠٢٤-01-01T00:00:00Z", "2024-01-01_00:00:00Z", "1704067200000",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    assert parse_time_ms(text) is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_every_time_that_python_writes_is_read(at: datetime) -> None:
    microseconds = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_time_ms(at.isoformat()) == -(-microseconds // 1_000)


@given(st.text(max_size=30))
def test_any_start_is_a_start_or_invalid(text: str) -> None:
    try:
        assert parse_from(text).kind in ("latest", "earliest", "time", "newest")
    except errors.ParameterInvalid as error:
        assert error.extra == {"parameter": "from"}  # noqa: PT017


# --- the next poll ---

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.lists(NAMES, min_size=1, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "wait": st.sampled_from(("0", "0.25", "12.125", "30", "55")),
            "limit": st.integers(1, 1_000).map(str),
            "max_bytes": st.integers(2**10, 2**23).map(str),
            "linger": st.integers(0, 1_000).map(str),
            "view": st.sampled_from(("full", "value")),
            "from": st.sampled_from(("latest", "-5", "2024-01-01T00:00:00Z")),
            "cursor": st.just("old"),
        },
    ),
    st.sampled_from(((), ("wait=7",))),
)
def test_the_link_asks_for_the_same_without_from(names: list[str], given_: dict[str, str], prefer: Sequence[str]) -> None:
    more: dict[str, Any] = {"cursor_header": None, "prefer": prefer, "default_wait": 30.0, "max_wait": 55.0}
    first = parse_poll([*(("channel", name) for name in names), *given_.items()], **more)
    link = next_link("/v1/subscribe", first) + "AbC-_"
    parts = urlsplit(link)
    assert parts.path == "/v1/subscribe"
    pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
    assert pairs[-1] == ("cursor", "AbC-_")
    assert link.isascii()
    assert not set(link) & set('<>" \r\n')
    second = parse_poll(pairs, **more)
    assert second == wire.Poll(
        first.channels,
        "AbC-_",
        From("latest"),
        first.wait,
        first.limit,
        first.max_bytes,
        first.linger,
        first.view,
        first.applied,
    )


# --- Accept ---


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ([], True),
        ([""], True),
        (["*/*"], True),
        (["application/json"], True),
        (["Application/JSON; charset=utf-8"], True),
        (["application/*"], True),
        (["text/html, application/json;q=0.1"], True),
        (["text/html", "*/*;q=0.1"], True),
        (["text/html"], False),
        (["application/json;q=0"], False),
        (["*/*, application/json;q=0"], False),
        (["application/json;q=0, */*"], False),
        (["application/*;q=0, */*"], False),
        (["application/json, */*;q=0"], True),
        (["application/json;q=x"], False),
        (["application/json;charset=utf-8;q=0.000"], False),
        (["application/json;level=1; q = 0.5"], True),
        (["application/jsonp"], False),
        (["application/json;q=nan"], False),
    ],
)
def test_accept(fields: list[str], allowed: bool) -> None:
    assert accepts(fields, "application/json") is allowed
