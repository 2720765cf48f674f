"""The newest part of one partition, in memory and bounded (sans-I/O).

A tail is complete between `start` and `end`: every record of that range which a read_committed reader may see is in it.
`end` is the next offset to fetch and never above the last stable offset, so that an open transaction is simply not there yet.

Keyed readers go through an index by key, built at the first keyed read: a reader of one key among thousands touches its own
records only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import final

from gateway.records import Record, cost_of

_OFFSET = attrgetter("offset")
_SHRINK_AT = 64
# Stands where a record was, so that an evicted one is free at once and not only when its list shrinks.
_EVICTED = Record(-1, None, None, None)


@final
class Run:
    """Records in ascending order of offset, appended at one end and evicted at the other, both O(1) amortized."""

    __slots__ = ("_head", "_records")

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = list(records)
        self._head = 0

    def __len__(self) -> int:
        return len(self._records) - self._head

    def append(self, record: Record) -> None:
        """Add a record whose offset is above all others."""
        self._records.append(record)

    def extend(self, records: Iterable[Record]) -> None:
        """Add records in order, all above those that are here."""
        self._records.extend(records)

    def evict(self) -> Record:
        """Remove and return the oldest record; IndexError where there is none."""
        record = self._records[self._head]
        self._records[self._head] = _EVICTED
        self._head += 1
        if self._head >= _SHRINK_AT and self._head * 2 >= len(self._records):
            del self._records[: self._head]
            self._head = 0
        return record

    def since(self, offset: int, limit: int) -> Sequence[Record]:
        """Return up to `limit` records at or above `offset`, oldest first."""
        first = bisect_left(self._records, offset, lo=self._head, key=_OFFSET)
        return self._records[first : first + limit]

    def newest(self, limit: int, below: int) -> Sequence[Record]:
        """Return the `limit` newest records below offset `below`, oldest first."""
        end = bisect_left(self._records, below, lo=self._head, key=_OFFSET)
        return self._records[max(self._head, end - limit) : end]


@final
class Tail:
    """The newest records of a partition: all of [start, end).

    `log_start` is the partition's first offset that retention has left, as the leader last told; `cost` the bytes charged.
    """

    __slots__ = ("_by_key", "_holes", "_run", "cost", "end", "log_start", "start")

    def __init__(self, *, start: int, log_start: int) -> None:
        self.start = start
        self.end = start
        self.log_start = log_start
        self.cost = 0
        self._run = Run()
        self._holes = Run()
        self._by_key: dict[bytes, Run] | None = None

    def __repr__(self) -> str:
        return f"<Tail {self.start}..{self.end} of {len(self._run)} records, {self.cost} bytes, log from {self.log_start}>"

    def __len__(self) -> int:
        return len(self._run)

    @property
    def holes(self) -> int:
        """Number of holes among the records."""
        return len(self._holes)

    def append(self, records: Sequence[Record], *, end: int, log_start: int) -> Sequence[Record]:
        """Add what a fetch brought and return what of it is new.

        Records below the present end were read before (a fetch that was repeated after a broken connection) and are left
        out. `end` and `log_start` only move forward.
        """
        fresh = records if records and records[0].offset >= self.end else [r for r in records if r.offset >= self.end]
        self.cost += cost_of(fresh)
        self._run.extend(fresh)
        by_key = self._by_key
        for record in fresh:
            if record.until is not None:
                self._holes.append(record)
            key = record.key
            if by_key is not None and key is not None:
                run = by_key.get(key)
                if run is None:
                    run = by_key[key] = Run()
                run.append(record)
        self.end = max(self.end, end)
        self.log_start = max(self.log_start, log_start)
        return fresh

    def evict(self, cost: int) -> int:
        """Forget the oldest records until at least `cost` bytes are free or none is left; return the bytes freed."""
        freed = 0
        while freed < cost and len(self._run):
            record = self._run.evict()
            freed += record.cost
            self.start = record.until or record.offset + 1
            if record.until is not None:
                self._holes.evict()
            self._forget_key(record)
        self.cost -= freed
        if not len(self._run):
            self.start = self.end
        return freed

    def since(self, offset: int, key: bytes | None, limit: int) -> Sequence[Record]:
        """Return up to `limit` records at or above `offset`, of `key` or (None) of all keys, and all holes; oldest first.

        Complete only from `start` on: the caller reads what lies before from the archive.
        """
        run = self._run if key is None else self._index().get(key)
        found = run.since(offset, limit) if run is not None else ()
        if key is None or not len(self._holes):
            return found
        return sorted((*found, *self._holes.since(offset, limit)), key=_OFFSET)[:limit]

    def newest(self, key: bytes | None, limit: int, below: int) -> Sequence[Record]:
        """Return the `limit` newest records below offset `below`, of `key` or (None) of all keys; oldest first."""
        run = self._run if key is None else self._index().get(key)
        return run.newest(limit, below) if run is not None else ()

    def _index(self) -> dict[bytes, Run]:
        if self._by_key is None:
            self._by_key = {}
            for record in self._run.since(0, len(self._run)):
                if record.key is not None:
                    self._by_key.setdefault(record.key, Run()).append(record)
        return self._by_key

    def _forget_key(self, record: Record) -> None:
        if self._by_key is None or record.key is None:
            return
        run = self._by_key[record.key]
        run.evict()
        if not len(run):
            del self._by_key[record.key]
