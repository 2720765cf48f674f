"""Requests that aiokafka lacks or has wrong, on its own types: Metadata v10 (topic ids, KIP-516) and ListOffsets v5 (sans-I/O).

Field lists follow Apache Kafka's message definitions (clients/src/main/resources/common/message).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

from aiokafka.errors import for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v4, MetadataRequest_v5
from aiokafka.protocol.offset import OffsetRequest_v2, OffsetRequest_v3, OffsetResponse_v5
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

READ_COMMITTED: Final = 1
LATEST: Final = -1
EARLIEST: Final = -2
NO_REPLICA: Final = -1
ANY_EPOCH: Final = -1

# Error codes that are told apart here; all others are only named.
OFFSET_OUT_OF_RANGE: Final = 1
UNKNOWN_TOPIC: Final = 3
LEADER_NOT_AVAILABLE: Final = 5
INVALID_TOPIC: Final = 17
OFFSET_NOT_AVAILABLE: Final = 78

_UUID_BYTES: Final = 16
_NO_ID: Final = bytes(_UUID_BYTES)
_TAGS: Final = ("tags", TaggedFields)
_COMPACT: Final = CompactString("utf-8")


def error_name(code: int) -> str:
    """Return Kafka's name of an error code, or ERROR_<code> where aiokafka does not know it."""
    if code == OFFSET_NOT_AVAILABLE:
        return "OFFSET_NOT_AVAILABLE"
    name = for_code(code).message
    return f"ERROR_{code}" if name == "UNKNOWN" else str(name)


class Uuid(AbstractType[bytes]):
    """16 bytes; all zero means that there is none."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Return the bytes as they are."""
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read 16 bytes; ValueError when fewer are left."""
        value = data.read(_UUID_BYTES)
        if len(value) != _UUID_BYTES:
            raise ValueError("uuid cut short")
        return value


class MetadataResponse_v10(Response):  # noqa: N801  # named as aiokafka names its own
    """Brokers, and topics with their ids."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _COMPACT), ("port", Int32), ("rack", _COMPACT), _TAGS)),
        ("cluster_id", _COMPACT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _COMPACT),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        _TAGS,
                    ),
                ),
                ("topic_authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("cluster_authorized_operations", Int32),
        _TAGS,
    )


class MetadataRequest_v10(RequestStruct):  # noqa: N801
    """Topics by name."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", _COMPACT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class Metadata(Request[MetadataRequest_v4 | MetadataRequest_v5 | MetadataRequest_v10]):
    """Ask for brokers and for these topics, without creating any."""

    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        """Build the struct for the version that was agreed on."""
        if request_struct_class.API_VERSION < MetadataRequest_v10.API_VERSION:
            return request_struct_class(self._names, False)
        return request_struct_class([(_NO_ID, name, {}) for name in self._names], False, False, False, {})


class ListOffsetsRequest_v5(RequestStruct):  # noqa: N801
    """The first version with OFFSET_NOT_AVAILABLE; aiokafka's own struct has the leader epoch in 64 bits."""

    API_KEY = 2
    API_VERSION = 5
    RESPONSE_TYPE = OffsetResponse_v5
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("isolation_level", Int8),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("current_leader_epoch", Int32), ("timestamp", Int64)),
                ),
            ),
        ),
    )


class ListOffsets(Request[OffsetRequest_v2 | OffsetRequest_v3 | ListOffsetsRequest_v5]):
    """Ask for the offsets of partitions at a time (ms), LATEST or EARLIEST, as a read_committed reader sees them."""

    API_KEY = 2

    def __init__(self, partitions: dict[str, list[int]], at: int) -> None:
        self._partitions = partitions
        self._at = at

    def build(self, request_struct_class: Any) -> Any:
        """Build the struct for the version that was agreed on."""
        epoch = (ANY_EPOCH,) if request_struct_class.API_VERSION >= ListOffsetsRequest_v5.API_VERSION else ()
        topics = [(topic, [(p, *epoch, self._at) for p in partitions]) for topic, partitions in self._partitions.items()]
        return request_struct_class(NO_REPLICA, READ_COMMITTED, topics)
