"""The broker goes away while clients are parked, and comes back."""

import asyncio

from integration.brokers import BrokerHandle, Message
from integration.gateways import running
from waiting import eventually

CLIENTS = 40


async def test_parked_clients_outlive_the_broker(broker: BrokerHandle):
    """They stay parked, and get what is produced after; /readyz and the metrics tell meanwhile."""
    topic = await broker.create_topic(partitions=3)
    other = await broker.create_topic()
    channels = {"all": {"topic": topic}, "room/{room}": {"topic": topic, "key": "{room}"}, "other": {"topic": other}}
    async with running(broker.address, channels) as instance:
        names = ["all" if n % 2 else f"room/{n % 8}" for n in range(CLIENTS)]
        clients = [instance.client(name, start="earliest") for name in names]
        await broker.produce(topic, *(Message(b"%d" % n, b"%d" % (n % 8)) for n in range(100)))
        for client in clients:
            await client.catch_up()
        parked = [instance.park(client) for client in clients]
        await eventually(lambda: instance.parked == CLIENTS)
        ready = await instance.ready()
        assert (ready.status, ready.document["ready"]) == (200, True)

        await broker.kill()
        await eventually(lambda: is_ready(instance, 503))
        assert "kafka" in (await instance.ready()).document["failed"]
        metrics = await instance.metrics()
        assert metrics["gateway_ready"] == 0
        assert metrics["gateway_kafka_errors_total{UNREACHABLE}"] > 0
        assert metrics["gateway_parked_waiters"] == CLIENTS
        # A newcomer to a known topic parks as well; nothing can be said of a topic that nobody has asked for before.
        newcomer = instance.client("all")
        await newcomer.begin()
        unknown = await instance.client("other").poll(wait=0)
        assert (unknown.status, unknown.document["code"]) == (503, "broker_unavailable")
        assert int(unknown.headers["retry-after"]) > 0
        waiting = instance.park(newcomer)
        await eventually(lambda: instance.parked == CLIENTS + 1)

        await broker.restart()
        await eventually(lambda: is_ready(instance, 200), timeout=20)
        assert (await instance.metrics())["gateway_ready"] == 1
        assert not any(poll.done() for poll in parked)
        await broker.produce(topic, *(Message(b"%d" % n, b"%d" % (n % 8)) for n in range(100, 200)))
        for poll in (*parked, waiting):
            client = await asyncio.wait_for(poll, 20)
            assert client.status == 200
        for name, client in zip(names, clients, strict=True):
            await client.catch_up()
            assert sorted(client.chain.values) == [n for n in range(200) if name in ("all", f"room/{n % 8}")]
            assert not client.chain.lost
        await newcomer.catch_up()
        assert sorted(newcomer.chain.values) == list(range(100, 200))
        await eventually(lambda: instance.parked == 0)


async def is_ready(instance, status: int) -> bool:
    return (await instance.ready()).status == status


async def test_records_of_a_flapping_broker_come_once(broker: BrokerHandle, tcp_proxy):
    """Connections that break again and again, in the middle of answers too, lose and double nothing."""
    if broker.kind == "apache":
        listen, target = broker.kafka.proxied()
        address = broker.kafka.bootstrap("PROXIED")
        proxies = [await tcp_proxy("127.0.0.1", target, listen_port=listen)]
    else:
        address, proxies = broker.address, []
    topic = await broker.create_topic(partitions=3)
    async with running(address, {"all": {"topic": topic}}) as instance:
        clients = [instance.client("all", start="earliest", limit=50) for _ in range(10)]
        for client in clients:
            await client.begin()
        reading = [asyncio.ensure_future(client.read(3_000, timeout=60, wait=20)) for client in clients]
        for round_ in range(30):
            await broker.produce(
                topic, *(Message(b'"%d %s"' % (n, b"x" * 500)) for n in range(round_ * 100, round_ * 100 + 100))
            )
            for proxy in proxies:
                if round_ % 3 == 0:
                    proxy.reset()
                elif round_ % 3 == 1:
                    proxy.cut_after(10_000)
            if not proxies:
                await broker.in_process.disconnect()
        for proxy in proxies:
            proxy.heal()
        for chain in await asyncio.gather(*reading):
            assert sorted(int(value.split()[0]) for value in chain.values) == list(range(3_000))
            assert len(set(chain.spots)) == 3_000
