"""A model of a gateway and a program over any course of events: exactly once, in order, and never a position too far."""

from __future__ import annotations

from collections import Counter
from typing import Any

from client.puppet import World, batch, empty, message, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Deliver, Failure, Load, Save, Send
from gateway.client.positions import Position
from gateway.client.running import Run
from gateway.client.session import Session, Subscribe

PARTITIONS = [("news", 0), ("news", 1), ("chat", 0)]
RECORDS = 12
"""In each partition."""


def cursor_of(ends: dict[tuple[str, int], int]) -> str:
    return "c" + "-".join(str(ends[place]) for place in PARTITIONS)


def ends_of(cursor: str) -> dict[tuple[str, int], int]:
    return dict(zip(PARTITIONS, map(int, cursor[1:].split("-")), strict=True))


class Model:
    """Serves from whatever cursor comes in, a little at a time, and keeps what the program has processed."""

    def __init__(self, data: st.DataObject) -> None:
        self.processed: Counter[tuple[str, int, int]] = Counter()
        self.order: dict[tuple[str, int], int] = {}
        self.stored: Position | None = None
        self._data = data

    def answer(self, send: Send) -> Answer | Failure | Any:
        fate = self._data.draw(st.sampled_from(["good"] * 5 + ["failure", "error", "rubbish", "stop"]))
        if fate == "stop":
            return STOPPED
        if fate == "failure":
            return Failure("cut")
        if fate == "error":
            return problem(503, "overloaded")
        if fate == "rubbish":
            return Answer(200, {"content-type": "application/json"}, b'{"cursor":"c9-9-9","messages":[')
        ends = ends_of(send.headers["Cursor"]) if "Cursor" in send.headers else dict.fromkeys(PARTITIONS, 0)
        messages = []
        for place in PARTITIONS:
            end = min(RECORDS, ends[place] + self._data.draw(st.integers(0, 3)))
            messages += [message(offset, channel=place[0], partition=place[1]) for offset in range(ends[place], end)]
            ends[place] = end
        if not messages:
            return empty(cursor_of(ends))
        return batch(cursor_of(ends), *messages)

    def process(self, channel: str, partition: int, offset: int) -> None:
        self.processed[channel, partition, offset] += 1
        assert offset == self.order.get((channel, partition), -1) + 1, "in order, without a gap"
        self.order[channel, partition] = offset

    def save(self, position: Position) -> None:
        """Keep a position, which must not be beyond what was processed."""
        for (channel, partition), end in ends_of(position.cursor or "c0-0-0").items():
            assert end - 1 <= self.order.get((channel, partition), -1)
        for channel, of in position.beyond.items():
            for partition, offset in of.items():
                assert offset <= self.order.get((channel, partition), -1)
        self.stored = position


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_exactly_once_over_failures_stops_and_restarts(data: st.DataObject) -> None:
    """Whatever happens, each record is processed once, in the order of its partition, over all lives of the program."""
    model = Model(data)
    for _ in range(data.draw(st.integers(1, 4))):
        world = World()
        session = Session(world.asker, Subscribe(("news", "chat"), start="earliest", stored=True), Counters())
        run: Run[None] = Run(session.run())
        for _ in range(data.draw(st.integers(1, 60))):
            effect = run.effect
            if effect is None:
                break
            result: Any = None
            if isinstance(effect, Send):
                result = model.answer(effect)
            elif isinstance(effect, Load):
                result = model.stored
            elif isinstance(effect, Save):
                model.save(effect.position)
            elif isinstance(effect, Deliver):
                given_message = effect.message
                model.process(given_message.channel, given_message.partition, given_message.offset)
                if data.draw(st.booleans()):
                    result = STOPPED if data.draw(st.integers(0, 9)) == 0 else None
            run.advance(result)
        else:
            # The program leaves in the midst: the message in hand is processed, and it says so, or begins to.
            if isinstance(run.effect, Deliver):
                last = run.effect.message
                if model.processed[last.channel, last.partition, last.offset] == 0:
                    model.process(last.channel, last.partition, last.offset)
                session.acknowledge(last)
            if (position := session.unsaved) is not None:
                model.save(position)
    assert set(model.processed.values()) <= {1}
