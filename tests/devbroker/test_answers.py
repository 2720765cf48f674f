"""Produce, ListOffsets, DeleteRecords and ApiVersions, in every version."""

import pytest

from gateway.devbroker.answers import ANSWERS
from gateway.devbroker.batches import build
from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import VERSIONS, Api
from gateway.records import Record

DATA = build([Record(0, 1000, None, b"a"), Record(0, 2000, None, b"b")]).raw


@pytest.fixture
def topic(cluster):
    del cluster.nodes[2]
    return cluster.create("t", 2)


def produce(ask, *, version=8, topic="t", index=0, data=DATA, acks=-1, **kwargs):
    item = {"topic": topic, "partitions": [{"partition": index, "messages": data}]}
    answer = ask(Api.PRODUCE, version, transactional_id=None, required_acks=acks, timeout=1000, topics=[item], **kwargs)
    return answer["topics"][0]["partitions"][0]


def test_every_api_that_is_spoken_is_answered():
    assert set(ANSWERS) == set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS[Api.API_VERSIONS])
def test_api_versions(ask, version):
    body = {"client_software_name": "x", "client_software_version": "1"}
    answer = ask(Api.API_VERSIONS, version, **body)
    assert answer["error_code"] == 0
    assert {(one["api_key"], one["min_version"], one["max_version"]) for one in answer["api_versions"]} >= {
        (1, 4, 11),
        (3, 0, 12),
    }


@pytest.mark.parametrize("version", VERSIONS[Api.PRODUCE])
def test_produce_in_every_version(ask, topic, version):
    assert produce(ask, version=version)["offset"] == 0
    found = produce(ask, version=version)
    assert (found["error_code"], found["offset"]) == (0, 2)
    assert topic.partitions[0].log.end == 4


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"topic": "nowhere"}, Code.UNKNOWN_TOPIC_OR_PARTITION),
        ({"index": 9}, Code.UNKNOWN_TOPIC_OR_PARTITION),
        ({"data": DATA[:-1]}, Code.CORRUPT_MESSAGE),
        ({"data": None}, Code.CORRUPT_MESSAGE),
        ({"acks": 2}, Code.INVALID_REQUIRED_ACKS),
        ({"node": 2}, Code.NOT_LEADER_OR_FOLLOWER),
        ({"fault": lambda _topic, _index: 19}, Code.NOT_ENOUGH_REPLICAS),
    ],
)
def test_produce_refused(ask, topic, changes, code):
    found = produce(ask, **changes)
    assert (found["error_code"], found["offset"]) == (code, -1)
    assert found["error_message"]
    assert topic.partitions[0].log.end == 0


def list_offsets(ask, timestamp, *, version=5, committed=True, index=0, **kwargs):
    item = {"partition": index, "current_leader_epoch": -1, "timestamp": timestamp, "max_offsets": 1}
    body = {"replica_id": -1, "isolation_level": int(committed), "topics": [{"topic": "t", "partitions": [item]}]}
    return ask(Api.LIST_OFFSETS, version, **body, **kwargs)["topics"][0]["partitions"][0]


@pytest.mark.parametrize("version", range(1, 6))
def test_list_offsets_in_every_version(ask, topic, cluster, version):
    produce(ask)
    cluster.delete_before("t", 0, 1)
    assert list_offsets(ask, -2, version=version)["offset"] == 1
    assert list_offsets(ask, -1, version=version)["offset"] == 2
    found = list_offsets(ask, 1500, version=version)
    assert (found["offset"], found["timestamp"]) == (1, 2000)
    found = list_offsets(ask, 2001, version=version)
    assert (found["offset"], found["timestamp"], found["error_code"]) == (-1, -1, 0)


def test_list_offsets_version_0(ask, topic):
    produce(ask)
    assert list_offsets(ask, -1, version=0)["offsets"] == [2]
    assert list_offsets(ask, -1, version=0, index=9)["offsets"] == []


def test_latest_depends_on_the_isolation_level(ask, topic, cluster):
    producer, epoch, _ = cluster.transactions.register("x", 60)
    cluster.transactions.add("x", producer, epoch, {("t", 0)}, 0)
    produce(ask, data=build([Record(0, 1, None, b"")], producer=(producer, epoch, 0), transactional=True).raw)
    assert list_offsets(ask, -1)["offset"] == 0
    assert list_offsets(ask, -1, committed=False)["offset"] == 1


def test_list_offsets_refused(ask, topic):
    assert list_offsets(ask, -1, index=9)["error_code"] == Code.UNKNOWN_TOPIC_OR_PARTITION
    found = list_offsets(ask, -1, fault=lambda _topic, _index: 78)
    assert (found["error_code"], found["offset"]) == (Code.OFFSET_NOT_AVAILABLE, -1)


@pytest.mark.parametrize(
    ("index", "offset", "low", "code"),
    [(0, 1, 1, 0), (0, -1, 2, 0), (0, 3, -1, Code.OFFSET_OUT_OF_RANGE), (9, 0, -1, Code.UNKNOWN_TOPIC_OR_PARTITION)],
)
@pytest.mark.parametrize("version", VERSIONS[Api.DELETE_RECORDS])
def test_delete_records(ask, topic, version, index, offset, low, code):
    produce(ask)
    item = {"name": "t", "partitions": [{"partition_index": index, "offset": offset}]}
    (found,) = ask(Api.DELETE_RECORDS, version, topics=[item], timeout_ms=10)["topics"][0]["partitions"]
    assert (found["partition_index"], found["low_watermark"], found["error_code"]) == (index, low, code)
