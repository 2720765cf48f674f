"""What the APIs about topics answer: metadata, creation, deletion, growth, configs (sans-I/O)."""

from __future__ import annotations

from functools import partial

from gateway.devbroker.call import Call
from gateway.devbroker.cluster import Topic
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.protocol import Body

NO_ID = bytes(16)
# "Not known", in the fields for authorized operations.
NO_OPERATIONS = -(2**31)
TOPIC_RESOURCE = 2


def metadata(call: Call) -> Body:
    """Answer Metadata of any version: topics by name or id, created on the way where that is on."""
    cluster = call.cluster
    nodes = [{"node_id": node.node_id, "host": node.host, "port": node.port, "rack": None} for node in cluster.running()]
    return {
        "brokers": nodes,
        "cluster_id": "dev",
        "controller_id": nodes[0]["node_id"],
        "topics": [_described(call, *asked) for asked in _asked(call)],
        "cluster_authorized_operations": NO_OPERATIONS,
    }


def _asked(call: Call) -> list[tuple[str | None, bytes]]:
    asked = call.body["topics"]
    if asked is None or (not asked and call.version == 0):
        return [(topic.name, topic.topic_id) for topic in call.cluster.topics.values()]
    return [(one, NO_ID) if isinstance(one, str) else (one["topic"], one.get("topic_id", NO_ID)) for one in asked]


def _described(call: Call, name: str | None, topic_id: bytes) -> Body:
    code, _, topic = call.attempt(name, None, lambda: _sought(call, name, topic_id))
    if topic is None:
        found, partitions = topic_id, []
    else:
        name, found = topic.name, topic.topic_id
        partitions = [_described_partition(call, topic, index) for index in range(len(topic.partitions))]
    return {
        "error_code": code,
        "topic": name,
        "topic_id": found,
        "is_internal": False,
        "partitions": partitions,
        "topic_authorized_operations": NO_OPERATIONS,
    }


def _sought(call: Call, name: str | None, topic_id: bytes) -> Topic:
    cluster = call.cluster
    if name is None:
        for topic in cluster.topics.values():
            if topic.topic_id == topic_id:
                return topic
        raise Refused(Code.UNKNOWN_TOPIC_ID)
    # Before version 4 a client could not say no.
    if name not in cluster.topics and cluster.auto_create and call.body.get("allow_auto_topic_creation", True):
        return cluster.create(name, cluster.default_partitions)
    return cluster.topic(name)


def _described_partition(call: Call, topic: Topic, index: int) -> Body:
    partition = topic.partitions[index]
    up = call.cluster.nodes[partition.leader].up
    code = call.fault(topic.name, index) or (Code.NONE if up else Code.LEADER_NOT_AVAILABLE)
    return {
        "error_code": code,
        "partition": index,
        "leader": partition.leader if up else -1,
        "leader_epoch": partition.leader_epoch,
        "replicas": [partition.leader],
        "isr": [partition.leader] if up else [],
        "offline_replicas": [] if up else [partition.leader],
    }


def create_topics(call: Call) -> Body:
    """Answer CreateTopics; replicas are not modelled, so any replication factor will do."""
    return {"topic_errors": [_created(call, item) for item in call.body["create_topic_requests"]]}


def _created(call: Call, item: Body) -> Body:
    configs = {one["config_key"]: one["config_value"] for one in item["configs"] if one["config_value"] is not None}
    count = item["num_partitions"]
    if count == -1:
        count = len(item["replica_assignment"]) or call.cluster.default_partitions

    def create() -> None:
        call.cluster.check_new(item["topic"], count, configs)
        if not call.body.get("validate_only", False):
            call.cluster.create(item["topic"], count, configs)

    code, message, _ = call.attempt(item["topic"], None, create)
    return {"topic": item["topic"], "error_code": code, "error_message": message or None}


def delete_topics(call: Call) -> Body:
    """Answer DeleteTopics."""
    return {
        "topic_error_codes": [
            {"topic": name, "error_code": call.attempt(name, None, partial(call.cluster.delete, name))[0]}
            for name in call.body["topics"]
        ]
    }


def create_partitions(call: Call) -> Body:
    """Answer CreatePartitions."""
    return {"topic_errors": [_grown(call, item) for item in call.body["topic_partitions"]]}


def _grown(call: Call, item: Body) -> Body:
    def grow() -> None:
        call.cluster.check_growth(item["topic"], item["new_partitions"]["count"])
        if not call.body["validate_only"]:
            call.cluster.grow(item["topic"], item["new_partitions"]["count"])

    code, message, _ = call.attempt(item["topic"], None, grow)
    return {"topic": item["topic"], "error_code": code, "error_message": message or None}


def describe_configs(call: Call) -> Body:
    """Answer DescribeConfigs: what was set, for topics; nothing for brokers."""
    return {"resources": [_configs(call, item) for item in call.body["resources"]]}


def _configs(call: Call, item: Body) -> Body:
    name = item["resource_name"]
    is_topic = item["resource_type"] == TOPIC_RESOURCE
    code, message, configs = call.attempt(name, None, lambda: call.cluster.topic(name).configs if is_topic else {})
    wanted = item["config_names"]
    entries = [
        {
            "config_names": key,
            "config_value": value,
            "read_only": False,
            "is_default": False,
            "config_source": 1,
            "is_sensitive": False,
            "config_synonyms": [],
        }
        for key, value in (configs or {}).items()
        if wanted is None or key in wanted
    ]
    return {
        "error_code": code,
        "error_message": message or None,
        "resource_type": item["resource_type"],
        "resource_name": name,
        "config_entries": entries,
    }
