"""Cursors: where a reader stands, as text that any instance understands (sans-I/O).

Theory of operation. A cursor is a position and never a permission: it holds no identity and no secret, so it is neither
signed nor encrypted, and a forged one opens nothing. Every poll is authorized from its token, and the key filters come from
channel and claims. A checksum tells a damaged cursor from a valid one; it is no protection and is not meant as one.

Layout, before base64url without padding (RFC 4648, section 5):

    version            1 byte, now 1
    per topic          4 bytes hash of the topic's name, ascending
                       4 bytes hash of its topic id (KIP-516), 0 where the broker gives none
                       varint 4 * number of named partitions, + 2 if they are 0, 1, 2 …, + 1 if a partition count follows
                       [varint partition count, for channels that follow a partitioner]
                       per named partition, ascending: [varint gap to the one before, unless they are 0, 1, 2 …], varint offset
    checksum           4 bytes CRC-32 of all before

Varints are unsigned LEB128. An offset is the next one to read. Without the gaps, a topic of 256 partitions fits the bound.

A position is bound to topics: `bind` finds the topic of each entry by the hash of its name; entries for other topics are
dropped. What becomes of missing, new and vanished partitions is decided where the log is known, in `reading`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from gateway.errors import CursorInvalid, CursorMismatch, SubscriptionTooWide

MAX_CHARACTERS = 2_048
MAX_PARTITIONS = 256
_VERSION = 1
_MAX_OFFSET = 2**63 - 1
_MAX_PARTITION = 2**31
_VARINT_BYTES = 10
# The width check counts each offset with at least the bytes of 2^35: a cursor must not outgrow its bound as offsets grow.
_OFFSET_BYTES_RESERVED = 5


class TopicPosition(NamedTuple):
    """Where a reader stands in one topic.

    `id_hash` tells a topic from one of the same name that was created later (0: unknown). `offsets` gives the next offset
    to read by partition; a partition that is not named is read from its log start. `partition_count` is the number of
    partitions that the partitioner knew, 0 where none is followed.
    """

    id_hash: int
    offsets: Mapping[int, int]
    partition_count: int = 0


Position = Mapping[str, TopicPosition]


class Entry(NamedTuple):
    """One topic of a decoded cursor, before its name is known."""

    name_hash: int
    position: TopicPosition


def name_hash(topic: str) -> int:
    """Return the 32-bit hash by which cursors name a topic."""
    return int.from_bytes(blake2b(topic.encode(), digest_size=4).digest(), "big")


def id_hash(topic_id: bytes | None) -> int:
    """Return the 32-bit hash of a topic id, never 0; 0 where the id is unknown (None or all zero, KIP-516)."""
    if topic_id is None or not any(topic_id):
        return 0
    return int.from_bytes(blake2b(topic_id, digest_size=4).digest(), "big") or 1


def encode(position: Position) -> str:
    """Return the cursor of a position: at most 2,048 characters, as `check_width` promised at the first poll."""
    body = bytearray([_VERSION])
    for name, topic in sorted((name_hash(topic), topic) for topic in position):
        _put_topic(body, name, position[topic])
    body += zlib.crc32(body).to_bytes(4, "big")
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii")


def decode(text: str) -> list[Entry]:
    """Return the entries of a cursor, or raise CursorInvalid. Exactly one text is accepted for each position."""
    body = _unwrap(text)
    entries: list[Entry] = []
    at = 1
    while at < len(body):
        entry, at = _take_topic(body, at)
        entries.append(entry)
    names = [entry.name_hash for entry in entries]
    if names != sorted(set(names)) or sum(len(entry.position.offsets) for entry in entries) > MAX_PARTITIONS:
        raise CursorInvalid
    return entries


def bind(entries: Iterable[Entry], topics: Iterable[str]) -> dict[str, TopicPosition]:
    """Give the entries the names of `topics`; drop the others.

    Topics that no entry names are missing from the result: they start at `from`. CursorMismatch if none is in common.
    """
    names = {name_hash(topic): topic for topic in topics}
    bound = {names[entry.name_hash]: entry.position for entry in entries if entry.name_hash in names}
    if not bound:
        raise CursorMismatch
    return bound


def check_width(position: Position) -> None:
    """Raise SubscriptionTooWide unless the position's cursor fits, now and when its offsets have grown (to 2^35)."""
    partitions = sum(len(topic.offsets) for topic in position.values())
    size = 1 + 4
    for topic in position.values():
        size += 8 + len(_varint(4 * len(topic.offsets))) + len(_varint(topic.partition_count))
        dense = _is_dense(topic.offsets)
        for gap, offset in _gaps(topic.offsets):
            size += (0 if dense else len(_varint(gap))) + max(_OFFSET_BYTES_RESERVED, len(_varint(offset)))
    if partitions > MAX_PARTITIONS or -(-size * 4 // 3) > MAX_CHARACTERS:
        raise SubscriptionTooWide(partitions=partitions, limit=MAX_PARTITIONS)


def partition_for(key: bytes, count: int) -> int:
    """Return the partition of a key among `count`, as Kafka's default partitioner places it (murmur2, masked positive)."""
    return (murmur2(key) & 0x7FFFFFFF) % count


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit MurmurHash2 (seed 0x9747b28c), as `org.apache.kafka.common.utils.Utils` computes it."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    whole = len(data) & ~3
    h = 0x9747B28C ^ len(data)
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if len(data) > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def _unwrap(text: str) -> bytes:
    if not text or len(text) > MAX_CHARACTERS:
        raise CursorInvalid
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CursorInvalid from error
    # Unused bits of the last character would let several texts stand for one position; "+" and "/" count as well.
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != text:
        raise CursorInvalid
    body, checksum = raw[:-4], raw[-4:]
    if len(raw) < 1 + 4 or body[0] != _VERSION or zlib.crc32(body).to_bytes(4, "big") != checksum:
        raise CursorInvalid
    return body


def _put_topic(body: bytearray, name: int, topic: TopicPosition) -> None:
    body += name.to_bytes(4, "big") + topic.id_hash.to_bytes(4, "big")
    dense = _is_dense(topic.offsets)
    body += _varint(4 * len(topic.offsets) + 2 * dense + (topic.partition_count > 0))
    if topic.partition_count:
        body += _varint(topic.partition_count)
    for gap, offset in _gaps(topic.offsets):
        body += _varint(offset) if dense else _varint(gap) + _varint(offset)


def _take_topic(body: bytes, at: int) -> tuple[Entry, int]:
    # What is too short for the hashes is too short for the number behind them, which says so.
    name, topic_id = int.from_bytes(body[at : at + 4], "big"), int.from_bytes(body[at + 4 : at + 8], "big")
    head, at = _take_varint(body, at + 8)
    count = 0
    if head & 1:
        count, at = _take_varint(body, at)
        if not count:
            raise CursorInvalid
    offsets: dict[int, int] = {}
    partition, dense, gap = -1, bool(head & 2), 0
    for _ in range(head >> 2):
        if not dense:
            gap, at = _take_varint(body, at)
        partition += gap + 1
        offsets[partition], at = _take_varint(body, at)
    if partition >= _MAX_PARTITION or dense != _is_dense(offsets):
        raise CursorInvalid
    return Entry(name, TopicPosition(topic_id, offsets, count)), at


def _is_dense(offsets: Mapping[int, int]) -> bool:
    return len(offsets) > 0 and max(offsets) == len(offsets) - 1


def _gaps(offsets: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    before = -1
    for partition in sorted(offsets):
        yield partition - before - 1, offsets[partition]
        before = partition


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:  # noqa: PLR2004  # LEB128: seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _take_varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(body[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:  # noqa: PLR2004
            if value > _MAX_OFFSET or (n and not byte):
                raise CursorInvalid
            return value, at + n + 1
    raise CursorInvalid
