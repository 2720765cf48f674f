"""Clients that leave at bad moments, or never read: nothing is lost to them, and nothing is left behind of them."""

import asyncio
import json
import random
import urllib.request

from integration.brokers import BrokerHandle, Message
from integration.clients import Client
from integration.gateways import Instance, running, token
from waiting import eventually


async def no_waiter_left(instance: Instance) -> None:
    """Wait until the metrics show that nobody is parked: within a second."""

    async def nobody() -> bool:
        return (await instance.metrics())["gateway_parked_waiters"] == 0

    await eventually(nobody, timeout=1.0)
    assert repr(instance.gateway.hub).endswith("0 parked, 0 woken>")


async def test_a_time_out_shorter_than_the_hold(broker: BrokerHandle):
    """Clients that give up their polls again and again, while records flow, get each record once."""
    topic = await broker.create_topic(partitions=2)
    async with running(broker.address, {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}) as instance:
        clients = [instance.client(("all", "one/k1")[n % 2], start="earliest") for n in range(20)]
        for client in clients:
            await client.begin()

        async def impatient(client: Client, count: int, rng: random.Random) -> None:
            while len(client.chain) < count:
                try:
                    async with asyncio.timeout(rng.uniform(0.0, 0.1)):
                        client.check(await client.poll(wait=50))
                except TimeoutError:
                    client.drop()

        reading = [
            asyncio.ensure_future(impatient(client, (400, 100)[n % 2], random.Random(n))) for n, client in enumerate(clients)
        ]
        for n in range(400):
            await broker.produce(topic, Message(b"%d" % n, b"k%d" % (n % 4), n // 4 % 2))
        async with asyncio.timeout(30):
            await asyncio.gather(*reading)
        for n, client in enumerate(clients):
            assert sorted(client.chain.values) == list(range(400))[slice(1, None, 4) if n % 2 else slice(None)]
            assert (await client.poll(wait=0)).status == 204
            # Gone while it is parked.
            instance.park(client)
        await eventually(lambda: instance.parked == len(clients))
        await instance.drop_clients()
        await no_waiter_left(instance)
        metrics = await instance.metrics()
        assert metrics["gateway_answers_total{closed_by_client,poll}"] >= len(clients)


async def test_closing_in_the_middle_of_an_answer(broker: BrokerHandle):
    """A client that has read a part of an answer comes back with the cursor that it had, and gets all of it."""
    topic = await broker.create_topic()
    await broker.produce(topic, *(Message(b'"%d %s"' % (n, b"x" * 10_000)) for n in range(200)))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all", start="earliest", limit=100)
        await client.poll(wait=5, limit=1)
        for read in (0, 10, 70_000):
            await client.send(client.target(wait=5))
            status, headers = await client.receive_head()
            assert (status, int(headers["content-length"]) > 900_000) == (200, True)
            reader, _ = await client._open()
            await reader.readexactly(read)
            client.drop()
        await client.catch_up()
        assert [int(value.split()[0]) for value in client.chain.values] == list(range(200))
        await no_waiter_left(instance)


async def test_a_client_that_never_reads(broker: BrokerHandle):
    """It costs no slot of its principal and no waiter, the others go on, and its records wait for it."""
    topic = await broker.create_topic()
    await broker.produce(topic, *(Message(b'"%d %s"' % (n, b"x" * 100_000)) for n in range(80)))
    limits = {"address": None, "polls": None, "concurrent_polls": 2}
    async with running(broker.address, {"all": {"topic": topic}}, limits=limits) as instance:
        deaf = [instance.client("all", start="earliest", limit=1000, max_bytes=8 * 2**20) for _ in range(4)]
        for client in deaf:
            await client.send(client.target(wait=5))
            await client.receive_head()
        await no_waiter_left(instance)
        # All that it may hold at once is free.
        good = [instance.client("all", start="earliest", limit=20, max_bytes=2**21) for _ in range(2)]
        for client in good:
            await client.catch_up()
            assert [int(value.split()[0]) for value in client.chain.values] == list(range(80))
        parked = [instance.park(client) for client in good]
        await broker.produce(topic, b'"80"')
        for poll in parked:
            assert (await asyncio.wait_for(poll, 5)).messages[0]["value"] == "80"
        for client in deaf:
            client.drop()
            await client.catch_up(max_bytes=2**20)
            assert len(client.chain) == 81
        await no_waiter_left(instance)


async def test_a_client_that_only_sends(broker: BrokerHandle):
    """Many polls in one go on one connection, whose answers nobody reads: they are answered one after the other, in bounded memory."""
    topic = await broker.create_topic()
    await broker.produce(topic, *(Message(b'"%s"' % (b"x" * 100_000)) for _ in range(50)))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all", start="earliest", limit=1000, max_bytes=8 * 2**20)
        for _ in range(50):
            await client.send(client.target(wait=5))
        other = instance.client("all", start="earliest")
        await other.read(50)
        answers = (await instance.metrics())["gateway_answers_total"]
        assert answers <= 12
        client.drop()
        await no_waiter_left(instance)


async def test_the_standard_library_times_out_and_comes_back(broker: BrokerHandle):
    """A blocking client with a socket time-out below its wait."""
    topic = await broker.create_topic()
    async with running(broker.address, {"all": {"topic": topic}}) as instance:

        def get(cursor: str, timeout: float) -> dict:
            url = f"http://127.0.0.1:{instance.port}/v1/subscribe?channel=all&wait=30&from=earliest{cursor}"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token()}"})
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310  # our own URL
                return json.loads(answer.read())

        for _ in range(3):
            try:
                await asyncio.to_thread(get, "", 0.1)
            except TimeoutError:
                continue
            raise AssertionError("there was nothing to answer with")
        await no_waiter_left(instance)
        await broker.produce(topic, b"1")
        assert [message["value"] for message in (await asyncio.to_thread(get, "", 10))["messages"]] == [1]
