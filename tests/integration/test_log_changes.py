"""What becomes of cursors when the log changes under them: retention, compaction, deleted topics, new partitions, new topics."""

import asyncio

import pytest
from integration.brokers import COMPACTED, FILLER, BrokerHandle, Message
from integration.clients import by_partition
from integration.gateways import running
from waiting import eventually

from gateway.fanout.cursor import TopicPosition, decode, encode, id_hash


def numbered(count: int, partition: int, keys: int = 4) -> list[Message]:
    return [Message(b"%d" % (partition * 1000 + n), b"k%d" % (n % keys), partition) for n in range(count)]


async def test_lost_names_exactly_the_offsets_that_are_gone(broker: BrokerHandle):
    """Below the log start of some partitions, above that of others: each loss is told once, and everything that is left comes."""
    topic = await broker.create_topic(partitions=4)
    channels = {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}
    for partition in range(4):
        await broker.produce(topic, *numbered(20, partition))
    async with running(broker.address, channels) as instance:
        whole, keyed = instance.client("all", start="earliest", limit=30), instance.client("one/k1", start="earliest", limit=6)
        await whole.read(30)
        await keyed.read(6)
        cursors = {"all": whole.cursor, "one/k1": keyed.cursor}
    for partition in range(4):
        await broker.produce(topic, *numbered(40, partition)[20:])
    # Below every position, just at some, above others; partition 3 keeps everything.
    starts = {0: 35, 1: 12, 2: 1, 3: 0}
    await broker.delete_records(topic, {p: start for p, start in starts.items() if start})
    async with running(broker.address, channels) as instance:
        for name, cursor in cursors.items():
            at = decode(cursor)[0].position.offsets
            client = instance.client(name, cursor=cursor)
            await client.catch_up()
            assert client.chain.lost == [
                {"channel": name, "partition": p, "from": at[p], "to": start} for p, start in starts.items() if at[p] < start
            ]
            expected = {
                p: [n for n in range(max(start, at[p]), 40) if name == "all" or n % 4 == 1] for p, start in starts.items()
            }
            assert by_partition(client.chain.spots) == expected
            assert (await client.poll(wait=0)).status == 204
            pattern = {"all": "all", "one/k1": "one/{key}"}[name]
            lost = sum(max(0, start - at[p]) for p, start in starts.items())
            assert (await instance.metrics())[f"gateway_lost_records_total{{{pattern}}}"] == lost > 0


async def test_a_keyed_cursor_at_the_start_loses_an_exact_range(broker: BrokerHandle):
    """A cursor that was taken at offset 0 names [0, log start) of each partition, whatever its key."""
    topic = await broker.create_topic(partitions=2)
    async with running(broker.address, {"one/{key}": {"topic": topic, "key": "{key}"}}) as instance:
        client = instance.client("one/k1")
        await client.begin()
        cursor = client.cursor
    for partition in range(2):
        await broker.produce(topic, *numbered(10, partition))
    await broker.delete_records(topic, {0: 6, 1: 9})
    async with running(broker.address, {"one/{key}": {"topic": topic, "key": "{key}"}}) as instance:
        client = instance.client("one/k1", cursor=cursor)
        await client.catch_up()
        assert client.chain.lost == [
            {"channel": "one/k1", "partition": 0, "from": 0, "to": 6},
            {"channel": "one/k1", "partition": 1, "from": 0, "to": 9},
        ]
        assert sorted(client.chain.spots) == [(0, 9), (1, 9)]


async def test_on_loss_fail_refuses_the_cursor(broker: BrokerHandle):
    """410, with what is lost, and the earliest cursor that goes on."""
    topic = await broker.create_topic()
    channels = {"strict": {"topic": topic, "on_loss": "fail"}}
    async with running(broker.address, channels) as instance:
        client = instance.client("strict")
        await client.begin()
        cursor = client.cursor
    await broker.produce(topic, *numbered(10, 0))
    await broker.delete_records(topic, {0: 7})
    async with running(broker.address, channels) as instance:
        client = instance.client("strict", cursor=cursor)
        answer = await client.poll(wait=0)
        assert (answer.status, answer.document["code"]) == (410, "cursor_expired")
        client.cursor = answer.document["cursor"]
        assert (await client.catch_up()).values == [7, 8, 9]


