"""Records: what they cost and when they are equal."""

import gc
import tracemalloc

import pytest

from gateway.records import COLD_OVERHEAD_BYTES, OVERHEAD_BYTES, Block, Record, cost_of, cost_of_history


def test_the_cost_covers_twice_the_bytes_and_the_objects() -> None:
    assert Record(0, 0, None, None).cost == OVERHEAD_BYTES
    assert Record(0, 0, b"key", b"value").cost == OVERHEAD_BYTES + 2 * 8
    headers = (("name", b"12"), ("n", None))
    assert Record(0, 0, None, None, headers).cost == OVERHEAD_BYTES + 2 * (4 + 2 + 100 + 1 + 100)


def test_the_overhead_is_not_less_than_a_record_takes() -> None:
    """A record with key, value, and an encoded form of about the same length."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = []
        for n in range(1_000):
            record = Record(1_000_000 + n, 1_795_334_400_000 + n, b"key-%d" % n, bytes(100))
            record.shown = (("json", ()), bytes(90), bytes(100))
            held.append(record)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= sum(record.cost for record in held)


def test_history_is_charged_once_for_its_bytes() -> None:
    records = [Record(0, 0, b"k", b"value"), Record(1, 0, None, None), Record(2, 0, b"k", b"v", (("name", b"1"), ("n", None)))]
    assert cost_of_history(records) == 3 * COLD_OVERHEAD_BYTES + 6 + 2 + (4 + 1 + 200) + (1 + 200)
    assert cost_of_history([]) == 0
    assert cost_of(records) == sum(record.cost for record in records)
    assert cost_of([]) == 0


def test_the_overhead_of_history_is_not_less_than_a_record_takes() -> None:
    """A record with key, value and a header, in a list that has grown."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = []
        for n in range(1_000):
            record = Record(1_000_000 + n, 1_795_334_400_000 + n, b"key-%d" % n, bytes(100), ((f"name-{n}", b"%d" % n),))
            held.append(record)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * cost_of_history(held) <= taken <= cost_of_history(held)


def test_records_are_no_work_for_the_garbage_collector() -> None:
    """They cannot be part of a cycle, and there are hundreds of thousands of them."""
    assert not gc.is_tracked(Record(0, 0, b"k", b"v", (("name", b"1"),)))


def test_records_are_equal_by_what_was_produced() -> None:
    record = Record(1, 2, b"k", b"v", (("h", b"x"),))
    same = Record(1, 2, b"k", b"v", (("h", b"x"),))
    same.shown = ("json", b"", b"")
    assert record == same
    for other in (
        Record(9, 2, b"k", b"v", (("h", b"x"),)),
        Record(1, None, b"k", b"v", (("h", b"x"),)),
        Record(1, 2, None, b"v", (("h", b"x"),)),
        Record(1, 2, b"k", None, (("h", b"x"),)),
        Record(1, 2, b"k", b"v"),
        "a string",
    ):
        assert record != other


def test_records_are_no_keys_and_say_what_they_are() -> None:
    with pytest.raises(TypeError):
        hash(Record(1, 2, b"k", b"v"))
    assert repr(Record(1, 2, b"k", b"v")) == "<Record 1 key=b'k'>"


def test_a_block_is_data() -> None:
    assert Block(0, 5, [], 0, 9) == Block(0, 5, [], 0, 9)


def test_a_hole_is_no_record_and_equals_only_its_like() -> None:
    """It has an end, and no content."""
    assert Record.hole(3, 7) == Record.hole(3, 7)
    assert Record.hole(3, 7) != Record.hole(3, 8)
    assert Record.hole(3, 7) != Record(3, None, None, None)
