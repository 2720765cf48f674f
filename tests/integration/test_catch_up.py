"""Many clients read the same history: one read for all of them, and those at the end of the log do not notice."""

import asyncio
import logging
import time

from integration.brokers import BrokerHandle, Message
from integration.gateways import Instance, running

log = logging.getLogger(__name__)

READERS = 20
LIVE = 5
PARTITIONS = 4
# 20 MB in all.
RECORDS, SIZE = 20_000, 1_000
JSON_RECORDS = 3_000


async def fill(broker: BrokerHandle, topic: str) -> int:
    """Write the history and return its size in bytes, values only."""
    values = [b"%07d" % n + b"x" * (SIZE - 7) for n in range(RECORDS)]
    for at in range(0, RECORDS, 1_000):
        await broker.produce(topic, *(Message(value, None, n % PARTITIONS) for n, value in enumerate(values[at : at + 1_000])))
    return sum(map(len, values))


async def replay(instance: Instance, number: int) -> list[tuple[int, int, str]]:
    """Read everything up to the first live record of each partition; return where records were and how they began."""
    client = instance.client("all", subject=f"r{number}", start="earliest", limit=1000)
    await client.read(RECORDS, timeout=60, wait=5)
    chain = client.chain
    found = [(*spot, value[:7]) for spot, value in zip(chain.spots, chain.values, strict=True) if not value.startswith("live")]
    assert len(found) <= RECORDS
    while len(found) < RECORDS:
        await client.read(len(chain) + 1, timeout=20, wait=5)
        found = [
            (*spot, value[:7]) for spot, value in zip(chain.spots, chain.values, strict=True) if not value.startswith("live")
        ]
    assert not chain.lost
    return sorted(found)


async def test_twenty_clients_replay_the_same_history(broker: BrokerHandle):
    """All get the same, Kafka is read about once, and live clients get their records at once."""
    topic = await broker.create_topic(partitions=PARTITIONS)
    size = await fill(broker, topic)
    delays: list[float] = []
    sent: dict[str, float] = {}
    async with running(broker.address, {"all": {"topic": topic, "format": "text"}}) as instance, asyncio.timeout(100):
        followers = [instance.client("all", subject=f"l{n}") for n in range(LIVE)]
        for client in followers:
            await client.begin()

        async def follow(client) -> None:
            while True:
                answer = client.check(await client.poll(wait=20))
                delays.extend(time.monotonic() - sent[message["value"]] for message in answer.messages)

        async def produce() -> None:
            for n in range(100_000):
                # Acknowledged is what counts, but the first client may have it before.
                sent[f"live {n}"] = time.monotonic()
                await broker.produce(topic, Message(b"live %d" % n, None, n % PARTITIONS))
                await asyncio.sleep(0.05)

        live = [asyncio.ensure_future(follow(client)) for client in followers]
        producer = asyncio.ensure_future(produce())
        began = time.monotonic()
        histories = await asyncio.gather(*(replay(instance, n) for n in range(READERS)))
        took = time.monotonic() - began
        producer.cancel()
        await asyncio.gather(producer, return_exceptions=True)
        expected = sorted((n % PARTITIONS, n // PARTITIONS, f"{n:07d}") for n in range(RECORDS))
        assert all(history == expected for history in histories)
        last = len(sent) - 1
        for client in followers:
            await until_live(client, f"live {last - 1}", live)
        metrics = await instance.metrics()
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
        for client in followers:
            numbers = sorted(int(value.removeprefix("live ")) for value in client.chain.values)
            assert numbers == list(range(len(numbers)))
        ratio = metrics["gateway_cold_read_bytes_total"] / size
        delays.sort()
        log.info(
            "%s: %d clients read %.0f MB each in %.1f s; %.2f of it was read from Kafka; live records after %.0f ms (median), %.0f ms (worst) of %d",
            broker.kind, READERS, size / 1e6, took, ratio, delays[len(delays) // 2] * 1000, delays[-1] * 1000, len(delays),
        )  # fmt: skip
        assert ratio <= 1.5
        assert delays[len(delays) // 2] < 0.5


async def bodies(instance: Instance, subject: str) -> list[bytes]:
    """Replay everything from the beginning and return the answers as they came."""
    client = instance.client("all", subject=subject, start="earliest", limit=1000, max_bytes=8 * 2**20)
    found: list[bytes] = []
    while not found or not client.chain or len(client.chain) < JSON_RECORDS:
        found.append(client.check(await client.poll(wait=5)).body)
    return found


async def test_large_json_is_shown_as_it_was_produced_and_encoded_once(broker: BrokerHandle):
    """Several steps of encoding to an answer; who replays the same gets the same bytes, and the archive is read once."""
    topic = await broker.create_topic(partitions=1)
    values = [b'{"n":%d,"text":"%b","deep":[[{"x":1.10}]]}' % (n, b"\\u00e9 y" * (n % 3_000)) for n in range(JSON_RECORDS)]
    for at in range(0, JSON_RECORDS, 500):
        await broker.produce(topic, *(Message(value, None, 0) for value in values[at : at + 500]))
    kafka = {"bootstrap_servers": broker.address, "tails_bytes": "1MiB", "tail_bytes": "64KiB", "cold_cache_bytes": "256MiB"}
    async with running(kafka, {"all": {"topic": topic}}) as instance, asyncio.timeout(60):
        first = await bodies(instance, "one")
        second = await bodies(instance, "two")
        metrics = await instance.metrics()
    assert first == second
    shown = b"".join(first)
    at = 0
    for n, value in enumerate(values):
        at = shown.find(b'"offset":%d,' % n, at)
        begin = shown.index(b'"value":', at) + len(b'"value":')
        assert shown.startswith(value + b"}", begin)
    assert metrics["gateway_cold_read_bytes_total"] <= 1.2 * sum(map(len, values))


async def until_live(client, value: str, polls) -> None:
    async with asyncio.timeout(10):
        while value not in client.chain.values:
            assert not any(poll.done() for poll in polls)
            await asyncio.sleep(0.01)