async def test_a_parked_poll_is_no_loss_when_retention_comes_after_it(broker: BrokerHandle):
    """Deleting what a client has read already is nothing to tell it."""
    topic = await broker.create_topic()
    await broker.produce(topic, *numbered(10, 0))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all", start="earliest")
        await client.catch_up()
        parked = instance.park(client)
        await eventually(lambda: instance.parked == 1)
        await broker.delete_records(topic, {0: 10})
        await broker.produce(topic, b"77")
        answer = await asyncio.wait_for(parked, 10)
        assert (answer.messages[0]["value"], answer.lost) == (77, [])


async def test_a_compacted_topic_reports_no_loss(broker: BrokerHandle):
    """The holes that compaction leaves are read over, from the start and from a cursor before them."""
    topic = await broker.create_topic(partitions=2, configs=COMPACTED)
    async with running(broker.address, {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}) as instance:
        before = instance.client("all")
        await before.begin()
        cursor = before.cursor
    for n in range(30):
        await broker.produce(topic, Message(b"%d" % n, b"k%d" % (n % 3), n % 2))
    await broker.compact(topic)
    left = [record for record in await broker.consume(topic) if record.key != FILLER]
    assert len(left) < 30
    async with running(broker.address, {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}) as instance:
        for client in (instance.client("all", start="earliest", limit=2), instance.client("all", cursor=cursor)):
            await client.catch_up()
            spots = [
                spot for spot, value in zip(client.chain.spots, client.chain.values, strict=True) if not isinstance(value, str)
            ]
            assert sorted(spots) == [(record.partition, record.offset) for record in left]
            assert not client.chain.lost
        keyed = instance.client("one/k1", start="earliest")
        await keyed.catch_up()
        assert sorted(keyed.chain.spots) == [(record.partition, record.offset) for record in left if record.key == b"k1"]
        assert (await instance.metrics())["gateway_lost_records_total"] == 0


async def test_a_re_created_topic_resets_cursors(broker: BrokerHandle):
    """409 with a cursor at the new end: for polls that come with an old cursor, and for those that are parked."""
    topic = await broker.create_topic(partitions=2)
    channels = {
        "fail": {"topic": topic},
        "earliest": {"topic": topic, "on_reset": "earliest"},
        "latest": {"topic": topic, "on_reset": "latest"},
    }
    await broker.produce(topic, *numbered(5, 0), *numbered(5, 1))
    kafka = {"bootstrap_servers": broker.address, "metadata_max_age": 1}
    async with running(kafka, channels) as instance:
        clients = {name: [instance.client(name, start="earliest") for _ in range(2)] for name in channels}
        parked = {}
        for name, (one, two) in clients.items():
            await one.catch_up()
            await two.catch_up()
            parked[name] = instance.park(one)
        await eventually(lambda: instance.parked == len(channels))
        await broker.delete_topic(topic)
        await broker.create_topic(topic, partitions=2)
        answer = await asyncio.wait_for(parked.pop("fail"), 20)
        assert (answer.status, answer.document["code"]) == (409, "cursor_reset")
        await broker.produce(topic, Message(b"1", partition=0), Message(b"2", partition=1))
        # The parked ones go on in the new log.
        for name, poll in parked.items():
            answer = await asyncio.wait_for(poll, 20)
            assert answer.status == 200, name
            one = clients[name][0]
            await one.catch_up()
            assert sorted(one.chain.values[10:]) == [1, 2], name
        # So do those that come back with an old cursor; who wants the newest gets what comes from now on.
        two = clients["earliest"][1]
        await two.catch_up()
        assert sorted(two.chain.values[10:]) == [1, 2]
        two = clients["latest"][1]
        await two.catch_up()
        assert two.chain.values[10:] == []
        two = clients["fail"][1]
        answer = await two.poll(wait=5)
        assert (answer.status, answer.document["code"]) == (409, "cursor_reset")
        fresh = [clients["fail"][1], clients["latest"][1]]
        fresh[0].cursor = answer.document["cursor"]
        assert (await fresh[0].poll(wait=0)).status == 204
        await broker.produce(topic, Message(b"3", partition=1))
        for client in fresh:
            await client.read(11)
            assert client.chain.values[10:] == [3]


