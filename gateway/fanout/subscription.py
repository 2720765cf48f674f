"""What one poll asks for (sans-I/O).

A `Subscription` is pure data and says nothing of who asks: equal subscriptions at equal positions get the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gateway.fanout.cursor import Position, TopicPosition, partition_for
from gateway.fanout.hub import Interest
from gateway.lifecycle import ENDLESS, Announcement, Lifecycle, announce


@dataclass(frozen=True, slots=True)
class Selection:
    """One channel as resolved for one caller: which records of a topic, and how they are shown.

    `channel` is the name that the client gave, `pattern` the configured one (the bounded label of metrics). `key` None takes
    all records. `headers` are the names shown. Of `priority`, lower is more urgent. With a `partitioner` only the key's own
    partition is read.
    """

    channel: str
    pattern: str
    topic: str
    key: bytes | None = None
    format: Literal["json", "text", "binary"] = "json"
    headers: tuple[str, ...] = ()
    priority: int = 100
    partitioner: Literal["murmur2"] | None = None
    on_loss: Literal["report", "fail"] = "report"
    on_reset: Literal["fail", "earliest", "latest"] = "fail"
    lifecycle: Lifecycle = field(default=ENDLESS, compare=False)  # the pattern's, which is compared


@dataclass(frozen=True)
class Subscription:
    """The selections of one poll, normalized by the caller (sorted, no double), and the shape of an answer.

    `limit` messages and `max_bytes` of values at most, both soft: at least one record. `view` "value" shows bare values.
    """

    selections: tuple[Selection, ...]
    limit: int = 100
    max_bytes: int = 2**20
    view: Literal["full", "value"] = "full"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.selections, self.limit, self.max_bytes, self.view))

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The topics that are read, sorted."""
        return tuple(sorted(self.by_topic))

    @cached_property
    def by_topic(self) -> Mapping[str, tuple[Selection, ...]]:
        """The selections of each topic, the most urgent first."""
        grouped: dict[str, list[Selection]] = {}
        for selection in sorted(self.selections, key=lambda s: (s.priority, s.channel)):
            grouped.setdefault(selection.topic, []).append(selection)
        return {topic: tuple(selections) for topic, selections in grouped.items()}

    @cached_property
    def interests(self) -> tuple[Interest, ...]:
        """What wakes a waiter of this subscription."""
        interests = {Interest(s.topic, s.key): None for s in self.selections}
        return tuple(i for i in interests if i.key is None or Interest(i.topic, None) not in interests)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The channel patterns, each once."""
        return tuple(dict.fromkeys(s.pattern for s in self.selections))

    @cached_property
    def announcement(self) -> Announcement:
        """What is to be said of the channels' lives."""
        return announce(selection.lifecycle for selection in self.selections)

    def check(self, now: float) -> None:
        """Raise Gone if a channel is past its sunset; `now` is Unix time."""
        for selection in self.selections:
            selection.lifecycle.check(now, channel=selection.pattern)

    def follows_partitioner(self, topic: str) -> bool:
        """Tell whether only the partitions of the keys are read of a topic."""
        return all(s.partitioner is not None and s.key is not None for s in self.by_topic[topic])

    def wanted(self, topic: str, partition_count: int, known: int | None = None) -> Collection[int]:
        """Return the partitions of a topic that hold what is selected, of `partition_count`.

        `known`: the number of partitions that a reader has followed a partitioner up to. While it was away the topic may have
        grown more than once, and keys were written under each number in between.
        """
        if not self.follows_partitioner(topic):
            return range(partition_count)
        counts = range(max(1, partition_count if known is None else known), partition_count + 1)
        return {partition_for(s.key or b"", count) for s in self.by_topic[topic] for count in counts}

    def position_at(self, moment: Mapping[str, TopicPosition]) -> Position:
        """Return the position of a reader that was at the end of all tails (see `Hub`)."""
        return {topic: moment[topic] for topic in self.topics}
