"""Fetch requests on the wire, and record batches turned into records."""

import struct
from io import BytesIO

import pytest
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol import fetch as structs
from aiokafka.protocol.api import RequestHeader_v1
from hypothesis import given
from hypothesis import strategies as st
from kafka.batches import CODECS, CONTROL, LOG_APPEND, TRANSACTIONAL, batch, legacy, marker, part, seal

from gateway.kafka import fetch
from gateway.kafka.fetch import Decoder, Fetch, FetchResponse, Pacer, Position, decode
from gateway.records import Record


def read(data: bytes, offset: int = 0, most: int = 1000, **options) -> tuple[list[Record], Decoder]:
    """Decode everything, running what ought to run in a thread here."""
    decoder = Decoder(part(data, **options), offset)
    records: list[Record] = []
    for item in decoder.slices(most):
        if isinstance(item, list):
            assert 0 < len(item) <= most
            records += item
        else:
            item()
    return records, decoder


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


# --- requests and responses ---


@pytest.mark.parametrize("version", range(4, 12))
def test_requests_are_what_kafka_defines(version):
    """The structs of aiokafka read what was packed by hand."""
    positions = [Position("a", 0, 5), Position("b", 1, 6), Position("a", 2, 7)]
    struct_ = Fetch(positions, max_wait=0.5, max_bytes=1000, partition_max_bytes=100).prepare({1: (0, version)})
    assert version == struct_.API_VERSION
    read_back = getattr(structs, f"FetchRequest_v{version}").decode(struct_.encode())
    wanted = structs.FetchRequest(500, 1, 1000, 1, [("a", [(0, 5, 100), (2, 7, 100)]), ("b", [(1, 6, 100)])])
    assert read_back == wanted.prepare({1: (version, version)})
    header = struct_.build_request_header(correlation_id=3, client_id="c")
    assert RequestHeader_v1.SCHEMA.decode(BytesIO(header.encode())) == (1, version, 3, "c")


@pytest.mark.parametrize("version", range(4, 12))
def test_responses_are_read_as_kafka_defines_them(version):
    known = getattr(structs, f"FetchResponse_v{version}")
    log_start = [3] if version >= 5 else []
    replica = [-1] if version >= 11 else []
    partitions = [
        (0, 0, 10, 9, *log_start, [(77, 4), (78, 5)], *replica, b"data"),
        (1, 6, -1, -1, *log_start, None, *replica, None),
    ]
    session = [0, 0] if version >= 7 else []
    encoded = known(0, *session, [("topic", partitions), ("other", [])]).encode()
    buffer = BytesIO(struct.pack(">i", 1) + encoded)
    struct_ = Fetch([], max_wait=0, max_bytes=1, partition_max_bytes=1).prepare({1: (4, version)})
    assert struct_.parse_response_header(buffer).correlation_id == 1
    first, second = struct_.RESPONSE_TYPE.decode(buffer)
    start = 3 if version >= 5 else -1
    assert first[:7] == ("topic", 0, 0, 10, 9, start, [(77, 4), (78, 5)])
    assert bytes(first.data) == b"data"
    assert (second.partition, second.error, second.aborted, bytes(second.data)) == (1, 6, [], b"")
    for cut in range(1, len(encoded) - 4):
        with pytest.raises((ValueError, struct.error)):
            FetchResponse(version).decode(BytesIO(encoded[:-cut]))


@pytest.mark.parametrize("versions", [{}, {1: (0, 3)}, {1: (12, 17)}])
def test_a_broker_that_speaks_none_of_our_versions_is_refused(versions):
    with pytest.raises(IncompatibleBrokerVersion):
        Fetch([], max_wait=0, max_bytes=1, partition_max_bytes=1).prepare(versions)


# --- records ---


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec):
    records, decoder = read(batch(100, [b"x" * 200] * 50, codec=codec), 100)
    assert offsets(records) == list(range(100, 150))
    assert {record.value for record in records} == {b"x" * 200}
    assert (decoder.next, decoder.corrupt, decoder.moved) == (150, None, True)


def test_keys_headers_tombstones_and_timestamps():
    data = batch(
        5,
        [
            (0, 1700, b"k", b"v", [("a", b"1"), ("a", None), ("é", b"")]),
            (1, 1701, None, None, []),
            (2, 1702, b"", b"", []),
        ],
    )
    records, _ = read(data, 5)
    assert records == [
        Record(5, 1700, b"k", b"v", (("a", b"1"), ("a", None), ("é", b""))),
        Record(6, 1701, None, None),
        Record(7, 1702, b"", b""),
    ]


