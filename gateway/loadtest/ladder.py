"""How many clients come next, and whether so many were held (sans-I/O).

Theory of operation. Counts double until a step is not held, or the most is reached. Then the gap between the last count that
was held and the first that was not is halved, until it is a tenth: the answer is the greatest count that was held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.loadtest.tally import Tally, quantile

_PRECISION = 0.1
_BUSY = 0.9
"""A generator that has used so much of its core is itself what is slow."""

_FIRST = 25


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a step has to keep: seconds until all are held, p99 of deliveries in seconds, and the share of `errors`."""

    settle: float = 15.0
    latency: float = 1.0
    errors: float = 0.001


@dataclass(frozen=True, slots=True)
class Step:
    """One count of clients and what it was worth. `why` says what was not kept; empty: it was held. Times in seconds.

    `settled_in` None: not all were held in time. `own`: the share of its core that the generator used.
    """

    clients: int
    settled: int
    settled_in: float | None
    polls_per_second: float
    errors: int
    error: str
    p50: float | None
    p99: float | None
    undelivered: int
    own: float
    why: str

    @property
    def held(self) -> bool:
        """Whether all that was asked was kept."""
        return not self.why

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self) | {"held": self.held}


def judged(clients: int, tally: Tally, settled_in: float | None, seconds: float, own: float, bounds: Bounds) -> Step:
    """Return what a step of so many clients, and so many seconds, was worth."""
    p99 = quantile(tally.latencies, 0.99)
    return Step(
        clients=clients,
        settled=tally.settled,
        settled_in=settled_in,
        polls_per_second=tally.polls / seconds if seconds > 0 else 0.0,
        errors=tally.errors,
        error=tally.worst(),
        p50=quantile(tally.latencies, 0.5),
        p99=p99,
        undelivered=tally.undelivered,
        own=own,
        why=_reason(clients, tally, settled_in, p99, bounds),
    )


def _reason(clients: int, tally: Tally, settled_in: float | None, p99: float | None, bounds: Bounds) -> str:
    if tally.errors > bounds.errors * max(1, tally.polls + tally.errors):
        return f"{tally.errors:,} errors, most of them {tally.worst()}"
    if settled_in is None:
        return f"only {tally.settled:,} of {clients:,} were held within {bounds.settle:g} s"
    if tally.undelivered:
        return f"{tally.undelivered:,} of {tally.expected:,} deliveries did not come"
    if p99 is not None and p99 > bounds.latency:
        return f"p99 of deliveries {p99:.2f} s, more than {bounds.latency:g} s"
    return ""


class Ladder:
    """Gives the counts, one after the other. `steps`: what they were worth so far."""

    def __init__(self, most: int, counts: Sequence[int] = ()) -> None:
        """Double up to `most`, or take these `counts`, ascending."""
        self.steps: list[Step] = []
        self._given = list(counts) or _doubling(most)

    @property
    def best(self) -> int:
        """The greatest count that was held; 0 if none was."""
        return max((step.clients for step in self.steps if step.held), default=0)

    @property
    def worst(self) -> int | None:
        """The smallest count that was not held; None if all were."""
        return min((step.clients for step in self.steps if not step.held), default=None)

    def next(self) -> int | None:
        """Return the next count; None if it is known how many are held."""
        worst = self.worst
        if worst is None:
            at = len(self.steps)
            return self._given[at] if at < len(self._given) else None
        middle = (self.best + worst) // 2
        return middle if middle - self.best > max(1.0, worst * _PRECISION / 2) else None

    def add(self, step: Step) -> None:
        """Note what a step was worth."""
        self.steps.append(step)

    def verdict(self) -> str:
        """Return the outcome in a sentence."""
        if not self.steps:
            return "Nothing was measured."
        failed = next((step for step in self.steps if step.clients == self.worst), None)
        if failed is None:
            return f"{self.best:,} clients were held, which was the most asked for; the deployment may hold more."
        bound = f"{failed.clients:,} were not: {failed.why}."
        if failed.error.startswith("429"):
            bound += " That is a limit of the gateway; with one token for all, the limits of one subject count."
        if failed.own > _BUSY:
            bound += " But this generator was busy all the time: measure with more than one, or from a faster machine."
        return f"{self.best:,} clients were held; {bound}" if self.best else f"Not even the first step was held; {bound}"


def _doubling(most: int) -> list[int]:
    counts = []
    count = min(_FIRST, most)
    while count < most:
        counts.append(count)
        count *= 2
    return [*counts, most]
