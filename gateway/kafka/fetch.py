"""Fetch: requests, and record batches turned into records for read_committed readers (sans-I/O but for `decode`).

Theory of operation. One response holds, per partition, record batches end to end, cut off anywhere. A batch names its first
and last offset whatever compaction left of it, so the next offset to fetch always comes from the batch and never from its
last record: empty batches, holes, control batches (transaction markers) and aborted batches move it just the same.

Aborted transactions (KIP-98) come as a list of (producer, first offset). Producers join the set of aborted ones when a batch
at or past their first offset comes, and leave it at their abort marker; their transactional batches in between are skipped.

A batch that cannot be read (CRC, structure, codec) ends the decoding in front of it: `Decoder.corrupt` says where, and where
reading could go on. Whether to retry or to give it up is for the caller to decide.

The structs are packed and unpacked by hand: aiokafka's take 3.9 ms of CPU for a fetch of 1,000 idle partitions, these 1.7, and
they leave the record data where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import chain, islice
from typing import Any, Final, NamedTuple, final

from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from google_crc32c import value as crc32c

from gateway.kafka.requests import ANY_EPOCH, NO_REPLICA, READ_COMMITTED
from gateway.records import Record

_API_KEY: Final = 1
_OLDEST: Final = 4  # the first that knows read_committed
_NEWEST: Final = 11  # the last before compact encodings and topic ids
_WITH_LOG_START: Final = 5
_WITH_SESSION: Final = 7
_WITH_EPOCH: Final = 9
_WITH_REPLICA: Final = 11

_SHORT: Final = struct.Struct(">h")
_INT: Final = struct.Struct(">i")
_REQUEST: Final = struct.Struct(">hhih")  # API, its version, correlation id, length of the client id
_PAIR: Final = struct.Struct(">qq")
_BOUNDS: Final = struct.Struct(">ihqq")  # partition, error, high watermark, last stable offset
_LONG: Final = struct.Struct(">q")

_FRAME: Final = struct.Struct(">qi")  # base offset, length; the same in all formats
_MAGIC_AT: Final = 16
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_CHECKED_FROM: Final = 21  # what follows the CRC
_FORMAT_2: Final = 2
_LEAST_LEGACY: Final = 14  # CRC, magic, attributes, two lengths
_CODEC: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20
_ABORT_MARKER: Final = 0
_NO_TIME: Final = -1
_CONTROL_KEY: Final = struct.Struct(">hh")

# Decompressing more than this much takes milliseconds: then it is done in a thread (a thread costs about 0.1 ms).
HEAVY_BYTES: Final = 64 * 1024
SLICE_RECORDS: Final = 1000
SLICE_SECONDS: Final = 0.004


class Position(NamedTuple):
    """Where to fetch from."""

    topic: str
    partition: int
    offset: int


class Part(NamedTuple):
    """One partition's part of a response. `log_start` is -1 where the broker does not tell it."""

    topic: str
    partition: int
    error: int
    high_watermark: int
    stable_end: int
    log_start: int
    aborted: list[tuple[int, int]]
    data: memoryview


class Fetch:
    """A fetch at read_committed.

    `max_wait` in seconds: how long the broker may hold the request while there is not one byte to send. `max_bytes` bounds the
    answer and `partition_max_bytes` each part of it, softly: the first batch comes whole, however large (KIP-74).
    """

    def __init__(self, positions: Iterable[Position], *, max_wait: float, max_bytes: int, partition_max_bytes: int) -> None:
        self._positions = positions
        self._max_wait_ms = int(max_wait * 1000)
        self._max_bytes = max_bytes
        self._partition_max_bytes = partition_max_bytes

    def prepare(self, versions: dict[int, tuple[int, int]]) -> FetchStruct:
        """Return the request in the newest version that the broker and we know (aiokafka's connection calls this)."""
        lowest, highest = versions.get(_API_KEY, (0, 0))
        version = min(highest, _NEWEST)
        if version < max(lowest, _OLDEST):
            raise IncompatibleBrokerVersion(f"fetch versions {lowest} to {highest}; {_OLDEST} to {_NEWEST} are known here")
        return FetchStruct(version, self._body(version))

    def _body(self, version: int) -> bytes:
        topics: dict[str, list[bytes]] = {}
        size = self._partition_max_bytes
        for topic, partition, offset in self._positions:
            topics.setdefault(topic, []).append(_pack_partition(version, partition, offset, size))
        out = [struct.pack(">iiiib", NO_REPLICA, self._max_wait_ms, 1, self._max_bytes, READ_COMMITTED)]
        if version >= _WITH_SESSION:
            out.append(struct.pack(">ii", 0, -1))  # no fetch session (KIP-227)
        out.append(_INT.pack(len(topics)))
        for topic, partitions in topics.items():
            name = topic.encode()
            out += [_SHORT.pack(len(name)), name, _INT.pack(len(partitions)), *partitions]
        if version >= _WITH_SESSION:
            out.append(_INT.pack(0))  # no forgotten topics
        if version >= _WITH_REPLICA:
            out.append(_SHORT.pack(0))  # no rack: leaders answer
        return b"".join(out)


