"""Record batches as raw bytes: headers read, offsets assigned, markers and compacted batches written (sans-I/O).

A batch stays as its producer encoded it, so that every codec passes through unchanged; only fields that Kafka's own broker
sets are rewritten. The base offset and the leader epoch lie outside the checksum; where a field inside it changes, the
checksum is computed again. Layout: Kafka's DefaultRecordBatch (magic 2), and message sets of magic 0 and 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from gateway.records import Record

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
NO_PRODUCER = -1
NO_TIMESTAMP = -1

_OVERHEAD = struct.Struct(">qi")  # offset, length of what follows: the same in all formats
_MAGIC_AT = 16
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CRC_AT = 17
_CHECKED_AT = 21
_ATTRIBUTES_AT = 21
_EPOCH_AT = 12
_MAX_TIMESTAMP_AT = 35
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_ABORT, _COMMIT = 0, 1
# The builder refuses records beyond its size; the broker decides what is too large.
_UNBOUNDED = 2**31 - 1


class BatchInvalid(Exception):
    """Produced bytes are not whole, intact batches (Kafka's CORRUPT_MESSAGE)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One stored batch. Offsets `base` to `last`, both inclusive; `max_timestamp` in ms, -1 without."""

    raw: bytes
    base: int
    last: int
    max_timestamp: int
    magic: int = 2
    producer_id: int = NO_PRODUCER
    producer_epoch: int = -1
    base_sequence: int = -1
    transactional: bool = False
    control: bool = False

    @property
    def count(self) -> int:
        """The number of offsets that the batch takes."""
        return self.last - self.base + 1

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record; sequences wrap after 2**31 - 1."""
        return (self.base_sequence + self.count - 1) % 2**31

    def records(self) -> list[Record]:
        """Decode the records (also a control batch's one)."""
        return [
            Record(
                found.offset,
                None if found.timestamp in (None, NO_TIMESTAMP) else found.timestamp,
                found.key,
                found.value,
                tuple(found.headers),
            )
            for batch in _decoded(self.raw)
            for found in batch
        ]

    def at(self, base: int, leader_epoch: int = 0) -> Batch:
        """Return the batch moved to an offset, as a leader does when it appends."""
        raw = bytearray(self.raw)
        if self.magic < 2:  # noqa: PLR2004
            # A message set's offset is the one of its last record; the inner ones are relative to it (magic 1).
            _pack(raw, ">q", 0, base + self.count - 1)
        else:
            _pack(raw, ">q", 0, base)
            _pack(raw, ">i", _EPOCH_AT, leader_epoch)
        return replace(self, raw=bytes(raw), base=base, last=base + self.count - 1)

    def stamped(self, timestamp_ms: int) -> Batch:
        """Return the batch with the broker's time for all records (message.timestamp.type=LogAppendTime)."""
        if self.magic < 2:  # noqa: PLR2004
            return self
        raw = bytearray(self.raw)
        (attributes,) = struct.unpack_from(">h", raw, _ATTRIBUTES_AT)
        _pack(raw, ">h", _ATTRIBUTES_AT, attributes | _LOG_APPEND_TIME)
        _pack(raw, ">q", _MAX_TIMESTAMP_AT, timestamp_ms)
        return replace(self, raw=_checked(raw), max_timestamp=timestamp_ms)

    def kept(self, records: Sequence[Record]) -> Batch:
        """Return the batch with only these of its records, as compaction leaves it.

        Base and last offset stay; a batch may become empty, as Kafka keeps the last one of a producer.
        """
        header = list(_HEADER.unpack_from(self.raw))
        codec = header[5] & _CODEC_MASK if records else 0
        rebuilt = _built(records, base=self.base, codec=codec)
        fresh = list(_HEADER.unpack_from(rebuilt))
        # The builder may have found that compression does not pay: the codec is the one it used.
        header[5] = header[5] & ~_CODEC_MASK | fresh[5] & _CODEC_MASK
        if records:
            header[7] = fresh[7]
        header[1], header[12] = fresh[1], fresh[12]
        _HEADER.pack_into(rebuilt, 0, *header)
        return replace(self, raw=_checked(rebuilt))


def parse(data: bytes) -> list[Batch]:
    """Cut produced bytes into batches, in order; BatchInvalid when one is cut short, empty or fails its checksum."""
    batches = []
    at = 0
    while at < len(data):
        size = _size_at(data, at)
        batches.append(_parsed(data[at : at + size]))
        at += size
    if not batches:
        raise BatchInvalid("no batch")
    return batches


def _size_at(data: bytes, at: int) -> int:
    if len(data) - at < _MAGIC_AT + 1:
        raise BatchInvalid("cut short")
    _, length = _OVERHEAD.unpack_from(data, at)
    size = int(_OVERHEAD.size + length)
    if length < 0 or size > len(data) - at:
        raise BatchInvalid("cut short")
    return size


def _parsed(raw: bytes) -> Batch:
    magic = raw[_MAGIC_AT]
    if magic not in (0, 1, 2):
        raise BatchInvalid(f"magic {magic}")
    if magic < 2:  # noqa: PLR2004
        return _message_set(raw, magic)
    if len(raw) < _HEADER.size:
        raise BatchInvalid("cut short")
    return _record_batch(raw)


def _record_batch(raw: bytes) -> Batch:
    base, _, _, _, crc, attributes, last, _, newest, producer, epoch, sequence, _ = _HEADER.unpack_from(raw)
    if crc != calc_crc32c(raw[_CHECKED_AT:]):
        raise BatchInvalid("checksum")
    if last < 0:
        raise BatchInvalid("last offset before the first")
    return Batch(
        raw,
        base,
        base + last,
        newest,
        2,
        producer,
        epoch,
        sequence,
        transactional=bool(attributes & _TRANSACTIONAL),
        control=bool(attributes & _CONTROL),
    )


def _message_set(raw: bytes, magic: int) -> Batch:
    try:
        (entry,) = _decoded(raw)
        intact = entry.validate_crc()
        found = list(entry)
    except Exception as error:
        # aiokafka's legacy reader raises whatever its struct and codec calls raise.
        raise BatchInvalid(f"message set: {error}") from error
    if not intact or not found:
        raise BatchInvalid("checksum")
    newest = max(NO_TIMESTAMP if record.timestamp is None else record.timestamp for record in found)
    last = found[-1].offset
    return Batch(raw, last - len(found) + 1, last, newest, magic)


def _decoded(raw: bytes) -> Iterator[Any]:
    reader = MemoryRecords(raw)
    while (batch := reader.next_batch()) is not None:
        yield batch


def build(
    records: Sequence[Record],
    *,
    codec: str = "none",
    producer: tuple[int, int, int] = (NO_PRODUCER, -1, -1),
    transactional: bool = False,
) -> Batch:
    """Encode records as one batch at offset 0; their own offsets are not looked at.

    `codec` is one of `CODECS`. `producer` is id, epoch and base sequence.
    """
    if not records:
        raise ValueError("a batch holds at least one record")
    raw = _built(records, base=None, codec=CODECS[codec], producer=producer, transactional=transactional)
    return _record_batch(bytes(raw))


def _built(
    records: Sequence[Record],
    *,
    base: int | None,
    codec: int,
    producer: tuple[int, int, int] = (NO_PRODUCER, -1, -1),
    transactional: bool = False,
) -> bytearray:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=int(transactional),
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        batch_size=_UNBOUNDED,
    )
    for index, record in enumerate(records):
        timestamp = NO_TIMESTAMP if record.timestamp_ms is None else record.timestamp_ms
        delta = index if base is None else record.offset - base
        builder.append(delta, timestamp, record.key, record.value, list(record.headers))
    return bytearray(builder.build())


def marker(producer_id: int, producer_epoch: int, *, commit: bool, timestamp_ms: int) -> Batch:
    """Encode the control batch that ends a transaction in one partition (KIP-98)."""
    key = struct.pack(">hh", 0, _COMMIT if commit else _ABORT)
    record = Record(0, timestamp_ms, key, struct.pack(">hi", 0, 0))
    raw = _built([record], base=None, codec=0, producer=(producer_id, producer_epoch, -1), transactional=True)
    _pack(raw, ">h", _ATTRIBUTES_AT, _TRANSACTIONAL | _CONTROL)
    return _record_batch(_checked(raw))


def _pack(raw: bytearray, layout: str, at: int, value: int) -> None:
    struct.pack_into(layout, raw, at, value)


def _checked(raw: bytearray) -> bytes:
    _pack(raw, ">I", _CRC_AT, calc_crc32c(bytes(raw[_CHECKED_AT:])))
    return bytes(raw)