def test_a_record_without_a_timestamp_has_none():
    records, _ = read(batch(0, [(0, -1, None, b"v", [])]))
    assert records[0].timestamp_ms is None


def test_log_append_time_is_the_batch_s_for_all():
    records, _ = read(batch(0, [b"a", b"b"], flags=LOG_APPEND, max_timestamp=4242))
    assert [record.timestamp_ms for record in records] == [4242, 4242]


def test_slices_are_bounded_and_lose_nothing():
    records, decoder = read(batch(0, [b"x"] * 10, last=20), most=5)
    assert offsets(records) == list(range(10))
    assert decoder.next == 21


def test_holes_and_empty_batches_move_the_next_offset():
    holes = batch(10, [(2, 1, None, b"a", []), (7, 1, None, b"b", [])], last=19)
    empty = batch(20, [], last=29)
    records, decoder = read(holes + empty, 10)
    assert offsets(records) == [12, 17]
    assert decoder.next == 30


def test_a_fetch_that_begins_inside_a_batch_leaves_out_what_is_before():
    records, decoder = read(batch(0, [b"x"] * 10, codec="zstd"), 7)
    assert offsets(records) == [7, 8, 9]
    assert decoder.next == 10


def test_batches_before_the_offset_do_not_move_back():
    records, decoder = read(batch(0, [b"x"] * 3), 7)
    assert (records, decoder.next, decoder.moved) == ([], 7, False)


@given(cut=st.integers(0, 200))
def test_what_is_cut_off_is_left_for_the_next_fetch(cut):
    whole = batch(0, [b"x" * 20] * 2)
    data = whole + batch(2, [b"y" * 20] * 2)
    cut = min(cut, len(data))
    records, decoder = read(data[: len(data) - cut])
    complete = 4 if not cut else 2 if cut <= len(data) - len(whole) else 0
    assert (offsets(records), decoder.next, decoder.corrupt) == (list(range(complete)), complete, None)


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy"])
def test_legacy_formats(magic, codec):
    data = legacy(magic, 40, [(1000 + i, b"k", b"v%d" % i) for i in range(3)], codec)
    records, decoder = read(data, 41)
    assert offsets(records) == [41, 42]
    assert [record.value for record in records] == [b"v1", b"v2"]
    assert [record.timestamp_ms for record in records] == ([None, None] if magic == 0 else [1001, 1002])
    assert decoder.next == 43


def test_legacy_lz4():
    records, decoder = read(legacy(1, 0, [(1, None, b"v" * 50)] * 3, "lz4"))
    assert (offsets(records), decoder.next) == ([0, 1, 2], 3)


# --- transactions ---


def test_control_batches_are_skipped():
    data = batch(0, [b"a"], flags=TRANSACTIONAL, producer=7) + marker(1, 7, abort=False) + batch(2, [b"b"])
    records, decoder = read(data)
    assert [record.value for record in records] == [b"a", b"b"]
    assert decoder.next == 3


def test_aborted_transactions_are_skipped_until_their_marker():
    """The list says where each aborted transaction of a producer begins; its abort marker ends it (KIP-98)."""
    data = b"".join(
        (
            batch(0, [b"committed"], flags=TRANSACTIONAL, producer=7),
            marker(1, 7, abort=False),
            batch(2, [b"aborted"] * 2, flags=TRANSACTIONAL, producer=7),
            batch(4, [b"other"], flags=TRANSACTIONAL, producer=8),
            batch(5, [b"plain"]),
            batch(6, [b"idempotent"], producer=7),
            marker(7, 7, abort=True),
            batch(8, [b"again"], flags=TRANSACTIONAL, producer=7),
            marker(9, 8, abort=False),
            marker(10, 7, abort=False),
        )
    )
    records, decoder = read(data, aborted=[(7, 2)])
    assert [record.value for record in records] == [b"committed", b"other", b"plain", b"idempotent", b"again"]
    assert decoder.next == 11


def test_a_fetch_that_begins_inside_an_aborted_transaction():
    data = batch(5, [b"no"], flags=TRANSACTIONAL, producer=7) + marker(6, 7, abort=True) + batch(7, [b"yes"])
    records, _ = read(data, 5, aborted=[(7, 2)])
    assert [record.value for record in records] == [b"yes"]


