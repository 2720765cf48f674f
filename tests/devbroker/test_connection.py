"""One connection: order, long polls, what its peer and faults do to it."""

import asyncio
import struct

import pytest
from waiting import eventually

from gateway.devbroker.batches import build
from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker
from gateway.records import Record

LONG_MS = 60_000


def fetch_body(*, offset=0, wait_ms=LONG_MS, topic="t", index=0):
    item = {"partition": index, "fetch_offset": offset, "offset": offset, "max_bytes": 10_000}
    return {
        "replica_id": -1,
        "max_wait_time": wait_ms,
        "min_bytes": 1,
        "max_bytes": 10_000,
        "isolation_level": 1,
        "topics": [{"topic": topic, "partitions": [item]}],
    }


def produce_body(data, *, acks=-1, topic="t"):
    topics = [{"topic": topic, "partitions": [{"partition": 0, "messages": data}]}]
    return {"transactional_id": None, "required_acks": acks, "timeout": 1000, "topics": topics}


def batch(value=b"v"):
    return build([Record(0, 1000, None, value)]).raw


def partition(answer):
    return answer["topics"][0]["partitions"][0]


METADATA = {"topics": None, "allow_auto_topic_creation": False}


@pytest.fixture
def topic(broker):
    broker.create_topic("t", 2)


async def test_requests_are_answered_in_order(broker, connect, topic):
    client = await connect(broker)
    for _ in range(3):
        client.send(Api.METADATA, 5, **METADATA)
        client.send(Api.API_VERSIONS, 0)
    for _ in range(3):
        assert (await client.answer(Api.METADATA, 5))["topics"]
        assert (await client.answer(Api.API_VERSIONS, 0))["api_versions"]
    assert broker.requests[Api.METADATA] == 3


