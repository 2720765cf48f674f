"""The HTTP contract as pure functions: parameters in, envelopes and problem documents out (sans-I/O).

A record is encoded once: what of its envelope does not depend on the client is kept in `Record.shown`, as what comes before the
value and the value, which is the record's own where the producer wrote compact JSON. Joining these pieces to an answer copies
bytes and encodes nothing.

History is read by the million and seldom twice: there only the check of a value is remembered (`Record.compact`), and what
stands around the values is made for a whole run at once.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from urllib.parse import urlencode

import msgspec

from gateway import errors
from gateway.records import Record

Format = Literal["json", "text", "binary"]

MAX_DEPTH = 64
MAX_CHANNELS = 32
MAX_CURSOR = 2_048
MAX_LINKED_CURSOR = 1_024
PROBLEM_TYPE = "application/problem+json"

STATUS: Mapping[str, tuple[int, str]] = {
    "parameter_invalid": (400, "Invalid parameter"),
    "cursor_invalid": (400, "Invalid cursor"),
    "cursor_mismatch": (400, "Cursor of other channels"),
    "subscription_too_wide": (400, "Too many partitions"),
    "body_invalid": (400, "Invalid body"),
    "request_malformed": (400, "Malformed request"),
    "token_missing": (401, "No token"),
    "token_invalid": (401, "Invalid token"),
    "token_expired": (401, "Expired token"),
    "token_revoked": (401, "Revoked token"),
    "forbidden": (403, "Forbidden"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "not_acceptable": (406, "Not acceptable"),
    "request_timeout": (408, "Request too slow"),
    "cursor_reset": (409, "The log was reset"),
    "superseded": (409, "Superseded by a newer poll"),
    "cursor_expired": (410, "Records were lost"),
    "gone": (410, "Gone"),
    "length_required": (411, "Length required"),
    "body_too_large": (413, "Body too large"),
    "target_too_long": (414, "Target too long"),
    "media_type": (415, "Unsupported media type"),
    "idempotency_mismatch": (422, "Idempotency-Key used with another body"),
    "rate_limited": (429, "Too many requests"),
    "too_many_polls": (429, "Too many polls at once"),
    "head_too_large": (431, "Header too large"),
    "upstream_failed": (502, "The backend failed"),
    "overloaded": (503, "Overloaded"),
    "broker_unavailable": (503, "The log cannot be reached"),
    "draining": (503, "Shutting down"),
    "circuit_open": (503, "The backend is given rest"),
    "upstream_timeout": (504, "The backend did not answer in time"),
    "internal_error": (500, "Internal error"),
}


# --- errors ---


class Problem(NamedTuple):
    """One problem document, ready to be sent."""

    status: int
    headers: dict[str, str]
    body: bytes


def problem(error: errors.GatewayError, request_id: str) -> Problem:
    """Return an error as RFC 9457 wants it, with the header fields that its code calls for."""
    status, title = STATUS[error.code]
    document = {
        "type": f"urn:gateway:problem:{error.code}",
        "title": title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        **error.extra,
    }
    headers = {"Content-Type": PROBLEM_TYPE, "Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, errors.MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    challenge = _challenge(error)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    return Problem(status, headers, msgspec.json.encode(document))


def _challenge(error: errors.GatewayError) -> str:
    """Return the challenge of RFC 6750, section 3; a request without a token is told no error code (3.1)."""
    if isinstance(error, errors.TokenMissing):
        return 'Bearer realm="gateway"'
    if isinstance(error, (errors.TokenInvalid, errors.TokenExpired, errors.TokenRevoked)):
        return f'Bearer realm="gateway", error="invalid_token", error_description="{error.detail}"'
    if isinstance(error, errors.Forbidden):
        return 'Bearer realm="gateway", error="insufficient_scope"'
    return ""


# --- envelopes ---


def compact_json(value: bytes) -> bytes | None:
    """Return a JSON text without white space between its tokens; None if it is not UTF-8 JSON of depth 64 at most.

    Nothing else changes: numbers keep all their digits, objects their doubled names. A valid text holds no bare line break.
    """
    try:
        if not value.isascii():
            value.decode("utf-8")
        if _SPACE in value or _TAB in value or _LINE_FEED in value or _RETURN in value:
            compact: bytes = _format(value, indent=-1)
        else:
            _skim(value)  # as strict as `_format`, and copies nothing
            compact = value
    except (ValueError, RecursionError):
        return None
    if (_BRACKET in compact or compact.find(b"{", 1) >= 0) and _has_brackets(compact) and _depth(compact) > MAX_DEPTH:
        return None
    # Most producers write compact JSON: then it need not be kept twice.
    return value if compact == value else compact


_format = msgspec.json.format
_skim = msgspec.json.Decoder(msgspec.Raw).decode
# Numbers: looking for a byte as `bytes` takes 0.15 us more, since Python tries it as a number first.
_SPACE, _TAB, _LINE_FEED, _RETURN, _BRACKET = b" \t\n\r["
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def _has_brackets(text: bytes) -> bool:
    """Tell whether a text holds more than 64 opening brackets."""
    # What is left without the first 65 of each: that searches with memchr, where `count` looks at every byte.
    left = len(text.replace(b"{", b"", MAX_DEPTH + 1)) + len(text.replace(b"[", b"", MAX_DEPTH + 1))
    return left < 2 * len(text) - MAX_DEPTH


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in re.findall(rb"[\[{\]}]", _STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _base64(value: bytes) -> bytes:
    return b'"' + b64encode(value) + b'"'


def _text_or_none(value: bytes) -> bytes | None:
    try:
        return msgspec.json.encode(value.decode("utf-8"))
    except UnicodeDecodeError:
        return None


def _key(key: bytes | None) -> bytes:
    if key is None:
        return b"null"
    return _text_or_none(key) or b'{"base64":' + _base64(key) + b"}"


def _shown(value: bytes, fmt: Format) -> bytes | None:
    """Return a value in its channel's format, None if it is not what the channel says."""
    if fmt == "json":
        return compact_json(value)
    return _text_or_none(value) if fmt == "text" else _base64(value)