async def test_a_topic_re_created_with_fewer_partitions_resets_cursors(broker: BrokerHandle):
    """A cursor that names a partition which is gone is of another topic."""
    topic = await broker.create_topic(partitions=3)
    await broker.produce(topic, *numbered(3, 2))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all", start="earliest")
        await client.catch_up()
        cursor = client.cursor
    await broker.delete_topic(topic)
    await broker.create_topic(topic, partitions=1)
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        answer = await instance.client("all", cursor=cursor).poll(wait=0)
        assert (answer.status, answer.document["code"]) == (409, "cursor_reset")


async def test_an_added_partition_is_read_whole(broker: BrokerHandle):
    """By parked polls, by old cursors, on this instance and on another, which did not know of it: from its first record."""
    topic = await broker.create_topic(partitions=1)
    channels = {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}
    kafka = {"bootstrap_servers": broker.address, "metadata_max_age": 1}
    async with running(kafka, channels) as instance:
        parked, away, keyed = (instance.client(name, start="earliest") for name in ("all", "all", "one/k1"))
        for client in (parked, away, keyed):
            await client.begin()
        poll = instance.park(parked)
        await eventually(lambda: instance.parked == 1)
        await broker.add_partitions(topic, 3)
        written = await broker.produce(topic, *numbered(10, 1), *numbered(10, 2))
        assert (await asyncio.wait_for(poll, 20)).status == 200
        spots = sorted((place.partition, place.offset) for place in written)
        await parked.read(20)
        assert sorted((await away.read(20)).spots) == sorted(parked.chain.spots) == spots
        await keyed.read(6)
        assert sorted(keyed.chain.spots) == [spot for spot in spots if spot[1] % 4 == 1]
        assert by_partition(parked.chain.spots) == {1: list(range(10)), 2: list(range(10))}
    await broker.add_partitions(topic, 4)
    await broker.produce(topic, *numbered(5, 3))
    async with running(kafka, channels) as instance:
        for client in (parked, keyed):
            client.turn_to(instance.port)
        await parked.catch_up()
        await keyed.catch_up()
        assert parked.chain.spots[20:] == [(3, n) for n in range(5)]
        assert keyed.chain.spots[6:] == [(3, 1)]
        parked.drop()
        keyed.drop()


async def test_a_key_moves_with_the_partitioner(broker: BrokerHandle):
    """Under `partitioner` a key's new partition is read from its first record, and its old one on."""
    topic = await broker.create_topic(partitions=1)
    kafka = {"bootstrap_servers": broker.address, "metadata_max_age": 1}
    async with running(kafka, {"one/{key}": {"topic": topic, "key": "{key}", "partitioner": "murmur2"}}) as instance:
        clients = [instance.client(f"one/k{n}", start="earliest") for n in range(8)]
        for n in range(8):
            await broker.produce(topic, Message(b"%d" % n, b"k%d" % n))
        for client in clients:
            await client.read(1)
        parked = [instance.park(client) for client in clients[:4]]
        await eventually(lambda: instance.parked == 4)
        await broker.add_partitions(topic, 5)
        for n in range(8):
            await broker.produce(topic, Message(b"%d" % (10 + n), b"k%d" % n))
        await asyncio.wait_for(asyncio.gather(*parked), 20)
        for n, client in enumerate(clients):
            await client.read(2)
            assert client.chain.values == [n, 10 + n]
        assert len({client.chain.spots[1][0] for client in clients}) > 1


async def test_a_key_that_moves_more_than_once_while_its_reader_is_away(broker: BrokerHandle):
    """Under `partitioner` nothing is lost of a key that was written under each of several numbers of partitions."""
    topic = await broker.create_topic(partitions=1)
    names = [f"k{n}" for n in range(16)]
    channels = {"one/{key}": {"topic": topic, "key": "{key}", "partitioner": "murmur2"}}
    async with running(broker.address, channels) as instance:
        clients = [instance.client(f"one/{name}", start="earliest") for name in names]
        for client in clients:
            await client.begin()
    for count in range(1, 6):
        if count > 1:
            await broker.add_partitions(topic, count)
        await broker.produce(topic, *(Message(b"%d" % count, name.encode()) for name in names))
    async with running(broker.address, channels) as instance:
        for client in clients:
            client.turn_to(instance.port)
            await client.catch_up()
            client.drop()
            assert sorted(client.chain.values) == [1, 2, 3, 4, 5]
        assert max(len(by_partition(client.chain.spots)) for client in clients) > 2


