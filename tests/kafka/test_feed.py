"""The feed and its lanes: sick partitions, leaders that move or stall, topics that come, go and retire."""

import asyncio
import random
import time

import pytest
from kafka.batches import spoil
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker
from gateway.errors import BrokerUnavailable
from gateway.fanout.hub import Interest, Waiter
from gateway.kafka import feed as feed_module
from gateway.kafka.lanes import AHEAD, Lane

STORAGE_ERROR = 56
NOT_LEADER = 6
UNAUTHORIZED = 29


@pytest.fixture
async def cluster():
    """Three nodes with the topic `t` of six partitions, two led by each."""
    async with Broker(nodes=3) as broker:
        broker.create_topic("t", 6)
        for partition in range(6):
            broker.move_leader("t", partition, partition % 3 + 1)
        yield broker
        broker.faults.clear()


async def test_one_long_poll_per_leader_serves_all_partitions(cluster, rig, count_requests, pass_time):
    cluster.create_topic("u", 3)
    for partition in range(3):
        cluster.move_leader("u", partition, partition + 1)
    one = await rig(cluster.address, max_wait=0.5, metadata_max_age=60.0)
    await one.follow("t")
    await one.follow("u")
    await pass_time(1.0)  # the joining lanes have given up their partitions by now
    async with count_requests(one.log) as sent:
        await pass_time(1.0)
    assert sent.keys() == {"Fetch"}
    assert 3 <= sent["Fetch"] <= 9
    for partition in range(6):
        cluster.append("t", partition, [b"%d" % partition])
    for partition in range(6):
        assert await one.has("t", 1, partition) == [b"%d" % partition]


async def test_a_topic_that_is_followed_while_a_poll_is_held_is_fetched_at_once(dev, rig):
    dev.create_topic("u")
    one = await rig(dev.address, max_wait=20.0)
    await one.follow("t")
    await dev.until_parked("t", 0)
    began = time.monotonic()
    await one.follow("u")
    await dev.until_parked("u", 0)
    dev.append("u", 0, [b"x"])
    await one.has("u", 1)
    dev.append("u", 0, [b"y"])
    await one.has("u", 2)
    assert time.monotonic() - began < 5
    lane = one.log.feed._lanes[1]
    assert repr(lane) == "<Lane to 1: 4 partitions>"
    dev.append("t", 0, [b"z"])
    await eventually(lambda: dev.parked("u", 0) == 1)


async def test_topics_that_are_followed_one_soon_after_the_other_wait_for_none_of_them(dev, rig):
    """The joining lane is out for the first of them when the second one comes."""
    dev.create_topic("u")
    dev.create_topic("v")
    one = await rig(dev.address, max_wait=20.0)
    await one.follow("t")
    await dev.until_parked("t", 0)
    await one.follow("u")
    await dev.until_parked("u", 0)
    await one.follow("v")
    began = time.monotonic()
    dev.append("v", 0, [b"x"])
    assert await one.has("v", 1) == [b"x"]
    assert time.monotonic() - began < 2


async def test_a_partition_with_an_error_does_not_hold_up_the_others(dev, rig, count_requests):
    one = await rig(dev.address)
    await one.follow("t")
    with dev.faults.error(STORAGE_ERROR, Api.FETCH, topic="t", partition=0):
        await eventually(lambda: one.log.status().sick)
        ((topic, partition, error),) = one.log.status().sick
        assert (topic, partition) == ("t", 0)
        assert "56" in error or "STORAGE" in error
        async with count_requests(one.log) as sent:
            began = time.monotonic()
            for i in range(20):
                dev.append("t", 1, [b"%d" % i])
                await one.has("t", i + 1, 1)
            assert time.monotonic() - began < 1.0
        assert sent["Metadata"] < 10
        dev.append("t", 0, [b"late"])
    assert await one.has("t", 1, 0) == [b"late"]
    await eventually(lambda: one.log.status().sick == [])
    assert one.watch.errors


