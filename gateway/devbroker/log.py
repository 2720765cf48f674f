"""One partition: an append-only log of raw batches, its bounds, transactions, times, retention and compaction (sans-I/O).

Offsets are exclusive where a name says `end`. The order of the bounds is always start <= stable_end <= end: `start` is moved by
retention and by deletions, `stable_end` (Kafka's last stable offset) is held back by the oldest open transaction.

With one replica there is no difference between the log's end and Kafka's high watermark.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.devbroker import batches
from gateway.devbroker.batches import Batch
from gateway.devbroker.codes import Code, Refused
from gateway.records import Record

# Kafka keeps the last five batches of a producer, as many as it may have in flight.
REMEMBERED_BATCHES = 5


@dataclass(slots=True)
class _Written:
    """What the log remembers of an idempotent producer: its epoch and (first, last sequence, base offset) of batches."""

    epoch: int
    batches: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES))


@dataclass(frozen=True, slots=True)
class Aborted:
    """An aborted transaction: its producer, first offset, and its marker's offset."""

    producer_id: int
    first: int
    last: int


class Log:
    """One partition's batches, in memory."""

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self.size = 0
        self._batches: list[Batch] = []
        self._open: dict[int, int] = {}
        self._aborted: list[Aborted] = []
        self._producers: dict[int, _Written] = {}

    def __repr__(self) -> str:
        return f"<Log {self.start}..{self.stable_end}..{self.end} in {len(self._batches)} batches, {self.size} bytes>"

    @property
    def stable_end(self) -> int:
        """The first offset of the oldest open transaction, else the end (exclusive)."""
        return min(self._open.values(), default=self.end)

    def bound(self, *, committed: bool) -> int:
        """Return the exclusive end for a reader at this isolation level."""
        return self.stable_end if committed else self.end

    def append(self, batch: Batch, *, leader_epoch: int = 0) -> int:
        """Append a batch and return its base offset: that of the first time if an idempotent producer repeats it.

        Refused with OUT_OF_ORDER_SEQUENCE or INVALID_PRODUCER_EPOCH, by the rules of Kafka's ProducerStateManager.
        """
        if (known := self._sequence(batch)) is not None:
            return known
        base = self.end
        self._add(batch.at(base, leader_epoch))
        if batch.transactional:
            self._open.setdefault(batch.producer_id, base)
        return base

    def _add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self.size += len(batch.raw)
        self.end = batch.last + 1

    def _sequence(self, batch: Batch) -> int | None:
        """Check and note an idempotent producer's sequence; return the offset if this batch is here already."""
        if batch.producer_id == batches.NO_PRODUCER:
            return None
        written = self._producers.get(batch.producer_id)
        if written is None or batch.producer_epoch > written.epoch:
            if written is not None and batch.base_sequence != 0:
                raise Refused(Code.OUT_OF_ORDER_SEQUENCE, "a new epoch begins at sequence 0")
            written = self._producers[batch.producer_id] = _Written(batch.producer_epoch)
        if batch.producer_epoch < written.epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH, f"epoch {batch.producer_epoch} after {written.epoch}")
        for first, last, offset in written.batches:
            if (first, last) == (batch.base_sequence, batch.last_sequence):
                return offset
        if written.batches and batch.base_sequence != (written.batches[-1][1] + 1) % 2**31:
            raise Refused(Code.OUT_OF_ORDER_SEQUENCE, f"sequence {batch.base_sequence} after {written.batches[-1][1]}")
        written.batches.append((batch.base_sequence, batch.last_sequence, self.end))
        return None

    def finish(self, producer_id: int, producer_epoch: int, *, commit: bool, timestamp_ms: int) -> None:
        """End a producer's transaction with a control batch. The epoch fences older incarnations."""
        marker = batches.marker(producer_id, producer_epoch, commit=commit, timestamp_ms=timestamp_ms).at(self.end)
        self._add(marker)
        first = self._open.pop(producer_id, None)
        if first is not None and not commit:
            self._aborted.append(Aborted(producer_id, first, marker.base))
        written = self._producers.get(producer_id)
        if written is not None and producer_epoch > written.epoch:
            self._producers[producer_id] = _Written(producer_epoch)

    def read(self, offset: int, max_bytes: int, *, committed: bool, at_least_one: bool) -> bytes:
        """Return raw batches from the one that holds `offset` on, at most `max_bytes`, below the reader's bound.

        As with Kafka, the first batch may begin before `offset`, the last may be cut short, and with `at_least_one` the
        first comes whole however long it is. Refused with OFFSET_OUT_OF_RANGE.
        """
        if not self.start <= offset <= self.end:
            raise Refused(Code.OFFSET_OUT_OF_RANGE, f"{offset} outside {self.start}..{self.end}")
        bound = self.bound(committed=committed)
        found: list[bytes] = []
        size = 0
        for batch in self._from(offset):
            if batch.base >= bound or (found and size >= max_bytes):
                break
            found.append(batch.raw)
            size += len(batch.raw)
        if not found:
            return b""
        limit = max(max_bytes, len(found[0])) if at_least_one else max_bytes
        return b"".join(found)[:limit]

    def _from(self, offset: int) -> Iterable[Batch]:
        at = bisect_left(self._batches, offset, key=lambda batch: batch.last)
        for index in range(at, len(self._batches)):
            yield self._batches[index]

    def aborted(self, start: int, end: int) -> list[Aborted]:
        """Return the aborted transactions that reach into [start, end)."""
        return [one for one in self._aborted if one.last >= start and one.first < end]

    def offset_at(self, timestamp_ms: int, *, committed: bool) -> tuple[int, int] | None:
        """Return (offset, timestamp) of the first record whose timestamp is not earlier, below the reader's bound."""
        for batch in self._batches:
            if batch.max_timestamp >= timestamp_ms and not batch.control:
                for record in batch.records():
                    found = record.timestamp_ms
                    if found is not None and found >= timestamp_ms and record.offset >= self.start:
                        return None if record.offset >= self.bound(committed=committed) else (record.offset, found)
        return None

    def records(self) -> list[Record]:
        """Decode everything from the start on, whatever its transaction became; control records are left out."""
        return [
            record for batch in self._batches if not batch.control for record in batch.records() if record.offset >= self.start
        ]

    def delete_before(self, offset: int) -> int:
        """Move the start up to an offset (-1: to the end) and return it; Refused with OFFSET_OUT_OF_RANGE beyond it."""
        target = self.end if offset == -1 else offset
        if not 0 <= target <= self.end:
            raise Refused(Code.OFFSET_OUT_OF_RANGE, f"{offset} outside 0..{self.end}")
        self.start = max(self.start, target)
        gone = bisect_left(self._batches, self.start, key=lambda batch: batch.last)
        self.size -= sum(len(batch.raw) for batch in self._batches[:gone])
        del self._batches[:gone]
        self._aborted = [one for one in self._aborted if one.last >= self.start]
        return self.start

    def expire(self, *, before_ms: int | None = None, max_bytes: int | None = None) -> int:
        """Apply retention by whole batches and return the number of offsets that went.

        `before_ms`: batches whose newest record is older go. `max_bytes`: the oldest go while the rest still has as much
        (Kafka's rule for segments). Nothing at or above the last stable offset goes.
        """
        old = self.start
        excess = None if max_bytes is None else self.size - max_bytes
        cut = self.start
        for batch in self._batches:
            too_old = before_ms is not None and batches.NO_TIMESTAMP < batch.max_timestamp < before_ms
            too_much = excess is not None and excess >= len(batch.raw)
            if batch.last >= self.stable_end or not (too_old or too_much):
                break
            excess = None if excess is None else excess - len(batch.raw)
            cut = batch.last + 1
        return self.delete_before(cut) - old if cut > old else 0

    def compact(self, keep: Callable[[Record], bool] | None = None) -> int:
        """Drop records that `keep` refuses, below the last stable offset, and return how many went.

        Default: the newest record of each key stays, as do control batches; records without a key and those of aborted
        transactions go. Offsets never change. The last batch stays, even if empty, so that the end is where it was.
        """
        stable = self.stable_end
        wanted = self._newest_of_each_key() if keep is None else keep
        kept: list[Batch] = []
        dropped = 0
        for batch in self._batches:
            if batch.control or batch.magic < 2 or batch.last >= stable:  # noqa: PLR2004
                kept.append(batch)
                continue
            records = batch.records()
            staying = [record for record in records if wanted(record)]
            dropped += len(records) - len(staying)
            if len(staying) == len(records):
                kept.append(batch)
            elif staying or batch is self._batches[-1]:
                kept.append(batch.kept(staying))
        self._batches = kept
        self.size = sum(len(batch.raw) for batch in kept)
        return dropped

    def _newest_of_each_key(self) -> Callable[[Record], bool]:
        newest: dict[bytes, int] = {}
        live: set[int] = set()
        for batch in self._batches:
            if batch.control or batch.last >= self.stable_end or self._is_aborted(batch):
                continue
            for record in batch.records():
                live.add(record.offset)
                if record.key is not None:
                    newest[record.key] = record.offset
        return lambda record: record.offset in live and record.key is not None and newest[record.key] == record.offset

    def _is_aborted(self, batch: Batch) -> bool:
        return batch.transactional and any(
            one.producer_id == batch.producer_id and one.first <= batch.base <= one.last for one in self._aborted
        )
