"""Shared, encoded answers: what many waiters at one place with one view receive is built once (sans-I/O).

Theory of operation. What live readers get is small or encoded already. A thousand records of history take milliseconds, eight
megabytes of them tens: `encoding` is one build in steps, between which its caller lets others run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from gateway import wire
from gateway.fanout.cursor import encode
from gateway.fanout.reading import Message, Messages, Reading, Run
from gateway.fanout.subscription import Subscription

# A step of encoding takes about a millisecond: so many bytes of values, where each record counts for some beside its value.
STEP_BYTES = 2**19
_RECORD_BYTES = 500


class Answer(NamedTuple):
    """One answer, ready to be written: `body` is JSON, empty for 204.

    `delivered` counts messages and `lost` the offsets that retention took, both by channel pattern; `timestamps_ms` are
    those of live messages that have one: how old history is says nothing.
    """

    cursor: str
    body: bytes
    delivered: Mapping[str, int]
    lost: Mapping[str, int]
    timestamps_ms: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Bytes charged to the memory bound of the shared answers."""
        return len(self.body) + len(self.cursor) + 8 * len(self.timestamps_ms) + 500


def empty(cursor: str) -> Answer:
    """Return the answer of a poll that got nothing (204)."""
    return Answer(cursor, b"", {}, {}, ())


def build(subscription: Subscription, reading: Reading, cursor: str | None = None) -> Answer:
    """Encode a reading that has something to tell (200). `cursor` is its position's, where the caller has it already."""
    steps = encoding(subscription, reading, cursor)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def encoding(subscription: Subscription, reading: Reading, cursor: str | None = None) -> Generator[None, None, Answer]:
    """Build an answer in steps of about a millisecond, and return it (see `build`)."""
    cursor = encode(reading.position) if cursor is None else cursor
    pieces: list[bytes] = []
    delivered: dict[str, int] = {}
    spent = 0
    # The archive's cache holds records as they came: their encoded forms would take as much again.
    messages, bare_values = (wire.history, wire.bare_history) if reading.scanned else (wire.messages, wire.bare_values)
    for (records, selection, partition), weight in _steps(reading.messages):
        if spent and spent + weight > STEP_BYTES:
            yield
            spent = 0
        spent += weight
        if subscription.view == "full":
            pieces += messages(records, partition, selection.channel, selection.format, selection.headers, first=not pieces)
        else:
            pieces += bare_values(records, selection.format, first=not pieces)
        delivered[selection.pattern] = delivered.get(selection.pattern, 0) + len(records)
    body = wire.answer(cursor, pieces, [entry.document() for entry in reading.lost], up_to_date=reading.up_to_date)
    lost: dict[str, int] = {}
    for entry in reading.lost:
        pattern = entry.selection.pattern
        lost[pattern] = lost.get(pattern, 0) + entry.end - entry.start
    live = () if reading.scanned else reading.messages
    return Answer(
        cursor, body, delivered, lost, tuple(m.record.timestamp_ms for m in live if m.record.timestamp_ms is not None)
    )


def _steps(messages: Sequence[Message]) -> Iterator[tuple[Run, int]]:
    """Yield runs of at most a step's worth, or of one record, with their weight."""
    runs = messages.runs if isinstance(messages, Messages) else [Run([m.record], m.selection, m.partition) for m in messages]
    for run in runs:
        sums = list(accumulate([len(record.value or b"") + _RECORD_BYTES for record in run.records]))
        start = before = 0
        while start < len(sums):
            end = max(start + 1, bisect_right(sums, before + STEP_BYTES))
            yield run._replace(records=run.records[start:end]), sums[end - 1] - before
            start, before = end, sums[end - 1]


class Responses:
    """The newest answers by what determines them, the least recently used ones forgotten over `max_bytes` or `most` answers.

    A key must hold all that the bytes depend on: the subscription, the position, and the versions of its topics. So an answer
    is of no use any more once its topics have moved on, and those who can share one are woken together: a few are enough,
    where many would be garbage that the collector has to walk through again and again.
    """

    def __init__(self, max_bytes: int, most: int = 1_000) -> None:
        self._max_bytes = max_bytes
        self._most = most
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self.cost = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Hashable) -> Answer | None:
        """Return the answer of a key, None where it was not kept."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: Answer) -> None:
        """Keep an answer; one that is larger than a quarter of the bound is not worth it."""
        if answer.cost * 4 > self._max_bytes or key in self._answers:
            return
        self._answers[key] = answer
        self.cost += answer.cost
        while self.cost > self._max_bytes or len(self._answers) > self._most:
            self.cost -= self._answers.popitem(last=False)[1].cost
