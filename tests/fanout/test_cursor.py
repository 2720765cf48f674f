"""Cursors: exact round trips, one text for each position, and nothing but CursorInvalid for anything else."""

import base64
import string
import zlib

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CursorInvalid, CursorMismatch, SubscriptionTooWide
from gateway.fanout.cursor import (
    MAX_CHARACTERS,
    MAX_PARTITIONS,
    Entry,
    TopicPosition,
    bind,
    check_width,
    decode,
    encode,
    id_hash,
    murmur2,
    name_hash,
    partition_for,
)

ALPHABET = string.ascii_letters + string.digits + "-_"
OFFSETS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
PARTITIONS = st.one_of(st.integers(0, 8), st.integers(0, 300), st.integers(0, 2**31 - 1))
POSITIONS = st.dictionaries(
    st.text(ALPHABET, min_size=1, max_size=20),
    st.builds(
        TopicPosition,
        st.integers(0, 2**32 - 1),
        st.one_of(
            st.dictionaries(PARTITIONS, OFFSETS, max_size=8),
            st.lists(OFFSETS, max_size=12).map(lambda offsets: dict(enumerate(offsets))),
        ),
        st.one_of(st.just(0), st.integers(0, 2**31 - 1)),
    ),
    max_size=5,
)
KEYS = st.binary(max_size=40)


def wrap(body: bytes) -> str:
    """Return the text of a body, with a checksum that is right."""
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "big")).rstrip(b"=").decode()


def topic(head: bytes, *rest: int, name: int = 7) -> bytes:
    return name.to_bytes(4, "big") + bytes(4) + head + bytes(rest)


# --- round trips ---


@given(POSITIONS)
def test_decoding_gives_back_what_was_encoded(position: dict[str, TopicPosition]) -> None:
    entries = decode(encode(position))
    assert {entry.name_hash: entry.position for entry in entries} == {name_hash(name): own for name, own in position.items()}
    if position:
        assert bind(entries, position) == position


@given(POSITIONS)
def test_a_position_that_passed_the_width_check_has_a_cursor_within_bounds(position: dict[str, TopicPosition]) -> None:
    check_width(position)
    assert len(encode(position)) <= MAX_CHARACTERS


@given(POSITIONS, st.randoms())
def test_the_order_of_topics_and_partitions_does_not_matter(position: dict[str, TopicPosition], random: object) -> None:
    names = list(position)
    random.shuffle(names)
    again = {name: position[name]._replace(offsets=dict(reversed(position[name].offsets.items()))) for name in names}
    assert encode(again) == encode(position)


def test_the_empty_position_has_a_cursor() -> None:
    assert decode(encode({})) == []


# --- one text for each position, and no other ---


@given(POSITIONS, st.data())
def test_a_flipped_bit_is_always_noticed(position: dict[str, TopicPosition], data: st.DataObject) -> None:
    text = encode(position)
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CursorInvalid):
        decode(base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


@given(POSITIONS, st.data())
def test_a_changed_character_is_always_noticed(position: dict[str, TopicPosition], data: st.DataObject) -> None:
    text = encode(position)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[at]))
    with pytest.raises(CursorInvalid):
        decode(text[:at] + other + text[at + 1 :])


@given(POSITIONS, st.integers(1, 8))
def test_a_cut_or_extended_cursor_is_noticed(position: dict[str, TopicPosition], cut: int) -> None:
    text = encode(position)
    for damaged in (text[:-cut], text + "A" * cut, "A" * cut + text):
        with pytest.raises(CursorInvalid):
            decode(damaged)


@given(st.one_of(st.text(), st.text(ALPHABET), st.text(ALPHABET + "=+/ \n")))
def test_any_text_gives_entries_or_cursor_invalid(text: str) -> None:
    try:
        entries = decode(text)
    except CursorInvalid:
        return
    assert all(isinstance(entry, Entry) for entry in entries)


@given(st.binary(max_size=60))
def test_what_decodes_has_exactly_this_text(body: bytes) -> None:
    """A body with a right checksum is refused, or it is the one that its entries are written as."""
    text = wrap(b"\x01" + body)
    try:
        entries = decode(text)
    except CursorInvalid:
        return
    assert rewritten(entries) == text


@given(POSITIONS, st.data())
def test_a_changed_byte_with_a_right_checksum_gives_another_position_or_none(
    position: dict[str, TopicPosition], data: st.DataObject
) -> None:
    text = encode(position)
    body = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        entries = decode(wrap(bytes(body)))
    except CursorInvalid:
        return
    assert rewritten(entries) == wrap(bytes(body))