def _pack_partition(version: int, partition: int, offset: int, size: int) -> bytes:
    if version >= _WITH_EPOCH:
        return struct.pack(">iiqqi", partition, ANY_EPOCH, offset, -1, size)
    if version >= _WITH_LOG_START:
        return struct.pack(">iqqi", partition, offset, -1, size)
    return struct.pack(">iqi", partition, offset, size)


class FetchStruct:
    """What aiokafka's connection wants of a request struct."""

    API_KEY = _API_KEY

    def __init__(self, version: int, body: bytes) -> None:
        self.API_VERSION = version
        self.RESPONSE_TYPE = FetchResponse(version)
        self._body = body

    def encode(self) -> bytes:
        """Return the request's body."""
        return self._body

    def build_request_header(self, *, correlation_id: int, client_id: str) -> RequestHeader:
        """Return the request's header."""
        name = client_id.encode()
        return RequestHeader(_REQUEST.pack(_API_KEY, self.API_VERSION, correlation_id, len(name)) + name)

    def parse_response_header(self, data: BytesIO) -> ResponseHeader:
        """Read the response's header."""
        return ResponseHeader(*_INT.unpack(data.read(_INT.size)))


class RequestHeader:
    """A request's header (version 1), encoded."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def encode(self) -> bytes:
        """Return it."""
        return self._encoded


class ResponseHeader(NamedTuple):
    """What stands before a response (version 0)."""

    correlation_id: int


class FetchResponse:
    """Decodes responses of one version."""

    def __init__(self, version: int) -> None:
        self._version = version

    def decode(self, data: BytesIO) -> list[Part]:
        """Return the parts in the broker's order; they share the response's memory. ValueError, struct.error when cut short."""
        return list(_parts(data.getvalue(), data.tell(), self._version))


def _parts(raw: bytes, at: int, version: int) -> Iterator[Part]:
    view = memoryview(raw)
    at += 4  # throttle time
    if version >= _WITH_SESSION:
        at += 6  # an error of fetch sessions, which are not used, and the session
    (topics,) = _INT.unpack_from(raw, at)
    at += 4
    for _ in range(topics):
        (length,) = _SHORT.unpack_from(raw, at)
        topic = raw[at + 2 : at + 2 + length].decode()
        at += 2 + length
        (partitions,) = _INT.unpack_from(raw, at)
        at += 4
        for _ in range(partitions):
            part, at = _part(view, at, version, topic)
            yield part


def _part(view: memoryview, at: int, version: int, topic: str) -> tuple[Part, int]:
    partition, error, high_watermark, stable_end = _BOUNDS.unpack_from(view, at)
    at += _BOUNDS.size
    log_start = -1
    if version >= _WITH_LOG_START:
        (log_start,) = _LONG.unpack_from(view, at)
        at += 8
    (count,) = _INT.unpack_from(view, at)
    at += 4
    aborted = [_PAIR.unpack_from(view, at + 16 * i) for i in range(count)]
    at += 16 * max(count, 0)
    if version >= _WITH_REPLICA:
        at += 4
    (length,) = _INT.unpack_from(view, at)
    at += 4
    end = at + max(length, 0)
    if end > len(view):
        raise ValueError("fetch response cut short")
    return Part(topic, partition, error, high_watermark, stable_end, log_start, aborted, view[at:end]), end


class Corrupt(NamedTuple):
    """A batch that cannot be read: it begins at `start`, reading can go on at `end`."""

    start: int
    end: int
    reason: str


class _BadBatch(Exception):
    """Why a batch cannot be read."""


@final
class Decoder:
    """Turns one part into records, from `offset` on.

    `next` is the next offset to fetch and moves as `slices` is consumed. `corrupt` is set where it had to stop early.
    """

    def __init__(self, part: Part, offset: int) -> None:
        self.next = offset
        self._offset = offset
        self.corrupt: Corrupt | None = None
        self._data = part.data
        self._pending = sorted(part.aborted, key=lambda entry: entry[1], reverse=True)
        self._aborted: set[int] = set()

    @property
    def moved(self) -> bool:
        """Tell whether anything was read, be it only that there is nothing."""
        return self.next > self._offset

    def slices(self, most: int = SLICE_RECORDS) -> Iterator[list[Record] | _Unpack]:
        """Yield records, at most `most` at a time, or work that the caller runs in a thread before it goes on."""
        for start, end in self._frames():
            try:
                yield from self._batch(self._data[start:end], most)
            except _BadBatch as error:
                self.corrupt = self._locate(start, end, str(error))
                return

    def _frames(self) -> Iterator[tuple[int, int]]:
        """Yield where complete batches lie; what is cut off at the end comes again with the next fetch."""
        at, size = 0, len(self._data)
        while size - at > _MAGIC_AT:
            _, length = _FRAME.unpack_from(self._data, at)
            if length < _LEAST_LEGACY:
                self.corrupt = self._locate(at, size, f"batch length {length}")
                return
            end = at + _FRAME.size + length
            if end > size:
                return
            yield at, end
            at = end

    def _batch(self, data: memoryview, most: int) -> Iterator[list[Record] | _Unpack]:
        magic = data[_MAGIC_AT]
        if magic < _FORMAT_2:
            yield from self._legacy(data, magic, most)
            return
        if magic > _FORMAT_2 or len(data) < _HEADER.size:
            raise _BadBatch(f"record format {magic}, {len(data)} bytes")
        header = _HEADER.unpack_from(data)
        base, attributes, producer = header[0], header[5], header[9]
        last = base + header[6]
        # aiokafka's own CRC goes through a table byte by byte, which takes six times as long.
        if crc32c(bytes(data[_CHECKED_FROM:])) != header[4]:
            raise _BadBatch("CRC does not match")
        batch = DefaultRecordBatch(data)
        if not self._hidden(batch, attributes, producer, last):
            if attributes & _CODEC and len(data) > HEAVY_BYTES:
                yield _Unpack(batch)
            yield from self._records(batch, most, data, header)
        self.next = max(self.next, last + 1)

    def _legacy(self, data: memoryview, magic: int, most: int) -> Iterator[list[Record] | _Unpack]:
        batch = _guarded(LegacyRecordBatch, data, magic)
        if not batch.validate_crc():
            raise _BadBatch("CRC does not match")
        yield from self._records(batch, most, data, None)
        self.next = max(self.next, batch.next_offset)

    def _hidden(self, batch: Any, attributes: int, producer: int, last: int) -> bool:
        """Tell whether a batch holds nothing for a read_committed reader, and keep the books of aborted producers."""
        while self._pending and self._pending[-1][1] <= last:
            self._aborted.add(self._pending.pop()[0])
        if attributes & _CONTROL:
            if producer in self._aborted and _is_abort(batch):
                self._aborted.discard(producer)
            return True
        return bool(attributes & _TRANSACTIONAL) and producer in self._aborted

    def _records(self, batch: Any, most: int, data: memoryview, header: tuple[int, ...] | None) -> Iterator[list[Record]]:
        # aiokafka's batch begins anew whenever it is asked for an iterator: it is asked once.
        found: Iterator[Any] = chain(batch)
        while True:
            try:
                records = [
                    Record(
                        r.offset,
                        None if (at := r.timestamp) == _NO_TIME else at,
                        r.key,
                        r.value,
                        tuple(named) if (named := r.headers) else (),
                    )
                    for r in islice(found, most)
                ]
            except UnicodeDecodeError:
                # A header's name is not UTF-8. Java's consumer reads such records, so they are not lost here either.
                found = iter(_guarded(_Lenient, data, header))
                continue
            except Exception as error:
                raise _BadBatch(f"{type(error).__name__}: {error}") from error
            read = len(records)
            if records and records[0].offset < self.next:
                # A compressed batch comes whole, also if the fetch began inside it.
                records = [record for record in records if record.offset >= self.next]
            if records:
                self.next = records[-1].offset + 1
                yield records
            if read < most:
                return

    def _locate(self, at: int, end: int, reason: str) -> Corrupt:
        """Find where reading can go on: nothing in a broken header is trusted that does not fit its neighbours."""
        beyond = self.next + 1
        if len(self._data) - at >= _HEADER.size and self._data[at + _MAGIC_AT] == _FORMAT_2:
            header = _HEADER.unpack_from(self._data, at)
            last = header[0] + header[6]
            if header[0] <= self.next <= last:
                beyond = last + 1
        if len(self._data) - end >= _FRAME.size:
            following, _ = _FRAME.unpack_from(self._data, end)
            if self.next < following and (following < beyond or beyond == self.next + 1):
                beyond = following
        return Corrupt(self.next, beyond, reason)


class _Unpack:
    """Decompresses a batch ahead of its reading. A failure is left for the reading, which meets it again."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __call__(self) -> None:
        with contextlib.suppress(Exception):
            iter(self._batch)


