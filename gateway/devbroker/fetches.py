"""What a fetch is answered now, and whether that is enough to end its long poll (sans-I/O)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.devbroker.call import Call, Waiting
from gateway.devbroker.cluster import Partition
from gateway.devbroker.codes import Code
from gateway.devbroker.protocol import Body


@dataclass(slots=True)
class _Collected:
    left: int
    size: int = 0
    failed: bool = False


def fetch(call: Call) -> Waiting:
    """Answer Fetch as soon as there is enough, at the latest after the client's time."""

    def look(last: bool) -> Body | None:
        body, enough = _look(call)
        return body if enough or last else None

    named = tuple((item["topic"], one["partition"]) for item in call.body["topics"] for one in item["partitions"])
    return Waiting(look, named, call.body["max_wait_time"] / 1000)


def _look(call: Call) -> tuple[Body, bool]:
    """Read all partitions, in the order of the request and within its bounds; tell whether that ends the long poll.

    It does with `min_bytes` of batches, or when any partition has an error (as Kafka does).
    """
    if call.body.get("session_id", 0):
        # Sessions are never given out here, so whatever the client names is not known.
        return _answer(Code.FETCH_SESSION_ID_NOT_FOUND, []), True
    collected = _Collected(left=call.body["max_bytes"])
    topics = [
        {"topic": item["topic"], "topics": item["topic"], "partitions": _partitions(call, item, collected)}
        for item in call.body["topics"]
    ]
    return _answer(Code.NONE, topics), collected.failed or collected.size >= call.body["min_bytes"]


def _answer(code: int, topics: list[Body]) -> Body:
    return {"error_code": code, "session_id": 0, "topics": topics}


def _partitions(call: Call, item: Body, collected: _Collected) -> list[Body]:
    return [_partition(call, item["topic"], one, collected) for one in item["partitions"]]


def _partition(call: Call, topic: str, item: Body, collected: _Collected) -> Body:
    index = item["partition"]
    code, _, found = call.attempt(topic, index, lambda: _read(call, topic, item, collected))
    if found is None:
        collected.failed = True
        return _partition_answer(index, code)
    partition, data = found
    collected.left -= len(data)
    collected.size += len(data)
    return _partition_answer(index, code) | _bounds(partition, data, _offset(item), _committed(call))


def _committed(call: Call) -> bool:
    return bool(call.body["isolation_level"] == 1)


def _offset(item: Body) -> int:
    # aiokafka's struct for version 4 has a name of its own.
    return int(item["fetch_offset"] if "fetch_offset" in item else item["offset"])


def _read(call: Call, topic: str, item: Body, collected: _Collected) -> tuple[Partition, bytes]:
    partition = call.led(topic, item["partition"], item.get("current_leader_epoch", -1))
    data = partition.log.read(
        _offset(item),
        max(0, min(item["max_bytes"], collected.left)),
        committed=_committed(call),
        at_least_one=not collected.size,
    )
    return partition, data


def _partition_answer(index: int, code: int) -> dict[str, Any]:
    return {
        "partition": index,
        "error_code": code,
        "highwater_offset": -1,
        "last_stable_offset": -1,
        "log_start_offset": -1,
        "aborted_transactions": None,
        "preferred_read_replica": -1,
        "message_set": b"",
    }


def _bounds(partition: Partition, data: bytes, offset: int, committed: bool) -> dict[str, Any]:
    log = partition.log
    aborted = log.aborted(offset, log.bound(committed=committed)) if data else []
    return {
        "highwater_offset": log.end,
        "last_stable_offset": log.stable_end,
        "log_start_offset": log.start,
        "aborted_transactions": (
            [{"producer_id": one.producer_id, "first_offset": one.first} for one in aborted] if committed else None
        ),
        "message_set": data,
    }
