"""What the APIs about producers and their transactions answer (sans-I/O)."""

from __future__ import annotations

from gateway.devbroker.call import Call
from gateway.devbroker.protocol import Body


def init_producer_id(call: Call) -> Body:
    """Answer InitProducerId; what an older incarnation left open is aborted."""
    body = call.body

    def register() -> tuple[int, int]:
        producer_id, epoch, ending = call.cluster.transactions.register(
            body["transactional_id"],
            body["transaction_timeout_ms"] / 1000,
            known=(body.get("producer_id", -1), body.get("producer_epoch", -1)),
        )
        if ending is not None:
            call.cluster.finish(ending, call.now)
        return producer_id, epoch

    code, _, given = call.attempt(None, None, register)
    producer_id, epoch = given or (-1, -1)
    return {"error_code": code, "producer_id": producer_id, "producer_epoch": epoch}


def add_partitions_to_txn(call: Call) -> Body:
    """Answer AddPartitionsToTxn."""
    body = call.body
    return {
        "errors": [
            {
                "topic": item["topic"],
                "partition_errors": [_added(call, body, item["topic"], index) for index in item["partitions"]],
            }
            for item in body["topics"]
        ]
    }


def _added(call: Call, body: Body, topic: str, index: int) -> Body:
    def add() -> None:
        call.cluster.partition(topic, index)
        call.cluster.transactions.add(
            body["transactional_id"], body["producer_id"], body["producer_epoch"], {(topic, index)}, call.now
        )

    return {"partition": index, "error_code": call.attempt(topic, index, add)[0]}


def add_offsets_to_txn(call: Call) -> Body:
    """Answer AddOffsetsToTxn: the transaction begins; the offsets come with TxnOffsetCommit."""
    body = call.body
    code, _, _ = call.attempt(
        None,
        None,
        lambda: call.cluster.transactions.add(
            body["transactional_id"], body["producer_id"], body["producer_epoch"], set(), call.now
        ),
    )
    return {"error_code": code}


def txn_offset_commit(call: Call) -> Body:
    """Answer TxnOffsetCommit."""
    return {
        "errors": [
            {
                "topic": item["topic"],
                "partition_errors": [_pending(call, item["topic"], one) for one in item["partitions"]],
            }
            for item in call.body["topics"]
        ]
    }


def _pending(call: Call, topic: str, item: Body) -> Body:
    body = call.body

    def add() -> None:
        call.cluster.partition(topic, item["partition"])
        call.cluster.transactions.add_offsets(
            body["transactional_id"],
            body["producer_id"],
            body["producer_epoch"],
            body["group_id"],
            {(topic, item["partition"]): (item["offset"], item["metadata"])},
        )

    return {"partition": item["partition"], "error_code": call.attempt(topic, item["partition"], add)[0]}


def end_txn(call: Call) -> Body:
    """Answer EndTxn: markers are written before the answer."""
    body = call.body

    def end() -> None:
        ending = call.cluster.transactions.end(
            body["transactional_id"],
            body["producer_id"],
            body["producer_epoch"],
            commit=body["transaction_result"],
        )
        call.cluster.finish(ending, call.now)

    return {"error_code": call.attempt(None, None, end)[0]}
