"""Every API version that the dev broker speaks, as a table of request and response schemas (sans-I/O).

Most come from aiokafka, whose structs work in both directions. Those that it lacks, or has wrong, are defined here on its
types, after the message definitions of Apache Kafka (clients/src/main/resources/common/message).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from types import ModuleType
from typing import Any

from aiokafka.protocol import admin, commit, coordination, fetch, group, metadata, offset, produce, transaction
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)


class Api(IntEnum):
    """The APIs of the dev broker, by their keys on the wire."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    LIST_GROUPS = 16
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_TOPICS = 20
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    DESCRIBE_CONFIGS = 32
    CREATE_PARTITIONS = 37
    DELETE_GROUPS = 42


class Uuid(AbstractType[bytes]):
    """16 bytes; all zero stands for "no id" (KIP-516)."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Return the bytes as they are."""
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read 16 bytes; ValueError when fewer are left."""
        value = data.read(16)
        if len(value) != 16:  # noqa: PLR2004
            raise ValueError("Buffer underrun decoding uuid")
        return value


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one API. `flexible`: headers and structs end in tagged fields (KIP-482)."""

    request: Schema
    response: Schema
    flexible: bool = False


Field = tuple[str, type[AbstractType[Any]] | String | Array | Schema]
STRING = String("utf-8")
COMPACT = CompactString("utf-8")
TAGS = ("tags", TaggedFields)


def _aiokafka(module: ModuleType, name: str, *versions: int) -> dict[int, Version]:
    # The struct classes are found by name because their own API_VERSION is wrong in places (ListGroupsRequest_v2 says 1).
    found = {}
    for version in versions:
        request = getattr(module, f"{name}Request_v{version}")
        response = getattr(module, f"{name}Response_v{version}")
        found[version] = Version(request.SCHEMA, response.SCHEMA)
    return found


def _api_versions() -> dict[int, Version]:
    keys = (("api_key", Int16), ("min_version", Int16), ("max_version", Int16), TAGS)
    flexible = Version(
        Schema(("client_software_name", COMPACT), ("client_software_version", COMPACT), TAGS),
        Schema(("error_code", Int16), ("api_versions", CompactArray(*keys)), ("throttle_time_ms", Int32), TAGS),
        flexible=True,
    )
    return _aiokafka(admin, "ApiVersion", 0, 1, 2) | {3: flexible}


def _list_offsets() -> dict[int, Version]:
    # aiokafka's structs for 4 and 5 hold the leader epoch of the request as 64 bits; on the wire it has 32.
    request = Schema(
        ("replica_id", Int32),
        ("isolation_level", Int8),
        (
            "topics",
            Array(
                ("topic", STRING),
                (
                    "partitions",
                    Array(("partition", Int32), ("current_leader_epoch", Int32), ("timestamp", Int64)),
                ),
            ),
        ),
    )
    newer = Version(request, offset.OffsetResponse_v4.SCHEMA)
    return _aiokafka(offset, "Offset", 0, 1, 2, 3) | {4: newer, 5: newer}


def _metadata_brokers() -> tuple[str, Array]:
    return ("brokers", Array(("node_id", Int32), ("host", STRING), ("port", Int32), ("rack", STRING)))


def _metadata_plain(version: int) -> Version:
    """Build Metadata v6 to v8: 7 has leader epochs, 8 authorized operations."""
    flags = [("include_cluster_authorized_operations", Boolean), ("include_topic_authorized_operations", Boolean)]
    epoch = [("leader_epoch", Int32)]
    partitions = Array(
        ("error_code", Int16),
        ("partition", Int32),
        ("leader", Int32),
        *(epoch if version >= 7 else []),  # noqa: PLR2004
        ("replicas", Array(Int32)),
        ("isr", Array(Int32)),
        ("offline_replicas", Array(Int32)),
    )
    operations = version >= 8  # noqa: PLR2004
    topics = Array(
        ("error_code", Int16),
        ("topic", STRING),
        ("is_internal", Boolean),
        ("partitions", partitions),
        *([("topic_authorized_operations", Int32)] if operations else []),
    )
    return Version(
        Schema(("topics", Array(STRING)), ("allow_auto_topic_creation", Boolean), *(flags if operations else [])),
        Schema(
            ("throttle_time_ms", Int32),
            _metadata_brokers(),
            ("cluster_id", STRING),
            ("controller_id", Int32),
            ("topics", topics),
            *([("cluster_authorized_operations", Int32)] if operations else []),
        ),
    )