def test_two_aborted_transactions_of_one_producer():
    data = b"".join(
        (
            batch(0, [b"no"], flags=TRANSACTIONAL, producer=7),
            marker(1, 7, abort=True),
            batch(2, [b"yes"], flags=TRANSACTIONAL, producer=7),
            marker(3, 7, abort=False),
            batch(4, [b"no"], flags=TRANSACTIONAL, producer=7),
            marker(5, 7, abort=True),
        )
    )
    records, decoder = read(data, aborted=[(7, 4), (7, 0)])
    assert [record.value for record in records] == [b"yes"]
    assert decoder.next == 6


def test_a_control_batch_without_a_known_type_ends_nothing():
    odd = batch(1, [(0, 1, b"", None, [])], flags=CONTROL, producer=7)
    data = batch(0, [b"no"], flags=TRANSACTIONAL, producer=7) + odd + batch(2, [b"no"], flags=TRANSACTIONAL, producer=7)
    records, decoder = read(data, aborted=[(7, 0)])
    assert (records, decoder.next) == ([], 3)


def test_a_control_batch_that_compaction_emptied_ends_nothing():
    data = batch(1, [], flags=CONTROL, producer=7, last=1) + batch(2, [b"no"], flags=TRANSACTIONAL, producer=7)
    records, decoder = read(data, 1, aborted=[(7, 0)])
    assert (records, decoder.next, decoder.corrupt) == ([], 3, None)


# --- what cannot be read ---


def test_a_control_batch_that_cannot_be_read_is_corrupt():
    bad = bytearray(marker(1, 7, abort=True))
    bad[61] = 0x7F
    _, decoder = read(seal(bad), 1, aborted=[(7, 0)])
    assert decoder.corrupt[:2] == (1, 2)


def test_a_wrong_crc_stops_in_front_of_the_batch():
    bad = bytearray(batch(2, [b"bad"] * 3))
    bad[-1] ^= 1
    records, decoder = read(batch(0, [b"a", b"b"]) + bad + batch(5, [b"c"]))
    assert offsets(records) == [0, 1]
    assert decoder.next == 2
    assert decoder.corrupt == (2, 5, "CRC does not match")


def test_the_following_batch_says_where_to_go_on_if_the_header_is_broken():
    bad = bytearray(batch(2, [b"bad"] * 3))
    struct.pack_into(">i", bad, 23, 1000)
    _, decoder = read(bytes(bad) + batch(5, [b"c"]), 2)
    assert decoder.corrupt[:2] == (2, 5)
    struct.pack_into(">i", bad, 23, -1000)
    _, decoder = read(bytes(bad) + batch(5, [b"c"]), 2)
    assert decoder.corrupt[:2] == (2, 5)
    _, decoder = read(bytes(bad), 2)
    assert decoder.corrupt[:2] == (2, 3)


@pytest.mark.parametrize("length", [0, 13, -5, -(2**31)])
def test_a_length_that_cannot_be_is_corrupt(length):
    bad = bytearray(batch(0, [b"bad"] * 3))
    struct.pack_into(">i", bad, 8, length)
    _, decoder = read(bytes(bad))
    assert decoder.corrupt == (0, 3, f"batch length {length}")


def test_formats_of_the_future_are_corrupt():
    bad = bytearray(batch(0, [b"bad"]))
    bad[16] = 3
    _, decoder = read(bytes(bad))
    assert decoder.corrupt[:2] == (0, 1)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_data_that_does_not_decompress_is_corrupt(codec):
    bad = bytearray(batch(0, [b"x" * 500] * 3, codec=codec))
    bad[70:90] = b"\xff" * 20
    _, decoder = read(seal(bad))
    assert decoder.corrupt[:2] == (0, 3)


def test_a_codec_that_nobody_knows_is_corrupt():
    bad = bytearray(batch(0, [b"x"]))
    struct.pack_into(">h", bad, 21, 7)
    _, decoder = read(seal(bad))
    assert decoder.corrupt[:2] == (0, 1)


def test_records_that_do_not_fit_their_batch_are_corrupt():
    bad = bytearray(batch(0, [b"x" * 50]))
    bad[61] = 0x7F
    _, decoder = read(seal(bad))
    assert decoder.corrupt[:2] == (0, 1)


