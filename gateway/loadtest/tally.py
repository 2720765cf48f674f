"""What the clients of one step have met (sans-I/O)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts of one step. `refusals` by `status code`, `failures` by kind; `latencies` of probes in seconds.

    `polls` answered; `settled`: clients that have their first cursor and are held; `expected`: deliveries that probes were to
    have.
    """

    polls: int = 0
    settled: int = 0
    expected: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """How many requests were refused or failed."""
        return self.refusals.total() + self.failures.total()

    @property
    def undelivered(self) -> int:
        """Probes that a client did not get."""
        return max(0, self.expected - len(self.latencies))

    def worst(self) -> str:
        """Return the error that came most often, in words; empty without one."""
        both = self.refusals + self.failures
        return both.most_common(1)[0][0] if both else ""


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which so great a share lies (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None
