"""Requests of which each is one whole (sans-I/O): publishing above all, what is sent for values and what comes back."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

from gateway.client.asking import Query
from gateway.client.effects import Answer
from gateway.client.errors import AnswerInvalid, Problem

ATTEMPTS = 5
"""How often a publish is sent at most, unless the program says otherwise."""

_PATIENCE = 35.0
"""Seconds to the answer: the gateway itself waits up to 30 s for Kafka."""


class Format(StrEnum):
    """What a channel's values are; bytes are always sent as binary."""

    JSON = "json"
    TEXT = "text"
    BINARY = "binary"


_TYPES = {Format.JSON: "application/json", Format.TEXT: "text/plain; charset=utf-8", Format.BINARY: "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Published:
    """Where a message was stored. `cursor` reads on behind it; None for those of a batch, which has one for all."""

    partition: int
    offset: int
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A message of a batch that was not stored: `index` counts from 0, `problem` says why."""

    index: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch, in its order; `cursor` reads on behind all of it."""

    results: tuple[Published | RefusedLine, ...]
    cursor: str | None

    @property
    def refused(self) -> tuple[RefusedLine, ...]:
        """Those that were not stored."""
        return tuple(result for result in self.results if isinstance(result, RefusedLine))


def one(
    prefix: str, channel: str, value: Any, *, form: Format, key: str | None, tombstone: bool, idempotency_key: str
) -> Query:
    """Return the request that publishes one value; ValueError where it cannot be sent."""
    if tombstone:
        body, kind = b"", None
    else:
        form = Format.BINARY if isinstance(value, bytes) else form
        body, kind = _encoded(value, form), _TYPES[form]
    query = [("channel", channel)] + ([] if key is None else [("key", key)]) + ([("tombstone", "true")] if tombstone else [])
    headers = {"Idempotency-Key": idempotency_key} | ({} if kind is None else {"Content-Type": kind})
    return Query("POST", f"{prefix}/publish?{_text(query)}", headers, body, _PATIENCE)


def batch(prefix: str, channel: str, values: Sequence[Any], *, form: Format, key: str | None, idempotency_key: str) -> Query:
    """Return the request that publishes several values, which stay in order; ValueError where they cannot be sent."""
    lines = [_line(value, form) for value in values]
    query = [("channel", channel)] + ([] if key is None else [("key", key)])
    headers = {"Idempotency-Key": idempotency_key, "Content-Type": "application/x-ndjson"}
    return Query("POST", f"{prefix}/publish?{_text(query)}", headers, b"".join(lines), _PATIENCE)


def channels(prefix: str) -> Query:
    """Return the request for what the token may use."""
    return Query("GET", f"{prefix}/channels", {})


def cursor(prefix: str, cursor: str, channels: Sequence[str]) -> Query:
    """Return the request for what a cursor of these channels says."""
    query = [("channel", channel) for channel in channels]
    return Query("GET", f"{prefix}/cursors/{quote(cursor, safe='')}?{_text(query)}", {})


def _text(query: list[tuple[str, str]]) -> str:
    return urlencode(query, safe="/:", quote_via=quote)


def _encoded(value: Any, form: Format) -> bytes:
    if isinstance(value, bytes):
        return value
    if form is Format.JSON:
        return _json(value)
    if form is Format.TEXT and isinstance(value, str):
        return value.encode()
    raise ValueError(f"expected {'a string' if form is Format.TEXT else 'bytes'} for a {form} channel")


def _line(value: Any, form: Format) -> bytes:
    if isinstance(value, bytes):
        value = base64.b64encode(value).decode()
    elif form is not Format.JSON:
        _encoded(value, form)  # raises what is wrong with it
    return _json(value) + b"\n"


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not to be written as JSON: {error}") from error


def read_one(answer: Answer) -> Published:
    """Read the answer to one value; AnswerInvalid if it is none."""
    document = read_document(answer)
    try:
        return Published(int(document["partition"]), int(document["offset"]), document["cursor"])
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerInvalid("the answer to a publish is not as it should be") from error


def read_batch(answer: Answer, count: int) -> BatchResult:
    """Read the answer to a batch of so many values; AnswerInvalid if it is none."""
    document = read_document(answer)
    try:
        results = tuple(_result(index, entry) for index, entry in enumerate(document["results"]))
        cursor = document.get("cursor")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnswerInvalid("the answer to a batch is not as it should be") from error
    if len(results) != count:
        raise AnswerInvalid(f"the answer to a batch of {count} tells of {len(results)}")
    return BatchResult(results, cursor)


def _result(index: int, entry: Any) -> Published | RefusedLine:
    if "problem" not in entry:
        return Published(int(entry["partition"]), int(entry["offset"]))
    told = entry["problem"]
    said = {name: told[name] for name in ("code", "title", "detail") if isinstance(told.get(name), str)}
    return RefusedLine(index, Problem(int(told.get("status", 0)), **said, document=told))


def read_document(answer: Answer) -> dict[str, Any]:
    """Read a JSON object; AnswerInvalid if there is none."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise AnswerInvalid("the answer is not JSON") from error
    if not isinstance(document, dict):
        raise AnswerInvalid("the answer is no JSON object")
    return document
