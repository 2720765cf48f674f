"""One backend: which of its targets is next, and what becomes of a target that fails (sans-I/O).

Theory of operation. An exchange is `choose`, `begin`, perhaps `hold`, `end`; no await between the first two, and exactly one
`end` for each `begin`. What a verdict changes is returned as events, for whoever logs and counts; what time changed since
then (an ejection that is over, a breaker that is half-open) is among the events of the next call that returns any.

Three judges look at a target: active checks (healthiness), the comparison with its like (outliers), and its breaker. It is
available when none objects. The lowest priority with anybody available is used, so the others are spares; a retry prefers
targets that were not tried, spares included, before it comes back to those that were. A target that comes back gets a tenth
of its weight at first and all of it `slow_start` seconds later (as Envoy's slow start), for its caches are cold and its
load is the least of all.

Who is available changes rarely and is asked at every request. So the answer is kept as a `Group` until an event changes it
or the next instant comes at which time alone does: `choose` compares one number and asks the balancer (0.3 to 2.5 µs in
all for up to 16 targets; 20 µs when it has to look at all judges of 16).

An exchange ends in the period in which it began, or its verdict is out of date (breaker.py says why): `begin` returns the
target's period and `end` wants it back. A NEUTRAL end counts for nothing but gives back a half-open trial.

None of the parts is new: Nygard's breaker, Envoy's outlier detection and slow start, nginx's smooth round robin,
Mitzenmacher's two choices, ketama's ring, HAProxy's rise and fall, Finagle's retry budget. Each module names its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Final, final

from gateway.proxy.balancing import Balancer, Group, Level
from gateway.proxy.breaker import Breaker, State
from gateway.proxy.events import (
    Closed,
    Ejected,
    Event,
    HalfOpened,
    Healthy,
    Joined,
    Left,
    Opened,
    Returned,
    Spared,
    Unhealthy,
)
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.outliers import Outliers
from gateway.proxy.target import Endpoint, Target
from gateway.proxy.verdict import Verdict

_STEPS: Final = 100  # in which a weight grows
_LEAST_WAIT: Final = 1.0
_CHECKS_TAKE: Final = 5.0
"""Seconds after which to come back where nobody can know: checks find nobody healthy, or there is no address."""


@final
class Upstream:
    """The targets of one backend.

    `breaker`, `outliers` and `healthiness` make the judge of one target; None: there is none. At most `max_share` of the
    targets are ejected at a time. `slow_start` in seconds, 0: none. `now` is monotonic throughout and does not go back.
    """

    __slots__ = (
        "_breaker",
        "_due",
        "_events",
        "_group",
        "_healthiness",
        "_leaving",
        "_levels",
        "_outliers",
        "balancer",
        "max_share",
        "name",
        "slow_start",
        "targets",
    )

    def __init__(
        self,
        name: str,
        endpoints: Iterable[Endpoint],
        balancer: Balancer,
        *,
        breaker: Callable[[], Breaker] | None = None,
        outliers: Callable[[], Outliers] | None = None,
        healthiness: Callable[[], Healthiness] | None = None,
        max_share: float = 0.5,
        slow_start: float = 0.0,
    ) -> None:
        if not 0 <= max_share <= 1 or slow_start < 0:
            raise ValueError("expected 0 <= max_share <= 1 and slow_start of at least 0 seconds")
        self.name = name
        self.targets: tuple[Target, ...] = ()
        self.balancer = balancer
        self.max_share = max_share
        self.slow_start = slow_start
        self._breaker = breaker
        self._outliers = outliers
        self._healthiness = healthiness
        self._leaving: dict[str, Target] = {}
        self._levels: tuple[Level, ...] = ()
        self._group: Group | None = None
        self._due = -math.inf
        self._events: list[Event] = []
        self._list(endpoints, None)
        self._events.clear()

    def __repr__(self) -> str:
        return f"<Upstream {self.name}: {', '.join(map(repr, (*self.targets, *self._leaving.values()))) or 'no targets'}>"

    @property
    def working(self) -> int:
        """Working exchanges, those of targets that have left included."""
        return sum(target.working for target in (*self.targets, *self._leaving.values()))

    @property
    def held(self) -> int:
        """Held exchanges, those of targets that have left included."""
        return sum(target.held for target in (*self.targets, *self._leaving.values()))

    def states(self, now: float) -> dict[str, int]:
        """Count the targets by state: available, unhealthy, ejected, open."""
        self._look(now)
        counts = dict.fromkeys(("available", "unhealthy", "ejected", "open"), 0)
        for target in self.targets:
            counts[target.state] += 1
        return counts

    def choose(
        self, now: float, *, key: bytes | None = None, tried: Collection[Target] = (), rand: Callable[[], float]
    ) -> Target | None:
        """Return the target for an attempt, None where nobody is available. `tried` ones come last; `rand` is in [0, 1)."""
        if now >= self._due:
            self._look(now)
        group = self._group
        if tried:
            group = self._available(now, tried) or group
        return None if group is None else self.balancer.choose(group, key, rand)

    def begin(self, target: Target, *, held: bool, now: float) -> int:
        """Count an exchange that begins, at a target just chosen; return its period, for `end`."""
        if held:
            target.held += 1
        else:
            target.working += 1
        if target.breaker is not None and target.breaker.state is not State.CLOSED:
            self._look(now)
            target.breaker.begin(now, held=held)
            self._due = -math.inf
        return target.period

    def hold(self, target: Target, *, now: float, period: int) -> None:
        """Turn a working exchange into a held one; `period` as for `end`."""
        if target.working < 1:
            raise AssertionError("held an exchange that was not working")
        target.working -= 1
        target.held += 1
        if target.breaker is not None and period == target.period and target.breaker.state is State.HALF_OPEN:
            target.breaker.hold(now)
            self._due = -math.inf

    def end(
        self, target: Target, *, held: bool, verdict: Verdict, now: float, latency: float | None = None, period: int
    ) -> list[Event]:
        """Count an exchange that ended. `held`: it was so at its end; `latency`: seconds to the first byte, if one came."""
        if (target.held if held else target.working) < 1:
            # A second end would quietly make the target look idle for the rest of the process's life.
            raise AssertionError("ended an exchange that had not begun")
        if held:
            target.held -= 1
        else:
            target.working -= 1
        if latency is not None:
            target.note_latency(latency)
        if not target.listed:
            if not (target.working or target.held):
                self._leaving.pop(target.address, None)
        elif period == target.period:
            self._judge(target, verdict, now)
        return self._told()

    def checked(self, target: Target, ok: bool, now: float) -> list[Event]:
        """Note an active check."""
        if target.listed and target.healthiness is not None and target.healthiness.record(ok):
            if ok:
                self._come_slowly(target, now)
            self._events.append(Healthy(target) if ok else Unhealthy(target))
            self._due = -math.inf
        return self._told()

    def update(self, endpoints: Iterable[Endpoint], now: float) -> list[Event]:
        """Replace the list of addresses. Those that stay keep all they have; where there were none, nobody starts slowly."""
        self._list(endpoints, now if self.targets else None)
        self._heed_share(now)
        return self._told()

    def retry_after(self, now: float) -> float:
        """Return in how many seconds somebody may be available, at least 1: an instant known, or a guess."""
        waits = (target.wait(now) if target.healthy else _CHECKS_TAKE for target in self.targets)
        return max(_LEAST_WAIT, min(waits, default=_CHECKS_TAKE))

    def _list(self, endpoints: Iterable[Endpoint], now: float | None) -> None:
        before = {target.address: target for target in self.targets}
        after: dict[str, Target] = {}
        changed = False
        for endpoint in endpoints:
            if endpoint.address in after:
                continue
            target = before.pop(endpoint.address, None) or self._join(endpoint, now)
            changed |= target.adopt(endpoint)
            after[endpoint.address] = target
        for target in before.values():
            self._leave(target)
        targets = tuple(after.values())
        if changed or targets != self.targets:
            self.targets = targets
            self._levels = _leveled(targets)
            self._due = -math.inf

    def _join(self, endpoint: Endpoint, now: float | None) -> Target:
        target = self._leaving.pop(endpoint.address, None) or Target(endpoint)
        target.listed = True
        target.period += 1
        target.breaker = self._breaker and self._breaker()
        target.outliers = self._outliers and self._outliers()
        target.healthiness = self._healthiness and self._healthiness()
        target.back_at = None
        if now is not None:
            self._come_slowly(target, now)
        self._events.append(Joined(target))
        return target

    def _leave(self, target: Target) -> None:
        target.listed = False
        if target.working or target.held:
            self._leaving[target.address] = target
        self._events.append(Left(target))

    def _look(self, now: float) -> None:
        if now < self._due:
            return
        # No generator: what a target does may set _due.
        due = [self._refresh(target, now) for target in self.targets]
        self._due = min(due, default=math.inf)
        self._group = self._available(now, ())

    def _refresh(self, target: Target, now: float) -> float:
        """Do what time does to a target; return when it does more."""
        due = math.inf
        if target.outliers is not None and target.outliers.until is not None:
            if now < target.outliers.until:
                due = target.outliers.until
            else:
                self._come_back(target, target.outliers, now)
        if target.breaker is not None:
            before = target.breaker.state
            target.breaker.look(now)
            self._note_turn(target, target.breaker, before, now)
            due = min(due, target.breaker.due)
        if target.back_at is not None:
            if now < target.back_at + self.slow_start:
                return min(due, now + self.slow_start / _STEPS)
            target.back_at = None
        return due

    def _available(self, now: float, tried: Collection[Target]) -> Group | None:
        for level in self._levels:
            targets = [target for target in level.members if target.available(now) and target not in tried]
            if targets:
                return Group(level, targets, [target.share(now, self.slow_start) for target in targets])
        return None

    def _judge(self, target: Target, verdict: Verdict, now: float) -> None:
        if target.breaker is not None:
            before = target.breaker.state
            target.breaker.record(verdict, now)
            if before is not State.CLOSED:
                self._due = -math.inf  # a trial is free
            if target.breaker.state is not before:
                self._note_turn(target, target.breaker, before, now)
        if target.outliers is not None and target.outliers.record(verdict, now):
            self._eject(target, target.outliers, now)

    def _note_turn(self, target: Target, breaker: Breaker, before: State, now: float) -> None:
        if breaker.state is before:
            return
        target.period += 1
        self._due = -math.inf
        if breaker.state is State.OPEN:
            self._events.append(Opened(target, breaker.rest))
        elif breaker.state is State.HALF_OPEN:
            self._events.append(HalfOpened(target))
        else:
            self._come_slowly(target, now)
            self._events.append(Closed(target))

    def _eject(self, target: Target, outliers: Outliers, now: float) -> None:
        self._look(now)
        if len(self._ejected()) >= self._most_ejected():
            self._events.append(Spared(target))
            return
        target.period += 1
        self._due = -math.inf
        self._events.append(Ejected(target, outliers.eject(now)))

    def _heed_share(self, now: float) -> None:
        """Let the first come back where there are fewer targets than there were."""
        ejected = self._ejected()
        for _, target, outliers in ejected[: max(0, len(ejected) - self._most_ejected())]:
            self._come_back(target, outliers, now)

    def _ejected(self) -> list[tuple[float, Target, Outliers]]:
        """Return until when who is ejected, in the order in which they come back."""
        judges = ((target, target.outliers) for target in self.targets if target.outliers is not None)
        ejected = [(judge.until, target, judge) for target, judge in judges if judge.until is not None]
        return sorted(ejected, key=itemgetter(0))

    def _most_ejected(self) -> int:
        # A hair above: 0.29 of 100 are 28.999999999999996 in floating point.
        return int(self.max_share * len(self.targets) + 1e-9)

    def _come_back(self, target: Target, outliers: Outliers, now: float) -> None:
        outliers.come_back(now)
        target.period += 1
        self._due = -math.inf
        self._come_slowly(target, now)
        self._events.append(Returned(target))

    def _come_slowly(self, target: Target, now: float) -> None:
        target.back_at = now if self.slow_start else None

    def _told(self) -> list[Event]:
        if not self._events:
            return []
        told, self._events = self._events, []
        return told


def _leveled(targets: Iterable[Target]) -> tuple[Level, ...]:
    members: dict[int, list[Target]] = {}
    for target in targets:
        members.setdefault(target.priority, []).append(target)
    return tuple(Level(priority, members[priority]) for priority in sorted(members))
