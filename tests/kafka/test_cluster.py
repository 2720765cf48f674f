"""What metadata told, and questions to leaders."""

import pytest
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker
from gateway.kafka.cluster import Cluster, Listed
from gateway.kafka.connect import Connections, KafkaSettings, Unreachable
from gateway.kafka.observer import Silent
from gateway.kafka.requests import EARLIEST, LATEST


@pytest.fixture
async def nodes():
    async with Broker(nodes=3) as broker:
        broker.create_topic("t", 3)
        for partition in range(3):
            broker.move_leader("t", partition, partition + 1)
        yield broker
        broker.faults.clear()


@pytest.fixture
async def cluster(nodes):
    settings = KafkaSettings((nodes.address,), request_timeout=0.5)
    connections = Connections(settings)
    yield Cluster(settings, connections, Silent())
    await connections.close()


async def test_metadata_tells_brokers_leaders_and_ids(nodes, cluster):
    assert repr(cluster) == "<Cluster 0 brokers, 0 topics, not connected yet>"
    told = await cluster.refresh(["t", "none"])
    assert told["t"].topic_id == nodes.topic_id("t")
    assert (told["t"].leaders, told["t"].error) == ({0: 1, 1: 2, 2: 3}, 0)
    assert (told["none"].leaders, told["none"].error, told["none"].topic_id) == ({}, 3, None)
    assert (cluster.leader("t", 1), cluster.leader("t", 9), cluster.leader("x", 0)) == (2, None, None)
    assert (cluster.connected, cluster.topic_ids) == (True, True)
    assert repr(cluster) == "<Cluster 3 brokers, 2 topics, connected>"


async def test_any_broker_that_answers_will_do(nodes, cluster):
    await cluster.refresh([])
    await nodes.stop_node(1)
    await nodes.stop_node(3)
    for _ in range(5):
        await cluster.refresh(["t"])
    assert cluster.connected


async def test_a_broker_that_was_silent_is_asked_last(nodes, cluster):
    await cluster.refresh([])
    with nodes.faults.stall(node=2) as fault:
        with pytest.raises(Unreachable):
            await cluster.ping(2, timeout=0.1)
        hits = fault.hits
        for _ in range(10):
            await cluster.refresh(["t"])
        assert fault.hits == hits


async def test_brokers_that_all_changed_are_found_by_the_bootstrap_servers(nodes, cluster):
    cluster.brokers = {7: ("127.0.0.1", 9), 8: ("127.0.0.1", 10)}
    await cluster.refresh(["t"])
    assert sorted(cluster.brokers) == [1, 2, 3]


async def test_offsets_are_asked_of_each_leader(nodes, cluster):
    await cluster.refresh(["t"])
    nodes.append("t", 1, [b"x"] * 5)
    nodes.delete_records("t", 1, 2)
    places = [("t", partition) for partition in range(4)]
    assert await cluster.list_offsets(places, EARLIEST) == {
        ("t", 0): Listed(0), ("t", 1): Listed(2), ("t", 2): Listed(0), ("t", 3): Listed(-1, "LEADER_NOT_AVAILABLE")
    }  # fmt: skip
    with nodes.faults.error(6, Api.LIST_OFFSETS, topic="t", partition=0):
        await nodes.stop_node(3)
        found = await cluster.list_offsets(places, LATEST)
    assert found["t", 0] == Listed(-1, "NOT_LEADER_FOR_PARTITION")
    assert found["t", 1] == Listed(5)
    assert found["t", 2].error


async def test_nobody_answers(nodes, cluster):
    await nodes.stop()
    with pytest.raises(Unreachable):
        await cluster.refresh([])
    assert not cluster.connected
    with pytest.raises(Unreachable, match="has left the cluster"):
        await cluster.send(5, None, group="ask", timeout=1)
    with pytest.raises(Unreachable):
        await cluster.ping(5, timeout=1)


async def test_a_ping_tells_whether_a_node_lives(nodes, cluster):
    await cluster.refresh([])
    await cluster.ping(2, timeout=1)
    await cluster.ping(2, timeout=1)
    with nodes.faults.stall(node=2), pytest.raises(Unreachable):
        await cluster.ping(2, timeout=0.2)
    await nodes.start()


async def test_a_cluster_without_bootstrap_servers_says_so():
    connections = Connections(KafkaSettings(()))
    cluster = Cluster(KafkaSettings(()), connections, Silent())
    with pytest.raises(Unreachable, match="no bootstrap server"):
        await cluster.refresh([])
    assert await eventually(lambda: not cluster.connected) is not False


async def test_a_broker_without_topic_ids(nodes, cluster, monkeypatch):
    plain = cluster.connections._connected

    async def old(address, slot):
        connection = await plain(address, slot)
        connection._versions = {**connection._versions, 3: (0, 5)}
        return connection

    monkeypatch.setattr(cluster.connections, "_connected", old)
    told = await cluster.refresh(["t"])
    assert (told["t"].topic_id, told["t"].leaders) == (None, {0: 1, 1: 2, 2: 3})
    assert cluster.topic_ids is False
