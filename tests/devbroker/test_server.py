"""The broker as tests use it: its verbs, its nodes, stop and start on the same port."""

import asyncio
import ssl

import pytest
import trustme
from aiokafka import AIOKafkaProducer
from waiting import eventually

from gateway.devbroker.batches import build
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker
from gateway.records import Record

METADATA = {"topics": None, "allow_auto_topic_creation": False}


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


async def test_stop_and_start_keep_the_port_and_the_data(broker, connect):
    broker.create_topic("t")
    broker.append("t", 0, [b"kept"])
    before = broker.address
    client = await connect(broker)
    await client.ask(Api.METADATA, 5, **METADATA)
    await broker.stop()
    assert await client.closed()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection(*before.split(":"))
    await broker.start()
    assert broker.address == before
    await (await connect(broker)).ask(Api.METADATA, 5, **METADATA)
    assert [one.value for one in broker.records("t", 0)] == [b"kept"]


async def test_start_and_stop_may_be_repeated(broker):
    await broker.start()
    await broker.stop()
    await broker.stop()


async def test_disconnecting_leaves_the_port_open(broker, connect):
    client = await connect(broker)
    await client.ask(Api.METADATA, 5, **METADATA)
    await broker.disconnect()
    assert await client.closed()
    await (await connect(broker)).ask(Api.METADATA, 5, **METADATA)


async def test_nodes_stop_and_start_one_by_one(connect):
    async with Broker(nodes=3) as broker:
        assert len(set(broker.addresses)) == 3
        broker.create_topic("t", 3)
        await broker.stop_node(2)
        client = await connect(broker)
        found = await client.ask(Api.METADATA, 5, **METADATA)
        assert [one["node_id"] for one in found["brokers"]] == [1, 3]
        assert sorted(one["leader"] for one in found["topics"][0]["partitions"]) == [-1, 1, 3]
        orphan = next(index for index in range(3) if broker.leader("t", index) == 2)
        broker.move_leader("t", orphan, 1)
        await broker.start_node(2)
        found = await client.ask(Api.METADATA, 5, **METADATA)
        assert sorted(one["leader"] for one in found["topics"][0]["partitions"]) == [1, 1, 3]


async def test_what_can_be_appended(broker):
    broker.create_topic("t")
    whole = Record(99, 5, b"k", None, (("h", b"1"),))
    assert broker.append("t", 0, [b"value", None, (b"key", b"value"), whole], timestamp_ms=7, codec="gzip") == 0
    found = [(one.offset, one.timestamp_ms, one.key, one.value, one.headers) for one in broker.records("t", 0)]
    assert found == [
        (0, 7, None, b"value", ()),
        (1, 7, None, None, ()),
        (2, 7, b"key", b"value", ()),
        (3, 5, b"k", None, (("h", b"1"),)),
    ]
    assert broker.append_raw("t", 0, build([whole]).raw) == 4


async def test_the_clock_stamps_and_expires():
    now = [1000.0]
    async with Broker(clock=lambda: now[0], retention_ms=5000, retention_bytes=10**6) as broker:
        broker.create_topic("t")
        broker.create_topic("kept", retention_ms="-1")
        for topic in ("t", "kept"):
            broker.append(topic, 0, [b"x"])
        assert broker.records("t", 0)[0].timestamp_ms == 1_000_000
        broker.expire(1005.0)
        assert broker.start_offset("t", 0) == 0
        now[0] = 1005.1
        broker.expire()
        assert (broker.start_offset("t", 0), broker.start_offset("kept", 0)) == (1, 0)


async def test_upkeep_runs_by_itself(monkeypatch):
    monkeypatch.setattr("gateway.devbroker.server.UPKEEP_SECONDS", 0.01)
    async with Broker() as broker:
        broker.create_topic("t", retention_ms="1")
        broker.append("t", 0, [b"x"], timestamp_ms=int(1e15))
        broker.append("t", 0, [b"x"])
        assert broker.start_offset("t", 0) == 0
        broker.delete_records("t", 0, 1)
        await eventually(lambda: broker.start_offset("t", 0) == 2)