def _headers(record: Record, names: Sequence[str]) -> bytes:
    pairs = [b"[" + msgspec.json.encode(name) + b"," + _key(value) + b"]" for name, value in record.headers if name in names]
    return b"[" + b",".join(pairs) + b"]"


def messages(
    records: Sequence[Record], partition: int, channel: str, fmt: Format, headers: Sequence[str], *, first: bool
) -> list[bytes]:
    """Return the envelopes of records of one partition as one channel shows them, in pieces to be joined.

    There are commas between them, and one before them unless they come `first` in an answer.
    """
    opening = b'{"channel":' + msgspec.json.encode(channel)
    following = b"}," + opening
    view = (fmt, headers)
    pieces: list[bytes] = []
    for record in records:
        shown = record.shown
        if shown is None or shown[0] != view:
            shown = record.shown = _envelope(record, partition, view)
        pieces += (following, shown[1], shown[2])
    pieces[0] = opening if first else b"," + opening
    pieces.append(b"}")
    return pieces


def history(
    records: Sequence[Record], partition: int, channel: str, fmt: Format, headers: Sequence[str], *, first: bool
) -> list[bytes]:
    """Return what `messages` does, of records of which nobody is going to need the encoded form again."""
    opening = b'{"channel":%b,"partition":%d,"offset":' % (msgspec.json.encode(channel), partition)
    pieces = [b"}," + opening, b"", b',"timestamp":', b"", _BARE, b""] * len(records)
    pieces[1::6] = _whole_numbers([record.offset for record in records])
    pieces[3::6] = _whole_numbers([record.timestamp_ms for record in records])
    if headers or [record.key for record in records].count(None) < len(records):
        pieces[4::6] = [
            b',"key":%b,"headers":%b,"value":' % (_key(record.key), _headers(record, headers) if headers else b"[]")
            for record in records
        ]
    if fmt == "json":
        pieces[5::6] = [record.value if record.compact else _value(record, fmt) for record in records]  # type: ignore[misc]
    else:
        pieces[5::6] = [_value(record, fmt) for record in records]
    pieces[0] = opening if first else b"," + opening
    pieces.append(b"}")
    return pieces


_BARE = b',"key":null,"headers":[],"value":'


def _whole_numbers(numbers: Sequence[int | None]) -> list[bytes]:
    return msgspec.json.encode(numbers)[1:-1].split(b",")


def _value(record: Record, fmt: Format) -> bytes:
    """Return a value with what belongs to it in an envelope; note where it is its own encoded form."""
    value = record.value
    if value is None:
        return b'null,"tombstone":true'
    shown = _shown(value, fmt)
    if shown is value:
        record.compact = True
    return shown or _base64(value) + b',"encoding":"base64"'


def _envelope(record: Record, partition: int, view: tuple[Format, Sequence[str]]) -> tuple[object, bytes, bytes]:
    """Return the view, what stands between the channel and the value, and the value with what belongs to it."""
    fmt, headers = view
    timestamp_ms, key = record.timestamp_ms, record.key
    before = b',"partition":%d,"offset":%d,"timestamp":%b,"key":%b,"headers":%b,"value":' % (
        partition,
        record.offset,
        b"null" if timestamp_ms is None else b"%d" % timestamp_ms,
        b"null" if key is None else _key(key),
        _headers(record, headers) if headers else b"[]",
    )
    return view, before, _value(record, fmt)


