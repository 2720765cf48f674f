"""Producers and their transactions, in every version."""

import pytest

from gateway.devbroker.batches import build
from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import VERSIONS, Api
from gateway.records import Record


@pytest.fixture
def topic(cluster):
    return cluster.create("t", 2)


def init(ask, name="x", *, version=4, known=(-1, -1)):
    body = {"transactional_id": name, "transaction_timeout_ms": 60_000, "producer_id": known[0], "producer_epoch": known[1]}
    found = ask(Api.INIT_PRODUCER_ID, version, **body)
    return found["error_code"], found["producer_id"], found["producer_epoch"]


def add(ask, producer, index=0, *, version=0):
    topics = [{"topic": "t", "partitions": [index]}]
    body = {"transactional_id": "x", "producer_id": producer, "producer_epoch": 0, "topics": topics}
    return ask(Api.ADD_PARTITIONS_TO_TXN, version, **body)["errors"][0]["partition_errors"][0]["error_code"]


def end(ask, producer, *, commit=True, version=0):
    body = {"transactional_id": "x", "producer_id": producer, "producer_epoch": 0, "transaction_result": commit}
    return ask(Api.END_TXN, version, **body)["error_code"]


@pytest.mark.parametrize("version", VERSIONS[Api.INIT_PRODUCER_ID])
def test_ids_and_epochs(ask, version):
    _, producer, epoch = init(ask, version=version)
    assert epoch == 0
    assert init(ask, version=version) == (0, producer, 1)
    assert init(ask, None, version=version)[0] == 0


def test_a_fenced_producer_gets_no_epoch(ask):
    _, producer, _ = init(ask)
    assert init(ask, known=(producer, 0)) == (0, producer, 1)
    assert init(ask, known=(producer, 0)) == (Code.PRODUCER_FENCED, -1, -1)


def test_a_new_incarnation_ends_the_old_ones_transaction(ask, topic, cluster):
    _, producer, _ = init(ask)
    add(ask, producer)
    batch = build([Record(0, 1, None, b"")], producer=(producer, 0, 0), transactional=True)
    cluster.append("t", 0, [batch], 1.0)
    init(ask)
    assert topic.partitions[0].log.stable_end == 2
    assert end(ask, producer) == Code.INVALID_PRODUCER_EPOCH


@pytest.mark.parametrize("version", VERSIONS[Api.END_TXN])
def test_a_transaction_from_begin_to_end(ask, topic, version):
    _, producer, _ = init(ask)
    assert add(ask, producer, version=version) == 0
    assert add(ask, producer, 9, version=version) == Code.UNKNOWN_TOPIC_OR_PARTITION
    assert add(ask, producer + 1, version=version) == Code.INVALID_PRODUCER_ID_MAPPING
    assert end(ask, producer, version=version) == 0
    assert topic.partitions[0].log.end == 1
    assert end(ask, producer, commit=False, version=version) == Code.INVALID_TXN_STATE


@pytest.mark.parametrize("version", VERSIONS[Api.TXN_OFFSET_COMMIT])
@pytest.mark.parametrize("commit", [True, False])
def test_offsets_count_when_the_transaction_commits(ask, topic, cluster, version, commit):
    _, producer, _ = init(ask)
    common = {"transactional_id": "x", "producer_id": producer, "producer_epoch": 0, "group_id": "g"}
    assert ask(Api.ADD_OFFSETS_TO_TXN, min(version, 2), **common)["error_code"] == 0
    items = [{"partition": index, "offset": 5, "leader_epoch": 0, "metadata": "m"} for index in (0, 9)]
    answer = ask(Api.TXN_OFFSET_COMMIT, version, topics=[{"topic": "t", "partitions": items}], **common)
    codes = [one["error_code"] for one in answer["errors"][0]["partition_errors"]]
    assert codes == [0, Code.UNKNOWN_TOPIC_OR_PARTITION]
    assert cluster.groups.committed("g") == {}
    end(ask, producer, commit=commit)
    assert [one.offset for one in cluster.groups.committed("g").values()] == ([5] if commit else [])
