"""Crowds: readers whose answers are the same bytes, what they are answered, and where they sleep (sans-I/O).

Theory of operation. What a poll is answered depends on its subscription, its cursor and the fields of its head, not on who
asks. Polls that agree in all but the cursor are one `Crowd`. For each cursor it looks once and keeps the `Outcome` until one of
its topics changes: so a thousand clients that come back with the same cursor cost one reading.

Those for whom there is nothing sleep together, as one waiter of the hub: a `Cohort`. Everybody in it is at the end of all tails
by definition, however long he has been there, so the moment with which the hub wakes it is the position of each of them (see
`fanout.hub`). Joining it is one dictionary entry, and waking fifteen thousand costs the hub no more than waking one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, NamedTuple

from gateway import wire
from gateway.errors import GatewayError
from gateway.fanout.cursor import Position, TopicPosition
from gateway.fanout.hub import Hub, Topic, Waiter, advance
from gateway.fanout.moves import Moves
from gateway.fanout.reader import Reader
from gateway.fanout.responses import Answer, build, empty
from gateway.fanout.subscription import Selection, Subscription
from gateway.records import Record
from gateway.server.outcome import Dates, Outcome
from gateway.server.places import End, Places
from gateway.wire import MAX_LINKED_CURSOR

CURSOR = "\0"
"""Stands for the cursor in the fields that a crowd is made of; no field can hold it otherwise."""

_TOUCH_SECONDS = 1.0
_MOST_GONE = 64
_OK, _NO_CONTENT = 200, 204

Fields = tuple[tuple[str, str], ...]


class Shape(NamedTuple):
    """What makes polls one crowd. `wait` in seconds; `fields` of the answer's head in their order, with CURSOR in them."""

    subscription: Subscription
    wait: float
    fields: Fields


class Cohort(Waiter):
    """Those of a crowd who sleep together. `on_woken` gets it when it wakes.

    `members` are in the order in which they came; who is one no more names another cohort, or none, and `gone` counts those.
    `tip` is a cursor for which there is nothing as long as the cohort is parked. `alarm`: the tick at which it is looked at.

    It may be parked again once all have their answer: in a crowd of one that is done for each record.
    """

    __slots__ = ("alarm", "crowd", "gone", "members", "on_woken", "tip")

    def __init__(self, crowd: Crowd, on_woken: Callable[[Cohort], None]) -> None:
        super().__init__(crowd.subscription.interests)
        self.crowd = crowd
        self.members: list[Any] = []  # lanes; typing them would be a circle of imports
        self.gone = 0
        self.tip = b""
        self.alarm = 0
        self.on_woken = on_woken

    def __repr__(self) -> str:
        return f"<Cohort of {len(self)}{' parked' if self.parked else ''}>"

    def __len__(self) -> int:
        return len(self.members) - self.gone

    @property
    def idle(self) -> bool:
        """Whether it is neither parked nor on its way to an answer, so that others can sleep in it."""
        return not self.parked and not self.members

    def empty(self) -> None:
        """Forget all members."""
        # A new list: who is delivered to goes through the old one.
        self.members = []
        self.gone = 0

    def compact(self) -> None:
        """Forget those who are members no more; a pass over all."""
        self.members = [member for member in self.members if member.cohort is self]
        self.gone = 0

    def leave(self) -> None:
        """Note that one has gone who does not come back."""
        self.gone += 1
        if self.parked and self.gone > _MOST_GONE and self.gone * 2 > len(self.members):
            self.compact()

    def wake(self) -> None:
        """Tell the shell: `moment` and `why` are set."""
        self.on_woken(self)

    def position(self) -> Position:
        """Return where its members stand, once it has been woken."""
        return self.position_at(self.moment)

    def position_at(self, moment: Mapping[str, TopicPosition]) -> Position:
        """Return where its members stand when the tails end as `moment` says."""
        return self.crowd.subscription.position_at(moment) if self.apart is None else advance(self.apart, moment)


