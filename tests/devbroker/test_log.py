"""One partition: bounds, idempotence, transactions, reads within bounds, times, retention, compaction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.devbroker.batches import Batch, build, parse
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.log import Log
from gateway.records import Record

ALL = 2**31


def batch(
    *values: bytes, ts: int = 1000, key: bytes | None = None, producer=(-1, -1, -1), transactional=False, codec="none"
) -> Batch:
    records = [Record(0, ts + n, key, value) for n, value in enumerate(values)]
    return build(records, producer=producer, transactional=transactional, codec=codec)


def filled(*sizes: int) -> Log:
    log = Log()
    for size in sizes:
        log.append(batch(*[b"v%d" % n for n in range(size)]))
    return log


def bases(data: bytes) -> list[int]:
    return [one.base for one in parse(data)]


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


def test_offsets_ascend_without_holes():
    log = filled(2, 3, 1)
    assert (log.start, log.stable_end, log.end) == (0, 6, 6)
    assert bases(log.read(0, ALL, committed=True, at_least_one=True)) == [0, 2, 5]
    assert repr(log) == f"<Log 0..6..6 in 3 batches, {log.size} bytes>"
    assert [one.offset for one in log.records()] == [0, 1, 2, 3, 4, 5]


def test_a_read_begins_with_the_batch_that_holds_the_offset():
    log = filled(2, 3, 1)
    assert bases(log.read(3, ALL, committed=False, at_least_one=True)) == [2, 5]
    assert log.read(6, ALL, committed=False, at_least_one=True) == b""


@pytest.mark.parametrize("offset", [-1, 7])
def test_offsets_outside_of_the_log_are_refused(offset):
    with refused(Code.OFFSET_OUT_OF_RANGE):
        filled(2, 3, 1).read(offset, ALL, committed=False, at_least_one=True)


def test_the_first_batch_comes_whole_and_the_last_may_be_cut():
    log = filled(2, 2)
    whole = log.read(0, ALL, committed=False, at_least_one=True)
    first = len(whole) // 2
    assert log.read(0, 1, committed=False, at_least_one=True) == whole[:first]
    assert log.read(0, 1, committed=False, at_least_one=False) == whole[:1]
    assert log.read(0, first + 5, committed=False, at_least_one=True) == whole[: first + 5]
    assert log.read(0, 0, committed=False, at_least_one=False) == b""
    assert log.read(0, 0, committed=False, at_least_one=True) == whole[:first]


def test_a_repeated_batch_is_stored_once():
    log = Log()
    first = batch(b"a", b"b", producer=(1, 0, 0))
    second = batch(b"c", producer=(1, 0, 2))
    assert [log.append(first), log.append(second)] == [0, 2]
    assert [log.append(first), log.append(second)] == [0, 2]
    assert log.end == 3


def test_a_gap_in_the_sequence_is_refused():
    log = Log()
    log.append(batch(b"a", producer=(1, 0, 0)))
    with refused(Code.OUT_OF_ORDER_SEQUENCE):
        log.append(batch(b"b", producer=(1, 0, 2)))
    log.append(batch(b"b", producer=(1, 0, 1)))


def test_only_the_last_five_batches_of_a_producer_are_known():
    log = Log()
    for n in range(6):
        log.append(batch(b"x", producer=(1, 0, n)))
    assert log.append(batch(b"x", producer=(1, 0, 1))) == 1
    with refused(Code.OUT_OF_ORDER_SEQUENCE):
        log.append(batch(b"x", producer=(1, 0, 0)))


def test_sequences_wrap():
    log = Log()
    log.append(batch(b"a", b"b", producer=(1, 0, 2**31 - 2)))
    assert log.append(batch(b"c", producer=(1, 0, 0))) == 2


def test_a_newer_epoch_starts_over_and_fences_the_older():
    log = Log()
    log.append(batch(b"a", producer=(1, 0, 0)))
    with refused(Code.OUT_OF_ORDER_SEQUENCE):
        log.append(batch(b"b", producer=(1, 1, 4)))
    log.append(batch(b"b", producer=(1, 1, 0)))
    with refused(Code.INVALID_PRODUCER_EPOCH):
        log.append(batch(b"c", producer=(1, 0, 1)))


def test_an_open_transaction_holds_back_the_stable_end():
    log = filled(1)
    log.append(batch(b"t", producer=(1, 0, 0), transactional=True))
    log.append(batch(b"plain"))
    assert (log.stable_end, log.end) == (1, 3)
    assert bases(log.read(0, ALL, committed=True, at_least_one=True)) == [0]
    assert log.read(1, ALL, committed=True, at_least_one=True) == b""
    assert bases(log.read(0, ALL, committed=False, at_least_one=True)) == [0, 1, 2]
    log.append(batch(b"t2", producer=(1, 0, 1), transactional=True))
    log.finish(1, 0, commit=True, timestamp_ms=5)
    assert (log.stable_end, log.end) == (5, 5)
    assert log.aborted(0, 5) == []
    assert [one.control for one in parse(log.read(4, ALL, committed=True, at_least_one=True))] == [True]


def test_the_oldest_of_several_open_transactions_counts():
    log = Log()
    log.append(batch(b"a", producer=(1, 0, 0), transactional=True))
    log.append(batch(b"b", producer=(2, 0, 0), transactional=True))
    log.finish(1, 0, commit=False, timestamp_ms=5)
    assert log.stable_end == 1
    log.finish(2, 0, commit=True, timestamp_ms=5)
    assert log.stable_end == 4
    (aborted,) = log.aborted(0, 4)
    assert (aborted.producer_id, aborted.first, aborted.last) == (1, 0, 2)


@pytest.mark.parametrize(("start", "end", "found"), [(0, 1, True), (2, 9, True), (3, 9, False), (0, 0, False)])
def test_aborted_transactions_are_told_to_readers_of_their_range(start, end, found):
    log = Log()
    log.append(batch(b"a", b"b", producer=(1, 0, 0), transactional=True))
    log.finish(1, 0, commit=False, timestamp_ms=5)
    assert bool(log.aborted(start, end)) is found


def test_a_marker_of_a_newer_epoch_fences_the_producer():
    log = Log()
    log.append(batch(b"a", producer=(1, 0, 0), transactional=True))
    log.finish(1, 1, commit=False, timestamp_ms=5)
    with refused(Code.INVALID_PRODUCER_EPOCH):
        log.append(batch(b"b", producer=(1, 0, 1), transactional=True))
    log.append(batch(b"b", producer=(1, 1, 0), transactional=True))


def test_a_marker_where_the_producer_wrote_nothing():
    log = Log()
    log.finish(1, 0, commit=False, timestamp_ms=5)
    assert (log.stable_end, log.end, log.aborted(0, 1)) == (1, 1, [])


def test_offsets_by_time():
    log = Log()
    log.append(batch(b"a", b"b", ts=1000))
    log.append(batch(b"late", ts=500))
    log.append(batch(b"c", ts=2000, codec="gzip"))
    assert log.offset_at(0, committed=True) == (0, 1000)
    assert log.offset_at(1001, committed=True) == (1, 1001)
    assert log.offset_at(1002, committed=True) == (3, 2000)
    assert log.offset_at(2001, committed=True) is None
    log.delete_before(1)
    assert log.offset_at(0, committed=True) == (1, 1001)


def test_offsets_by_time_end_at_the_readers_bound():
    log = Log()
    log.append(batch(b"a", ts=1000))
    log.append(batch(b"t", ts=2000, producer=(1, 0, 0), transactional=True))
    assert log.offset_at(1500, committed=True) is None
    assert log.offset_at(1500, committed=False) == (1, 2000)
    log.finish(1, 0, commit=True, timestamp_ms=9000)
    assert log.offset_at(1500, committed=True) == (1, 2000)
    assert log.offset_at(2500, committed=True) is None


def test_records_without_time_are_not_found_by_it():
    log = Log()
    log.append(build([Record(0, None, None, b"a")]))
    log.append(batch(b"b", ts=10))
    assert log.offset_at(0, committed=True) == (1, 10)


def test_a_deleted_record_is_not_found_by_its_time():
    log = Log()
    log.append(build([Record(0, 2000, None, b"a"), Record(0, 1000, None, b"b")]))
    log.append(batch(b"c", ts=3000))
    log.delete_before(1)
    assert log.offset_at(1500, committed=True) == (2, 3000)


def test_deleting_moves_the_start_also_into_a_batch():
    log = filled(2, 3)
    assert log.delete_before(3) == 3
    assert bases(log.read(3, ALL, committed=True, at_least_one=True)) == [2]
    assert [one.offset for one in log.records()] == [3, 4]
    with refused(Code.OFFSET_OUT_OF_RANGE):
        log.read(2, ALL, committed=True, at_least_one=True)
    assert log.delete_before(1) == 3
    assert log.delete_before(-1) == 5
    assert (log.start, log.end, log.size) == (5, 5, 0)
    assert log.append(batch(b"x")) == 5


@pytest.mark.parametrize("offset", [-2, 3])
def test_deleting_outside_of_the_log_is_refused(offset):
    with refused(Code.OFFSET_OUT_OF_RANGE):
        filled(2).delete_before(offset)


def test_aborted_transactions_go_with_their_records():
    log = Log()
    log.append(batch(b"a", producer=(1, 0, 0), transactional=True))
    log.finish(1, 0, commit=False, timestamp_ms=5)
    log.append(batch(b"b"))
    log.delete_before(2)
    assert log.aborted(0, 9) == []


def test_retention_by_time_takes_whole_batches_from_the_old_end():
    log = Log()
    for ts in (1000, 3000, 2000):
        log.append(batch(b"a", b"b", ts=ts))
    assert log.expire(before_ms=1001) == 0
    assert log.expire(before_ms=2500) == 2
    assert log.start == 2
    assert log.expire(before_ms=9000) == 4
    assert log.expire(before_ms=9000) == 0
    assert (log.start, log.end) == (6, 6)


def test_retention_by_size_leaves_at_least_as_much():
    log = filled(1, 1, 1)
    one = log.size // 3
    assert log.expire(max_bytes=3 * one) == 0
    assert log.expire(max_bytes=2 * one + 1) == 0
    assert log.expire(max_bytes=one) == 2
    assert log.size == one


def test_retention_stops_at_an_open_transaction_and_at_records_without_time():
    log = Log()
    log.append(batch(b"t", ts=1, producer=(1, 0, 0), transactional=True))
    assert log.expire(before_ms=9000, max_bytes=0) == 0
    timeless = Log()
    timeless.append(build([Record(0, None, None, b"v")]))
    assert timeless.expire(before_ms=9000) == 0


def test_compaction_keeps_the_newest_of_each_key():
    log = Log()
    for key, value in ((b"a", b"1"), (b"b", b"1"), (None, b"x"), (b"a", b"2"), (b"c", None)):
        log.append(build([Record(0, 1, key, value)]))
    assert log.compact() == 2
    assert [(one.offset, one.key, one.value) for one in log.records()] == [(1, b"b", b"1"), (3, b"a", b"2"), (4, b"c", None)]
    assert (log.start, log.end) == (0, 5)
    assert bases(log.read(0, ALL, committed=True, at_least_one=True)) == [1, 3, 4]
    assert log.compact() == 0
    assert log.size == len(log.read(0, ALL, committed=True, at_least_one=True))


def test_compaction_inside_of_batches_and_of_the_last_one():
    log = Log()
    log.append(build([Record(0, 1, b"a", b"1"), Record(0, 2, b"b", b"1")]))
    log.append(build([Record(0, 3, b"a", b"2"), Record(0, 4, None, b"2")]))
    assert log.compact() == 2
    assert [one.offset for one in log.records()] == [1, 2]
    assert log.compact(lambda record: record.key == b"b") == 1
    found = parse(log.read(2, ALL, committed=True, at_least_one=True))
    assert [(one.base, one.last, one.records()) for one in found] == [(2, 3, [])]


def test_compaction_drops_aborted_records_and_leaves_open_ones_and_markers():
    log = Log()
    log.append(build([Record(0, 1, b"k", b"kept")]))
    log.append(build([Record(0, 1, b"k", b"aborted")], producer=(1, 0, 0), transactional=True))
    log.finish(1, 0, commit=False, timestamp_ms=5)
    log.append(build([Record(0, 1, b"j", b"other")]))
    log.append(build([Record(0, 1, b"k", b"open")], producer=(2, 0, 0), transactional=True))
    assert log.compact() == 1
    assert [(one.offset, one.value) for one in log.records()] == [(0, b"kept"), (3, b"other"), (4, b"open")]
    assert bases(log.read(0, ALL, committed=False, at_least_one=True)) == [0, 2, 3, 4]


def visible(log: Log, offset: int) -> list[bytes]:
    """Read from an offset to the last stable one as a read_committed client does (KIP-98)."""
    aborted = sorted(log.aborted(offset, log.stable_end), key=lambda one: one.first)
    ignored: set[int] = set()
    found = []
    for one in parse(log.read(offset, ALL, committed=True, at_least_one=True) or batch(b"").raw):
        while aborted and aborted[0].first <= one.last:
            ignored.add(aborted.pop(0).producer_id)
        if one.control:
            ignored.discard(one.producer_id)
        elif not (one.transactional and one.producer_id in ignored):
            found += [record.value for record in one.records() if offset <= record.offset < log.stable_end]
    return found


PRODUCERS = st.integers(1, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("plain"), st.just(0)),
        st.tuples(st.just("write"), PRODUCERS),
        st.tuples(st.just("commit"), PRODUCERS),
        st.tuples(st.just("abort"), PRODUCERS),
        st.tuples(st.just("trim"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(0, 40))
def test_a_read_committed_reader_sees_exactly_what_counts(steps, start):
    """Against a plain list: committed and plain records, below the first open one, whatever happened in between."""
    log = Log()
    written: dict[int, tuple[bytes, int]] = {}
    fate: dict[int, str] = {}
    open_at: dict[int, list[int]] = {}
    sequences = dict.fromkeys((1, 2, 3), 0)
    for n, (what, who) in enumerate(steps):
        value = b"%d" % n
        if what == "plain":
            written[log.append(batch(value))] = (value, 0)
        elif what == "write":
            at = log.append(batch(value, producer=(who, 0, sequences[who]), transactional=True))
            sequences[who] += 1
            written[at] = (value, who)
            open_at.setdefault(who, []).append(at)
        elif what == "trim":
            log.delete_before(min(log.start + who, log.stable_end))
        else:
            fate |= dict.fromkeys(open_at.pop(who, []), what)
            log.finish(who, 0, commit=what == "commit", timestamp_ms=1)
    stable = min((min(offsets) for offsets in open_at.values()), default=log.end)
    assert log.stable_end == stable
    offset = min(max(start, log.start), log.end)
    assert visible(log, offset) == [
        value for at, (value, who) in written.items() if offset <= at < stable and (not who or fate[at] == "commit")
    ]


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 50), st.integers(0, 400))
def test_reads_from_any_offset_go_on_without_loss(sizes, start, max_bytes):
    """Reading on from the end of each answer gives every offset exactly once, whatever the bound on bytes."""
    log = filled(*sizes)
    offset = min(start, log.end)
    first = offset
    seen = []
    while offset < log.end:
        data = log.read(offset, max_bytes, committed=True, at_least_one=True)
        size = int.from_bytes(data[8:12], "big") + 12
        found = [one for one in parse(data[:size])[0].records() if one.offset >= offset]
        seen += [one.offset for one in found]
        offset = seen[-1] + 1
    assert seen == list(range(first, log.end))
