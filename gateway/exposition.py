"""What several processes show on /metrics, added up into one exposition (sans-I/O).

Theory of operation. Whoever scrapes wants a counter that never goes back while the service lives, though the processes behind
it come and go. So of each member the highest value of every counter and histogram is kept, and what a member had counted goes
into one common remainder when it leaves; what it counted after its last reading is lost. A gauge is a state of the present:
it is shown only of members that answered, and added, but for those of which a sum makes no sense: each member reads every
partition, so the lag of a partition is that of the member that is furthest behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

COUNTED = frozenset({"counter", "histogram"})
LEAST = frozenset({"gateway_build_info", "process_start_time_seconds"})
"""Gauges of which the least value is shown."""
MOST = frozenset({"gateway_consumer_lag_records", "gateway_unstable_records", "gateway_unstable_age_seconds"})
"""Gauges of which the greatest value is shown."""
UNANIMOUS = frozenset({"gateway_up", "gateway_ready"})
"""Gauges that are 1 if all members that there should be say so, and else 0."""

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample, and its labels by name."""


class Part:
    """The values of one member, by family. `counted` only grows, `states` are those of the last reading."""

    def __init__(self) -> None:
        self.counted: dict[str, dict[Series, float]] = {}
        self.states: dict[str, dict[Series, float]] = {}

    def take(self, families: Iterable[Metric]) -> None:
        """Take a reading; one that was overtaken by a newer one does not bring a counter back."""
        self.states = {}
        for family in families:
            counted = family.type in COUNTED
            kept = (self.counted if counted else self.states).setdefault(family.name, {})
            for sample in family.samples:
                series = sample.name, tuple(sorted(sample.labels.items()))
                kept[series] = max(kept.get(series, 0.0), sample.value) if counted else sample.value

    def inherit(self, other: Part) -> None:
        """Add what another one has counted."""
        for name, counted in other.counted.items():
            mine = self.counted.setdefault(name, {})
            for series, value in counted.items():
                mine[series] = mine.get(series, 0.0) + value


class Sums:
    """The sums over members that `join` and `leave`, each under a number that is never used again."""

    def __init__(self) -> None:
        self._members: dict[int, Part] = {}
        self._departed = Part()
        self._heads: dict[str, Metric] = {}

    def __repr__(self) -> str:
        return f"<Sums of {len(self._members)} members>"

    def join(self, member: int) -> None:
        """Begin to count for a member."""
        self._members[member] = Part()

    def take(self, member: int, text: str) -> None:
        """Take what a member shows, in Prometheus' text format; ValueError if it is none. One that has left is overlooked."""
        families = list(text_string_to_metric_families(text))
        if member in self._members:
            self._members[member].take(families)
            self._note(families)

    def missed(self, member: int) -> None:
        """Note that a member does not answer: its states are unknown, its counters stand."""
        if member in self._members:
            self._members[member].states = {}

    def leave(self, member: int) -> None:
        """Note that a member is gone for good."""
        self._departed.inherit(self._members.pop(member))

    def families(self, own: Iterable[Metric], *, expected: int) -> Iterator[Metric]:
        """Yield every family. `own`: of the process that adds up, which is no member; `expected`: how many there should be."""
        own = list(own)
        mine = Part()
        mine.take(own)
        self._note(own)
        parts = [mine, self._departed, *self._members.values()]
        for head in self._heads.values():
            family = Metric(head.name, head.documentation, head.type)
            for (name, labels), value in self._values(head, parts, expected).items():
                family.add_sample(name, dict(labels), value)
            yield family

    def _note(self, families: Iterable[Metric]) -> None:
        for family in families:
            self._heads.setdefault(family.name, Metric(family.name, family.documentation, family.type))

    def _values(self, head: Metric, parts: list[Part], expected: int) -> dict[Series, float]:
        if head.name in UNANIMOUS:
            said = [value for part in self._members.values() for value in part.states.get(head.name, {}).values()]
            return {(head.name, ()): min(said, default=0.0) if len(said) >= expected else 0.0}
        found: dict[Series, list[float]] = {}
        for part in parts:
            for series, value in (part.counted if head.type in COUNTED else part.states).get(head.name, {}).items():
                found.setdefault(series, []).append(value)
        return {series: _combined(head.name, values) for series, values in found.items()}


def _combined(name: str, values: list[float]) -> float:
    if name in LEAST:
        return min(values)
    return max(values) if name in MOST else sum(values)
