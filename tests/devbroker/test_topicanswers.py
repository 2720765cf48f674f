"""Metadata and the administration of topics, in every version."""

import pytest

from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import VERSIONS, Api


def metadata(ask, topics, version, *, auto=False, **kwargs):
    """Ask for topics by name (str) or id (bytes)."""
    if version >= 9 and topics is not None:
        topics = [
            {"topic": one, "topic_id": bytes(16)} if isinstance(one, str) else {"topic": None, "topic_id": one}
            for one in topics
        ]
    flags = {"include_cluster_authorized_operations": False, "include_topic_authorized_operations": False}
    return ask(Api.METADATA, version, topics=topics, allow_auto_topic_creation=auto, **flags, **kwargs)


@pytest.mark.parametrize("version", VERSIONS[Api.METADATA])
def test_metadata_in_every_version(ask, cluster, version):
    created = cluster.create("t", 2)
    answer = metadata(ask, ["t", "missing"], version)
    assert [(one["node_id"], one["host"], one["port"]) for one in answer["brokers"]] == [
        (1, "localhost", 9001),
        (2, "localhost", 9002),
    ]
    found, missing = answer["topics"]
    assert (found["error_code"], found["topic"], len(found["partitions"])) == (0, "t", 2)
    assert [one["leader"] for one in found["partitions"]] == [one.leader for one in created.partitions]
    assert (missing["error_code"], missing["partitions"]) == (Code.UNKNOWN_TOPIC_OR_PARTITION, [])
    if version >= 10:
        assert found["topic_id"] == created.topic_id
        assert missing["topic_id"] == bytes(16)


@pytest.mark.parametrize("version", VERSIONS[Api.METADATA])
def test_null_asks_for_all_topics(ask, cluster, version):
    cluster.create("a", 1)
    cluster.create("b", 1)
    assert [one["topic"] for one in metadata(ask, None, version)["topics"]] == ["a", "b"]
    assert [one["topic"] for one in metadata(ask, [], version)["topics"]] == (["a", "b"] if version == 0 else [])


def test_topics_by_id(ask, cluster):
    cluster.create("a", 1)
    wanted = cluster.create("b", 1).topic_id
    found, unknown = metadata(ask, [wanted, b"?" * 16], 12)["topics"]
    assert (found["topic"], found["error_code"]) == ("b", 0)
    assert (unknown["topic"], unknown["topic_id"], unknown["error_code"]) == (None, b"?" * 16, Code.UNKNOWN_TOPIC_ID)


@pytest.mark.parametrize(
    ("version", "on", "asked", "created"), [(5, True, True, 3), (5, True, False, 0), (5, False, True, 0), (1, True, False, 3)]
)
def test_topics_are_created_only_if_both_sides_want_it(ask, cluster, version, on, asked, created):
    cluster.auto_create, cluster.default_partitions = on, 3
    (found,) = metadata(ask, ["new"], version, auto=asked)["topics"]
    assert len(found["partitions"]) == created
    assert ("new" in cluster.topics) is bool(created)


def test_partitions_of_a_node_that_is_down_have_no_leader(ask, cluster):
    cluster.create("t", 2)
    cluster.nodes[1].up = False
    answer = metadata(ask, ["t"], 5)
    assert answer["controller_id"] == 2
    by_leader = {one["leader"]: one for one in answer["topics"][0]["partitions"]}
    assert by_leader[2]["error_code"] == 0
    assert (by_leader[-1]["error_code"], by_leader[-1]["isr"]) == (Code.LEADER_NOT_AVAILABLE, [])
    assert by_leader[-1]["offline_replicas"] == [1]


def test_a_faults_code_is_on_its_topic_or_partition(ask, cluster):
    cluster.create("t", 2)
    (found,) = metadata(ask, ["t"], 5, fault=lambda _topic, index: 29 if index is None else 0)["topics"]
    assert (found["error_code"], found["partitions"]) == (Code.TOPIC_AUTHORIZATION_FAILED, [])
    (found,) = metadata(ask, ["t"], 5, fault=lambda _topic, index: 5 if index == 1 else 0)["topics"]
    assert [one["error_code"] for one in found["partitions"]] == [0, Code.LEADER_NOT_AVAILABLE]


