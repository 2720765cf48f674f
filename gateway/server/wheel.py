"""What is due when: the waits of cohorts and the early ends of lanes, on a wheel of coarse ticks (sans-I/O).

Nothing here costs a timer for each poll. The members of a cohort came in order and wait equally long, so only the first one's
deadline is watched. A token or a channel that ends before the wait does is noted by itself.
"""

from __future__ import annotations

from gateway.fanout.hub import TICK
from gateway.server.crowd import Cohort
from gateway.server.lane import Lane


class Wheel:
    """Ticks at which somebody is to be looked at. `now` is monotonic; what is due is found at most one tick late."""

    def __init__(self, now: float) -> None:
        self._tick = int(now / TICK)
        self._alarms: dict[int, list[Cohort]] = {}
        self._early: dict[int, list[tuple[Lane, Cohort]]] = {}

    def __repr__(self) -> str:
        return f"<Wheel, {sum(map(len, self._alarms.values()))} alarms, {sum(map(len, self._early.values()))} early ends>"

    def watch(self, cohort: Cohort, at: float) -> None:
        """Have a cohort looked at; its first alarm counts."""
        tick = max(int(at / TICK) + 1, self._tick + 1)
        if not cohort.alarm or tick < cohort.alarm:
            cohort.alarm = tick
            self._alarms.setdefault(tick, []).append(cohort)

    def note(self, lane: Lane, cohort: Cohort) -> None:
        """Note that what a lane polls by ends before its wait in a cohort does."""
        self._early.setdefault(int(lane.armed.expires / TICK) + 1, []).append((lane, cohort))

    def turn(self, now: float) -> tuple[list[Lane], list[Cohort]]:
        """Return the lanes that end early, each once, and the cohorts whose alarm it is, which have none any more."""
        tick = self._tick = int(now / TICK)
        ended: dict[Lane, None] = {}
        for at in [at for at in self._early if at <= tick]:
            for lane, cohort in self._early.pop(at):
                # A lane may have come back to its cohort since, with another token.
                if lane.cohort is cohort and lane.armed.expires <= now:
                    ended[lane] = None
        rung: list[Cohort] = []
        for at in [at for at in self._alarms if at <= tick]:
            for cohort in self._alarms.pop(at):
                if cohort.alarm == at:
                    cohort.alarm = 0
                    rung.append(cohort)
        return list(ended), rung
