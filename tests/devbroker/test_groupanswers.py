"""Coordinators, committed offsets and membership, in every version."""

import pytest

from gateway.devbroker.codes import Code
from gateway.devbroker.groupanswers import place
from gateway.devbroker.schemas import VERSIONS, Api

REBALANCE = Code.REBALANCE_IN_PROGRESS


@pytest.fixture
def topic(cluster):
    return cluster.create("t", 2)


@pytest.mark.parametrize("version", VERSIONS[Api.FIND_COORDINATOR])
def test_a_coordinator_is_one_of_the_nodes(ask, version):
    body = {"consumer_group": "g", "coordinator_key": "g", "coordinator_type": 0}
    found = ask(Api.FIND_COORDINATOR, version, **body)
    assert (found["coordinator_id"], found["port"]) in ((1, 9001), (2, 9002))
    refused = ask(Api.FIND_COORDINATOR, version, fault=lambda _topic, _index: 15, **body)
    assert (refused["error_code"], refused["coordinator_id"]) == (Code.COORDINATOR_NOT_AVAILABLE, -1)


def commit(ask, *, version=7, index=0, generation=-1, member="", keep_ms=-1, **kwargs):
    item = {"partition": index, "offset": 42, "metadata": "m", "leader_epoch": 3, "timestamp": -1}
    answer = ask(
        Api.OFFSET_COMMIT,
        version,
        consumer_group="g",
        consumer_group_generation_id=generation,
        consumer_id=member,
        retention_time=keep_ms,
        group_instance_id=None,
        topics=[{"topic": "t", "partitions": [item]}],
        **kwargs,
    )
    return answer["topics"][0]["partitions"][0]["error_code"]


def fetch(ask, topics, *, version=5, **kwargs):
    answer = ask(Api.OFFSET_FETCH, version, consumer_group="g", topics=topics, **kwargs)
    return {(item["topic"], one["partition"]): one for item in answer["topics"] for one in item["partitions"]}


@pytest.mark.parametrize("version", VERSIONS[Api.OFFSET_COMMIT])
def test_offsets_are_committed_in_every_version(ask, topic, cluster, version):
    assert commit(ask, version=version) == 0
    assert cluster.groups.committed("g")["t", 0].offset == 42
    assert commit(ask, version=version, index=9) == Code.UNKNOWN_TOPIC_OR_PARTITION
    assert commit(ask, version=version, generation=3, member="x") == Code.UNKNOWN_MEMBER_ID


@pytest.mark.parametrize("version", VERSIONS[Api.OFFSET_FETCH])
def test_offsets_are_fetched_in_every_version(ask, topic, version):
    commit(ask)
    found = fetch(ask, [{"topic": "t", "partitions": [0, 1]}], version=version)
    assert (found["t", 0]["offset"], found["t", 0]["metadata"]) == (42, "m")
    assert (found["t", 1]["offset"], found["t", 1]["metadata"], found["t", 1]["error_code"]) == (-1, "", 0)
    if version >= 5:
        assert (found["t", 0]["leader_epoch"], found["t", 1]["leader_epoch"]) == (3, -1)


def test_null_asks_for_all_that_was_committed(ask, topic):
    commit(ask)
    commit(ask, index=1)
    assert set(fetch(ask, None)) == {("t", 0), ("t", 1)}


def test_the_retention_of_a_commit(ask, topic, cluster):
    commit(ask, version=2, keep_ms=5000, now=100.0)
    cluster.upkeep(104.0)
    assert cluster.groups.committed("g")
    cluster.upkeep(105.0)
    assert not cluster.groups.committed("g")


@pytest.mark.parametrize("version", VERSIONS[Api.LIST_GROUPS])
def test_groups_are_listed_and_deleted(ask, topic, version):
    commit(ask)
    assert ask(Api.LIST_GROUPS, version)["groups"] == [{"group": "g", "protocol_type": ""}]
    answer = ask(Api.DELETE_GROUPS, min(version, 1), groups_names=["g", "h"])
    assert [one["error_code"] for one in answer["results"]] == [0, Code.GROUP_ID_NOT_FOUND]
    assert ask(Api.LIST_GROUPS, version)["groups"] == []


def join(ask, *, version=5, member="", last=False, group="g", **kwargs):
    return ask(
        Api.JOIN_GROUP,
        version,
        last=last,
        group=group,
        session_timeout=10_000,
        rebalance_timeout=30_000,
        member_id=member,
        group_instance_id=None,
        protocol_type="consumer",
        group_protocols=[{"protocol_name": "range", "protocol_metadata": b"meta"}],
        **kwargs,
    )