async def test_the_life_of_a_topic(broker):
    first = broker.create_topic("t")
    assert broker.topic_id("t") == first
    broker.add_partitions("t", 3)
    broker.append("t", 2, [b"a", b"b", b"c"])
    assert broker.delete_records("t", 2, 2) == 2
    broker.configure("t", retention_bytes="1")
    assert broker.cluster.topic("t").configs == {"retention.bytes": "1"}
    broker.delete_topic("t")
    assert broker.create_topic("t") != first
    assert broker.end_offset("t", 0) == 0
    with refused(Code.UNKNOWN_TOPIC_OR_PARTITION):
        broker.append("t", 2, [b"x"])


async def test_compaction(broker):
    broker.create_topic("t")
    for value in (b"1", b"2", b"3"):
        broker.append("t", 0, [(b"k", value)])
    assert broker.compact("t", 0) == 2
    assert [(one.offset, one.value) for one in broker.records("t", 0)] == [(2, b"3")]
    assert broker.compact("t", 0, lambda _: False) == 1


async def test_transactions_in_process(broker):
    broker.create_topic("t")
    first = broker.transaction()
    first.append("t", 0, [b"a"])
    first.append("t", 0, [b"b"], codec="zstd")
    assert (broker.end_offset("t", 0), broker.end_offset("t", 0, committed=False)) == (0, 2)
    first.commit()
    assert broker.end_offset("t", 0) == 3
    second = broker.transaction()
    second.append("t", 0, [b"c"])
    second.abort()
    with refused(Code.INVALID_TXN_STATE):
        second.commit()
    assert (broker.end_offset("t", 0), len(broker.cluster.partition("t", 0).log.aborted(0, 9))) == (5, 1)


async def test_a_second_transaction_of_a_name_ends_the_first(broker):
    broker.create_topic("t")
    first = broker.transaction("x")
    first.append("t", 0, [b"a"])
    broker.transaction("x")
    assert broker.end_offset("t", 0) == 2
    with refused(Code.INVALID_PRODUCER_EPOCH):
        first.append("t", 0, [b"b"])


async def test_tls(connect):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with Broker(tls=server) as broker:
        broker.create_topic("t")
        producer = AIOKafkaProducer(bootstrap_servers=broker.address, security_protocol="SSL", ssl_context=client)
        async with producer:
            assert (await producer.send_and_wait("t", b"x")).offset == 0


async def test_an_older_broker(connect):
    async with Broker(newest={Api.METADATA: 9}) as broker:
        client = await connect(broker)
        spoken = await client.ask(Api.API_VERSIONS, 0)
        assert {one["api_key"]: one["max_version"] for one in spoken["api_versions"]}[Api.METADATA] == 9
        flags = {"include_cluster_authorized_operations": False, "include_topic_authorized_operations": False}
        await client.ask(Api.METADATA, 9, **METADATA, **flags)
        client.send(Api.METADATA, 10, **METADATA, **flags)
        assert await client.closed()


async def test_a_port_that_is_taken_is_an_error_or_passed_over(broker, monkeypatch):
    taken = int(broker.address.split(":")[1])
    with pytest.raises(OSError, match=r"in use"):
        await Broker(port=taken).start()
    found = iter([taken, taken, taken + 1])
    monkeypatch.setattr("gateway.devbroker.server.FIRST_PORT", 0)
    monkeypatch.setattr("gateway.devbroker.server.secrets.randbelow", lambda _: next(found))
    async with Broker() as third:
        assert third.address == f"127.0.0.1:{taken + 1}"


async def test_who_comes_in_the_moment_of_the_stop_is_sent_away(broker, connect):
    client = await connect(broker)
    broker.cluster.nodes[1].up = False
    late = await connect(broker)
    assert await late.closed()
    broker.cluster.nodes[1].up = True
    await client.ask(Api.METADATA, 5, **METADATA)
