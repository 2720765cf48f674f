"""What the process writes about itself: one JSON line for each request, and JSON lines for Python's logging.

Theory of operation. Access lines go to one file descriptor (normally stdout), process logs through `logging` to stderr, so
that one can be kept longer than the other. A line is encoded at once and written at the end of the loop's turn, with all
others of that turn in one system call. A pipe whose reader has stopped must not stop the gateway, so only as much is written as
the kernel says it takes (a pipe that polls as writable takes PIPE_BUF bytes without blocking); the rest waits up to
`max_pending` bytes, and what is beyond is dropped and counted. Nothing here raises for the sake of a log line.

No secret is logged. Of the query only the parameters in QUERY are shown, never a cursor or a ticket; headers and bodies are
not shown at all. As a second line of defence everything written, by either path, goes through `redact`, which cuts out what
looks like a JWT, a bearer token, or a secret in a URL.

The subject of a token is shown by default: operators look for "what happened to Ann". Where that is not wanted,
`subjects="digest"` shows a keyed digest that is equal for equal subjects, and "omit" nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import select
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from itertools import islice
from typing import Any, Literal, TextIO
from urllib.parse import unquote_plus

import orjson

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the current task works for; process logs carry it."""

QUERY = frozenset({"channel", "from", "wait", "limit", "max_bytes", "linger", "view"})
"""Query parameters that are shown. `channel` may hold an id (chat/42), as paths do: without it a line says nothing."""

MAX_TEXT = 512
CUT_TEXT = 64
MAX_FIELDS = 64
MAX_TRACEBACK = 8_192
PIPE_BUF = 4_096
RETRY_SECONDS = 0.1

Subjects = Literal["plain", "digest", "omit"]

# What stands for the parts of a line that differ; drawn, so that no request can hold them.
_TIME_GAP, _ID_GAP = secrets.token_hex(16), secrets.token_hex(16)
_SENT_GAP, _DURATION_GAP = (10**15 + secrets.randbelow(10**15) for _ in range(2))

_SECRETS = re.compile(
    rb"eyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,4}"  # a JWS or JWE: base64url of '{"'
    rb"|(?<=(?i:bearer) )[A-Za-z0-9._~+/=-]{8,}"
    rb"|(?<=(?i:authorization: basic) )[A-Za-z0-9+/=]+"
    rb"|(?<=[?&]cursor=)[^&\s\"\\]+"
    rb"|(?<=[?&]ticket=)[^&\s\"\\]+"
    rb"|(?<=[?&]token=)[^&\s\"\\]+"
    rb"|(?<=[?&]access_token=)[^&\s\"\\]+"
)


# One of these is in whatever the pattern finds. Looking for them takes 1 µs for a line, the pattern alone 35.
_MARKS = (b"eyj", b"bearer ", b"basic ", b"cursor=", b"ticket=", b"token=")


def redact(line: bytes) -> bytes:
    """Cut out what looks like a secret. The replacement needs no escaping, so a JSON line stays one."""
    lowered = line.lower()
    for mark in _MARKS:
        if mark in lowered:
            return _SECRETS.sub(b"[redacted]", line)
    return line