def _metadata_flexible(version: int) -> Version:
    """Build Metadata v9 to v12: 10 has topic ids (KIP-516), 11 drops the cluster's operations, 12 asks by id."""
    topic_id = [("topic_id", Uuid)] if version >= 10 else []  # noqa: PLR2004
    cluster = version <= 10  # noqa: PLR2004
    partitions = CompactArray(
        ("error_code", Int16),
        ("partition", Int32),
        ("leader", Int32),
        ("leader_epoch", Int32),
        ("replicas", CompactArray(Int32)),
        ("isr", CompactArray(Int32)),
        ("offline_replicas", CompactArray(Int32)),
        TAGS,
    )
    topics = CompactArray(
        ("error_code", Int16),
        ("topic", COMPACT),
        *topic_id,
        ("is_internal", Boolean),
        ("partitions", partitions),
        ("topic_authorized_operations", Int32),
        TAGS,
    )
    request = Schema(
        ("topics", CompactArray(*topic_id, ("topic", COMPACT), TAGS)),
        ("allow_auto_topic_creation", Boolean),
        *([("include_cluster_authorized_operations", Boolean)] if cluster else []),
        ("include_topic_authorized_operations", Boolean),
        TAGS,
    )
    response = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", COMPACT), ("port", Int32), ("rack", COMPACT), TAGS)),
        ("cluster_id", COMPACT),
        ("controller_id", Int32),
        ("topics", topics),
        *([("cluster_authorized_operations", Int32)] if cluster else []),
        TAGS,
    )
    return Version(request, response, flexible=True)


def _metadata() -> dict[int, Version]:
    plain = {version: _metadata_plain(version) for version in (6, 7, 8)}
    flexible = {version: _metadata_flexible(version) for version in (9, 10, 11, 12)}
    return _aiokafka(metadata, "Metadata", 0, 1, 2, 3, 4, 5) | plain | flexible


def _offset_commit() -> dict[int, Version]:
    """Add versions 4 (as 3), 5 (no retention), 6 (leader epoch), 7 (static members)."""
    response = commit.OffsetCommitResponse_v3.SCHEMA
    head: list[Field] = [("consumer_group", STRING), ("consumer_group_generation_id", Int32), ("consumer_id", STRING)]
    plain = Array(("partition", Int32), ("offset", Int64), ("metadata", STRING))
    epochs = Array(("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", STRING))

    def topics(partitions: Array) -> tuple[str, Array]:
        return ("topics", Array(("topic", STRING), ("partitions", partitions)))

    return _aiokafka(commit, "OffsetCommit", 1, 2, 3) | {
        4: Version(commit.OffsetCommitRequest_v3.SCHEMA, response),
        5: Version(Schema(*head, topics(plain)), response),
        6: Version(Schema(*head, topics(epochs)), response),
        7: Version(Schema(*head, ("group_instance_id", STRING), topics(epochs)), response),
    }


def _offset_fetch() -> dict[int, Version]:
    """Add versions 4 (as 3) and 5 (leader epoch)."""
    request = commit.OffsetFetchRequest_v3.SCHEMA
    partitions = Array(
        ("partition", Int32),
        ("offset", Int64),
        ("leader_epoch", Int32),
        ("metadata", STRING),
        ("error_code", Int16),
    )
    epochs = Schema(
        ("throttle_time_ms", Int32),
        ("topics", Array(("topic", STRING), ("partitions", partitions))),
        ("error_code", Int16),
    )
    return _aiokafka(commit, "OffsetFetch", 1, 2, 3) | {
        4: Version(request, commit.OffsetFetchResponse_v3.SCHEMA),
        5: Version(request, epochs),
    }


def _repeated(versions: dict[int, Version], *further: int) -> dict[int, Version]:
    """Add versions whose structs are those of the newest one."""
    newest = versions[max(versions)]
    return versions | dict.fromkeys(further, newest)


def _join_group() -> dict[int, Version]:
    # 3 and 4 change only when errors come (KIP-394); 5 is the first with static members.
    versions = _aiokafka(group, "JoinGroup", 0, 1, 2)
    return _repeated(versions, 3, 4) | _aiokafka(group, "JoinGroup", 5)


