"""One request on its way through the broker, and how its items are tried one by one (sans-I/O)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gateway.devbroker.cluster import Cluster, Partition
from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.protocol import Body
from gateway.devbroker.schemas import Api


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way: where it arrived, when (Unix seconds), and the error that a fault puts on a place."""

    cluster: Cluster
    node_id: int
    api: Api
    version: int
    client_id: str | None
    body: Body
    now: float
    fault: Callable[[str | None, int | None], int]

    def attempt(self, topic: str | None, partition: int | None, action: Callable[[], Any]) -> tuple[int, str, Any]:
        """Run one item of a request and return (error code, message, result), the result None after an error."""
        if code := self.fault(topic, partition):
            return code, "injected", None
        try:
            return Code.NONE, "", action()
        except Refused as refused:
            return refused.code, str(refused), None

    def led(self, topic: str, partition: int, leader_epoch: int = -1) -> Partition:
        """Find a partition that this node leads."""
        return self.cluster.led(topic, partition, self.node_id, leader_epoch)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An answer that may have to wait.

    `look` gives the answer of this moment, None while there is none; called with True when the time is over it always gives
    one. `places` are those whose change is worth another look; `seconds` is how long to wait at most.
    """

    look: Callable[[bool], Body | None]
    places: tuple[tuple[str, int], ...]
    seconds: float


def places(body: Body) -> Iterator[tuple[str | None, int | None]]:
    """Yield the (topic, partition) pairs that any request names; the partition is None where it names only the topic."""
    for item in body.get("topics") or body.get("create_topic_requests") or body.get("topic_partitions") or ():
        if isinstance(item, str):
            yield item, None
            continue
        topic = item.get("topic", item.get("name"))
        yield topic, None
        for partition in item.get("partitions") or ():
            yield topic, partition if isinstance(partition, int) else _index(partition)


def _index(partition: Body) -> int:
    return int(partition["partition"] if "partition" in partition else partition["partition_index"])