async def test_an_instance_that_has_not_heard_of_a_change_does_not_reset(broker: BrokerHandle):
    """A cursor that names a partition, or an id, of which another instance has told it asks the brokers before it says 409."""
    topic, other = await broker.create_topic(partitions=1), await broker.create_topic(partitions=1)
    channels = {"grown": {"topic": topic}, "new": {"topic": other}}
    # The first instance looks for changes each second, the second one in an hour.
    kafka = [{"bootstrap_servers": broker.address, "metadata_max_age": age} for age in (1, 3600)]
    async with running(kafka[0], channels) as quick, running(kafka[1], channels) as slow:
        for instance in (quick, slow):
            for name in channels:
                await instance.client(name).begin()
        await broker.add_partitions(topic, 2)
        await broker.produce(topic, Message(b"1", partition=1))
        client = quick.client("grown", start="earliest")
        await client.read_until(lambda chain: chain.values == [1], wait=1)
        client.turn_to(slow.port)
        assert (await client.poll(wait=0)).status == 204
        await broker.produce(topic, Message(b"2", partition=1))
        assert (await client.read(2)).values == [1, 2]

        await broker.delete_topic(other)
        await broker.create_topic(other)
        await broker.produce(other, b"3")
        known = id_hash(await broker.topic_id(other))
        await eventually(lambda: quick.gateway.hub.topic(other).id_hash == known)
        client = quick.client("new", start="earliest")
        assert (await client.read(1)).values == [3]
        client.turn_to(slow.port)
        assert (await client.poll(wait=0)).status == 204


async def test_a_topic_that_appears_after_the_first_poll(broker: BrokerHandle):
    """A client that came before the topic is answered as if the topic were empty, and gets its first record when it comes."""
    topic = await broker.create_topic()
    await broker.delete_topic(topic)
    other = await broker.create_topic()
    channels = {"late": {"topic": topic}, "other": {"topic": other}}
    async with running(broker.address, channels) as instance:
        client = instance.client("late")
        assert (await client.begin()).status == 204
        poll = instance.park(client)
        both = instance.client("late", "other")
        await both.begin()
        await eventually(lambda: instance.parked == 1)
        await broker.create_topic(topic, partitions=2)
        await broker.produce(topic, Message(b"1", partition=1), Message(b"2", partition=0))
        assert (await asyncio.wait_for(poll, 20)).status == 200
        await client.read(2)
        assert sorted(client.chain.values) == [1, 2]
        await broker.produce(other, b"3")
        await both.read(3)
        assert sorted(both.chain.values) == [1, 2, 3]


@pytest.mark.parametrize("policy", ["earliest", "latest"])
async def test_a_log_cut_below_a_cursor(broker: BrokerHandle, policy: str):
    """A cursor beyond the end of the log, as its leader says it, is one of another log: `on_reset` decides."""
    topic, longer = await broker.create_topic(), await broker.create_topic()
    await broker.produce(longer, *numbered(20, 0))
    await broker.produce(topic, *numbered(3, 0))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all", start="earliest")
        await client.catch_up()
        hub_id = instance.gateway.hub.topic(topic).id_hash
    ahead = encode({topic: TopicPosition(hub_id, {0: 17})})
    async with running(broker.address, {"all": {"topic": topic, "on_reset": policy}, "strict": {"topic": topic}}) as instance:
        client = instance.client("all", cursor=ahead)
        await client.catch_up()
        assert client.chain.values == ([0, 1, 2] if policy == "earliest" else [])
        answer = await instance.client("strict", cursor=ahead).poll(wait=0)
        assert (answer.status, answer.document["code"]) == (409, "cursor_reset")
