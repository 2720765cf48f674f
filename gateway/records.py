"""Records as the gateway holds them, and the blocks in which they come from Kafka (sans-I/O)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import msgspec

Headers = tuple[tuple[str, bytes | None], ...]

# A Record object with its offset, its place in a list and two encoded forms, beside the bytes themselves; measured with
# tracemalloc and rounded up.
OVERHEAD_BYTES = 440
# The same without encoded forms: history's records keep none.
COLD_OVERHEAD_BYTES = 260


# A million of them are made and forgotten while somebody reads a gigabyte: a struct is made in a third of the time that a class
# takes, and the garbage collector need not walk through what cannot be part of a cycle.
@final
class Record(msgspec.Struct, gc=False, eq=False):
    """One record of a partition, as produced.

    `timestamp_ms` is Unix time, None where the record has none. `value` None is a tombstone. `shown` and `compact`
    belong to `wire`: the encoded form is kept here so that no live record is encoded twice, or that the value was found to be
    compact JSON. `until` is None but for a hole (see `hole`).
    """

    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    shown: tuple[object, bytes, bytes] | None = None
    until: int | None = None
    compact: bool = False

    @classmethod
    def hole(cls, start: int, end: int) -> Record:
        """Return what stands for offsets [start, end) that no one can read (a damaged batch).

        Whose records they were is unknown, so it concerns every reader of the partition: as loss, not as a message.
        """
        hole = cls(start, None, None, None)
        hole.until = end
        return hole

    @property
    def cost(self) -> int:
        """Bytes charged to a memory budget: what was produced, the encoded form (about as long), the objects."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            size += len(name) + len(value or b"") + 100
        return 2 * size + OVERHEAD_BYTES

    def __repr__(self) -> str:
        return f"<Record {self.offset} key={self.key!r}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Record)
            and self.offset == other.offset
            and self.timestamp_ms == other.timestamp_ms
            and self.key == other.key
            and self.value == other.value
            and self.headers == other.headers
            and self.until == other.until
        )

    __hash__ = None  # type: ignore[assignment]  # mutable cache inside; never a key


def cost_of(records: Sequence[Record]) -> int:
    """Return the cost of all these live records together."""
    plain = [len(record.key or b"") + len(record.value or b"") for record in records if not record.headers]
    return 2 * sum(plain) + OVERHEAD_BYTES * len(plain) + sum([record.cost for record in records if record.headers])


def cost_of_history(records: Sequence[Record]) -> int:
    """Return the bytes charged for records of history: what was produced, and the objects."""
    cost = COLD_OVERHEAD_BYTES * len(records) + sum([len(record.value or b"") + len(record.key or b"") for record in records])
    for record in records:
        for name, value in record.headers:
            cost += len(name) + len(value or b"") + 200
    return cost


@dataclass(frozen=True, slots=True)
class Block:
    """All records of [start, end) of a partition that a read_committed reader may see.

    Offsets inside that hold no record are compaction, transaction markers or aborted batches, never loss. `end` is the
    next offset to read, `log_start` and `stable_end` (the last stable offset, exclusive) are the partition's bounds as
    its leader gave them with this block.
    """

    start: int
    end: int
    records: list[Record]
    log_start: int
    stable_end: int
