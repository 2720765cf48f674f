"""Cursors that are on their way to clients and back, and the positions that they stand for (sans-I/O).

Most cursors come back a moment after they were given. To remember what they stood for spares decoding them, and for the end of
a topic's tails also the way through its partitions (see `fanout.moves`).
"""

from __future__ import annotations

from gateway.errors import GatewayError
from gateway.fanout.cursor import Position, bind, decode, encode
from gateway.fanout.hub import Topic
from gateway.fanout.responses import empty
from gateway.server.outcome import Heads, Outcome

_MOST_PLACES = 4_096
_MOST_PARTITIONS = 65_536


class End:
    """Where the tails of one topic end: after the move with this number.

    `outcomes` are what crowds were told who had read up to earlier moves, until the tails move on.
    """

    __slots__ = ("cursor", "nothing", "number", "outcomes", "position", "text", "topic")

    def __init__(self, topic: Topic, number: int) -> None:
        self.topic = topic
        self.number = number
        self.position: Position = {topic.name: topic.position}
        self.outcomes: dict[tuple[Heads, int], Outcome] = {}
        self.text = encode(self.position)
        self.cursor = self.text.encode()
        self.nothing = Outcome(empty(self.text), self.cursor, self.position, at_tail=True)


class Places:
    """Positions by the cursor that stands for them: most cursors come back soon after they were given."""

    def __init__(self, most: int = _MOST_PLACES, most_partitions: int = _MOST_PARTITIONS) -> None:
        self._most = most
        self._most_partitions = most_partitions
        self._partitions = 0
        self._known: dict[bytes, Position] = {}
        self._ends: dict[bytes, End] = {}
        self._newest: dict[str, End] = {}

    def __len__(self) -> int:
        return len(self._known)

    def position(self, cursor: bytes, topics: tuple[str, ...]) -> Position | None:
        """Return the position that a cursor gives a subscription; None if it is none, or lacks one of the topics."""
        known = self._known.get(cursor) or (self._ends[cursor].position if cursor in self._ends else None)
        if known is None:
            try:
                known = bind(decode(cursor.decode("ascii")), topics)
            except (GatewayError, UnicodeDecodeError):
                return None
            self._keep(cursor, known)
        return known if known.keys() == set(topics) else self._bound(cursor, topics)

    def end(self, topic: Topic) -> End:
        """Return where the tails of a topic end now, and expect its cursor back."""
        end = self._newest.get(topic.name)
        if end is None or end.position[topic.name] is not topic.position:
            if end is not None:
                end.outcomes.clear()
            end = self._newest[topic.name] = End(topic, topic.moves.number)
            if len(self._ends) >= self._most:
                self._ends.clear()
            self._ends[end.cursor] = end
        return end

    def end_at(self, cursor: bytes) -> End | None:
        """Return the end of a topic's tails, now or lately, that a cursor stands for; None if it stands for something else."""
        return self._ends.get(cursor)

    def cursor(self, position: Position) -> bytes:
        """Return the cursor of a position, and expect it back."""
        cursor = encode(position).encode()
        self._keep(cursor, position)
        return cursor

    def _bound(self, cursor: bytes, topics: tuple[str, ...]) -> Position | None:
        # The same cursor with another subscription's topics.
        try:
            bound = bind(decode(cursor.decode("ascii")), topics)
        except GatewayError:
            return None
        return bound if len(bound) == len(topics) else None

    def _keep(self, cursor: bytes, position: Position) -> None:
        self._partitions += sum(len(own.offsets) for own in position.values())
        if len(self._known) >= self._most or self._partitions > self._most_partitions:
            self._known.clear()
            self._partitions = 0
        self._known[cursor] = position
