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
    value = envelope["value"]
    broken = envelope.get("encoding") == "base64"
    return Message(
        channel=_typed(envelope["channel"], str),
        partition=_number(envelope["partition"]),
        offset=_number(envelope["offset"]),
        timestamp=None if envelope["timestamp"] is None else _number(envelope["timestamp"]),
        key=_key(envelope["key"]),
        headers=tuple((_typed(name, str), _typed(text, str)) for name, text in envelope["headers"]),
        value=_bytes(value) if broken else value,
        tombstone=_typed(envelope.get("tombstone", False), bool),
        broken=broken,
    )


def _lost(entry: Mapping[str, Any]) -> Lost:
    return Lost(_typed(entry["channel"], str), _number(entry["partition"]), _number(entry["from"]), _number(entry["to"]))


def _key(value: Any) -> str | bytes | None:
    if isinstance(value, Mapping):
        return _bytes(value["base64"])
    return None if value is None else _typed(value, str)


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
