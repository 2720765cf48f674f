"""Cold reads: blocks that readers share, loads that nobody else's leaving disturbs, a bounded cache."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.batches import spoil
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.errors import BrokerUnavailable
from gateway.kafka.archive import Shelf
from gateway.records import Block, Record, cost_of_history


def fill(dev, count: int, *, size: int = 100, per_batch: int = 10, topic: str = "t") -> None:
    for first in range(0, count, per_batch):
        dev.append(topic, 0, [b"%08d" % i + b"x" * size for i in range(first, first + per_batch)])


@pytest.fixture
async def filled(dev, rig):
    """Follow `t` with 3,000 records in partition 0; blocks are of about 16 KB."""
    fill(dev, 3000)
    one = await rig(dev.address)
    one.log.archive._block_bytes = 16_000
    await one.follow("t")
    return one


async def test_a_chain_of_reads_gives_everything_once(filled):
    records = await filled.cold("t", 0, 0, 3000)
    assert [record.offset for record in records] == list(range(3000))
    assert records[17].value[:8] == b"00000017"


async def test_a_reader_that_goes_on_hardly_reads_a_batch_twice(dev, rig):
    """Batches that fit a block once and a half: of a first block a third comes in vain, of all that follow hardly anything."""
    fill(dev, 3000, per_batch=100)
    one = await rig(dev.address)
    one.log.archive._block_bytes = 20_000
    await one.follow("t")
    await one.cold("t", 0, 0, 3000)
    (first, *others) = [size for _, _, size in one.watch.cold]
    assert first == 20_000
    assert sum((first, *others)) < 3000 * 130 * 1.2
    assert len(others) <= 8


async def test_readers_share_blocks_wherever_they_begin(filled):
    for start in (0, 700, 1333, 5, 2999, 1334):
        await filled.cold("t", 0, start, 3000)
    wire = sum(size for _, _, size in filled.watch.cold)
    total = 3000 * 130
    assert wire < total * 1.4
    before = len(filled.watch.cold)
    for start in (0, 1, 700, 1333, 5, 2999):
        await filled.cold("t", 0, start, 3000)
    assert len(filled.watch.cold) == before
    assert filled.watch.hits


async def test_many_readers_of_one_place_cost_one_read(filled):
    blocks = await asyncio.gather(*(filled.log.read("t", 0, 100, 200) for _ in range(50)))
    assert all(block is blocks[0] for block in blocks)
    assert len(filled.watch.cold) == 1


async def test_a_cancelled_reader_does_not_cancel_the_others(filled, dev):
    with dev.faults.stall(Api.FETCH, topic="t", partition=0):
        first = asyncio.ensure_future(filled.log.read("t", 0, 0, 100))
        second = asyncio.ensure_future(filled.log.read("t", 0, 0, 100))
        await eventually(lambda: repr(filled.log.archive).endswith("1 loading>"))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert (await second).start == 0


async def test_what_nobody_waits_for_any_more_is_kept(filled, dev):
    with dev.faults.stall(Api.FETCH, topic="t", partition=0):
        only = asyncio.ensure_future(filled.log.read("t", 0, 0, 100))
        await eventually(lambda: repr(filled.log.archive).endswith("1 loading>"))
        only.cancel()
    await eventually(lambda: len(filled.watch.cold) == 1)
    await filled.log.read("t", 0, 0, 100)
    assert len(filled.watch.cold) == 1


async def test_the_next_block_is_loaded_ahead_of_a_reader_that_goes_on(filled):
    first = await filled.log.read("t", 0, 0, 3000)
    second = await filled.log.read("t", 0, first.end, 3000)
    await eventually(lambda: len(filled.watch.cold) == 3)
    before = filled.watch.hits
    third = await filled.log.read("t", 0, second.end, 3000)
    assert filled.watch.hits == before + 1
    assert third.start == second.end
    # Never beyond what the reader wants.
    await filled.log.read("t", 0, third.end, third.end + 1)
    loaded = len(filled.watch.cold)
    await eventually(lambda: repr(filled.log.archive).endswith("0 loading>"))
    assert len(filled.watch.cold) == loaded


async def test_the_cache_is_bounded_and_gives_up_what_was_used_longest_ago(filled):
    archive = filled.log.archive
    archive._max_bytes = 300_000
    await filled.cold("t", 0, 0, 3000)
    assert 0 < archive.cost <= 300_000
    held = archive._shelves["t", 0]
    assert archive.cost == sum(archive._costs.values())
    assert min(held.starts) > 1000
    assert repr(held).startswith("<Shelf t-0 ")
    assert repr(archive).startswith(f"<Archive {len(held.starts)} blocks, {archive.cost} bytes")


async def test_a_block_larger_than_the_cache_is_given_all_the_same(filled):
    filled.log.archive._max_bytes = 10
    assert len(await filled.cold("t", 0, 0, 300)) == 300
    assert filled.log.archive.cost == 0


async def test_records_larger_than_blocks(dev, rig):
    fill(dev, 600, size=3000, per_batch=2)
    one = await rig(dev.address)
    one.log.archive._block_bytes = 10_000
    await one.follow("t")
    assert [record.offset for record in await one.cold("t", 0, 590, 600)] == list(range(590, 600))
    assert [record.offset for record in await one.cold("t", 0, 550, 600)] == list(range(550, 600))


async def test_reading_below_the_log_start_begins_there(filled, dev):
    dev.delete_records("t", 0, 1000)
    block = await filled.log.read("t", 0, 7, 3000)
    assert (block.start, block.log_start, block.records[0].offset) == (1000, 1000, 1000)
    # In the middle of a cached block too: what is gone is a loss and no hole.
    dev.delete_records("t", 0, 1050)
    await filled.log.read("t", 0, 2500, 3000)
    block = await filled.log.read("t", 0, 3, 3000)
    assert (block.start, block.log_start, block.records[0].offset) == (1050, 1050, 1050)
    # The grid reaches below the log start.
    assert (await filled.log.read("t", 0, 1030, 3000)).records


async def test_reading_where_nothing_is_yet(filled):
    block = await filled.log.read("t", 0, 3000, 3001)
    assert (block.start, block.end, block.records) == (3000, 3000, [])
    block = await filled.log.read("t", 0, 9000, 9001)
    assert (block.start, block.end, block.records, block.stable_end) == (9000, 9000, [], 3000)


async def test_what_was_not_there_is_read_once_it_is(filled, dev):
    await filled.log.read("t", 0, 3000, 3001)
    dev.append("t", 0, [b"new"])
    block = await filled.log.read("t", 0, 3000, 3001)
    assert [record.value for record in block.records if record.offset >= 3000] == [b"new"]


async def test_an_end_that_compaction_emptied_is_passed(dev, rig):
    """Compaction may remove all that is left up to the end of the log: the reader must get there."""
    for i in range(10):
        dev.append("t", 0, [(b"k%d" % i, b"v")])
    dev.compact("t", 0, lambda record: record.offset < 5)
    one = await rig(dev.address)
    await one.follow("t")
    assert [record.offset for record in await one.cold("t", 0, 0, 10)] == [0, 1, 2, 3, 4]


@pytest.fixture
def answers(filled, monkeypatch):
    """Change what the broker answers to cold fetches: the first ones by the functions in the list."""
    changes, plain = [], filled.log.cluster.send

    async def send(node, request, *, group, **options):
        parts = await plain(node, request, group=group, **options)
        return changes.pop(0)(parts) if group[0] == "archive" and changes else parts

    monkeypatch.setattr(filled.log.cluster, "send", send)
    return changes


def nothing(parts):
    return [parts[0]._replace(data=parts[0].data[:0])]


async def test_nothing_from_slow_remote_storage_is_no_hole(filled, answers):
    """It is asked for again as long as the last record of the log is there."""
    answers += [nothing, list, nothing, list]
    assert [record.offset for record in await filled.cold("t", 0, 0, 20)] == list(range(20))
    assert not answers


async def test_a_throttled_answer_and_half_a_batch_are_asked_for_again(filled, answers):
    answers += [lambda _parts: [], lambda parts: [parts[0]._replace(data=parts[0].data[:50])]]
    assert [record.offset for record in await filled.cold("t", 0, 0, 20)] == list(range(20))
    assert not answers


async def test_a_leader_that_moved_is_found(filled, answers):
    answers += [lambda parts: [parts[0]._replace(error=6)]] * 2
    assert len(await filled.cold("t", 0, 0, 100)) == 100
    assert filled.watch.errors["NOT_LEADER_FOR_PARTITION"] == 2


async def test_a_log_start_that_moves_while_it_is_asked_for(filled, answers):
    out_of_range = [lambda parts: [parts[0]._replace(error=1)]] * 2
    answers += out_of_range
    assert len(await filled.cold("t", 0, 0, 100)) == 100
    assert not answers


async def test_a_block_ends_where_the_next_known_one_begins(filled):
    late = await filled.log.read("t", 0, 600, 3000)
    assert late.start == 512
    before = await filled.cold("t", 0, 0, 3000)
    assert [record.offset for record in before] == list(range(3000))
    shelf = filled.log.archive._shelves["t", 0]
    assert 512 in {block.end for block in shelf.blocks.values()}
    assert filled.log.archive.cost == sum(300 + cost_of_history(block.records) for block in shelf.blocks.values())


async def test_bounds_that_cannot_be_had_at_once_are_asked_for_again(filled, dev):
    dev.delete_records("t", 0, 1000)
    dev.faults.error(6, Api.LIST_OFFSETS, times=1)
    assert (await filled.log.read("t", 0, 7, 3000)).start == 1000


async def test_a_broker_that_is_away_is_an_error_after_a_while(filled, dev):
    filled.log.archive._patience = 0.3
    await dev.stop()
    with pytest.raises(BrokerUnavailable):
        await filled.log.read("t", 0, 0, 100)
    filled.log.cluster.topics.clear()
    with pytest.raises(BrokerUnavailable):
        await filled.log.read("t", 0, 0, 100)


async def test_a_dead_leader_does_not_delay_the_others(dev, rig):
    """Each leader has its own few connections."""
    one = await rig(dev.address)
    await one.follow("t")
    fill(dev, 100)
    archive = one.log.archive
    archive._patience = 3.0
    one.log.cluster.brokers[99] = ("127.0.0.1", 9)
    known = one.log.cluster.topics["t"]
    one.log.cluster.topics["t"] = type(known)(known.topic_id, {**known.leaders, 1: 99, 2: 99}, 0)
    one.log.feed._due = one.log.feed._not_before = 1e12
    sick = [asyncio.ensure_future(one.log.read("t", p, i, 100)) for p in (1, 2) for i in range(0, 9000, 600)]
    assert len(await asyncio.wait_for(one.cold("t", 0, 0, 100), 2.0)) == 100
    for read in sick:
        with pytest.raises(BrokerUnavailable):
            await read


async def test_a_batch_that_cannot_be_read_is_skipped_in_the_archive_too(dev, rig, caplog):
    dev.append("t", 0, [b"a", b"b"])
    spoil(dev, "t", 0, 3)
    dev.append("t", 0, [b"c"])
    one = await rig(dev.address)
    await one.follow("t")
    records = await one.cold("t", 0, 0, 6)
    assert [record.value for record in records] == [b"a", b"b", None, b"c"]
    assert (records[2].offset, records[2].until) == (2, 5)
    assert one.watch.skips == [("t", 0, 2, 5)]
    assert "offsets 2 to 4 cannot be read" in caplog.text


async def test_blocks_of_a_topic_that_is_gone_are_forgotten(filled, dev):
    await filled.cold("t", 0, 0, 3000)
    shelf = filled.log.archive._shelves["t", 0]
    filled.log.archive.forget("t")
    assert (filled.log.archive.cost, filled.log.archive._shelves) == (0, {})
    with dev.faults.stall(Api.FETCH, topic="t", partition=0):
        late = asyncio.ensure_future(filled.log.read("t", 0, 0, 100))
        await eventually(lambda: repr(filled.log.archive).endswith("1 loading>"))
        filled.log.archive.forget("t")
    assert (await late).start == 0
    assert (filled.log.archive.cost, shelf.starts) == (0, [])


async def test_closing_ends_loads(filled, dev):
    with dev.faults.stall(Api.FETCH, topic="t", partition=0):
        reading = asyncio.ensure_future(filled.log.read("t", 0, 0, 100))
        await eventually(lambda: repr(filled.log.archive).endswith("1 loading>"))
        await filled.log.archive.close()
        with pytest.raises(BrokerUnavailable):
            await reading
    with pytest.raises(BrokerUnavailable):
        await filled.log.read("t", 0, 0, 100)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=30), st.integers(0, 400))
def test_blocks_on_a_shelf_never_overlap_and_are_found_by_any_offset_in_them(wanted, offset):
    shelf = Shelf("t", 0)
    for at, length in wanted:
        if shelf.find(at) is None:
            start = max(shelf.start_for(at), at - length)
            block = shelf.cut(
                Block(start, at + length, [Record(o, None, None, None) for o in range(start, at + length)], 0, 999)
            )
            shelf.put(block)
    bounds = sorted((block.start, block.end) for block in shelf.blocks.values())
    assert [start for start, _ in bounds] == shelf.starts
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(bounds))
    found = shelf.find(offset)
    assert (found is not None) == any(start <= offset < end for start, end in bounds)
    for block in shelf.blocks.values():
        assert [record.offset for record in block.records] == list(range(block.start, block.end))
    for start in list(shelf.starts):
        shelf.remove(start)
    shelf.remove(12345)
    assert repr(shelf) == "<Shelf t-0 empty>"