class Lines:
    """Lines on their way to a file descriptor, never blocking, at most `max_pending` bytes; belongs to one event loop.

    `on_dropped` is called once for each line that is lost. Without a running loop lines are written at once.
    """

    def __init__(self, fd: int, *, max_pending: int = 1 << 20, on_dropped: Callable[[], None] = lambda: None) -> None:
        self._fd = fd
        self._max_pending = max_pending
        self._on_dropped = on_dropped
        self._lines: deque[bytes] = deque()
        self._pending = 0
        self._scheduled: asyncio.Handle | None = None
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __repr__(self) -> str:
        return f"Lines({len(self._lines)} lines, {self._pending} bytes pending)"

    def add(self, line: bytes) -> None:
        """Take a line with its line feed."""
        if self._pending + len(line) > self._max_pending:
            self._on_dropped()
            return
        self._lines.append(line)
        self._pending += len(line)
        if self._scheduled is None:
            self._schedule()

    def flush(self) -> None:
        """Write what the descriptor takes; what it does not take now is tried again later."""
        self._scheduled = None
        try:
            while self._lines and self._writable():
                self._write()
        except OSError:
            self._drop_all()
        if self._lines:
            self._schedule(RETRY_SECONDS)

    def close(self) -> None:
        """Write what can be written now and forget the rest; the descriptor stays open."""
        self.flush()
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._drop_all()

    def _schedule(self, seconds: float = 0.0) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if seconds == 0.0:
                self.flush()
            return
        self._scheduled = loop.call_later(seconds, self.flush) if seconds else loop.call_soon(self.flush)

    def _writable(self) -> bool:
        events = self._poll.poll(0)
        return bool(events) and bool(events[0][1] & (select.POLLOUT | select.POLLERR | select.POLLNVAL))

    def _write(self) -> None:
        """Write one portion: whole lines up to PIPE_BUF bytes, or the first PIPE_BUF bytes of a longer line."""
        lines = self._lines
        count, size = 0, 0
        while count < len(lines) and (count == 0 or size + len(lines[count]) <= PIPE_BUF):
            size += len(lines[count])
            count += 1
        written = os.write(self._fd, b"".join(islice(lines, count))[:PIPE_BUF])
        self._pending -= written
        while written >= len(lines[0]):
            written -= len(lines.popleft())
            if not lines:
                return
        lines[0] = lines[0][written:]

    def _drop_all(self) -> None:
        """Give up: the other end is gone, or the process ends."""
        for _ in self._lines:
            self._on_dropped()
        self._lines.clear()
        self._pending = 0