def create(ask, name, *, partitions=1, version=4, only_validate=False, assignment=(), configs=()):
    item = {
        "topic": name,
        "num_partitions": partitions,
        "replication_factor": 1,
        "replica_assignment": [{"partition_id": index, "replicas": [1]} for index in assignment],
        "configs": [{"config_key": key, "config_value": value} for key, value in configs],
    }
    answer = ask(Api.CREATE_TOPICS, version, create_topic_requests=[item], timeout=10, validate_only=only_validate)
    return answer["topic_errors"][0]["error_code"]


@pytest.mark.parametrize("version", VERSIONS[Api.CREATE_TOPICS])
def test_create_topics(ask, cluster, version):
    configs = [("retention.ms", "77"), ("unset", None)]
    assert create(ask, "t", partitions=3, version=version, configs=configs) == 0
    assert len(cluster.topic("t").partitions) == 3
    assert cluster.topic("t").configs == {"retention.ms": "77"}
    assert create(ask, "t", version=version) == Code.TOPIC_ALREADY_EXISTS


def test_creation_with_defaults_with_an_assignment_and_as_a_trial(ask, cluster):
    cluster.default_partitions = 5
    create(ask, "default", partitions=-1)
    create(ask, "assigned", partitions=-1, assignment=(0, 1))
    assert create(ask, "trial", only_validate=True) == 0
    assert {name: len(topic.partitions) for name, topic in cluster.topics.items()} == {"default": 5, "assigned": 2}
    assert create(ask, "bad", configs=[("retention.ms", "x")], only_validate=True) == Code.INVALID_CONFIG


@pytest.mark.parametrize("version", VERSIONS[Api.DELETE_TOPICS])
def test_delete_topics(ask, cluster, version):
    cluster.create("t", 1)
    answer = ask(Api.DELETE_TOPICS, version, topics=["t", "u"], timeout=10)
    assert [(one["topic"], one["error_code"]) for one in answer["topic_error_codes"]] == [("t", 0), ("u", 3)]
    assert not cluster.topics


@pytest.mark.parametrize("version", VERSIONS[Api.CREATE_PARTITIONS])
def test_create_partitions(ask, cluster, version):
    cluster.create("t", 1)

    def grow(count, *, trial=False):
        items = [{"topic": "t", "new_partitions": _Nested(count)}]
        answer = ask(Api.CREATE_PARTITIONS, version, topic_partitions=items, timeout=10, validate_only=trial)
        return answer["topic_errors"][0]["error_code"]

    assert grow(3, trial=True) == 0
    assert len(cluster.topic("t").partitions) == 1
    assert grow(3) == 0
    assert len(cluster.topic("t").partitions) == 3
    assert grow(2) == Code.INVALID_PARTITIONS


class _Nested(tuple):
    """A nested struct, which the request's encoder takes by position."""

    __slots__ = ()

    def __new__(cls, count):
        return super().__new__(cls, (count, []))


@pytest.mark.parametrize("version", VERSIONS[Api.DESCRIBE_CONFIGS])
def test_describe_configs(ask, cluster, version):
    cluster.create("t", 1, {"retention.ms": "5", "cleanup.policy": "compact"})

    def describe(kind, name, names=None):
        item = {"resource_type": kind, "resource_name": name, "config_names": names}
        (found,) = ask(Api.DESCRIBE_CONFIGS, version, resources=[item], include_synonyms=False)["resources"]
        return found["error_code"], {one["config_names"]: one["config_value"] for one in found["config_entries"]}

    assert describe(2, "t") == (0, {"retention.ms": "5", "cleanup.policy": "compact"})
    assert describe(2, "t", ["retention.ms"]) == (0, {"retention.ms": "5"})
    assert describe(2, "u") == (Code.UNKNOWN_TOPIC_OR_PARTITION, {})
    assert describe(4, "1") == (0, {})