def _guarded(call: Callable[..., Any], *arguments: object) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        # A foreign decoder on foreign bytes: whatever it raises says that they cannot be read.
        raise _BadBatch(f"{type(error).__name__}: {error}") from error


def _is_abort(batch: Any) -> bool:
    # Compaction may leave a control batch empty.
    found = _guarded(next, chain(batch), None)
    key = found and found.key
    return key is not None and len(key) >= _CONTROL_KEY.size and _CONTROL_KEY.unpack_from(key)[1] == _ABORT_MARKER


class _Read(NamedTuple):
    """A record as `_Lenient` reads it, with the attributes that aiokafka's have."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class _Lenient:
    """Reads the records of a format 2 batch like aiokafka, but takes header names that are not UTF-8. Slow."""

    _CODECS: Final[dict[int, Callable[[bytes], bytes]]] = {
        0: bytes,
        1: gzip_decode,
        2: snappy_decode,
        3: lz4_decode,
        4: zstd_decode,
    }

    def __init__(self, data: memoryview, header: tuple[int, ...]) -> None:
        self._base, self._attributes = header[0], header[5]
        self._first_ms, self._max_ms = header[7], header[8]
        self._left = header[12]
        self._buffer = self._CODECS[self._attributes & _CODEC](bytes(data[_HEADER.size :]))
        self._at = 0

    def __iter__(self) -> Iterator[_Read]:
        return self

    def __next__(self) -> _Read:
        if not self._left:
            raise StopIteration
        self._left -= 1
        self._varint()  # length
        self._at += 1  # attributes
        timestamp = self._first_ms + self._varint()
        if self._attributes & _LOG_APPEND_TIME:
            timestamp = self._max_ms
        offset = self._base + self._varint()
        key, value = self._bytes(), self._bytes()
        headers = [((self._bytes() or b"").decode(errors="replace"), self._bytes()) for _ in range(self._varint())]
        return _Read(offset, timestamp, key, value, headers)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._buffer[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  # no further byte follows
                return (value >> 1) ^ -(value & 1)
            shift += 7

    def _bytes(self) -> bytes | None:
        length = self._varint()
        if length < 0:
            return None
        self._at += length
        return bytes(self._buffer[self._at - length : self._at])


class Pacer:
    """Gives the loop back after each few milliseconds of work."""

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        self._seconds = seconds
        self._since = time.perf_counter()

    async def pause(self) -> None:
        """Let others run if the slice is used up."""
        if time.perf_counter() - self._since >= self._seconds:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


async def decode(part: Part, offset: int, take: Callable[[list[Record], int], bool], pacer: Pacer) -> Decoder:
    """Decode a part in slices; `take(records, next)` gets each and says whether to go on.

    Cancelling is safe: what was taken is taken.
    """
    decoder = Decoder(part, offset)
    for item in decoder.slices():
        if not isinstance(item, list):
            await asyncio.to_thread(item)
        elif not take(item, decoder.next):
            break
        await pacer.pause()
    return decoder