def rewritten(entries: list[Entry]) -> str:
    """Encode entries, whose names are not known, in the layout of the module's docstring."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])

    body = b"\x01"
    for name, (topic_id, offsets, count) in entries:
        dense = sorted(offsets) == list(range(len(offsets))) and len(offsets) > 0
        body += name.to_bytes(4, "big") + topic_id.to_bytes(4, "big") + varint(4 * len(offsets) + 2 * dense + bool(count))
        body += varint(count) if count else b""
        before = -1
        for partition in sorted(offsets):
            body += (b"" if dense else varint(partition - before - 1)) + varint(offsets[partition])
            before = partition
    return wrap(body)


@given(POSITIONS)
def test_the_layout_is_the_documented_one(position: dict[str, TopicPosition]) -> None:
    assert rewritten(decode(encode(position))) == encode(position)


SPARSE, DENSE, COUNTED = b"\x04", b"\x06", b"\x05"
INVALID = {
    "nothing": "",
    "too long": "A" * (MAX_CHARACTERS + 1),
    "five characters of four": "AAAAA",
    "padding": encode({"a": TopicPosition(0, {})}) + "=",
    "a line break": encode({}) + "\n",
    "the other alphabet": "+/" * 8,
    "not ASCII": "é" * 8,
    "no body": base64.urlsafe_b64encode(zlib.crc32(b"").to_bytes(4, "big")).rstrip(b"=").decode(),
    "version 0": wrap(b"\x00"),
    "version 2": wrap(b"\x02"),
    "a cut hash": wrap(b"\x01" + bytes(7)),
    "no head": wrap(b"\x01" + bytes(8)),
    "no count": wrap(b"\x01" + topic(b"\x01")),
    "count 0": wrap(b"\x01" + topic(b"\x01", 0)),
    "no gap": wrap(b"\x01" + topic(SPARSE)),
    "no offset": wrap(b"\x01" + topic(SPARSE, 1)),
    "no dense offset": wrap(b"\x01" + topic(DENSE)),
    "sparse where dense would do": wrap(b"\x01" + topic(SPARSE, 0, 5)),
    "dense without partitions": wrap(b"\x01" + topic(b"\x02")),
    "an endless varint": wrap(b"\x01" + topic(SPARSE, 1, *[0x80] * 11)),
    "an eleven-byte varint": wrap(b"\x01" + topic(SPARSE, 1, *[0xFF] * 10, 0x00)),
    "a longer varint than needed": wrap(b"\x01" + topic(SPARSE, 1, 0x81, 0x00)),
    "an offset of 2^63": wrap(b"\x01" + topic(SPARSE, 1, *[0x80] * 9, 0x01)),
    "a partition of 2^31": wrap(b"\x01" + topic(SPARSE, 0x80, 0x80, 0x80, 0x80, 0x08, 0)),
    "257 partitions": wrap(b"\x01" + topic(b"\x86\x08", *[0] * 257)),
    "257 partitions in two topics": wrap(b"\x01" + topic(b"\x82\x04", *[0] * 128) + topic(b"\x86\x04", *[0] * 129, name=8)),
    "a topic twice": wrap(b"\x01" + topic(b"\x00") + topic(b"\x00")),
    "topics not in order": wrap(b"\x01" + topic(b"\x00", name=8) + topic(b"\x00", name=7)),
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_what_is_not_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(CursorInvalid):
        decode(text)


VALID = {
    "no topic": (wrap(b"\x01"), []),
    "no partition": (wrap(b"\x01" + topic(b"\x00")), [Entry(7, TopicPosition(0, {}))]),
    "a count without partitions": (wrap(b"\x01" + topic(b"\x01", 6)), [Entry(7, TopicPosition(0, {}, 6))]),
    "one partition": (wrap(b"\x01" + topic(DENSE, 5)), [Entry(7, TopicPosition(0, {0: 5}))]),
    "a gap": (wrap(b"\x01" + topic(SPARSE, 1, 5)), [Entry(7, TopicPosition(0, {1: 5}))]),
    "a partition count": (wrap(b"\x01" + topic(COUNTED, 6, 1, 5)), [Entry(7, TopicPosition(0, {1: 5}, 6))]),
    "the largest offset": (
        wrap(b"\x01" + topic(DENSE, *[0xFF] * 8, 0x7F)),
        [Entry(7, TopicPosition(0, {0: 2**63 - 1}))],
    ),
    "the largest partition": (
        wrap(b"\x01" + topic(SPARSE, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 1)),
        [Entry(7, TopicPosition(0, {2**31 - 1: 1}))],
    ),
    "256 partitions": (
        wrap(b"\x01" + topic(b"\x82\x08", *[0] * 256)),
        [Entry(7, TopicPosition(0, dict.fromkeys(range(256), 0)))],
    ),
}


@pytest.mark.parametrize(("text", "entries"), VALID.values(), ids=VALID)
def test_the_bounds_are_inclusive(text: str, entries: list[Entry]) -> None:
    assert decode(text) == entries


# --- width ---


def test_256_partitions_of_one_topic_fit_also_when_their_offsets_have_grown() -> None:
    position = {"a": TopicPosition(1, dict.fromkeys(range(MAX_PARTITIONS), 0))}
    check_width(position)
    grown = {"a": TopicPosition(1, dict.fromkeys(range(MAX_PARTITIONS), 2**35 - 1))}
    check_width(grown)
    assert len(encode(grown)) <= MAX_CHARACTERS
    assert bind(decode(encode(grown)), ["a"]) == grown


@pytest.mark.parametrize(
    "position",
    [
        {"a": TopicPosition(1, dict.fromkeys(range(MAX_PARTITIONS + 1), 0))},
        {"a": TopicPosition(1, dict.fromkeys(range(128), 0)), "b": TopicPosition(1, dict.fromkeys(range(129), 0))},
        {"a": TopicPosition(1, dict.fromkeys(range(MAX_PARTITIONS), 2**63 - 1))},
        {f"t{n}": TopicPosition(1, dict.fromkeys(range(8), 0)) for n in range(32)},
        {"a": TopicPosition(1, dict.fromkeys(range(1, MAX_PARTITIONS + 1), 0))},
        {"a": TopicPosition(1, dict.fromkeys(range(0, 2 * 230, 2), 2**42))},
    ],
    ids=["257", "257 of two topics", "large offsets", "many topics", "gaps", "larger offsets and gaps"],
)
def test_a_cursor_that_would_outgrow_its_bounds_is_refused(position: dict[str, TopicPosition]) -> None:
    with pytest.raises(SubscriptionTooWide):
        check_width(position)


def exact(wide: int) -> dict[str, TopicPosition]:
    """253 partitions, none of them 0; the first `wide` of them behind a gap that takes two bytes."""
    offsets, partition = {}, 0
    for n in range(253):
        partition += 200 if n < wide else 2
        offsets[partition] = 2**35 - 1
    return {"a": TopicPosition(1, offsets, 5)}


def test_a_cursor_may_have_2048_characters_and_no_more() -> None:
    check_width(exact(2))
    assert len(encode(exact(2))) == MAX_CHARACTERS
    assert bind(decode(encode(exact(2))), ["a"]) == exact(2)
    with pytest.raises(SubscriptionTooWide) as raised:
        check_width(exact(3))
    assert raised.value.detail.startswith("The channels cover 253 partitions; one subscription can hold 256 in")
    with pytest.raises(CursorInvalid):
        decode(encode(exact(3)))


@given(st.integers(1, MAX_PARTITIONS), st.integers(0, 2), st.integers(0, 2**35 - 1), st.integers(0, 300))
def test_the_width_check_weighs_what_encode_writes(count: int, gap: int, offset: int, followed: int) -> None:
    """Accepted exactly when the cursor fits once all its offsets have grown to 2^35."""
    offsets = {n * (gap + 1): offset for n in range(count)}
    grown = {"a": TopicPosition(1, dict.fromkeys(offsets, 2**35 - 1), followed)}
    try:
        check_width({"a": TopicPosition(1, offsets, followed)})
    except SubscriptionTooWide:
        # A partition count takes a byte at least in the reckoning, so that one that comes later fits as well.
        assert len(encode(grown)) > MAX_CHARACTERS - 2
    else:
        assert len(encode(grown)) <= MAX_CHARACTERS


# --- binding ---


def test_entries_of_other_topics_are_dropped_and_missing_topics_left_out() -> None:
    own, other = TopicPosition(1, {0: 5}), TopicPosition(2, {0: 6})
    assert bind(decode(encode({"own": own, "other": other})), ["own", "new"]) == {"own": own}


def test_nothing_in_common_is_a_mismatch() -> None:
    with pytest.raises(CursorMismatch):
        bind(decode(encode({"other": TopicPosition(2, {0: 6})})), ["own"])
    with pytest.raises(CursorMismatch):
        bind([], ["own"])


def test_an_entry_without_partitions_binds() -> None:
    """A topic that did not exist yet is in common all the same."""
    assert bind(decode(encode({"own": TopicPosition(0, {})})), ["own"]) == {"own": TopicPosition(0, {})}


# --- hashes ---


def test_an_unknown_topic_id_hashes_to_0_and_no_other_does() -> None:
    assert id_hash(None) == id_hash(bytes(16)) == 0
    assert id_hash(b"\x01" * 16) not in (0, id_hash(b"\x02" * 16))


def test_an_id_whose_hash_would_be_0_is_known_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def __init__(self, data: bytes, *, digest_size: int) -> None:
            self.size = digest_size

        def digest(self) -> bytes:
            return bytes(self.size)

    monkeypatch.setattr("gateway.fanout.cursor.blake2b", Zero)
    assert id_hash(b"\x01" * 16) == 1


def test_hashes_never_change() -> None:
    """Cursors outlive releases: these values are part of the format."""
    assert name_hash("orders") == 4166083772
    assert id_hash(bytes(range(16))) == 3395175822


@given(KEYS, st.integers(1, 1_000))
def test_keys_go_where_kafkas_default_partitioner_puts_them(key: bytes, count: int) -> None:
    partitions = list(range(count))
    assert partition_for(key, count) == DefaultPartitioner()(key, partitions, partitions)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_tests(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed % 2**32
