"""Batches keep their producer's bytes; what the broker sets is set, and the checksum holds."""

import pytest
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from gateway.devbroker.batches import CODECS, BatchInvalid, _checked, build, marker, parse
from gateway.records import Record

RECORDS = [
    Record(0, 1000, b"k", b"v" * 200, (("h", b"x"), ("n", None))),
    Record(0, 3000, None, None),
    Record(0, 2000, b"", b""),
]


def legacy(magic: int, codec: int = 0, values: tuple[bytes, ...] = (b"a" * 100, b"b" * 100)) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, codec, 10_000)
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=100 + offset, key=None, value=value)
    return bytes(builder.build())


def offsets(raw: bytes) -> list[int]:
    reader = MemoryRecords(raw)
    found = []
    while (batch := reader.next_batch()) is not None:
        assert batch.validate_crc()
        found += [record.offset for record in batch]
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_records_survive_every_codec(codec):
    batch = build(RECORDS, codec=codec)
    found = batch.records()
    assert [(one.offset, one.timestamp_ms, one.key, one.value, one.headers) for one in found] == [
        (index, one.timestamp_ms, one.key, one.value, one.headers) for index, one in enumerate(RECORDS)
    ]
    assert (batch.base, batch.last, batch.count, batch.max_timestamp) == (0, 2, 3, 3000)
    assert parse(batch.raw) == [batch]


def test_a_moved_batch_keeps_its_checksum():
    batch = build(RECORDS, codec="gzip").at(1_000_000, leader_epoch=3)
    assert (batch.base, batch.last) == (1_000_000, 1_000_002)
    assert offsets(batch.raw) == [1_000_000, 1_000_001, 1_000_002]
    assert parse(batch.raw) == [batch]
    assert int.from_bytes(batch.raw[12:16], "big") == 3


def test_a_record_without_time():
    batch = build([Record(0, None, None, b"v")])
    assert batch.max_timestamp == -1
    assert batch.records()[0].timestamp_ms is None


def test_the_brokers_own_time_is_the_time_of_all_records():
    batch = build(RECORDS).stamped(9000)
    assert [one.timestamp_ms for one in batch.records()] == [9000, 9000, 9000]
    assert parse(batch.raw) == [batch]
    assert batch.max_timestamp == 9000


def test_a_producers_sequence_is_read_and_wraps():
    batch = parse(build(RECORDS, producer=(5, 1, 2**31 - 2), transactional=True).raw)[0]
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (5, 1, 2**31 - 2)
    assert batch.last_sequence == 0
    assert batch.transactional
    assert not batch.control


@pytest.mark.parametrize("commit", [True, False])
def test_markers_are_control_batches_that_clients_understand(commit):
    batch = marker(7, 2, commit=commit, timestamp_ms=123)
    assert batch.control
    assert batch.transactional
    assert (batch.producer_id, batch.producer_epoch, batch.max_timestamp) == (7, 2, 123)
    found = MemoryRecords(batch.raw).next_batch()
    assert found.is_control_batch
    assert found.validate_crc()
    assert next(iter(found)).key == bytes([0, 0, 0, int(commit)])


@pytest.mark.parametrize("codec", CODECS)
def test_compaction_leaves_offsets_where_they_are(codec):
    batch = build([Record(0, 1000 + n, b"k%d" % n, b"v" * 100) for n in range(5)], codec=codec).at(50)
    kept = batch.kept([one for one in batch.records() if one.offset in (51, 53)])
    assert (kept.base, kept.last, kept.count) == (50, 54, 5)
    assert [(one.offset, one.timestamp_ms, one.key) for one in kept.records()] == [(51, 1001, b"k1"), (53, 1003, b"k3")]
    assert parse(kept.raw) == [kept]


def test_an_emptied_batch_still_ends_where_it_did():
    batch = build(RECORDS, codec="zstd", producer=(1, 0, 0)).at(10)
    empty = batch.kept([])
    assert empty.records() == []
    assert (empty.base, empty.last, empty.producer_id) == (10, 12, 1)
    assert parse(empty.raw) == [empty]


@pytest.mark.parametrize("magic", [0, 1])
def test_uncompressed_message_sets_are_one_batch_a_message(magic):
    found = parse(legacy(magic))
    assert [(one.base, one.last, one.magic) for one in found] == [(0, 0, magic), (1, 1, magic)]
    moved = found[1].at(77)
    assert offsets(moved.raw) == [77]
    assert moved.max_timestamp == (101 if magic else -1)
    assert moved.stamped(5) is moved


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_a_compressed_message_set_takes_all_its_offsets(codec):
    (found,) = parse(legacy(1, codec))
    moved = found.at(40)
    assert (moved.base, moved.last, moved.max_timestamp) == (40, 41, 101)
    assert offsets(moved.raw) == [40, 41]
    assert [one.value for one in moved.records()] == [b"a" * 100, b"b" * 100]


def test_several_batches_in_one_go():
    assert [one.count for one in parse(build(RECORDS).raw + build(RECORDS[:1]).raw)] == [3, 1]


def broken() -> dict[str, bytes]:
    good = build(RECORDS).raw
    flipped = bytearray(good)
    flipped[-1] ^= 1
    magic = bytearray(good)
    magic[16] = 3
    negative = bytearray(good)
    negative[8:12] = b"\xff\xff\xff\xff"
    short = bytearray(good[:30])
    short[8:12] = (18).to_bytes(4, "big")
    message = bytearray(legacy(1))
    message[-1] ^= 1
    nonsense = bytearray(legacy(1, 1))
    nonsense[60:] = bytes(len(nonsense) - 60)
    return {
        "nothing": b"",
        "cut in the header": good[:12],
        "cut in the records": good[:-1],
        "flipped bit": bytes(flipped),
        "unknown magic": bytes(magic),
        "negative length": bytes(negative),
        "shorter than a header": bytes(short),
        "flipped bit in a message": bytes(message),
        "message set that does not decompress": bytes(nonsense),
    }


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in broken().items()])
def test_what_is_no_whole_batch_is_refused(data):
    with pytest.raises(BatchInvalid):
        parse(data)


def test_a_batch_that_ends_before_it_begins_is_refused():
    raw = bytearray(build(RECORDS).raw)
    raw[23:27] = b"\xff\xff\xff\xff"
    with pytest.raises(BatchInvalid, match="before the first"):
        parse(_checked(raw))


def test_an_empty_batch_cannot_be_built():
    with pytest.raises(ValueError, match="at least one"):
        build([])
