"""What the APIs about consumer groups answer: coordinator, offsets, membership (sans-I/O)."""

from __future__ import annotations

import math
from functools import partial

from gateway.devbroker.call import Call, Waiting
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.membership import Joined, State
from gateway.devbroker.protocol import Body

# "Not known", in the fields for authorized operations.
NO_OPERATIONS = -(2**31)
# How long a follower waits for its leader; it joins again after that.
SYNC_SECONDS = 60.0


def find_coordinator(call: Call) -> Body:
    """Answer FindCoordinator for groups and transactional ids."""
    key = call.body["coordinator_key"] if "coordinator_key" in call.body else call.body["consumer_group"]
    code, message, node = call.attempt(None, None, lambda: call.cluster.coordinator(key))
    if node is None:
        return {"error_code": code, "error_message": message, "coordinator_id": -1, "host": "", "port": -1}
    return {
        "error_code": code,
        "error_message": None,
        "coordinator_id": node.node_id,
        "host": node.host,
        "port": node.port,
    }


def offset_commit(call: Call) -> Body:
    """Answer OffsetCommit."""
    return {
        "topics": [
            {"topic": item["topic"], "partitions": [_committed(call, item["topic"], one) for one in item["partitions"]]}
            for item in call.body["topics"]
        ]
    }


def _committed(call: Call, topic: str, item: Body) -> Body:
    body = call.body
    keep_ms = body.get("retention_time", -1)

    def commit() -> None:
        call.cluster.groups.check_commit(
            body["consumer_group"], body["consumer_group_generation_id"], body["consumer_id"], call.now
        )
        call.cluster.partition(topic, item["partition"])
        call.cluster.groups.commit(
            body["consumer_group"],
            topic,
            item["partition"],
            item["offset"],
            item["metadata"],
            leader_epoch=item.get("leader_epoch", -1),
            until=None if keep_ms < 0 else call.now + keep_ms / 1000,
        )

    code, _, _ = call.attempt(topic, item["partition"], commit)
    return {"partition": item["partition"], "error_code": code}


def offset_fetch(call: Call) -> Body:
    """Answer OffsetFetch; null topics ask for all that the group has committed."""
    asked = call.body["topics"]
    if asked is None:
        by_topic: dict[str, list[int]] = {}
        for topic, partition in sorted(call.cluster.groups.committed(call.body["consumer_group"])):
            by_topic.setdefault(topic, []).append(partition)
        asked = [{"topic": topic, "partitions": partitions} for topic, partitions in by_topic.items()]
    return {
        "topics": [
            {"topic": item["topic"], "partitions": [_fetched(call, item["topic"], one) for one in item["partitions"]]}
            for item in asked
        ],
        "error_code": call.fault(None, None),
    }


def _fetched(call: Call, topic: str, index: int) -> Body:
    offsets = call.cluster.groups.committed(call.body["consumer_group"])
    code, _, found = call.attempt(topic, index, lambda: offsets.get((topic, index)))
    return {
        "partition": index,
        "offset": -1 if found is None else found.offset,
        "leader_epoch": -1 if found is None else found.leader_epoch,
        "metadata": "" if found is None else found.metadata,
        "error_code": code,
    }


def list_groups(call: Call) -> Body:
    """Answer ListGroups."""
    groups = [{"group": name, "protocol_type": kind} for name, kind in call.cluster.groups.listed()]
    return {"error_code": call.fault(None, None), "groups": groups}


def delete_groups(call: Call) -> Body:
    """Answer DeleteGroups."""
    return {
        "results": [
            {
                "group_id": name,
                "error_code": call.attempt(None, None, partial(call.cluster.groups.delete, name))[0],
            }
            for name in call.body["groups_names"]
        ]
    }


def place(group: str) -> tuple[str, int]:
    """Return where the members of a group wait for each other; no topic can have such a name."""
    return (f"group {group}", 0)


