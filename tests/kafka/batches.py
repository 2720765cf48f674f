"""Record batches for tests, as brokers send them."""

import struct

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from gateway.devbroker.batches import Batch
from gateway.devbroker.server import Broker
from gateway.kafka.fetch import Part

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
LOG_APPEND, TRANSACTIONAL, CONTROL = 0x08, 0x10, 0x20


def batch(
    base: int,
    records: list,
    *,
    codec: str = "none",
    flags: int = 0,
    producer: int = -1,
    last: int | None = None,
    max_timestamp: int | None = None,
) -> bytes:
    """Build a format 2 batch at offset `base`.

    A record is a value, or (offset delta, timestamp, key, value, headers). `last` is the last offset where compaction removed
    records at the end.
    """
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], 0, producer, 0, 0, 1 << 30)
    delta = -1
    for record in records:
        if isinstance(record, tuple):
            delta, timestamp, key, value, headers = record
        else:
            delta, timestamp, key, value, headers = delta + 1, 1000 + delta + 1, None, record, []
        builder.append(delta, timestamp, key, value, headers)
    data = builder.build()
    struct.pack_into(">q", data, 0, base)
    (attributes,) = struct.unpack_from(">h", data, 21)
    struct.pack_into(">h", data, 21, attributes | flags)
    if last is not None:
        struct.pack_into(">i", data, 23, last - base)
    if max_timestamp is not None:
        struct.pack_into(">q", data, 35, max_timestamp)
    return seal(data)


def seal(data: bytearray) -> bytes:
    """Set the CRC of a format 2 batch."""
    struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def marker(base: int, producer: int, *, abort: bool) -> bytes:
    """Build the control batch that ends a transaction."""
    key = struct.pack(">hh", 0, 0 if abort else 1)
    return batch(base, [(0, 1000, key, b"\0" * 6, [])], flags=CONTROL | TRANSACTIONAL, producer=producer)


def legacy(magic: int, base: int, records: list[tuple], codec: str = "none") -> bytes:
    """Build a message set of format 0 or 1; a record is (timestamp, key, value)."""
    builder = LegacyRecordBatchBuilder(magic, CODECS[codec], 1 << 20)
    for index, (timestamp, key, value) in enumerate(records):
        builder.append(index if codec != "none" and magic else base + index, timestamp, key, value)
    data = builder.build()
    if codec != "none":
        struct.pack_into(">q", data, 0, base + len(records) - 1)
    return bytes(data)


def part(data: bytes, *, aborted: list[tuple[int, int]] = (), error: int = 0, stable_end: int = 1 << 40) -> Part:
    """Wrap record data as a partition's part of a response."""
    return Part("t", 0, error, stable_end, stable_end, 0, list(aborted), memoryview(data))


def spoil(broker: Broker, topic: str, partition: int, count: int) -> None:
    """Append a batch of `count` records whose CRC is wrong, as a disk that forgets would."""
    data = bytearray(batch(0, [b"bad"] * count))
    data[-1] ^= 1
    broker.cluster.append(topic, partition, [Batch(bytes(data), 0, count - 1, 1000)], 0.0)