def sync(ask, member, generation, assignments=(), *, version=3, last=False, **kwargs):
    items = [{"member_id": name, "member_metadata": value} for name, value in assignments]
    body = {"group": "g", "generation_id": generation, "member_id": member, "group_instance_id": None}
    return ask(Api.SYNC_GROUP, version, last=last, group_assignment=items, **body, **kwargs)


def heartbeat(ask, member, generation, *, version=3):
    body = {"group": "g", "generation_id": generation, "member_id": member, "group_instance_id": None}
    return ask(Api.HEARTBEAT, version, **body)["error_code"]


def leave(ask, member, *, version=2):
    return ask(Api.LEAVE_GROUP, version, group="g", member_id=member)["error_code"]


@pytest.mark.parametrize("version", VERSIONS[Api.JOIN_GROUP])
def test_a_life_in_a_group(ask, topic, version):
    joined = join(ask, version=version)
    member = joined["member_id"]
    assert (joined["error_code"], joined["generation_id"], joined["leader_id"]) == (0, 1, member)
    assert [(one["member_id"], one["member_metadata"]) for one in joined["members"]] == [(member, b"meta")]
    assert member.startswith("test")
    synced = sync(ask, member, 1, [(member, b"mine")], version=min(version, 3))
    assert (synced["error_code"], synced["member_assignment"]) == (0, b"mine")
    assert heartbeat(ask, member, 1, version=min(version, 3)) == 0
    assert commit(ask, generation=1, member=member) == 0
    assert commit(ask) == Code.UNKNOWN_MEMBER_ID
    assert leave(ask, member, version=min(version, 2)) == 0
    assert heartbeat(ask, member, 1) == Code.UNKNOWN_MEMBER_ID
    assert leave(ask, member) == Code.UNKNOWN_MEMBER_ID


def test_a_second_member_waits_for_the_first(ask, topic, cluster):
    first = join(ask)["member_id"]
    told = []
    cluster.groups.changed = told.append
    waiting = join(ask, last=None)
    assert waiting.places == (place("g"),)
    assert waiting.seconds == 30
    assert waiting.look(False) is None
    assert heartbeat(ask, first, 1) == REBALANCE
    assert len(join(ask, member=first)["members"]) == 2
    second = waiting.look(False)
    assert (second["generation_id"], second["leader_id"], second["members"]) == (2, first, [])
    assert told
    follower = sync(ask, second["member_id"], 2, last=None)
    assert follower.look(False) is None
    assert follower.look(True)["error_code"] == REBALANCE
    sync(ask, first, 2, [(second["member_id"], b"yours")])
    assert follower.look(False)["member_assignment"] == b"yours"


def test_when_time_is_over_the_round_goes_on_without_the_missing(ask):
    first = join(ask)["member_id"]
    waiting = join(ask, last=None)
    assert waiting.look(True)["error_code"] == 0
    assert heartbeat(ask, first, 2) == Code.UNKNOWN_MEMBER_ID


def test_who_expired_while_joining_is_told(ask, cluster):
    join(ask)
    waiting = join(ask, last=None, now=0.0)
    cluster.groups.expire(1e6)
    assert waiting.look(False)["error_code"] == Code.UNKNOWN_MEMBER_ID


def test_refused_joins_and_syncs(ask):
    assert join(ask, member="stranger")["error_code"] == Code.UNKNOWN_MEMBER_ID
    assert join(ask, group="")["error_code"] == Code.INVALID_GROUP_ID
    assert sync(ask, "stranger", 1)["error_code"] == Code.UNKNOWN_MEMBER_ID
    member = join(ask)["member_id"]
    waiting = sync(ask, member, 1, [], fault=lambda _topic, _index: 14, last=None)
    assert waiting.look(False)["error_code"] == Code.COORDINATOR_LOAD_IN_PROGRESS


def test_a_sync_that_a_new_round_overtakes(ask):
    first = join(ask)["member_id"]
    waiting = sync(ask, first, 1, [(first, b"all")], last=None)
    join(ask)
    assert waiting.look(False)["error_code"] == REBALANCE


@pytest.mark.parametrize("version", VERSIONS[Api.DESCRIBE_GROUPS])
def test_groups_are_described(ask, version):
    member = join(ask)["member_id"]
    body = {"groups": ["g", "nobody", ""], "include_authorized_operations": False}
    assert ask(Api.DESCRIBE_GROUPS, version, **body)["groups"][0]["state"] == "CompletingRebalance"
    sync(ask, member, 1, [(member, b"all")])
    found, nobody, nameless = ask(Api.DESCRIBE_GROUPS, version, **body)["groups"]
    assert (found["state"], found["protocol_type"], found["protocol"]) == ("Stable", "consumer", "range")
    assert [(one["member_id"], one["member_assignment"]) for one in found["members"]] == [(member, b"all")]
    assert nobody["state"] == nameless["state"] == "Dead"