def bare_values(records: Sequence[Record], fmt: Format, *, first: bool) -> list[bytes]:
    """Return values alone, in pieces like `messages`.

    One that is not in the channel's format is `{"value": …, "encoding": "base64"}`.
    """
    pieces: list[bytes] = []
    for record in records:
        shown = record.shown
        if shown is None or shown[0] != fmt:
            shown = record.shown = (fmt, b"", _bare(record, fmt))
        pieces += (b",", shown[2])
    return pieces[1:] if first else pieces


def bare_history(records: Sequence[Record], fmt: Format, *, first: bool) -> list[bytes]:
    """Return what `bare_values` does, of records of which nobody is going to need the encoded form again."""
    pieces = [b","] * (2 * len(records))
    pieces[1::2] = [_bare(record, fmt) for record in records]
    return pieces[1:] if first else pieces


def _bare(record: Record, fmt: Format) -> bytes:
    value = record.value
    if value is None:
        return b"null"
    if record.compact and fmt == "json":
        return value
    shown = _shown(value, fmt)
    if shown is value:
        record.compact = True
    return shown or b'{"value":' + _base64(value) + b',"encoding":"base64"}'


def answer(cursor: str, pieces: Sequence[bytes], lost: Sequence[Mapping[str, object]], *, up_to_date: bool) -> bytes:
    """Return the body of a 200, whose messages come as `pieces` (see `messages`)."""
    return b"".join(
        (
            b'{"cursor":"',
            cursor.encode(),
            b'","messages":[',
            *pieces,
            b'],"lost":' + msgspec.json.encode(lost) if lost else b"]",
            b',"up_to_date":true}' if up_to_date else b',"up_to_date":false}',
        )
    )


# --- parameters of a subscription ---


class From(NamedTuple):
    """Where a topic without a cursor entry starts: `value` is a time in ms, or the N of the N newest."""

    kind: Literal["latest", "earliest", "time", "newest"]
    value: int = 0


@dataclass(frozen=True, slots=True)
class Poll:
    """The parameters of one poll. `wait` in seconds, `linger` in milliseconds; `applied` is what `Prefer: wait` came to."""

    channels: tuple[str, ...]
    cursor: str | None
    start: From
    wait: float
    limit: int
    max_bytes: int
    linger: int
    view: Literal["full", "value"]
    applied: int | None


_SUBSCRIBE = ("channel", "cursor", "from", "wait", "limit", "max_bytes", "linger", "view")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,2048}")
_SECONDS = re.compile(r"\d{1,4}(\.\d{1,3})?", re.ASCII)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+ -]\d\d:\d\d)", re.ASCII)
MAX_CHANNEL_NAME = 1_024


