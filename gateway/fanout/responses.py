"""Shared, encoded answers: what many waiters at one place with one view receive is built once (sans-I/O)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from gateway import wire
from gateway.fanout.cursor import encode
from gateway.fanout.reading import Reading
from gateway.fanout.subscription import Subscription


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, ready to be written: `body` is JSON, empty for 204.

    `delivered` counts messages and `lost` the offsets that retention took, both by channel pattern; `timestamps_ms` are
    those of the messages that have one.
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
    cursor = encode(reading.position) if cursor is None else cursor
    messages = [
        wire.message(m.record, m.partition, m.selection.channel, m.selection.format, m.selection.headers)
        if subscription.view == "full"
        else wire.bare_value(m.record, m.selection.format)
        for m in reading.messages
    ]
    body = wire.answer(cursor, messages, [entry.document() for entry in reading.lost], up_to_date=reading.up_to_date)
    delivered: dict[str, int] = {}
    for m in reading.messages:
        pattern = m.selection.pattern
        delivered[pattern] = delivered.get(pattern, 0) + 1
    lost: dict[str, int] = {}
    for entry in reading.lost:
        pattern = entry.selection.pattern
        lost[pattern] = lost.get(pattern, 0) + entry.end - entry.start
    return Answer(
        cursor,
        body,
        delivered,
        lost,
        tuple(m.record.timestamp_ms for m in reading.messages if m.record.timestamp_ms is not None),
    )


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
