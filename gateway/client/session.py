"""A subscription as a session (sans-I/O): it decides what to ask, what to deliver, when to wait and what to store.

Theory of operation. `Session.run` is a generator of effects (see `effects`); its shell carries them out, sync or async, and
knows nothing of cursors. A poll has the cursor behind all that was delivered. What the program has processed moves the position
(see `positions`), which is stored after each answer. The first request has `wait=0`: were the first long poll cut, nobody would
know from where to go on. A stop is an answer to an effect: the message in hand counts as processed, the position is stored, and
the generator ends.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

from gateway.client.asking import Asker, Query, StoppedByProgram, do
from gateway.client.backoff import pace
from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Deliver, Effect, Load, Save, Sleep, Tell
from gateway.client.errors import ClientError, CursorReset, StoreInvalid
from gateway.client.messages import CURSOR, Batch, Message, Reset, read_answer, read_cursor
from gateway.client.positions import Position, Progress

MOST_CHANNELS = 32
MOST_WAIT = 55.0
_START = re.compile(r"latest|earliest|-[1-9][0-9]{0,3}|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].+", re.ASCII)
_NO_CONTENT = 204
_QUICK_SECONDS = 1.0
_QUICK_ANSWERS = 3
"""So many empty answers in a row within a second each are a fault: nobody is held who wants to be."""


class Acks(StrEnum):
    """Who says that a message is processed."""

    AUTO = "auto"
    """Asking for the next one does."""

    MANUAL = "manual"
    """`ack` does, for it and all before it."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """What a program subscribes to; ValueError where the gateway would refuse it.

    `start`: where to begin without a cursor: `latest`, `earliest`, an RFC 3339 time, or `-N`. `wait`: seconds to be held, 0 to
    55. `limit`, `max_bytes`: most messages, and bytes of values, of one answer; `linger`: milliseconds; None: as the
    gateway has it. `poll_every`: short polls at this pace, in seconds, in place of long ones. `margin`: seconds beyond
    `wait` within which an answer has to begin. `resets`: the program decides where to go on after a reset; otherwise it
    gets an error. Without `follow` it ends where it is up to date.
    """

    channels: tuple[str, ...]
    start: str | None = None
    cursor: str | None = None
    wait: float = 30.0
    limit: int | None = None
    max_bytes: int | None = None
    linger: int | None = None
    acks: Acks = Acks.AUTO
    poll_every: float | None = None
    margin: float = 5.0
    resets: bool = False
    stored: bool = False
    follow: bool = True
    prefix: str = "/v1"

    def __post_init__(self) -> None:
        _check(1 <= len(self.channels) <= MOST_CHANNELS, f"1 to {MOST_CHANNELS} channels")
        _check(all(isinstance(name, str) and name for name in self.channels), "channels by their names")
        _check(len(set(self.channels)) == len(self.channels), "each channel once")
        _check(self.start is None or _START.fullmatch(self.start), "start: latest, earliest, an RFC 3339 time, or -N")
        _check(self.cursor is None or CURSOR.fullmatch(self.cursor), "a cursor from an answer of the gateway")
        _check(0 <= self.wait <= MOST_WAIT, f"wait: 0 to {MOST_WAIT:g} seconds")
        _check(self.poll_every is None or self.poll_every > 0, "poll_every: more than 0 seconds")
        _check(self.margin > 0, "margin: more than 0 seconds")

    def path(self, wait: float) -> str:
        """Return the target of a poll, without its cursor."""
        given = {"limit": self.limit, "max_bytes": self.max_bytes, "linger": self.linger, "from": self.start}
        query = [("channel", channel) for channel in self.channels] + [("wait", f"{wait:g}")]
        query += [(name, str(value)) for name, value in given.items() if value is not None]
        return f"{self.prefix}/subscribe?{urlencode(query, safe='/:', quote_via=quote)}"


def _check(good: object, expected: str) -> None:
    if not good:
        raise ValueError(f"expected {expected}")


class Session:
    """One subscription; `run` once."""

    def __init__(self, asker: Asker, wanted: Subscribe, counters: Counters) -> None:
        self._asker = asker
        self._wanted = wanted
        self._counters = counters
        self._progress = Progress(None if wanted.cursor is None else Position(wanted.cursor), wanted.channels)
        self._saved: Position | None = None
        self._quick = 0

    def __repr__(self) -> str:
        return f"<Session {', '.join(self._wanted.channels)}: {self._progress!r}>"

    @property
    def position(self) -> Position | None:
        """What was processed; None as long as there is nothing."""
        return self._progress.position

    @property
    def unsaved(self) -> Position | None:
        """The position, where the store does not have it yet."""
        position = self._progress.position
        return position if self._wanted.stored and position != self._saved else None

    def acknowledge(self, message: Message) -> None:
        """Note that a message, and everything delivered before it, is processed."""
        self._progress.acknowledge(message)

    def run(self) -> Generator[Effect, Any, None]:
        """Yield effects until the program stops it. Raises ClientError and its kind."""
        try:
            yield from self._begin()
            while True:
                yield from self._round()
        except StoppedByProgram:
            yield from self._save_last()
        except ClientError:
            yield from self._save_last()
            raise

    def _save_last(self) -> Generator[Effect, Any, None]:
        if (position := self.unsaved) is not None:
            yield Save(position)
            self._saved = position

    def _save(self) -> Generator[Effect, Any, None]:
        if (position := self.unsaved) is not None:
            yield from do(Save(position))
            self._saved = position

    def _begin(self) -> Generator[Effect, Any, None]:
        if self._wanted.cursor is None and self._wanted.stored:
            stored: Position | None = yield from do(Load())
            if stored is not None and stored.channels and set(stored.channels) != set(self._wanted.channels):
                raise StoreInvalid(
                    f"the store has the position in {', '.join(stored.channels)}: each subscription needs its own"
                )
            self._progress = Progress(stored, self._wanted.channels)
            self._saved = stored
        if self._progress.next_cursor is None:
            yield from self._round(wait=0.0)

    def _round(self, wait: float | None = None) -> Generator[Effect, Any, None]:
        """Poll once and deliver what comes."""
        wanted = self._wanted
        if wait is None:
            wait = wanted.wait if wanted.poll_every is None and wanted.follow else 0.0
        try:
            answer, batch = yield from self._poll(wait)
        except CursorReset as reset:
            yield from self._reset(reset)
            return
        yield from self._deliver(batch)
        yield from self._save()
        if not self._wanted.follow and batch.up_to_date:
            raise StoppedByProgram
        rest = self._rest(answer, batch, wait)
        if rest > 0:
            yield from do(Sleep(rest))

    def _poll(self, wait: float) -> Generator[Effect, Any, tuple[Answer, Batch]]:
        cursor = self._progress.next_cursor
        headers = {"Accept": "application/json"} | ({} if cursor is None else {"Cursor": cursor})
        query = Query("GET", self._wanted.path(wait), headers, patience=wait + self._wanted.margin)

        def read(answer: Answer) -> tuple[Answer, Batch]:
            self._counters.polls += 1
            if answer.status == _NO_CONTENT:
                return answer, Batch(read_cursor(answer.headers.get("next-cursor")))
            return answer, read_answer(answer.body, answer.headers.get("content-type", ""))

        return (yield from self._asker.ask(query, read, self._counters, attempts=self._asker.retry.attempts))

    def _deliver(self, batch: Batch) -> Generator[Effect, Any, None]:
        counters = self._counters
        for lost in batch.lost:
            counters.lost += lost.end - lost.first
            yield from do(Tell(lost))
        fresh = self._progress.take(batch)
        counters.empty += not batch.messages
        counters.duplicates += len(batch.messages) - len(fresh)
        for message in fresh:
            counters.messages += 1
            wanted = yield Deliver(message)
            if self._wanted.acks is Acks.AUTO:
                self._progress.acknowledge(message)
            if wanted is STOPPED:
                raise StoppedByProgram

    def _rest(self, answer: Answer, batch: Batch, wait: float) -> float:
        """Return the seconds to wait before the next poll."""
        if self._wanted.poll_every is not None and batch.up_to_date:
            return max(self._wanted.poll_every - answer.seconds, pace(answer.headers))
        is_quick = not batch.messages and batch.up_to_date and wait > _QUICK_SECONDS > answer.seconds
        self._quick = self._quick + 1 if is_quick else 0
        if self._quick < _QUICK_ANSWERS:
            return pace(answer.headers)
        return max(pace(answer.headers), self._asker.retry.wait(self._quick - _QUICK_ANSWERS + 1, self._asker.random))

    def _reset(self, error: CursorReset) -> Generator[Effect, Any, None]:
        """Have the program say where to go on."""
        if not self._wanted.resets or not CURSOR.fullmatch(error.cursor):
            raise error
        self._counters.resets += 1
        chosen = yield from do(Tell(Reset(error.code, error.cursor)))
        if chosen is not None and not (isinstance(chosen, str) and CURSOR.fullmatch(chosen)):
            raise ValueError("on_reset returned no cursor") from error
        self._progress.restart(chosen or error.cursor)
        yield from self._save()