async def test_a_stalled_partition_does_not_hold_up_the_others(dev, rig):
    one = await rig(dev.address, max_wait=0.2, stall=0.5)
    await one.follow("t")
    with dev.faults.stall(Api.FETCH, topic="t", partition=0):
        await eventually(lambda: ("t", 0) in one.log.feed._sick)
        await eventually(lambda: len(one.log.feed._sick) == 1)
        dev.append("t", 1, [b"x"])
        await one.has("t", 1, 1, timeout=1.0)
        dev.append("t", 0, [b"late"])
    assert await one.has("t", 1, 0) == [b"late"]
    await eventually(lambda: one.log.status().sick == [])
    assert one.watch.errors["STALLED"]


async def test_a_stalled_node_is_noticed_soon_and_the_others_go_on(cluster, rig):
    one = await rig(cluster.address, max_wait=0.2, stall=0.5)
    await one.follow("t")
    with cluster.faults.stall(node=2):
        began = time.monotonic()
        await eventually(lambda: one.log.status().sick)
        assert time.monotonic() - began < 3
        cluster.append("t", 0, [b"x"])
        await one.has("t", 1, 0, timeout=1.0)
        cluster.append("t", 1, [b"late"])
        assert [sick[:2] for sick in one.log.status().sick] == [("t", 1), ("t", 4)]
    assert await one.has("t", 1, 1) == [b"late"]
    await eventually(lambda: one.log.status().sick == [])


async def test_a_stalled_node_whose_partitions_move_is_left(cluster, rig):
    one = await rig(cluster.address, max_wait=0.2, stall=20.0)
    await one.follow("t")
    with cluster.faults.stall(Api.FETCH, node=2):
        cluster.append("t", 1, [b"x"])
        cluster.move_leader("t", 1, 3)
        cluster.append("t", 1, [b"y"])
        began = time.monotonic()
        assert await one.has("t", 2, 1) == [b"x", b"y"]
        assert time.monotonic() - began < 5


async def test_the_new_leader_of_partitions_whose_old_one_died_is_found_soon(cluster, rig):
    """Nobody says when it has been elected, so metadata is asked for steadily until then."""
    one = await rig(cluster.address, max_wait=0.2, stall=1.0, metadata_max_age=60.0)
    await one.follow("t")
    with cluster.faults.stall(node=2):
        await eventually(lambda: one.log.status().sick)
        await asyncio.sleep(1.5)
        cluster.move_leader("t", 1, 3)
        cluster.move_leader("t", 4, 3)
        cluster.append("t", 1, [b"x"])
        began = time.monotonic()
        await one.has("t", 1, 1)
        assert time.monotonic() - began < 1.5
        await eventually(lambda: one.log.status().sick == [])
    assert one.log.feed._lanes[2].members == {}
    cluster.move_leader("t", 1, 2)
    cluster.append("t", 1, [b"y"])
    await one.has("t", 2, 1)
    assert one.log.status().sick == []