@pytest.mark.parametrize("magic", [0, 1])
def test_legacy_batches_are_checked_too(magic):
    bad = bytearray(legacy(magic, 3, [(1, b"k", b"v")]))
    bad[-1] ^= 1
    _, decoder = read(bytes(bad), 3)
    assert decoder.corrupt == (3, 4, "CRC does not match")


@given(data=st.binary(max_size=300), offset=st.integers(0, 2**62))
def test_any_bytes_give_records_or_are_corrupt(data, offset):
    _, decoder = read(data, offset)
    assert decoder.next >= offset
    assert decoder.corrupt is None or decoder.corrupt.end > decoder.corrupt.start == decoder.next


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), codec=st.sampled_from(sorted(CODECS)))
def test_one_flipped_bit_never_gives_a_record_that_was_not_written(position, bit, codec):
    values = [b"value-%d" % i for i in range(5)]
    data = bytearray(batch(10, values, codec=codec))
    data[position % len(data)] ^= 1 << bit
    records, decoder = read(bytes(data), 10)
    assert {record.value for record in records} <= set(values)
    assert decoder.next >= 10


@pytest.mark.parametrize("codec", CODECS)
def test_header_names_that_are_not_utf8_are_read_with_replacement(codec):
    """Java's consumer reads such records, so they may not be lost here."""
    plain = bytearray(
        batch(
            3, [(0, 5, b"k", b"v", [("abc", b"1"), ("d", None)]), (1, -1, None, None, []), (4, 7, b"", b"x" * 300, [])], last=9
        )
    )
    plain[plain.index(b"abc") + 1] = 0xFF
    body = bytes(plain[61:])
    packed = {
        "none": lambda: body,
        "gzip": lambda: fetch.gzip_decode.__globals__["gzip_encode"](body),
        "snappy": lambda: fetch.gzip_decode.__globals__["snappy_encode"](body),
        "lz4": lambda: fetch.gzip_decode.__globals__["lz4_encode"](body),
        "zstd": lambda: fetch.gzip_decode.__globals__["zstd_encode"](body),
    }[codec]()
    data = bytearray(plain[:61] + packed)
    struct.pack_into(">i", data, 8, len(data) - 12)
    struct.pack_into(">h", data, 21, CODECS[codec])
    records, decoder = read(seal(data), 3)
    assert records == [
        Record(3, 5, b"k", b"v", (("a\ufffdc", b"1"), ("d", None))),
        Record(4, None, None, None),
        Record(7, 7, b"", b"x" * 300),
    ]
    assert decoder.next == 10
    struct.pack_into(">h", data, 21, CODECS[codec] | LOG_APPEND)
    struct.pack_into(">q", data, 35, 99)
    records, _ = read(seal(data), 4)
    assert [(record.offset, record.timestamp_ms) for record in records] == [(4, 99), (7, 99)]


# --- the shell ---


async def test_decoding_gives_the_loop_back_and_hands_over_slices():
    data = b"".join(batch(i * 100, [b"x" * 10] * 100) for i in range(20))
    taken: list[tuple[int, int]] = []
    decoder = await decode(part(data), 0, lambda records, end: taken.append((len(records), end)) is None, Pacer(0.0))
    assert sum(count for count, _ in taken) == 2000
    assert taken[-1] == (100, 2000)
    assert decoder.next == 2000


async def test_the_taker_may_stop():
    data = b"".join(batch(i, [b"x"]) for i in range(5))
    decoder = await decode(part(data), 0, lambda _records, end: end < 2, Pacer())
    assert decoder.next == 2


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_large_batches_are_decompressed_in_a_thread(codec, monkeypatch):
    monkeypatch.setattr(fetch, "HEAVY_BYTES", 100)
    threads = []
    plain = fetch.asyncio.to_thread

    async def to_thread(work):
        threads.append(work)
        await plain(work)

    monkeypatch.setattr(fetch.asyncio, "to_thread", to_thread)
    taken: list[Record] = []
    data = batch(0, [bytes(range(256))] * 20, codec=codec)
    decoder = await decode(part(data), 0, lambda records, _end: taken.extend(records) is None, Pacer())
    assert (len(threads), len(taken), decoder.corrupt) == (1, 20, None)
    bad = bytearray(data)
    bad[70:90] = b"\xff" * 20
    decoder = await decode(part(seal(bad)), 0, lambda _records, _end: True, Pacer())
    assert decoder.corrupt[:2] == (0, 20)