async def test_a_long_poll_is_woken_by_an_append_not_by_time(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    await broker.until_parked("t", 0)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    broker.append("t", 0, [b"now"])
    found = partition(await client.answer(Api.FETCH, 4))
    assert found["message_set"]
    assert loop.time() - begin < 1.0
    assert broker.parked("t", 0) == 0


async def test_a_long_poll_ends_with_its_time(broker, connect, topic):
    client = await connect(broker)
    found = partition(await client.ask(Api.FETCH, 4, **fetch_body(wait_ms=20)))
    assert (found["error_code"], found["message_set"]) == (0, b"")


async def test_no_wake_up_is_lost_in_a_race(broker, connect, topic):
    """Each append falls at another moment of the fetch; none may sleep over it."""
    client = await connect(broker)
    for offset in range(200):
        client.send(Api.FETCH, 4, **fetch_body(offset=offset))
        for _ in range(offset % 7):
            await asyncio.sleep(0)
        broker.append("t", 0, [b"%d" % offset])
        assert partition(await client.answer(Api.FETCH, 4))["message_set"]


async def test_a_long_poll_holds_back_what_follows_on_its_connection(broker, connect, topic):
    client = await connect(broker)
    other = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    client.send(Api.METADATA, 5, **METADATA)
    await broker.until_parked("t", 0)
    await other.ask(Api.METADATA, 5, **METADATA)
    assert broker.requests[Api.METADATA] == 1
    broker.append("t", 0, [b"x"])
    await client.answer(Api.FETCH, 4)
    await client.answer(Api.METADATA, 5)


@pytest.mark.parametrize("what", ["delete", "trim", "move"])
async def test_other_changes_wake_a_long_poll_too(connect, what):
    async with Broker(nodes=2) as broker:
        broker.create_topic("t", 1)
        leader = broker.leader("t", 0)
        broker.append("t", 0, [b"x"])
        client = await connect(broker, leader - 1)
        client.send(Api.FETCH, 4, **fetch_body(offset=1))
        await broker.until_parked("t", 0)
        match what:
            case "delete":
                broker.delete_topic("t")
                expected = Code.UNKNOWN_TOPIC_OR_PARTITION
            case "move":
                broker.move_leader("t", 0, 3 - leader)
                expected = Code.NOT_LEADER_OR_FOLLOWER
            case _:
                broker.delete_records("t", 0, -1)
                broker.append("t", 0, [b"y"])
                expected = 0
        assert partition(await client.answer(Api.FETCH, 4))["error_code"] == expected


async def test_an_open_transaction_does_not_answer_a_long_poll_and_its_end_does(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    await broker.until_parked("t", 0)
    transaction = broker.transaction()
    for _ in range(3):
        transaction.append("t", 0, [b"not yet"])
        await broker.until_parked("t", 0)
    assert broker.requests[Api.FETCH] == 1
    transaction.commit()
    found = partition(await client.answer(Api.FETCH, 4))
    assert (found["highwater_offset"], found["last_stable_offset"], bool(found["message_set"])) == (4, 4, True)


async def test_a_peer_that_leaves_is_not_waited_for(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    await broker.until_parked("t", 0)
    client.writer.close()
    await eventually(lambda: broker.parked("t", 0) == 0)


async def test_what_came_before_a_peer_left_still_counts(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
    client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
    client.writer.write_eof()
    assert await client.closed()
    assert broker.end_offset("t", 0) == 2


async def test_pipelined_requests_are_bounded_and_none_is_lost(broker, connect, topic, monkeypatch):
    monkeypatch.setattr("gateway.devbroker.connection.MAX_PIPELINED", 2)
    client = await connect(broker)
    with broker.faults.stall(Api.PRODUCE) as fault:
        for _ in range(50):
            client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
        client.writer.write_eof()
        await fault.hit()
    assert await client.closed()
    assert broker.end_offset("t", 0) == 50


async def test_a_full_queue_at_the_end_is_still_emptied(broker, connect, topic, monkeypatch):
    monkeypatch.setattr("gateway.devbroker.connection.MAX_PIPELINED", 1)
    client = await connect(broker)
    with broker.faults.stall(Api.PRODUCE) as fault:
        client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
        await fault.hit()
        client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
        client.writer.write_eof()
        await client.writer.drain()
        await (await connect(broker)).ask(Api.METADATA, 5, **METADATA)
    assert await client.closed()
    assert broker.end_offset("t", 0) == 2


async def test_produce_without_acks_is_not_answered(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.PRODUCE, 8, **produce_body(batch(), acks=0))
    assert partition(await client.ask(Api.PRODUCE, 8, **produce_body(batch())))["offset"] == 1


@pytest.mark.parametrize("frame", [b"nonsense", struct.pack(">hhih", 1, 99, 1, -1)])
async def test_nonsense_closes_its_connection_only(broker, connect, topic, frame, caplog):
    client, other = await connect(broker), await connect(broker)
    client.send_frame(frame)
    assert await client.closed()
    assert "closed" in caplog.text
    assert await other.ask(Api.METADATA, 5, **METADATA)


async def test_a_frame_that_is_too_long_closes_its_connection(broker, connect):
    client = await connect(broker)
    client.writer.write(struct.pack(">i", 2**30))
    assert await client.closed()


async def test_an_unknown_version_of_api_versions_is_answered(broker, connect):
    client = await connect(broker)
    client.send_frame(struct.pack(">hhih", 18, 99, 7, -1))
    assert (await client.answer(Api.API_VERSIONS, 0))["error_code"] == Code.UNSUPPORTED_VERSION


async def test_dropped_before_it_takes_effect(broker, connect, topic):
    fault = broker.faults.drop(Api.PRODUCE)
    client, other = await connect(broker), await connect(broker)
    client.send(Api.PRODUCE, 8, **produce_body(batch()))
    assert await client.closed()
    assert (fault.hits, broker.end_offset("t", 0)) == (1, 0)
    await other.ask(Api.PRODUCE, 8, **produce_body(batch()))


async def test_dropped_after_it_took_effect(broker, connect, topic):
    broker.faults.drop(Api.PRODUCE, topic="t", processed=True)
    client = await connect(broker)
    client.send(Api.PRODUCE, 8, **produce_body(batch()))
    assert await client.closed()
    assert broker.end_offset("t", 0) == 1


async def test_stalled_until_released(broker, connect, topic):
    client = await connect(broker)
    with broker.faults.stall(Api.PRODUCE) as fault:
        client.send(Api.PRODUCE, 8, **produce_body(batch()))
        await fault.hit()
        assert broker.end_offset("t", 0) == 0
    assert partition(await client.answer(Api.PRODUCE, 8))["offset"] == 0


async def test_a_stalled_partition_leaves_the_others_alone(broker, connect, topic):
    stalled, well = await connect(broker), await connect(broker)
    broker.append("t", 0, [b"x"])
    broker.append("t", 1, [b"x"])
    with broker.faults.stall(Api.FETCH, topic="t", partition=0) as fault:
        stalled.send(Api.FETCH, 4, **fetch_body(index=0))
        await fault.hit()
        assert partition(await well.ask(Api.FETCH, 4, **fetch_body(index=1)))["message_set"]
    assert partition(await stalled.answer(Api.FETCH, 4))["message_set"]


async def test_a_stall_also_holds_a_fetch_that_is_parked_already(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    await broker.until_parked("t", 0)
    fault = broker.faults.stall(topic="t")
    broker.append("t", 0, [b"x"])
    await fault.hit()
    broker.append("t", 0, [b"y"])
    fault.release()
    assert partition(await client.answer(Api.FETCH, 4))["highwater_offset"] == 2


async def test_an_error_also_reaches_a_fetch_that_is_parked_already(broker, connect, topic):
    client = await connect(broker)
    client.send(Api.FETCH, 4, **fetch_body())
    await broker.until_parked("t", 0)
    broker.faults.error(Code.KAFKA_STORAGE_ERROR, Api.FETCH, topic="t", partition=0, times=1)
    assert partition(await client.answer(Api.FETCH, 4))["error_code"] == Code.KAFKA_STORAGE_ERROR
    assert partition(await client.ask(Api.FETCH, 4, **fetch_body(wait_ms=0)))["error_code"] == 0


async def test_slow(broker, connect, topic):
    client = await connect(broker)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with broker.faults.slow(0.05, Api.METADATA, times=1) as fault:
        await client.ask(Api.METADATA, 5, **METADATA)
    assert loop.time() - begin >= 0.05
    assert fault.hits == 1


async def test_a_fault_of_one_node_leaves_the_other_alone(connect):
    async with Broker(nodes=2) as broker:
        broker.faults.drop(node=1, times=None)
        bad, good = await connect(broker, 0), await connect(broker, 1)
        bad.send(Api.METADATA, 5, **METADATA)
        assert await bad.closed()
        assert len((await good.ask(Api.METADATA, 5, **METADATA))["brokers"]) == 2


async def test_a_long_poll_of_a_peer_that_has_left_is_not_held(broker, connect, topic):
    client = await connect(broker)
    with broker.faults.stall(Api.METADATA) as fault:
        client.send(Api.METADATA, 5, **METADATA)
        client.send(Api.FETCH, 4, **fetch_body())
        await fault.hit()
        client.writer.write_eof()
    async with asyncio.timeout(10):
        await client.reader.read()
    assert broker.parked("t", 0) == 0
