"""What each API answers: the table, and the answers about data (sans-I/O).

Each is a function from a call to the body of its answer, or to one that waits. Field names are those of aiokafka's schemas,
which differ between versions in places: then an answer gives a value under both names.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.devbroker import batches
from gateway.devbroker.call import Call, Waiting
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.fetches import fetch
from gateway.devbroker.groupanswers import (
    delete_groups,
    describe_groups,
    find_coordinator,
    heartbeat,
    join_group,
    leave_group,
    list_groups,
    offset_commit,
    offset_fetch,
    sync_group,
)
from gateway.devbroker.protocol import Body, api_versions
from gateway.devbroker.schemas import Api
from gateway.devbroker.topicanswers import create_partitions, create_topics, delete_topics, describe_configs, metadata
from gateway.devbroker.transactionanswers import (
    add_offsets_to_txn,
    add_partitions_to_txn,
    end_txn,
    init_producer_id,
    txn_offset_commit,
)

LATEST, EARLIEST = -1, -2
ALL_ACKS = (-1, 0, 1)


def versions(call: Call) -> Body:
    """Answer ApiVersions; a fault's error code goes with the list of versions all the same."""
    body = api_versions(supported=True, newest=call.cluster.newest)
    return body | {"error_code": call.fault(None, None)}


def produce(call: Call) -> Body:
    """Answer Produce; the shell sends nothing for acks=0."""
    return {
        "topics": [
            {
                "topic": item["topic"],
                "partitions": [_produced(call, item["topic"], one) for one in item["partitions"]],
            }
            for item in call.body["topics"]
        ]
    }


def _produced(call: Call, topic: str, item: Body) -> Body:
    index = item["partition"]
    code, message, done = call.attempt(topic, index, lambda: _stored(call, topic, index, item["messages"]))
    base, stamp, start = done or (-1, -1, -1)
    return {
        "partition": index,
        "error_code": code,
        "offset": base,
        "timestamp": stamp,
        "log_start_offset": start,
        "record_errors": [],
        "error_message": message or None,
    }


def _stored(call: Call, topic: str, index: int, data: bytes | None) -> tuple[int, int, int]:
    if call.body["required_acks"] not in ALL_ACKS:
        raise Refused(Code.INVALID_REQUIRED_ACKS)
    partition = call.led(topic, index)
    try:
        found = batches.parse(data or b"")
    except batches.BatchInvalid as error:
        raise Refused(Code.CORRUPT_MESSAGE, str(error)) from error
    base, stamp = call.cluster.append(topic, index, found, call.now)
    return base, stamp, partition.log.start


def list_offsets(call: Call) -> Body:
    """Answer ListOffsets: earliest, latest or by time, at the isolation level of the reader."""
    return {
        "topics": [
            {"topic": item["topic"], "partitions": [_listed(call, item["topic"], one) for one in item["partitions"]]}
            for item in call.body["topics"]
        ]
    }


def _listed(call: Call, topic: str, item: Body) -> Body:
    index = item["partition"]
    code, _, found = call.attempt(topic, index, lambda: _offset(call, topic, item))
    offset, timestamp, epoch = found or (-1, -1, -1)
    return {
        "partition": index,
        "error_code": code,
        "offset": offset,
        "offsets": [offset] if offset >= 0 else [],
        "timestamp": timestamp,
        "leader_epoch": epoch,
    }


def _offset(call: Call, topic: str, item: Body) -> tuple[int, int, int]:
    partition = call.led(topic, item["partition"], item.get("current_leader_epoch", -1))
    committed = call.body.get("isolation_level", 0) == 1
    if item["timestamp"] == LATEST:
        return partition.log.bound(committed=committed), -1, partition.leader_epoch
    if item["timestamp"] == EARLIEST:
        return partition.log.start, -1, partition.leader_epoch
    offset, timestamp = partition.log.offset_at(item["timestamp"], committed=committed) or (-1, -1)
    return offset, timestamp, partition.leader_epoch


def delete_records(call: Call) -> Body:
    """Answer DeleteRecords."""
    return {
        "topics": [
            {"name": item["name"], "partitions": [_deleted(call, item["name"], one) for one in item["partitions"]]}
            for item in call.body["topics"]
        ]
    }


def _deleted(call: Call, topic: str, item: Body) -> Body:
    index = item["partition_index"]

    def delete() -> int:
        call.led(topic, index)
        return call.cluster.delete_before(topic, index, item["offset"])

    code, _, low = call.attempt(topic, index, delete)
    return {"partition_index": index, "low_watermark": -1 if low is None else low, "error_code": code}


ANSWERS: dict[Api, Callable[[Call], Body | Waiting]] = {
    Api.PRODUCE: produce,
    Api.FETCH: fetch,
    Api.LIST_OFFSETS: list_offsets,
    Api.METADATA: metadata,
    Api.OFFSET_COMMIT: offset_commit,
    Api.OFFSET_FETCH: offset_fetch,
    Api.FIND_COORDINATOR: find_coordinator,
    Api.JOIN_GROUP: join_group,
    Api.HEARTBEAT: heartbeat,
    Api.LEAVE_GROUP: leave_group,
    Api.SYNC_GROUP: sync_group,
    Api.DESCRIBE_GROUPS: describe_groups,
    Api.LIST_GROUPS: list_groups,
    Api.API_VERSIONS: versions,
    Api.CREATE_TOPICS: create_topics,
    Api.DELETE_TOPICS: delete_topics,
    Api.DELETE_RECORDS: delete_records,
    Api.INIT_PRODUCER_ID: init_producer_id,
    Api.ADD_PARTITIONS_TO_TXN: add_partitions_to_txn,
    Api.ADD_OFFSETS_TO_TXN: add_offsets_to_txn,
    Api.END_TXN: end_txn,
    Api.TXN_OFFSET_COMMIT: txn_offset_commit,
    Api.DESCRIBE_CONFIGS: describe_configs,
    Api.CREATE_PARTITIONS: create_partitions,
    Api.DELETE_GROUPS: delete_groups,
}
