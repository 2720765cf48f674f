"""Transactions on a topic: an open one makes nobody spin, a committed one arrives, an aborted one never does."""

import asyncio
import time

from integration.brokers import BrokerHandle, Message
from integration.gateways import Instance, running
from waiting import eventually

CLIENTS = 30
# How long an open transaction is watched, in seconds.
WATCHED = 1.5


class Fetches:
    """Counts what the gateway asks of the brokers, by request."""

    def __init__(self, instance: Instance) -> None:
        self.count = 0
        connections = instance.gateway.kafka.cluster.connections
        send = connections.send

        async def counting(*args, **kwargs):
            self.count += 1
            return await send(*args, **kwargs)

        connections.send = counting


async def test_an_open_transaction_makes_nobody_spin(broker: BrokerHandle):
    """Parked clients sleep, the feed keeps its pace; records behind it come with the commit, those of an aborted one never."""
    topic, calm = await broker.create_topic(partitions=2), await broker.create_topic()
    channels = {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}, "calm": {"topic": calm}}
    await broker.produce(topic, Message(b"0", b"k", 0))
    async with running(broker.address, channels) as instance:
        clients = [instance.client(("all", "one/k")[n % 2], start="earliest") for n in range(CLIENTS)]
        for client in clients:
            await client.catch_up()
            assert client.chain.values == [0]
        async with broker.transaction() as transaction:
            await transaction.send(topic, Message(b"1", b"k", 0), Message(b"2", b"k", 1))
            # What others write behind it is held back with it.
            await broker.produce(topic, Message(b"3", b"k", 0))
            polls = [instance.park(client) for client in clients]
            await eventually(lambda: instance.parked == CLIENTS)
            await eventually(lambda: unstable(instance, 2))
            fetches, before = Fetches(instance), await instance.metrics()
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(WATCHED)
            watched, cpu = time.monotonic() - began, time.process_time() - cpu
            metrics = await instance.metrics()
            # A long poll every half second at one leader, and metadata now and then.
            assert fetches.count <= 6 * watched
            assert cpu < watched / 2
            assert instance.parked == CLIENTS
            assert metrics["gateway_answers_total"] == before["gateway_answers_total"]
            assert metrics["gateway_unstable_age_seconds"] > before["gateway_unstable_age_seconds"]
            assert metrics["gateway_consumer_lag_records"] == 0
            assert not any(poll.done() for poll in polls)
            # A newcomer stands at the last stable offset, and is up to date there.
            newcomer = instance.client("all", start="latest")
            assert (await newcomer.begin()).status == 204
            await transaction.commit()
        await asyncio.wait_for(asyncio.gather(*polls), 10)
        for client in clients:
            await client.read(4, timeout=10)
            assert sorted(client.chain.values) == [0, 1, 2, 3]
        await newcomer.read(3, timeout=10)
        assert sorted(newcomer.chain.values) == [1, 2, 3]
        async with broker.transaction() as transaction:
            await transaction.send(topic, Message(b"4", b"k", 0), Message(b"5", b"k", 1))
            polls = [instance.park(client) for client in clients]
            await eventually(lambda: instance.parked == CLIENTS)
            await transaction.abort()
        # The markers move the ends of the tails, which is nothing to wake anybody for.
        await eventually(lambda: unstable(instance, 0))
        assert instance.parked == CLIENTS
        await broker.produce(topic, Message(b"6", b"k", 1))
        await asyncio.wait_for(asyncio.gather(*polls), 10)
        for client in clients:
            await client.catch_up()
            assert sorted(client.chain.values) == [0, 1, 2, 3, 6]
            assert not client.chain.lost
        assert (await instance.metrics())["gateway_lost_records_total"] == 0


async def unstable(instance: Instance, least: int) -> bool:
    found = (await instance.metrics())["gateway_unstable_records"]
    return found >= least if least else found == 0


async def test_a_transactional_topic_reports_no_loss(broker: BrokerHandle):
    """Read from earliest in steps of any size: markers and aborted records are holes, not losses."""
    topic = await broker.create_topic(partitions=2)
    expected = []
    for n in range(6):
        async with broker.transaction() as transaction:
            messages = [Message(b"%d" % (n * 10 + m), b"k%d" % (m % 2), m % 2) for m in range(5)]
            await transaction.send(topic, *messages)
            if n % 2:
                await transaction.abort()
            else:
                await transaction.commit()
                expected += [n * 10 + m for m in range(5)]
    # The end of the log is a marker.
    await eventually(lambda: ends_at(broker, topic, {0: 24, 1: 18}))
    channels = {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}
    async with running(broker.address, channels) as instance:
        for limit in (1, 2, 3, 1000):
            client = instance.client("all", start="earliest", limit=limit)
            await client.catch_up()
            assert sorted(client.chain.values) == expected
            assert not client.chain.lost
        keyed = instance.client("one/k1", start="earliest", limit=1)
        await keyed.catch_up()
        assert keyed.chain.values == [n for n in expected if n % 10 in (1, 3)]
        # The same from the tail: a client that is there while it happens.
        async with broker.transaction() as transaction:
            await transaction.send(topic, Message(b"99", b"k1", 0))
            await transaction.commit()
        await client.read(len(expected) + 1)
        await keyed.read(7)
        assert (client.chain.values[-1], keyed.chain.values[-1]) == (99, 99)
        assert (await instance.metrics())["gateway_lost_records_total"] == 0


async def ends_at(broker: BrokerHandle, topic: str, ends: dict[int, int]) -> bool:
    return {partition: end for partition, (_, end) in (await broker.offsets(topic)).items()} == ends