async def test_leaders_move_and_nothing_is_lost_or_doubled(cluster, rig):
    one = await rig(cluster.address)
    await one.follow("t")
    for i in range(40):
        if i % 10 == 5:
            cluster.move_leader("t", 0, i // 10 % 3 + 1)
        cluster.append("t", 0, [b"%d" % i])
        await asyncio.sleep(0.01)
    assert await one.has("t", 40) == [b"%d" % i for i in range(40)]


async def test_a_partition_without_a_leader_asks_for_metadata_at_a_bounded_pace(cluster, rig, count_requests, pass_time):
    one = await rig(cluster.address)
    await one.follow("t")
    await cluster.stop_node(3)
    await eventually(lambda: ("t", 2) in one.log.feed._sick)
    async with count_requests(one.log) as sent:
        await pass_time(1.5)
    assert sent["Metadata"] <= 20, sent
    cluster.append("t", 0, [b"x"])
    await one.has("t", 1, 0, timeout=1.0)
    await cluster.start_node(3)
    cluster.append("t", 2, [b"y"])
    await one.has("t", 1, 2)


async def test_following_while_a_leader_is_missing_opens_the_others(cluster, rig):
    await cluster.stop_node(3)
    one = await rig(cluster.address)
    topic = await one.follow("t")
    assert sorted(topic.tails) == [0, 1, 3, 4]
    await cluster.start_node(3)
    await eventually(lambda: sorted(topic.tails) == list(range(6)))


async def test_a_broken_connection_is_replaced_and_nothing_is_lost(dev, rig):
    one = await rig(dev.address)
    await one.follow("t")
    for i in range(10):
        if i % 3 == 0:
            await dev.disconnect()
        dev.append("t", 0, [b"%d" % i])
    assert await one.has("t", 10) == [b"%d" % i for i in range(10)]
    await eventually(lambda: one.log.status().sick == [])


async def test_answers_that_are_lost_are_fetched_again(dev, rig):
    one = await rig(dev.address)
    await one.follow("t")
    dev.faults.drop(Api.FETCH, processed=True, times=3)
    for i in range(10):
        dev.append("t", 0, [b"%d" % i])
        await one.has("t", i + 1)
    assert one.values("t") == [b"%d" % i for i in range(10)]


async def test_retention_that_passed_the_tail_opens_it_again(dev, rig):
    one = await rig(dev.address)
    topic = await one.follow("t")
    dev.append("t", 0, [b"a"])
    await one.has("t", 1)
    waiter = Waiter((Interest("t", None),))
    await dev.until_parked("t", 0)
    await dev.stop()
    dev.append("t", 0, [b"%d" % i for i in range(9)])
    dev.delete_records("t", 0, 7)
    one.hub.park(waiter, {}, at_tail=True, deadline=time.monotonic() + 60)
    await dev.start()
    await eventually(lambda: topic.tails[0].start == 10)
    assert topic.tails[0].log_start == 7
    assert not waiter.parked
    dev.append("t", 0, [b"z"])
    assert await one.has("t", 1) == [b"z"]


async def test_a_log_that_was_cut_opens_the_tail_at_its_new_end(dev, rig, caplog):
    one = await rig(dev.address, metadata_max_age=60.0)
    topic = await one.follow("t")
    dev.append("t", 0, [b"%d" % i for i in range(9)])
    await one.has("t", 9)
    live = one.log.feed._topics["t"].lives[0]
    live.position = 500
    live.flight = None
    await eventually(lambda: topic.tails[0].start == topic.tails[0].end == 9)
    assert "outside of the log" in caplog.text
    dev.append("t", 0, [b"z"])
    assert await one.has("t", 1) == [b"z"]


async def test_a_position_above_the_stable_end_waits_without_spinning(dev, rig, count_requests, pass_time):
    """A new leader may know less than the old one for a while; its empty answers come at once."""
    one = await rig(dev.address)
    await one.follow("t")
    transaction = dev.transaction()
    transaction.append("t", 0, [b"a", b"b", b"c"])
    live = one.log.feed._topics["t"].lives[0]
    live.position = 2
    await eventually(lambda: live.error == AHEAD)
    async with count_requests(one.log) as sent:
        await pass_time(1.0)
    assert sent["Fetch"] <= 15, sent
    transaction.commit()
    await eventually(lambda: live.error == "" and live.position == 4)
    assert one.values("t") == [b"c"]


async def test_a_batch_that_cannot_be_read_is_skipped_and_told(dev, rig, caplog):
    one = await rig(dev.address)
    await one.follow("t")
    dev.append("t", 0, [b"good"])
    spoil(dev, "t", 0, 2)
    dev.append("t", 0, [b"better"])
    dev.append("t", 1, [b"other"])
    await one.has("t", 1, 1, timeout=1.0)
    assert await one.has("t", 3) == [b"good", None, b"better"]
    hole = one.hub.topics["t"].tails[0].since(1, b"any key", 1)
    assert [(record.offset, record.until) for record in hole] == [(1, 3)]
    assert one.watch.skips == [("t", 0, 1, 3)]
    assert one.log.status().skipped == [("t", 0, 1, 3)]
    assert "offsets 1 to 2 cannot be read" in caplog.text
    await eventually(lambda: one.log.status().sick == [])


async def test_a_topic_that_retired_while_it_was_asked_for_stays_retired(dev, rig, monkeypatch):
    one = await rig(dev.address, metadata_max_age=0.05)
    await one.follow("t")
    plain, told = one.log.cluster._learn, []

    def learn(response):
        told.append(1)
        return plain(response) | {"never followed": plain(response)["t"]}

    monkeypatch.setattr(one.log.cluster, "_learn", learn)
    await eventually(lambda: len(told) > 2)
    assert list(one.hub.topics) == ["t"]


async def test_deleting_a_topic_while_its_tails_are_being_opened(dev, rig):
    one = await rig(dev.address, metadata_max_age=0.1, patience=0.1)
    with dev.faults.stall(Api.LIST_OFFSETS) as fault:
        topic = await one.follow("t")
        await fault.hit()
        assert topic.tails == {}
        dev.delete_topic("t")
        await eventually(lambda: topic.partition_count == 0)
    dev.create_topic("t")
    await eventually(lambda: list(topic.tails) == [0])
    dev.append("t", 0, [b"x"])
    assert await one.has("t", 1) == [b"x"]


async def test_renewing_asks_what_a_topic_is_now(dev, rig):
    """Long before metadata is due; an answer that holds an error for the topic tells nothing."""
    one = await rig(dev.address, metadata_max_age=3600.0)
    topic = await one.follow("t")
    dev.add_partitions("t", 4)
    with dev.faults.error(STORAGE_ERROR, Api.METADATA, topic="t", times=1) as fault:
        await one.log.renew("t")
        assert fault.hits == 1
    assert topic.partition_count == 4


async def test_renewing_by_many_is_few_questions(dev, rig, count_requests):
    one = await rig(dev.address, metadata_max_age=3600.0)
    await one.follow("t")
    async with count_requests(one.log) as sent:
        for _ in range(3):
            await asyncio.gather(*(one.log.renew("t") for _ in range(50)))
    assert 3 <= sent["Metadata"] <= 6


async def test_renewing_needs_a_broker_and_a_topic_that_is_there(dev, rig):
    one = await rig(dev.address, metadata_max_age=3600.0, patience=0.2)
    await one.follow("t")
    await one.follow("missing")
    await one.log.renew("missing")
    await one.log.renew("never followed")
    await dev.stop()
    with pytest.raises(BrokerUnavailable):
        await one.log.renew("t")


async def test_topics_that_nobody_polls_retire(dev, rig):
    dev.create_topic("u")
    one = await rig(dev.address, retire_after=0.2, metadata_max_age=0.05)
    await one.follow("t")
    await one.follow("u")
    waiter = Waiter((Interest("u", None),))
    one.hub.park(waiter, {}, at_tail=True, deadline=time.monotonic() + 60)
    await eventually(lambda: "t" not in one.hub.topics)
    assert "u" in one.hub.topics
    dev.append("u", 0, [b"x"])
    await eventually(lambda: not waiter.parked)
    await eventually(lambda: one.hub.topics == {})
    assert repr(one.log.feed) == "<Feed 0 topics, 1 leaders, sick: none>"
    await eventually(lambda: dev.parked("t", 0) == 0)
    dev.append("t", 0, [b"while away"])
    topic = await one.follow("t")
    assert topic.tails[0].start == 1


async def test_a_sick_topic_retires_too(dev, rig):
    one = await rig(dev.address, retire_after=0.2, metadata_max_age=0.05)
    with dev.faults.error(STORAGE_ERROR, Api.FETCH):
        await one.follow("t")
        await eventually(lambda: len(one.log.feed._sick) == 3)
        await eventually(lambda: one.hub.topics == {} and one.log.feed._sick == {})


async def test_a_topic_that_may_not_be_read_is_told_in_the_status(dev, rig):
    one = await rig(dev.address)
    with dev.faults.error(UNAUTHORIZED, Api.METADATA, topic="t"):
        topic = await one.follow("t")
        assert topic.partition_count == 0
        assert one.log.status().sick == [("t", -1, "TOPIC_AUTHORIZATION_FAILED")]
    await eventually(lambda: len(topic.tails) == 3)
    assert one.log.status().sick == []


async def test_a_broker_that_does_not_know_the_topic_for_a_moment_changes_nothing(dev, rig):
    one = await rig(dev.address, metadata_max_age=0.1)
    topic = await one.follow("t")
    with dev.faults.error(3, Api.METADATA, topic="t") as fault:
        await fault.hit(2)
        assert ("t", -1, "UNKNOWN_TOPIC_OR_PARTITION") in one.log.status().sick
    await eventually(lambda: one.log.status().sick == [])
    assert (topic.partition_count, len(topic.tails)) == (3, 3)


async def test_bounds_that_cannot_be_had_are_asked_for_again(dev, rig):
    one = await rig(dev.address)
    with dev.faults.error(NOT_LEADER, Api.LIST_OFFSETS, partition=1):
        topic = await one.follow("t")
        assert sorted(topic.tails) == [0, 2]
        await eventually(lambda: one.log.status().sick)
    await eventually(lambda: sorted(topic.tails) == [0, 1, 2])


async def test_a_node_that_refuses_connections_is_tried_again(dev, rig):
    one = await rig(dev.address)
    topic = await one.follow("t")
    await dev.until_parked("t", 0)
    await dev.stop()
    await eventually(lambda: not one.log.status().connected)
    await eventually(lambda: len(one.log.status().sick) == 3)
    await dev.start()
    dev.append("t", 0, [b"x"])
    await one.has("t", 1)
    assert topic.tails[0].start == 0


async def test_a_fault_of_ours_does_not_end_the_feed(dev, rig, monkeypatch, caplog):
    plain, failures = Lane._batch, []

    def fail_once(self):
        if not failures:
            failures.append(1)
            raise RuntimeError("fault of ours")
        return plain(self)

    monkeypatch.setattr(Lane, "_batch", fail_once)
    one = await rig(dev.address)
    await one.follow("t")
    dev.append("t", 0, [b"x"])
    await one.has("t", 1)
    assert one.watch.errors["INTERNAL"] == 1
    assert "fault of ours" in caplog.text


async def test_a_feed_that_has_ended_follows_nothing(dev, rig):
    one = await rig(dev.address)
    await one.follow("t")
    await one.log.stop()
    with pytest.raises(BrokerUnavailable):
        await one.follow("u")


async def test_large_appends_arrive_in_slices_and_in_order(dev, rig):
    one = await rig(dev.address)
    await one.follow("t")
    for _ in range(5):
        dev.append("t", 0, [b"x" * 100] * 2500, codec="zstd")
    await one.has("t", 12500)
    assert [record.offset for record in one.held("t")] == list(range(12500))


async def test_partitions_of_very_different_traffic_share_a_lane(dev, rig):
    """A busy partition never starves a quiet one, though the answer is full each time."""
    one = await rig(dev.address)
    one.log.feed._max_bytes = 2000
    await one.follow("t")
    for _ in range(200):
        dev.append("t", 0, [b"x" * 1000])
        dev.append("t", 1, [b"y" * 1000])
    dev.append("t", 2, [b"quiet"])
    await one.has("t", 1, 2)
    await one.has("t", 200, 0)
    await one.has("t", 200, 1)


async def test_a_partition_that_appears_late_is_opened_at_the_end_if_it_is_long(dev, rig, monkeypatch):
    monkeypatch.setattr(feed_module, "_SMALL", 5)
    one = await rig(dev.address, metadata_max_age=60.0)
    topic = await one.follow("t")
    dev.add_partitions("t", 5)
    dev.append("t", 3, [b"x"] * 5)
    dev.append("t", 4, [b"x"] * 6)
    one.log.feed.urge()
    await eventually(lambda: len(topic.tails) == 5)
    assert (topic.tails[3].start, topic.tails[4].start) == (0, 6)


async def test_a_broker_that_lags_behind_takes_no_partition_away(dev, rig, monkeypatch):
    """The same topic never shrinks, so fewer partitions with the same id are old news."""
    one = await rig(dev.address, metadata_max_age=0.05)
    topic = await one.follow("t")
    plain, stale = one.log.cluster._learn, []

    def learn(response):
        told = plain(response)
        stale.append(1)
        known = told["t"]
        return {"t": type(known)(known.topic_id, {0: known.leaders[0]}, 0)}

    monkeypatch.setattr(one.log.cluster, "_learn", learn)
    await eventually(lambda: len(stale) > 3)
    assert (topic.partition_count, sorted(topic.tails)) == (3, [0, 1, 2])


async def test_without_topic_ids_fewer_partitions_mean_another_topic(dev, rig, monkeypatch):
    one = await rig(dev.address, metadata_max_age=0.05)
    plain, leaders = one.log.cluster._learn, {0: 1, 1: 1, 2: 1}

    def learn(response):
        return {"t": type(plain(response)["t"])(None, dict(leaders), 0)}

    monkeypatch.setattr(one.log.cluster, "_learn", learn)
    topic = await one.follow("t")
    assert (topic.topic_id, sorted(topic.tails)) == (None, [0, 1, 2])
    del leaders[2]
    await eventually(lambda: sorted(topic.tails) == [0, 1])
    assert topic.partition_count == 2


async def test_answers_for_what_was_not_asked_are_left_alone(dev, rig, monkeypatch):
    one = await rig(dev.address)
    await one.follow("t")
    plain = one.log.cluster.send

    async def send(node, request, **options):
        parts = await plain(node, request, **options)
        return [parts[0]._replace(topic="u"), *parts] if type(request).__name__ == "Fetch" else parts

    monkeypatch.setattr(one.log.cluster, "send", send)
    for i in range(5):
        dev.append("t", 0, [b"%d" % i])
        await one.has("t", i + 1)
    assert one.watch.errors == {}


async def test_a_partition_that_leaves_while_its_answer_is_decoded_gets_no_more_of_it(dev, rig, monkeypatch):
    """An answer counts only while the partition still belongs to its request."""
    one = await rig(dev.address)
    await one.follow("t")
    await dev.until_parked("t", 0)
    live = one.log.feed._topics["t"].lives[0]
    assert repr(live) == "<Live t-0 at 0 on 1 well>"
    plain, taken = one.hub.append, []

    def append(topic, partition, records, **bounds):
        taken.append(len(records))
        woken = plain(topic, partition, records, **bounds)
        if len(taken) == 1:
            live.flight = None
        return woken

    monkeypatch.setattr(one.hub, "append", append)
    dev.append("t", 0, [b"x"] * 3000)
    await one.has("t", 3000)
    assert [record.offset for record in one.held("t")] == list(range(3000))
    assert taken[:1] == [1000]


@pytest.mark.parametrize("seed", range(3))
async def test_under_faults_every_record_comes_once_and_in_order(cluster, rig, seed):
    """Connections break, answers get lost, leaders move, partitions answer with errors, transactions end either way."""
    chance = random.Random(seed)
    one = await rig(cluster.address, max_wait=0.1, stall=0.3, metadata_max_age=0.2)
    await one.follow("t")
    wanted: dict[int, list[bytes]] = {partition: [] for partition in range(6)}

    def transact(number: int, partition: int) -> None:
        values = [b"%d-%d" % (number, i) for i in range(3)]
        transaction = cluster.transaction(f"x{number}")
        transaction.append("t", partition, values)
        if chance.random() < 0.5:
            transaction.abort()
        else:
            transaction.commit()
            wanted[partition] += values

    for number in range(300):
        partition = chance.randrange(6)
        match chance.randrange(12):
            case 0:
                cluster.faults.drop(Api.FETCH, processed=chance.random() < 0.5)
            case 1:
                cluster.faults.error(chance.choice([6, 3, 9, 56]), Api.FETCH, partition=partition, times=chance.randrange(1, 4))
            case 2:
                cluster.move_leader("t", partition, chance.randrange(1, 4))
            case 3:
                await cluster.disconnect()
            case 4:
                cluster.faults.error(5, Api.METADATA, times=1)
            case 5:
                transact(number, partition)
            case 6:
                await asyncio.sleep(chance.random() / 20)
            case _:
                codec = chance.choice(["none", "gzip", "snappy", "lz4", "zstd"])
                values = [b"%d-%d" % (number, i) for i in range(chance.randrange(1, 50))]
                cluster.append("t", partition, values, codec=codec)
                wanted[partition] += values
        await asyncio.sleep(0)
    cluster.faults.clear()
    for partition, values in wanted.items():
        assert await one.has("t", len(values), partition, timeout=20) == values
    await eventually(lambda: one.log.status().sick == [], timeout=20)
    assert one.watch.errors["INTERNAL"] == 0
    for partition, values in wanted.items():
        cold = await one.cold("t", partition, 0, await one.log.end("t", partition))
        assert [record.value for record in cold] == values
