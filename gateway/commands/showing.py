"""How messages look: as a line for people, or as JSON for programs."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime
from typing import Any

from rich.text import Text

from gateway.client import Message

# A message must not be able to drive the terminal that shows it.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def as_json(message: Message) -> str:
    """Return an envelope as the gateway sends it, in one line."""
    document: dict[str, Any] = {
        "channel": message.channel,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": {"base64": _base64(message.key)} if isinstance(message.key, bytes) else message.key,
        "headers": message.headers,
        "value": _base64(message.value) if message.broken else message.value,
    }
    if message.broken:
        document["encoding"] = "base64"
    if message.tombstone:
        document["tombstone"] = True
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def as_line(message: Message) -> Text:
    """Return a message as a line: time, channel, partition and offset, key, value."""
    line = Text(no_wrap=True, overflow="ignore")
    line.append(_time(message.timestamp), "dim")
    line.append(f" {plain(message.channel)}", "cyan")
    line.append(f" {message.partition}/{message.offset}", "dim")
    if message.key is not None:
        key = message.key if isinstance(message.key, str) else f"base64:{_base64(message.key)}"
        line.append(f" {plain(key)}", "yellow")
    if message.tombstone:
        line.append(" (tombstone)", "magenta")
    elif message.broken:
        line.append(" (not in the channel's format)", "red")
        line.append(f" base64:{_base64(message.value)}")
    else:
        value = message.value
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        line.append(f" {plain(text)}")
    return line


def plain(text: str) -> str:
    """Return a text in which what would move a terminal's cursor, or turn the text around, is written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _time(timestamp: int | None) -> str:
    if timestamp is None:
        return "--:--:--.---"
    try:
        return datetime.fromtimestamp(timestamp / 1_000).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (OverflowError, ValueError, OSError):  # a producer may write any number
        return str(timestamp)


def _base64(data: Any) -> str:
    return base64.b64encode(data).decode()
