"""Topics, leaders, limits on appends, the effects of endings and upkeep."""

from itertools import pairwise

import pytest

from gateway.devbroker.batches import build, marker
from gateway.devbroker.codes import Code, Refused
from gateway.records import Record


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


def batch(size: int = 1, ts: int = 1000, **kwargs):
    return build([Record(0, ts, b"k", b"v" * size)], **kwargs)


def test_leaders_are_spread_over_the_nodes(cluster):
    topic = cluster.create("t", 5)
    leaders = [partition.leader for partition in topic.partitions]
    assert set(leaders) == {1, 2}
    assert all(one != other for one, other in pairwise(leaders))


def test_a_topic_that_is_created_again_has_another_id(cluster):
    first = cluster.create("t", 1).topic_id
    cluster.delete("t")
    assert cluster.create("t", 1).topic_id != first


@pytest.mark.parametrize(
    ("name", "partitions", "configs", "code"),
    [
        ("", 1, {}, Code.INVALID_TOPIC),
        ("..", 1, {}, Code.INVALID_TOPIC),
        ("a/b", 1, {}, Code.INVALID_TOPIC),
        ("x" * 250, 1, {}, Code.INVALID_TOPIC),
        ("there", 1, {}, Code.TOPIC_ALREADY_EXISTS),
        ("t", 0, {}, Code.INVALID_PARTITIONS),
        ("t", 10_001, {}, Code.INVALID_PARTITIONS),
        ("t", 1, {"retention.ms": "soon"}, Code.INVALID_CONFIG),
    ],
)
def test_what_cannot_be_created_is_refused(cluster, name, partitions, configs, code):
    cluster.create("there", 1)
    with refused(code):
        cluster.create(name, partitions, configs)


def test_configs_can_be_changed(cluster):
    cluster.create("t", 1, {"retention.ms": "5"})
    cluster.configure("t", {"retention.bytes": "7"})
    assert cluster.topic("t").configs == {"retention.ms": "5", "retention.bytes": "7"}
    with refused(Code.INVALID_CONFIG):
        cluster.configure("t", {"retention.ms": "x"})


@pytest.mark.parametrize("place", [("t", -1), ("t", 1), ("u", 0)])
def test_unknown_partitions_are_refused(cluster, place):
    cluster.create("t", 1)
    with refused(Code.UNKNOWN_TOPIC_OR_PARTITION):
        cluster.partition(*place)


def test_growing(cluster):
    cluster.create("t", 1)
    cluster.grow("t", 3)
    assert len(cluster.topic("t").partitions) == 3
    with refused(Code.INVALID_PARTITIONS):
        cluster.grow("t", 3)


def test_only_the_leader_serves_and_epochs_are_checked(cluster):
    leader = cluster.create("t", 1).partitions[0].leader
    other = 3 - leader
    with refused(Code.NOT_LEADER_OR_FOLLOWER):
        cluster.led("t", 0, other)
    told = []
    cluster.changed = lambda *place: told.append(place)
    cluster.lead("t", 0, other)
    assert told == [("t", 0)]
    assert cluster.led("t", 0, other).leader_epoch == 1
    cluster.led("t", 0, other, 1)
    with refused(Code.FENCED_LEADER_EPOCH):
        cluster.led("t", 0, other, 0)
    with refused(Code.UNKNOWN_LEADER_EPOCH):
        cluster.led("t", 0, other, 2)
    with refused(Code.INVALID_REQUEST):
        cluster.lead("t", 0, 9)


def test_every_change_is_told(cluster):
    told = []
    cluster.changed = lambda *place: told.append(place)
    cluster.create("t", 2)
    assert cluster.append("t", 1, [batch(), batch()], 1.0) == (0, -1)
    assert cluster.append("t", 1, [batch()], 1.0) == (2, -1)
    cluster.delete_before("t", 1, 1)
    cluster.delete("t")
    assert told == [("t", 1), ("t", 1), ("t", 1), ("t", 0), ("t", 1)]


def test_what_cannot_be_appended_is_refused_as_a_whole(cluster):
    cluster.create("t", 1, {"max.message.bytes": "200"})
    with refused(Code.MESSAGE_TOO_LARGE):
        cluster.append("t", 0, [batch(), batch(300)], 1.0)
    with refused(Code.INVALID_RECORD):
        cluster.append("t", 0, [batch(), marker(1, 0, commit=True, timestamp_ms=1)], 1.0)
    with refused(Code.INVALID_PRODUCER_ID_MAPPING):
        cluster.append("t", 0, [batch(), batch(producer=(1, 0, 0), transactional=True)], 1.0)
    assert cluster.partition("t", 0).log.end == 0


def test_the_brokers_own_time(cluster):
    cluster.create("t", 1, {"message.timestamp.type": "LogAppendTime"})
    assert cluster.append("t", 0, [batch()], 7.5) == (0, 7500)
    assert cluster.partition("t", 0).log.records()[0].timestamp_ms == 7500


def test_retention_is_applied_with_appends_and_with_upkeep(cluster):
    told = []
    cluster.create("t", 1, {"retention.ms": "5000", "retention.bytes": "-1"})
    log = cluster.partition("t", 0).log
    cluster.append("t", 0, [batch(ts=1000)], 1.0)
    cluster.append("t", 0, [batch(ts=7000)], 6.5)
    assert log.start == 1
    cluster.changed = lambda *place: told.append(place)
    cluster.upkeep(12.0)
    assert log.start == 1
    assert told == []
    cluster.upkeep(12.5)
    assert log.start == 2
    assert told == [("t", 0)]


def test_an_ending_writes_markers_and_offsets(cluster):
    cluster.create("t", 1)
    cluster.create("gone", 1)
    producer, epoch, _ = cluster.transactions.register("x", 60)
    cluster.transactions.add("x", producer, epoch, {("t", 0), ("gone", 0)}, 0)
    cluster.transactions.add_offsets("x", producer, epoch, "g", {("t", 0): (5, "note")})
    cluster.append("t", 0, [batch(producer=(producer, epoch, 0), transactional=True)], 1.0)
    cluster.delete("gone")
    assert cluster.partition("t", 0).log.stable_end == 0
    cluster.finish(cluster.transactions.end("x", producer, epoch, commit=True), 2.0)
    assert cluster.partition("t", 0).log.stable_end == 2
    assert cluster.groups.committed("g")["t", 0].offset == 5


def test_upkeep_aborts_what_is_open_for_too_long(cluster):
    cluster.create("t", 1)
    producer, epoch, _ = cluster.transactions.register("x", 10)
    cluster.transactions.add("x", producer, epoch, {("t", 0)}, 0)
    cluster.transactions.add_offsets("x", producer, epoch, "g", {("t", 0): (5, "note")})
    cluster.append("t", 0, [batch(producer=(producer, epoch, 0), transactional=True)], 1.0)
    cluster.upkeep(11.0)
    log = cluster.partition("t", 0).log
    assert (log.stable_end, len(log.aborted(0, 9))) == (2, 1)
    assert cluster.groups.committed("g") == {}


def test_a_coordinator_is_a_node_that_is_up(cluster):
    found = {cluster.coordinator(f"group-{n}").node_id for n in range(20)}
    assert found == {1, 2}
    cluster.nodes[1].up = False
    assert {cluster.coordinator(f"group-{n}").node_id for n in range(20)} == {2}