def _sync_group() -> dict[int, Version]:
    return _repeated(_aiokafka(group, "SyncGroup", 0, 1), 2) | _aiokafka(group, "SyncGroup", 3)


def _heartbeat() -> dict[int, Version]:
    request = Schema(
        ("group", STRING),
        ("generation_id", Int32),
        ("member_id", STRING),
        ("group_instance_id", STRING),
    )
    older = _repeated(_aiokafka(group, "Heartbeat", 0, 1), 2)
    return older | {3: Version(request, group.HeartbeatResponse_v1.SCHEMA)}


def _init_producer_id() -> dict[int, Version]:
    """Add versions 1 (as 0), 2 (flexible), and 3 and 4 (an id may be bumped, KIP-360)."""
    response = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        TAGS,
    )
    head: list[Field] = [("transactional_id", COMPACT), ("transaction_timeout_ms", Int32)]
    bump = Version(Schema(*head, ("producer_id", Int64), ("producer_epoch", Int16), TAGS), response, flexible=True)
    plain = _repeated(_aiokafka(transaction, "InitProducerId", 0), 1)
    return plain | {2: Version(Schema(*head, TAGS), response, flexible=True), 3: bump, 4: bump}


def _txn_offset_commit() -> dict[int, Version]:
    """Add versions 1 (as 0) and 2 (leader epoch)."""
    partitions = Array(("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", STRING))
    request = Schema(
        ("transactional_id", STRING),
        ("group_id", STRING),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("topics", Array(("topic", STRING), ("partitions", partitions))),
    )
    older = _repeated(_aiokafka(transaction, "TxnOffsetCommit", 0), 1)
    return older | {2: Version(request, transaction.TxnOffsetCommitResponse_v0.SCHEMA)}


def _describe_configs() -> dict[int, Version]:
    return _aiokafka(admin, "DescribeConfigs", 0, 1, 2)


# Fetch begins at 4, as in Kafka 4: older clients could not read record batches of magic 2, and nothing is converted here.
VERSIONS: dict[Api, dict[int, Version]] = {
    Api.PRODUCE: _aiokafka(produce, "Produce", *range(9)),
    Api.FETCH: _aiokafka(fetch, "Fetch", *range(4, 12)),
    Api.LIST_OFFSETS: _list_offsets(),
    Api.METADATA: _metadata(),
    Api.OFFSET_COMMIT: _offset_commit(),
    Api.OFFSET_FETCH: _offset_fetch(),
    Api.FIND_COORDINATOR: _repeated(_aiokafka(coordination, "FindCoordinator", 0, 1), 2),
    Api.JOIN_GROUP: _join_group(),
    Api.HEARTBEAT: _heartbeat(),
    Api.LEAVE_GROUP: _repeated(_aiokafka(group, "LeaveGroup", 0, 1), 2),
    Api.SYNC_GROUP: _sync_group(),
    Api.DESCRIBE_GROUPS: _aiokafka(admin, "DescribeGroups", 0, 1, 2, 3),
    Api.LIST_GROUPS: _aiokafka(admin, "ListGroups", 0, 1, 2),
    Api.API_VERSIONS: _api_versions(),
    Api.CREATE_TOPICS: _repeated(_aiokafka(admin, "CreateTopics", 0, 1, 2, 3), 4),
    Api.DELETE_TOPICS: _aiokafka(admin, "DeleteTopics", 0, 1, 2, 3),
    Api.DELETE_RECORDS: _aiokafka(admin, "DeleteRecords", 0, 1),
    Api.INIT_PRODUCER_ID: _init_producer_id(),
    Api.ADD_PARTITIONS_TO_TXN: _repeated(_aiokafka(transaction, "AddPartitionsToTxn", 0), 1, 2),
    Api.ADD_OFFSETS_TO_TXN: _repeated(_aiokafka(transaction, "AddOffsetsToTxn", 0), 1, 2),
    Api.END_TXN: _repeated(_aiokafka(transaction, "EndTxn", 0), 1, 2),
    Api.TXN_OFFSET_COMMIT: _txn_offset_commit(),
    Api.DESCRIBE_CONFIGS: _describe_configs(),
    Api.CREATE_PARTITIONS: _aiokafka(admin, "CreatePartitions", 0, 1),
    Api.DELETE_GROUPS: _aiokafka(admin, "DeleteGroups", 0, 1),
}