def join_group(call: Call) -> Waiting:
    """Answer JoinGroup, once all members have come."""
    body = call.body
    groups = call.cluster.groups
    session = body["session_timeout"] / 1000
    # Version 0 had one time-out for both.
    rebalance = body["rebalance_timeout" if "rebalance_timeout" in body else "session_timeout"] / 1000
    code, _, member_id = call.attempt(
        None,
        None,
        lambda: groups.group(body["group"]).join(
            body["member_id"],
            call.client_id or "consumer",
            body["protocol_type"],
            [(one["protocol_name"], one["protocol_metadata"]) for one in body["group_protocols"]],
            session=session,
            rebalance=rebalance,
            now=call.now,
        ),
    )
    if member_id is not None:
        groups.changed(body["group"])

    def look(last: bool) -> Body | None:
        if member_id is None:
            return _joined(code, body["member_id"], None)
        group = groups.group(body["group"])
        try:
            joined = group.joined(member_id, math.inf if last else call.now)
        except Refused as refused:
            return _joined(refused.code, member_id, None)
        if joined is None:
            return None
        groups.changed(body["group"])
        return _joined(Code.NONE, member_id, joined)

    return Waiting(look, (place(body["group"]),), rebalance)


def _joined(code: int, member_id: str, joined: Joined | None) -> Body:
    members = () if joined is None else joined.members
    return {
        "error_code": code,
        "generation_id": -1 if joined is None else joined.generation,
        "group_protocol": "" if joined is None else joined.protocol,
        "leader_id": "" if joined is None else joined.leader,
        "member_id": member_id,
        "members": [{"member_id": name, "group_instance_id": None, "member_metadata": metadata} for name, metadata in members],
    }


def sync_group(call: Call) -> Waiting:
    """Answer SyncGroup, once the leader's assignment is here."""
    body = call.body
    group = call.cluster.groups.group(body["group"])
    assignments = [(one["member_id"], one["member_metadata"]) for one in body["group_assignment"]]
    code, _, _ = call.attempt(None, None, lambda: group.sync(body["member_id"], body["generation_id"], assignments, call.now))
    call.cluster.groups.changed(body["group"])

    def look(last: bool) -> Body | None:
        if code:
            return {"error_code": code, "member_assignment": b""}
        try:
            assignment = group.synced(body["member_id"], body["generation_id"], call.now)
        except Refused as refused:
            return {"error_code": refused.code, "member_assignment": b""}
        if assignment is None:
            return {"error_code": Code.REBALANCE_IN_PROGRESS, "member_assignment": b""} if last else None
        return {"error_code": Code.NONE, "member_assignment": assignment}

    return Waiting(look, (place(body["group"]),), SYNC_SECONDS)


def heartbeat(call: Call) -> Body:
    """Answer Heartbeat."""
    body = call.body
    group = call.cluster.groups.group(body["group"])
    code, _, _ = call.attempt(None, None, lambda: group.heartbeat(body["member_id"], body["generation_id"], call.now))
    return {"error_code": code}


def leave_group(call: Call) -> Body:
    """Answer LeaveGroup."""
    body = call.body
    group = call.cluster.groups.group(body["group"])
    code, _, _ = call.attempt(None, None, lambda: group.leave(body["member_id"], call.now))
    call.cluster.groups.changed(body["group"])
    return {"error_code": code}


def describe_groups(call: Call) -> Body:
    """Answer DescribeGroups; one that does not exist is "Dead"."""
    return {"groups": [_described(call, name) for name in call.body["groups"]]}


def _described(call: Call, name: str) -> Body:
    groups = call.cluster.groups
    code = call.fault(None, None)
    if not name or not groups.exists(name):
        return _description(code, name, "Dead")
    group = groups.group(name)
    members = [
        {
            "member_id": member.member_id,
            "client_id": member.client_id,
            "client_host": "",
            "member_metadata": member.protocols.get(group.protocol, b""),
            "member_assignment": member.assignment,
        }
        for member in group.members.values()
    ]
    protocol = group.protocol if group.state is State.STABLE else ""
    return _description(code, name, group.state.value) | {
        "protocol_type": group.protocol_type,
        "protocol": protocol,
        "members": members,
    }


def _description(code: int, name: str, state: str) -> Body:
    return {
        "error_code": code,
        "group": name,
        "state": state,
        "protocol_type": "",
        "protocol": "",
        "members": [],
        "authorized_operations": NO_OPERATIONS,
    }
