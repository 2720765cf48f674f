"""The tail: complete between its start and its end, bounded, and free of what it evicted."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fanout.tail import Run, Tail
from gateway.records import OVERHEAD_BYTES, Record

KEYS = st.sampled_from((None, b"x", b"y"))


class Value(bytes):
    """Bytes that say when they are gone."""

    gone = 0

    def __del__(self) -> None:
        Value.gone += 1


def record(offset: int, key: bytes | None = None, value: bytes | None = b"") -> Record:
    return Record(offset, 0, key, value)


def tail_of(*records: Record, start: int = 0) -> Tail:
    tail = Tail(start=start, log_start=0)
    tail.append(records, end=records[-1].offset + 1, log_start=0)
    return tail


def test_a_new_tail_is_empty_at_its_start() -> None:
    tail = Tail(start=7, log_start=3)
    assert (tail.start, tail.end, tail.log_start, tail.cost, len(tail)) == (7, 7, 3, 0, 0)
    assert repr(tail) == "<Tail 7..7 of 0 records, 0 bytes, log from 3>"


def test_append_returns_what_is_new_and_leaves_out_what_came_before() -> None:
    tail = Tail(start=5, log_start=0)
    first, second, third = record(5), record(7), record(8)
    assert tail.append([first, second], end=8, log_start=0) == [first, second]
    assert tail.append([second, third], end=9, log_start=0) == [third]
    assert list(tail.since(0, None, 10)) == [first, second, third]
    assert tail.cost == 3 * OVERHEAD_BYTES


def test_end_and_log_start_only_move_forward() -> None:
    tail = Tail(start=5, log_start=2)
    tail.append([], end=9, log_start=4)
    tail.append([], end=7, log_start=1)
    assert (tail.start, tail.end, tail.log_start) == (5, 9, 4)


def test_since_and_newest_know_limits_and_keys() -> None:
    x1, y2, x3, n4, x6 = record(1, b"x"), record(2, b"y"), record(3, b"x"), record(4), record(6, b"x")
    tail = tail_of(x1, y2, x3, n4, x6)
    assert list(tail.since(2, None, 2)) == [y2, x3]
    assert list(tail.since(5, None, 2)) == [x6]
    assert list(tail.since(7, None, 2)) == []
    assert list(tail.since(2, b"x", 9)) == [x3, x6]
    assert list(tail.since(0, b"x", 1)) == [x1]
    assert list(tail.since(0, b"unknown", 1)) == []
    assert list(tail.newest(None, 2, 7)) == [n4, x6]
    assert list(tail.newest(None, 2, 4)) == [y2, x3]
    assert list(tail.newest(None, 2, 1)) == []
    assert list(tail.newest(b"x", 2, 6)) == [x1, x3]
    assert list(tail.newest(b"x", 9, 99)) == [x1, x3, x6]
    assert list(tail.newest(b"unknown", 2, 6)) == []


def test_the_index_by_key_follows_appends_and_evictions() -> None:
    tail = tail_of(record(0, b"x"), record(1))
    assert len(tail.since(0, b"x", 9)) == 1
    more = [record(2, b"x"), record(3, b"y"), record(4)]
    tail.append(more, end=5, log_start=0)
    assert [r.offset for r in tail.since(0, b"x", 9)] == [0, 2]
    tail.evict(1)
    assert [r.offset for r in tail.since(0, b"x", 9)] == [2]
    tail.evict(2 * OVERHEAD_BYTES)
    assert list(tail.since(0, b"x", 9)) == []
    assert tail._by_key is not None
    assert tail._by_key.keys() == {b"y"}


def test_evicting_frees_at_least_what_was_asked_and_moves_the_start_behind_the_last() -> None:
    tail = tail_of(record(0), record(3), record(6))
    cost = record(0).cost
    assert tail.evict(1) == cost
    assert (tail.start, tail.cost, len(tail)) == (1, 2 * cost, 2)
    assert tail.evict(cost + 1) == 2 * cost
    assert (tail.start, tail.end, tail.cost, len(tail)) == (7, 7, 0, 0)
    assert tail.evict(1) == 0


def test_a_tail_that_is_emptied_starts_at_its_end() -> None:
    """What lies between its last record and its end are holes: nobody has to ask the archive for them."""
    tail = Tail(start=0, log_start=0)
    tail.append([record(0)], end=5, log_start=0)
    tail.evict(1)
    assert tail.start == 5


def test_what_is_evicted_is_free_at_once() -> None:
    """The budget counts what is held: no list may keep evicted records until it is shortened."""
    for keyed in (False, True):
        tail = tail_of(*(record(n, b"x", Value(b"v" * 10)) for n in range(10)))
        if keyed:
            tail.since(0, b"x", 1)
        gone = Value.gone
        tail.evict(9 * tail.cost // 10)
        gc.collect()
        assert Value.gone - gone == 9
        assert len(tail) == 1


@given(st.lists(st.tuples(KEYS, st.integers(0, 3)), max_size=300), st.lists(st.integers(0, 3_000), max_size=30))
def test_a_tail_equals_a_list(written: list[tuple[bytes | None, int]], evictions: list[int]) -> None:
    tail, held, offset = Tail(start=0, log_start=0), [], 0
    for n, (key, gap) in enumerate(written):
        offset += gap
        held.append(record(offset, key))
        tail.append([held[-1]], end=offset + 1, log_start=0)
        offset += 1
        if n == 20:
            tail.since(0, b"x", 1)
        if evictions and n % 10 == 9:
            want, freed = evictions.pop(), 0
            while freed < want and held:
                freed += held.pop(0).cost
            assert tail.evict(want) == freed
        assert len(tail) == len(held)
    for key in (None, b"x", b"y"):
        expected = [r for r in held if key is None or r.key == key]
        assert list(tail.since(0, key, 1_000)) == expected
        for at in (0, offset // 2, offset):
            assert list(tail.since(at, key, 3)) == [r for r in expected if r.offset >= at][:3]
            assert list(tail.newest(key, 3, at)) == [r for r in expected if r.offset < at][-3:]


def test_a_run_gives_up_its_list_now_and_then() -> None:
    run = Run(record(n) for n in range(200))
    for n in range(150):
        assert run.evict().offset == n
    assert len(run) == 50
    assert len(run._records) == 100
    assert [r.offset for r in run.since(0, 2)] == [150, 151]


def test_an_empty_run_has_nothing_to_evict() -> None:
    with pytest.raises(IndexError):
        Run().evict()


def test_a_hole_is_found_by_every_reader_until_it_is_evicted() -> None:
    """Whose records were in a damaged batch is unknown: it concerns readers of any key."""
    tail = Tail(start=0, log_start=0)
    tail.append([Record(0, 1, b"a", b"1"), Record.hole(1, 4), Record(4, 2, b"b", b"2")], end=5, log_start=0)
    assert [r.offset for r in tail.since(0, b"a", 9)] == [0, 1]
    assert [r.offset for r in tail.since(0, b"b", 9)] == [1, 4]
    assert [r.offset for r in tail.since(0, b"none", 9)] == [1]
    assert [r.offset for r in tail.since(0, b"b", 1)] == [1]
    assert [r.offset for r in tail.since(0, None, 9)] == [0, 1, 4]
    tail.evict(tail.cost - 1)
    assert tail.start == 5
    assert list(tail.since(0, b"b", 9)) == []