def single(pairs: Iterable[tuple[str, str]], known: Sequence[str], repeatable: Sequence[str] = ()) -> dict[str, str]:
    """Return query parameters by name; ParameterInvalid for an unknown or a repeated one."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise errors.ParameterInvalid(name if _NAME.fullmatch(name) else "query", "one of " + ", ".join(known))
        if name in found and name not in repeatable:
            raise errors.ParameterInvalid(name, "to be given once")
        found[name] = value
    return found


def parse_poll(
    pairs: Sequence[tuple[str, str]],
    *,
    cursor_header: str | None,
    prefer: Sequence[str],
    default_wait: float,
    max_wait: float,
    head: bool = False,
) -> Poll:
    """Read the query of a subscription, its `Cursor` header and its `Prefer` fields; ParameterInvalid, CursorInvalid.

    `max_wait` is the operator's cap: a larger `wait` is refused, a larger `Prefer: wait` clamped. `head`: hold nothing.
    """
    given = single(pairs, _SUBSCRIBE, ("channel",))
    channels = tuple(value for name, value in pairs if name == "channel")
    _check_channels(channels)
    if "cursor" in given and cursor_header is not None:
        raise errors.ParameterInvalid("cursor", "the query parameter or the Cursor header, not both")
    cursor = given.get("cursor", cursor_header)
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise errors.CursorInvalid
    wait, applied = _wait(given.get("wait"), prefer, default_wait, max_wait)
    view = given.get("view", "full")
    if view not in ("full", "value"):
        raise errors.ParameterInvalid("view", "full or value")
    return Poll(
        channels,
        cursor,
        parse_from(given.get("from", "latest")),
        0.0 if head else wait,
        _whole(given, "limit", 100, 1, 1_000),
        _whole(given, "max_bytes", 2**20, 2**10, 8 * 2**20),
        _whole(given, "linger", 0, 0, 1_000),
        "value" if view == "value" else "full",
        applied,
    )


def parse_explain(pairs: Sequence[tuple[str, str]], cursor: str) -> tuple[str, tuple[str, ...]]:
    """Read what is asked of a cursor; return it and the channels. ParameterInvalid, CursorInvalid."""
    single(pairs, ("channel",), ("channel",))
    channels = tuple(value for name, value in pairs if name == "channel")
    _check_channels(channels)
    if not _CURSOR.fullmatch(cursor):
        raise errors.CursorInvalid
    return cursor, channels


def _check_channels(channels: Sequence[str]) -> None:
    if not 1 <= len(channels) <= MAX_CHANNELS or not all(1 <= len(name) <= MAX_CHANNEL_NAME for name in channels):
        raise errors.ParameterInvalid("channel", f"1 to {MAX_CHANNELS} channel names")


def _whole(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):  # noqa: PLR2004
        raise errors.ParameterInvalid(name, f"a whole number from {least} to {most}")
    return int(text)


def _wait(text: str | None, prefer: Sequence[str], default: float, most: float) -> tuple[float, int | None]:
    if text is not None:
        if not _SECONDS.fullmatch(text) or float(text) > most:
            raise errors.ParameterInvalid("wait", f"seconds from 0 to {most:g}")
        return float(text), None
    preferred = prefer_wait(prefer)
    if preferred is None:
        return min(default, most), None
    return float(min(preferred, int(most))), min(preferred, int(most))


# An element of a comma list; quoted strings may hold commas, and one that is never closed takes the rest. Nothing is looked
# at twice: the work is linear, whatever is sent.
_ELEMENT = re.compile(r"""(?:[^",]|"(?:[^"\\]|\\.)*+"?+)++""", re.DOTALL)
_PREFERRED = re.compile(r"""(?P<quote>"?)(?P<seconds>\d{1,9})(?P=quote)""", re.ASCII)


def prefer_wait(fields: Sequence[str]) -> int | None:
    """Return the seconds of the first `wait` preference (RFC 7240, section 4.3), None where there is none that is usable.

    Other preferences are ignored; of one that is given twice the first counts (section 2).
    """
    for element in _ELEMENT.findall(",".join(fields)):
        name, _, value = element.partition(";")[0].partition("=")
        if name.strip(" \t").lower() == "wait":
            found = _PREFERRED.fullmatch(value.strip(" \t"))
            return int(found["seconds"]) if found else None
    return None


def parse_from(text: str) -> From:
    """Read a start: `latest`, `earliest`, an RFC 3339 time, or `-N` with N from 1 to 1,000; else ParameterInvalid."""
    if text in ("latest", "earliest"):
        return From("earliest" if text == "earliest" else "latest")
    if text[:1] == "-" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 5 and 1 <= int(text[1:]) <= 1_000:  # noqa: PLR2004
        return From("newest", int(text[1:]))
    at = parse_time_ms(text)
    if at is None:
        raise errors.ParameterInvalid("from", "latest, earliest, an RFC 3339 time, or -N with N from 1 to 1000")
    return From("time", at)


def parse_time_ms(text: str) -> int | None:
    """Return an RFC 3339 time as Unix ms, rounded up; None if it is none, or before 1970.

    A space stands for the plus sign of the zone, which form decoding of an unescaped query turns into one.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone.replace(" ", "+")
    # Unix time has no leap seconds: 23:59:60 is the second after 23:59:59.
    leap = clock.endswith(":60")
    try:
        whole = datetime.fromisoformat(f"{day}T{clock[:-2] + '59' if leap else clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    nanos = int((fraction or ".0")[1:].ljust(9, "0"))
    ms = (round(whole.timestamp()) + leap) * 1_000 + -(-nanos // 1_000_000)
    return ms if ms >= 0 else None


def next_link(path: str, poll: Poll) -> str:
    """Return the target of the next poll up to and including `cursor=`: the parameters that were given, without `from`."""
    pairs: list[tuple[str, str]] = [("channel", name) for name in poll.channels]
    pairs += [
        (name, str(value))
        for name, value, default in (
            ("limit", poll.limit, 100),
            ("max_bytes", poll.max_bytes, 2**20),
            ("linger", poll.linger, 0),
            ("view", poll.view, "full"),
        )
        if value != default
    ]
    if poll.applied is None:
        pairs.append(("wait", f"{poll.wait:g}"))
    return f"{path}?{urlencode(pairs, safe='/')}&cursor="


def accepts(fields: Sequence[str], media_type: str) -> bool:
    """Tell whether the Accept fields of a request allow `media_type` (RFC 9110, section 12.5.1); none at all allow everything.

    Of the ranges that fit, the most specific one decides; `q=0` refuses.
    """
    ranges = [part for field in fields for part in field.split(",") if part.strip()]
    best, quality = -1, 1.0 if not ranges else 0.0
    for part in ranges:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        rank = {"*/*": 0, media_type.split("/", maxsplit=1)[0] + "/*": 1, media_type: 2}.get(name, -1)
        if rank > best:
            best, quality = rank, _quality(parameters)
    return quality > 0


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
