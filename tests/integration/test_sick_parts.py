"""A partition, a leader or a topic that is not well is its own problem: the others go on, and it comes back when it is well."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from integration.apache_kafka import ApacheKafka
from integration.brokers import ApacheHandle, Message
from integration.dev_broker import DevHandle
from integration.gateways import Instance, running
from integration.kafka_jars import missing
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker

# Kafka's error codes.
KAFKA_STORAGE_ERROR, TOPIC_AUTHORIZATION_FAILED = 56, 29


@contextlib.asynccontextmanager
async def dev_cluster() -> AsyncIterator[Broker]:
    async with Broker(nodes=3) as broker:
        yield broker


async def gets(client, value: object, *, within: float) -> float:
    """Poll until a value has come, at most `within` seconds; return how long it took."""
    began = time.monotonic()
    await client.read_until(lambda chain: value in chain.values, timeout=within, wait=within)
    return time.monotonic() - began


async def test_a_stalled_leader_holds_up_nobody_else():
    """Of three leaders one does not answer: the partitions of the others are read at once, its own when it is back."""
    async with dev_cluster() as broker:
        broker.create_topic("t", 3)
        for partition in range(3):
            broker.move_leader("t", partition, partition + 1)
        async with running(",".join(broker.addresses), {"all": {"topic": "t"}}) as instance:
            client = instance.client("all")
            await client.begin()
            with broker.faults.stall(node=2) as fault:
                broker.append("t", 1, [b"10"])
                await fault.hit()
                for n in range(20):
                    broker.append("t", 0, [b"%d" % (100 + n)])
                    broker.append("t", 2, [b"%d" % (200 + n)])
                    assert await gets(client, 100 + n, within=1.0) < 0.5
                    assert await gets(client, 200 + n, within=1.0) < 0.5
                # A first poll of another client does not wait for the one that is stalled either.
                broker.append("t", 0, [b"1000"])
                other = instance.client("all", start="latest")
                assert (await asyncio.wait_for(other.begin(), 2)).status == 204
            assert await gets(client, 10, within=10.0) < 10
            assert sorted(client.chain.values) == sorted([10, 1000, *range(100, 120), *range(200, 220)])


@pytest.mark.parametrize("code", [KAFKA_STORAGE_ERROR, TOPIC_AUTHORIZATION_FAILED])
async def test_a_partition_with_an_error_holds_up_nobody_else(dev: DevHandle, code: int):
    """Its neighbours on the same leader are read at once and nobody spins; it is named by /readyz, and read whole when it is well."""
    topic = await dev.create_topic(partitions=3)
    async with running(dev.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all")
        await client.begin()
        with dev.in_process.faults.error(code, Api.FETCH, topic=topic, partition=1) as fault:
            await dev.produce(topic, Message(b"10", partition=1))
            await fault.hit()
            for n in range(20):
                await dev.produce(topic, Message(b"%d" % (100 + n), partition=0), Message(b"%d" % (200 + n), partition=2))
                assert await gets(client, 100 + n, within=1.0) < 0.5
                assert await gets(client, 200 + n, within=1.0) < 0.5
            kafka = (await instance.ready()).document["kafka"]
            assert [(each["topic"], each["partition"]) for each in kafka["sick_partitions"]] == [(topic, 1)]
            hits = fault.hits
            parked = instance.park(client, wait=1)
            await parked
            assert fault.hits - hits < 20
        assert await gets(client, 10, within=10.0) < 10
        await eventually(lambda: not instance.gateway.kafka.status().sick)
        assert sorted(client.chain.values) == sorted([10, *range(100, 120), *range(200, 220)])


async def test_a_stalled_partition_holds_up_the_others_only_until_it_is_found_out(dev: DevHandle):
    """A broker that hangs on one partition hangs the fetch that names it: the others go on once that is noticed, without a restart."""
    topic, calm = await dev.create_topic(partitions=2), await dev.create_topic()
    async with running(dev.address, {"all": {"topic": topic}, "calm": {"topic": calm}}) as instance:
        client, other = instance.client("all"), instance.client("calm")
        await client.begin()
        await other.begin()
        with dev.in_process.faults.stall(Api.FETCH, topic=topic, partition=1) as fault:
            await dev.produce(topic, Message(b"10", partition=1))
            await fault.hit()
            await dev.produce(calm, b"1")
            await dev.produce(topic, Message(b"2", partition=0))
            # The time-out of a long poll, and the look at each partition that follows.
            await gets(other, 1, within=9.0)
            await gets(client, 2, within=9.0)
            for n in range(10):
                await dev.produce(calm, b"%d" % (20 + n))
                assert await gets(other, 20 + n, within=1.0) < 0.5
                await dev.produce(topic, Message(b"%d" % (20 + n), partition=0))
                assert await gets(client, 20 + n, within=1.0) < 0.5
        assert await gets(client, 10, within=15.0) < 15


async def test_cold_reads_of_a_stalled_leader_hold_up_nobody_else():
    """A history half of which cannot be had: the other half comes, live records come, and the rest when its leader is back."""
    async with dev_cluster() as broker:
        broker.create_topic("t", 2)
        broker.create_topic("u", 1)
        for topic, partition, node in (("t", 0, 1), ("t", 1, 2), ("u", 0, 1)):
            broker.move_leader(topic, partition, node)
        for n in range(50):
            broker.append("t", n % 2, [b"%d" % n])
            broker.append("u", 0, [b"%d" % n])
        async with running(",".join(broker.addresses), {"t": {"topic": "t"}, "u": {"topic": "u"}}) as instance:
            await instance.client("t", "u").begin()
            client, live = instance.client("t", start="earliest"), instance.client("u")
            await client.poll(wait=0, limit=1)
            await live.begin()
            with broker.faults.stall(Api.FETCH, node=2):
                reading = asyncio.ensure_future(client.read_until(lambda chain: len(chain) >= 25, timeout=20, wait=1))
                for n in range(10):
                    broker.append("u", 0, [b"%d" % (100 + n)])
                    assert await gets(live, 100 + n, within=1.0) < 0.5
                replay = instance.client("u", start="earliest")
                await replay.read(60, timeout=2)
                await reading
            await client.read(50, timeout=20, wait=1)
            assert sorted(client.chain.values) == list(range(50))


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory) -> ApacheKafka:
    lack = missing()
    if lack:
        pytest.skip(f"not run against Apache Kafka: {lack}")
    with ApacheKafka(tmp_path_factory.mktemp("three"), nodes=3) as kafka:
        yield kafka


@contextlib.asynccontextmanager
async def producing(address: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def led_by(instance: Instance, topic: str, partitions: int) -> dict[int, list[int]]:
    """Return the partitions that each node leads, as the gateway knows it."""
    led: dict[int, list[int]] = {}
    for partition in range(partitions):
        led.setdefault(instance.gateway.kafka.cluster.leader(topic, partition), []).append(partition)
    return led


@pytest.mark.kafka
@pytest.mark.timeout(180)
async def test_a_cluster_with_a_stalled_and_a_killed_node(three_nodes: ApacheKafka, tcp_proxy, tmp_path: Path):
    """Three nodes of Apache Kafka behind proxies: one stalls for the gateway alone, then one is killed and its partitions move."""
    proxies = {}
    for node in three_nodes.nodes:
        listen, target = three_nodes.proxied(node.number)
        proxies[node.number] = await tcp_proxy("127.0.0.1", target, listen_port=listen)
    async with ApacheHandle(three_nodes) as handle, producing(three_nodes.address) as producer:
        topic = await handle.create_topic(partitions=6)
        async with running(three_nodes.bootstrap("PROXIED"), {"all": {"topic": topic}}) as instance, asyncio.timeout(120):
            client = instance.client("all", start="earliest")
            await client.begin()
            led = led_by(instance, topic, 6)
            assert set(led) == {1, 2, 3}
            count = 0

            async def produce(partitions: list[int]) -> list[int]:
                nonlocal count
                values = list(range(count, count + len(partitions)))
                count += len(partitions)
                for partition, value in zip(partitions, values, strict=True):
                    await producer.send_and_wait(topic, b"%d" % value, partition=partition)
                return values

            for value in await produce(list(range(6))):
                await gets(client, value, within=5.0)
            proxies[2].stall()
            held = await produce(led[2])
            worst = 0.0
            for _ in range(30):
                for value in await produce(led[1] + led[3]):
                    worst = max(worst, await gets(client, value, within=5.0))
            assert worst < 1.0
            assert not set(held) & set(client.chain.values)
            proxies[2].heal()
            for value in held:
                await gets(client, value, within=20.0)

            parked = instance.park(client)
            await eventually(lambda: instance.parked == 1)
            await asyncio.to_thread(three_nodes.kill, 3)
            # Those that are led elsewhere go on at once, the others when they have a new leader.
            value = (await produce(led[1][:1]))[0]
            assert (await asyncio.wait_for(parked, 2)).messages[0]["value"] == value
            for value in await produce(led[3]):
                await gets(client, value, within=20.0)
            assert set(led_by(instance, topic, 6)) == {1, 2}
            assert (await instance.ready()).status == 200
            await client.catch_up()
            assert sorted(client.chain.values) == list(range(count))
            assert not client.chain.lost