class Kept:
    """What all crowds keep of their outcomes, in bytes: over `max_bytes` those that looked longest ago forget theirs."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._costs: OrderedDict[Crowd, int] = OrderedDict()
        self.cost = 0

    def add(self, crowd: Crowd, cost: int) -> None:
        """Charge what a crowd has begun to keep."""
        self._costs[crowd] = self._costs.pop(crowd, 0) + cost
        self.cost += cost
        while self.cost > self._max_bytes:
            oldest, freed = self._costs.popitem(last=False)
            self.cost -= freed
            oldest.forget()

    def drop(self, crowd: Crowd) -> None:
        """Note that a crowd has forgotten all."""
        self.cost -= self._costs.pop(crowd, 0)


class Crowd:
    """Polls that agree in all but the cursor. `cohort` is where those at the end of the tails sleep, if any do."""

    def __init__(self, shape: Shape, *, hub: Hub, reader: Reader, places: Places, kept: Kept, dates: Dates) -> None:
        self.subscription = shape.subscription
        self.wait = shape.wait
        self.cohort: Cohort | None = None
        self.dates = dates
        self._fields = shape.fields
        self._hub = hub
        self._reader = reader
        self._places = places
        self._kept = kept
        self._heads: dict[tuple[int, bool], tuple[bytes, ...]] = {}
        self._topics: list[Topic] = []
        self._version = -1
        self._touched = -math.inf
        self._outcomes: dict[bytes, Outcome] = {}
        selections = shape.subscription.selections
        # The one thing that is read, if it is one and all partitions are read for it.
        self._sole = selections[0] if len(selections) == 1 and selections[0].partitioner is None else None

    __slots__ = (
        "__weakref__",
        "_fields",
        "_heads",
        "_hub",
        "_kept",
        "_outcomes",
        "_places",
        "_reader",
        "_sole",
        "_topics",
        "_touched",
        "_version",
        "cohort",
        "dates",
        "subscription",
        "wait",
    )

    def __repr__(self) -> str:
        channels = " ".join(selection.channel for selection in self.subscription.selections)
        return f"<Crowd {channels} wait={self.wait:g} {self.cohort!r}>"

    def touch(self, now: float) -> None:
        """Note that its topics are polled: they stay live. Once a second is enough for that."""
        if now - self._touched < _TOUCH_SECONDS:
            return
        self._touched = now
        for name in self.subscription.topics:
            topic = self._hub.topic(name)
            if topic is not None:
                topic.last_polled = now

    def known(self, cursor: bytes) -> Outcome | None:
        """Return what was found for a cursor, if its topics have not changed since."""
        version = 0
        for topic in self._topics:
            version += topic.version
        return self._outcomes.get(cursor) if version == self._version else None

    def look(self, cursor: bytes, now: float) -> Outcome | None:
        """Find out what a poll with this cursor comes to. None where the tails alone cannot tell, or the cursor is none."""
        if self._sole is not None:
            end = self._places.end_at(cursor)
            found = None if end is None else self._lately(self._sole, end.topic, end.number)
        else:
            found = self.known(cursor)
        if found is not None:
            return found
        position = self._places.position(cursor, self.subscription.topics)
        return None if position is None else self._found(cursor, position, now)

    def look_after(self, number: int) -> Outcome | None:
        """Find out what somebody is to be told who has read up to a move of the topic; None where its moves cannot tell."""
        sole = self._sole
        topic = None if sole is None else self._hub.topics.get(sole.topic)
        return None if sole is None or topic is None else self._lately(sole, topic, number)

    def look_from(self, position: Position, now: float) -> Outcome | None:
        """Find out what somebody at a position is to be told; None where the tails alone cannot tell."""
        return self._found(self._places.cursor(position), position, now)

    def _lately(self, sole: Selection, topic: Topic, number: int) -> Outcome | None:
        """Tell from a topic's last moves what there is after the one with this number; None if they cannot tell."""
        moves = topic.moves
        if self._hub.topics.get(sole.topic) is not topic or not moves.knows(number):
            return None
        end = self._places.end(topic)
        if moves.quiet(sole.key, number):
            return end.nothing
        outcome = end.outcomes.get((self, number))
        if outcome is None:
            outcome = self._brought(sole, moves, number, end)
            if outcome is not None:
                end.outcomes[self, number] = outcome
        return outcome

    def _brought(self, sole: Selection, moves: Moves, number: int, end: End) -> Outcome | None:
        runs: dict[int, Sequence[Record]] = {}
        for move in moves.since(number, sole.key):
            if found := move.of(sole.key):
                before = runs.get(move.partition)
                runs[move.partition] = found if before is None else [*before, *found]
        if not runs:
            return end.nothing
        subscription, alone = self.subscription, len(runs) == 1
        records = next(iter(runs.values())) if alone else [record for run in runs.values() for record in run]
        # One record is told however large it is.
        if len(records) > 1:
            size = sum([len(record.value) for record in records if record.value is not None])
            if len(records) > subscription.limit or size > subscription.max_bytes:
                return None
        pieces: list[bytes] = []
        for partition, run in runs.items() if alone else _by_time(runs):
            if subscription.view == "full":
                pieces += wire.messages(run, partition, sole.channel, sole.format, sole.headers, first=not pieces)
            else:
                pieces += wire.bare_values(run, sole.format, first=not pieces)
        body = wire.answer(end.text, pieces, (), up_to_date=True)
        times = tuple([record.timestamp_ms for record in records if record.timestamp_ms is not None])
        return Outcome(Answer(end.text, body, {sole.pattern: len(records)}, {}, times), end.cursor, end.position, at_tail=True)

    def _found(self, cursor: bytes, position: Position, now: float) -> Outcome | None:
        """Look, and keep what was found, by its cursor."""
        known = self.known(cursor)
        if known is not None:
            return known
        topics = []
        for name in self.subscription.topics:
            topic = self._hub.topic(name)
            if topic is None or not topic.tails:
                return None
            topic.last_polled = now
            topics.append(topic)
        try:
            reading = self._reader.peek(self.subscription, position)
        except GatewayError:
            return None
        if reading is None:
            return None
        encoded = self._places.cursor(reading.position)
        telling = reading.messages or not reading.up_to_date
        answer = build(self.subscription, reading) if telling else empty(encoded.decode())
        outcome = Outcome(answer, encoded, reading.position, at_tail=reading.at_tail)
        version = sum(topic.version for topic in topics)
        if version != self._version or topics != self._topics:
            self.forget()
            self._kept.drop(self)
            self._topics, self._version = topics, version
        self._outcomes[cursor] = outcome
        self._kept.add(self, outcome.cost)
        return outcome

    def forget(self) -> None:
        """Keep no outcome any more."""
        self._outcomes.clear()

    def nothing(self, position: Position) -> Outcome:
        """Return the empty answer of somebody at a position."""
        cursor = self._places.cursor(position)
        return Outcome(empty(cursor.decode()), cursor, position, at_tail=False)

    def head(self, status: int, cursor: bytes) -> bytes:
        """Return the head of an answer, up to what depends on its body and the time."""
        linked = len(cursor) <= MAX_LINKED_CURSOR
        parts = self._heads.get((status, linked))
        if parts is None:
            line = "HTTP/1.1 200 OK\r\n" if status == _OK else "HTTP/1.1 204 No Content\r\n"
            text = line + "".join(f"{name}: {value}\r\n" for name, value in self._shown(status, linked=linked))
            parts = self._heads[status, linked] = tuple(text.encode("utf-8").split(CURSOR.encode()))
        return cursor.join(parts)

    def _shown(self, status: int, *, linked: bool) -> Iterable[tuple[str, str]]:
        for name, value in self._fields:
            if (name == "Content-Type" and status != _OK) or (name == "Link" and CURSOR in value and not linked):
                continue
            yield name, value


def _by_time(runs: Mapping[int, Sequence[Record]]) -> Iterator[tuple[int, list[Record]]]:
    """Order the records of several partitions as every answer does: of those that come next in each, the oldest first."""
    queues = [[(partition, record) for record in run] for partition, run in runs.items()]
    for partition, record in merge(*queues, key=lambda item: (item[1].timestamp_ms or 0, item[0])):
        yield partition, [record]
