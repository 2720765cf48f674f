"""The last steps of one topic's tails: what came with each, and for whom (sans-I/O).

Theory of operation. Most readers come back a moment after their last answer, while other records of the topic have come: for
one reader of a key among thousands, hardly ever one of his. To find that out from the tails would mean to look into every
partition. So each append is kept as a numbered `Move` for a while. Who stood at the end of all tails when move N had been made
has read everything up to N: for him there is what the later moves brought, and where the newest move with his key is not later,
nothing.

This is a short cut for those places only. Whatever breaks the chain (a partition that opens or closes, a hole) makes the
topic forget its moves, and readers go to the tails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from gateway.fanout.cursor import TopicPosition
from gateway.records import Record

_MOST_MOVES = 4_096
_PRUNE_AT = 1_024


class Move:
    """One append: `records` of `partition`, after which the tails ended elsewhere than at `before`."""

    __slots__ = ("_by_key", "before", "number", "partition", "records")

    def __init__(self, number: int, before: TopicPosition, partition: int, records: Sequence[Record]) -> None:
        self.number = number
        self.before = before
        self.partition = partition
        self.records = records
        self._by_key: dict[bytes, list[Record]] | None = None

    def __repr__(self) -> str:
        return f"<Move {self.number}: {len(self.records)} records of partition {self.partition}>"

    @property
    def by_key(self) -> dict[bytes, list[Record]]:
        """The records that have a key, by it."""
        if self._by_key is None:
            self._by_key = {}
            for record in self.records:
                if record.key is not None:
                    self._by_key.setdefault(record.key, []).append(record)
        return self._by_key

    def of(self, key: bytes | None) -> Sequence[Record]:
        """Return the records of a key, or (None) all."""
        return self.records if key is None else self.by_key.get(key, ())


class Moves:
    """The newest moves of one topic. `number` is the last one's; the first ever is 1."""

    __slots__ = ("_indexed_from", "_moves", "_newest", "_prune_at", "number")

    def __init__(self) -> None:
        self.number = 0
        self._moves: deque[Move] = deque(maxlen=_MOST_MOVES)
        self._newest: dict[bytes | None, int] = {}
        self._indexed_from = 0
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return len(self._moves)

    def __repr__(self) -> str:
        return f"<Moves {self.number - len(self._moves) + 1} to {self.number}>"

    def add(self, before: TopicPosition, partition: int, records: Sequence[Record], *, keyed: bool) -> Move:
        """Note an append; `records` may be none. `keyed`: somebody reads single keys of the topic."""
        self.number += 1
        move = Move(self.number, before, partition, records)
        self._moves.append(move)
        if records:
            self._newest[None] = self.number
        if not keyed:
            self._indexed_from = self.number
            return move
        self._newest.update(dict.fromkeys(move.by_key, self.number))
        if len(self._newest) > self._prune_at:
            self._prune()
        return move

    def clear(self) -> None:
        """Forget all moves: from the places before this one nobody can be told what is new."""
        self.number += 1
        self._moves.clear()
        self._newest.clear()

    def drop_evicted(self, partition: int, start: int) -> None:
        """Forget the oldest moves as far as their records are no longer in the partition's tail, which begins at `start`."""
        moves, gone = self._moves, 0
        for place, move in enumerate(moves, 1):
            if move.partition == partition and move.records:
                if move.records[0].offset >= start:
                    break
                gone = place
        # With all that came before them: one that stayed would keep the rest, and so records that no budget counts any more.
        for _ in range(gone):
            moves.popleft()

    def knows(self, number: int) -> bool:
        """Tell whether all moves after this one are kept."""
        return self.number - len(self._moves) <= number

    def quiet(self, key: bytes | None, number: int) -> bool:
        """Tell whether no later move, of those that are kept, brought anything for a key, or (None) at all.

        False also where that is not known, since keys were of no interest when the moves were made.
        """
        return (key is None or number >= self._indexed_from) and self._newest.get(key, 0) <= number

    def since(self, number: int, key: bytes | None) -> Iterable[Move]:
        """Return the later moves that may have brought something for a key, or (None) all of them, oldest first."""
        moves = self._moves
        if key is not None and self._newest.get(key) == number + 1 and number >= self._indexed_from:
            return (moves[number - self.number],)
        return islice(moves, max(0, len(moves) - (self.number - number)), None)

    def _prune(self) -> None:
        oldest = self._moves[0].number
        self._newest = {key: number for key, number in self._newest.items() if number >= oldest}
        self._prune_at = 2 * len(self._newest) + _PRUNE_AT
