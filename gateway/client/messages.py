"""What the gateway delivers (sans-I/O): messages, and what it tells beside them. `read_answer` takes a body apart."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.client.errors import AnswerInvalid

T = TypeVar("T")
CURSOR = re.compile(r"[A-Za-z0-9_-]{1,2048}", re.ASCII)
"""How a cursor looks, which is opaque otherwise."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record of a channel.

    `timestamp`: milliseconds of Unix time, None if the record has none. `key`: bytes where it is not UTF-8. `headers`: pairs of
    name and value, in order, of those that the channel lists. `broken`: the record is not in its channel's format; then `value`
    are its bytes. A `tombstone` has the value None. The value of a binary channel is in base64: see `data`.
    """

    channel: str
    partition: int
    offset: int
    timestamp: int | None
    key: str | bytes | None
    headers: tuple[tuple[str, str], ...]
    value: Any
    tombstone: bool = False
    broken: bool = False

    @property
    def data(self) -> bytes:
        """The bytes of a value of a binary channel, or of a broken record; ValueError where it is neither."""
        if isinstance(self.value, bytes):
            return self.value
        if not isinstance(self.value, str):
            raise ValueError("the value is neither bytes nor base64")  # noqa: TRY004  # the value is what is wrong
        return base64.b64decode(self.value, validate=True)


@dataclass(frozen=True, slots=True)
class Lost:
    """Records that retention took before they were read: offsets from `first` to before `end`.

    For a keyed channel that is an upper bound: not all of them need have had its key.
    """

    channel: str
    partition: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The position is not good any more. `code`: `cursor_reset` or `cursor_expired`; `cursor`: the one to go on from."""

    code: str
    cursor: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one answer holds. `cursor`: the position behind all of it."""

    cursor: str
    messages: tuple[Message, ...] = ()
    lost: tuple[Lost, ...] = ()
    up_to_date: bool = True


def read_answer(body: bytes, content_type: str) -> Batch:
    """Take a 200 apart; AnswerInvalid if it is not what the contract says."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise AnswerInvalid("the answer is not JSON")
    try:
        document = json.loads(body)
        return Batch(
            read_cursor(document["cursor"]),
            tuple(map(_message, _typed(document["messages"], list))),
            tuple(map(_lost, _typed(document.get("lost", []), list))),
            _typed(document["up_to_date"], bool),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AnswerInvalid("the answer is not as it should be") from error


def read_cursor(value: object) -> str:
    """Return a cursor; AnswerInvalid if it is none."""
    if not isinstance(value, str) or not CURSOR.fullmatch(value):
        raise AnswerInvalid("the answer has no good cursor")
    return value


def _message(envelope: Mapping[str, Any]) -> Message:
    channel, partition, offset = envelope["channel"], envelope["partition"], envelope["offset"]
    timestamp, key, headers, value = envelope["timestamp"], envelope["key"], envelope["headers"], envelope["value"]
    # What a million messages pass is looked at in place; `type` and not isinstance, for True is no number.
    if type(channel) is not str or type(partition) is not int or type(offset) is not int:
        raise TypeError("the place of a message")
    if timestamp is not None and type(timestamp) is not int:
        raise TypeError("the time of a message")
    pairs = tuple((_typed(name, str), _typed(text, str)) for name, text in headers) if headers else _headers(headers)
    if key is not None and type(key) is not str:
        key = _bytes(key["base64"])
    tombstone, broken = envelope.get("tombstone", False), envelope.get("encoding") == "base64"
    if type(tombstone) is not bool:
        raise TypeError("a tombstone")
    return Message(channel, partition, offset, timestamp, key, pairs, _bytes(value) if broken else value, tombstone, broken)


def _headers(headers: Any) -> tuple[tuple[str, str], ...]:
    if type(headers) is not list:
        raise TypeError("the headers of a message")
    return ()


def _lost(entry: Mapping[str, Any]) -> Lost:
    return Lost(_typed(entry["channel"], str), _number(entry["partition"]), _number(entry["from"]), _number(entry["to"]))


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_typed(value, str), validate=True)  # binascii.Error is a ValueError


def _number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("not a number")
    return _typed(value, int)


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"not of type {kind.__name__}")
    return value