class AccessLog:
    """One line for each request.

    `sample`: the share of polls answered 2xx that are written, 0 to 1, evenly spread; ask `sampled` first. All other
    requests are written. `query`: the parameters that are shown. `secret`: the key of subject digests, not empty where
    `subjects` is "digest". `clock` gives Unix time.
    """

    def __init__(
        self,
        lines: Lines,
        *,
        sample: float = 1.0,
        subjects: Subjects = "plain",
        secret: bytes = b"",
        query: Iterable[str] = QUERY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if subjects == "digest" and not secret:
            raise ValueError("digests of subjects need a key: without one anybody can try names")
        self._lines = lines
        self._sample = sample
        self._credit = 0.0
        self._subjects = subjects
        self._secret = secret[:64]
        self._query = frozenset(query)
        self._clock = clock

    def sampled(self, status: int) -> bool:
        """Say whether a poll with this status is to be written."""
        if self._sample >= 1.0 or not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return True
        self._credit += self._sample
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def sampled_of(self, count: int, status: int) -> int:
        """Say how many of `count` polls with this status are to be written."""
        if self._sample >= 1.0 or not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return count
        self._credit += self._sample * count
        written = int(self._credit)
        self._credit -= written
        return written

    def write(
        self,
        *,
        request_id: str,
        client: str,
        method: str,
        target: str,
        status: int,
        sent: int,
        duration: float,
        code: str | None = None,
        transport: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        sample: float | None = None,
        route: str | None = None,
        upstream: str | None = None,
    ) -> None:
        """Write a line. `target`: path and query as received; `sent`: bytes of the body; `duration` in seconds.

        `code`: the problem's code, or a poll's outcome. `sample`: for sampled polls the share, so that counts can be scaled.
        """
        entry = self._entry(
            timestamp(self._clock()), request_id, client, method, target, status, sent, round(duration, 6),
            code=code, transport=transport, issuer=issuer, subject=subject, sample=sample, route=route, upstream=upstream,
        )  # fmt: skip
        self._lines.add(_short(entry) + b"\n")

    def form(self, **fields: Any) -> bytes | None:
        """Return the line of requests that differ in nothing but time, id, size and duration, for `fill`.

        `fields`: all others, as `write` has them. None where they are such that a line is not to be made that way.
        """
        request_id, when, sent, duration = _ID_GAP, _TIME_GAP, _SENT_GAP, _DURATION_GAP
        entry = self._entry(
            when, request_id, fields.pop("client"), fields.pop("method"), fields.pop("target"), fields.pop("status"),
            sent, duration, **fields,
        )  # fmt: skip
        form = _short(entry).replace(b"%", b"%%") + b"\n"
        for gap in (when, request_id, str(sent), str(duration)):
            if form.count(gap.encode()) != 1:
                return None
            form = form.replace(gap.encode(), b"%b")
        return form

    def fill(self, form: bytes, *, request_id: str, sent: int, duration: float) -> None:
        """Write a line of a form."""
        self._lines.add(
            form % (
                timestamp(self._clock()).encode(), request_id.encode(), b"%d" % sent, orjson.dumps(round(duration, 6)),
            )
        )  # fmt: skip

    def _entry(
        self,
        when: str,
        request_id: str,
        client: str,
        method: str,
        target: str,
        status: int,
        sent: int,
        duration: float,
        *,
        code: str | None = None,
        transport: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        sample: float | None = None,
        route: str | None = None,
        upstream: str | None = None,
    ) -> dict[str, object]:
        path, _, query = target.partition("?")
        entry: dict[str, object] = {
            "time": when,
            "event": "request",
            "request_id": request_id,
            "client": client,
            "method": method[:MAX_TEXT],
            "path": path[:MAX_TEXT],
            "status": status,
            "bytes": sent,
            "duration": duration,
        }
        if query and (shown := self._shown(query)):
            entry["query"] = shown
        optional = {
            "code": code,
            "transport": transport,
            "issuer": issuer,
            "subject": None if subject is None else self._subject(issuer, subject),
            "sample": sample,
            "route": route,
            "upstream": upstream,
        }
        entry.update((name, value) for name, value in optional.items() if value is not None)
        return entry

    def _shown(self, query: str) -> list[list[str]]:
        # Not parse_qsl, which takes longer than all the rest of a line. A name that is percent-encoded is not shown.
        fields = (field.partition("=") for field in query.split("&", MAX_FIELDS)[:MAX_FIELDS])
        return [[name, unquote_plus(value[:MAX_TEXT])] for name, _, value in fields if name in self._query]

    def _subject(self, issuer: str | None, subject: str) -> str | None:
        if self._subjects == "plain":
            return subject[:MAX_TEXT]
        if self._subjects == "omit":
            return None
        name = f"{issuer}\0{subject}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name, key=self._secret, digest_size=8).hexdigest()


def timestamp(seconds: float) -> str:
    """Format Unix time as RFC 3339 in UTC, with milliseconds (cut, not rounded)."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def encode(entry: dict[str, object]) -> bytes:
    """Encode as JSON whatever the values are: lone surrogates and foreign types become text."""
    try:
        return orjson.dumps(entry, default=repr)
    except TypeError:
        return orjson.dumps({_text(name): _text(value) for name, value in entry.items()})


def _text(value: object) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # noqa: BLE001  somebody's __repr__; the line matters more
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def _short(entry: dict[str, object]) -> bytes:
    """Encode an entry so that it is written in one piece: on one pipe the lines of several processes do not mix then."""
    line = redact(encode(entry))
    if len(line) < PIPE_BUF:
        return line
    entry = {name: value for name, value in entry.items() if name != "query"} | {"cut": True}
    line = redact(encode(entry))
    if len(line) < PIPE_BUF:
        return line
    return redact(encode({name: value[:CUT_TEXT] if isinstance(value, str) else value for name, value in entry.items()}))


class JsonFormatter(logging.Formatter):
    """Process logs as JSON lines: time, level, logger, message, request_id, error, and `extra` fields.

    `fields` are in every line.
    """

    _STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def __init__(self, fields: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._fields = fields or {}

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its line feed."""
        entry: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record)[:MAX_TRACEBACK],
            **self._fields,
        }
        if (request_id := REQUEST_ID.get()) is not None:
            entry["request_id"] = request_id
        if record.exc_info and record.exc_info[1] is not None:
            # The end of a traceback says what went wrong.
            entry["error"] = "".join(traceback.format_exception(record.exc_info[1]))[-MAX_TRACEBACK:]
        if record.stack_info:
            entry["stack"] = record.stack_info[-MAX_TRACEBACK:]
        for name, value in record.__dict__.items():
            if name not in self._STANDARD and name not in entry:
                entry[name] = value
        return redact(encode(entry)).decode()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  arguments that do not fit their format; the text alone is better than nothing
        return f"{record.msg} (arguments do not fit: {type(error).__name__})"


def log_as_json(
    level: str | int = "INFO", stream: TextIO | None = None, *, fields: Mapping[str, object] | None = None
) -> logging.Handler:
    """Send all process logs at `level` and above to `stream` (stderr) as JSON lines, each with these `fields`.

    Returns the handler, for tests.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    # Its access lines are ours to write, and it would write them with the query.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    return handler
