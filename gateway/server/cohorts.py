"""Cohorts as they come and go: who joins one and who leaves it, and whose sleep ends before anything woke him (sans-I/O).

A cohort that the hub has woken, and one made of those whose sleep ends, are given to `deliver`: with the position where its
members stand, or None where that is the moment with which the hub woke it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gateway.fanout.cursor import Position
from gateway.fanout.hub import TIMEOUT, Hub, Why
from gateway.limits import Slots
from gateway.server.crowd import Cohort, Crowd
from gateway.server.lane import Lane
from gateway.server.outcome import Outcome
from gateway.server.wheel import Wheel


class Cohorts:
    """Where the lanes of the process sleep. Who sleeps, or is on the way to an answer, holds one of the `slots`."""

    def __init__(self, hub: Hub, slots: Slots, deliver: Callable[[Cohort, Position | None, Why], None], *, now: float) -> None:
        self._hub = hub
        self._slots = slots
        self._deliver = deliver
        self._wheel = Wheel(now)

    def __repr__(self) -> str:
        return f"<Cohorts, {self._wheel!r}>"

    def park(self, lane: Lane, cursor: bytes, outcome: Outcome, now: float) -> None:
        """Let a lane sleep for whose cursor there is nothing, and take a slot for it."""
        armed = lane.armed
        crowd = armed.crowd
        cohort = crowd.cohort
        if not outcome.at_tail or cohort is None or not cohort.parked:
            cohort = self._open(crowd, outcome.position, at_tail=outcome.at_tail)
        if outcome.at_tail:
            cohort.tip = cursor
        lane.since = now
        lane.cohort = cohort
        cohort.members.append(lane)
        armed.holder.held += 1
        self._slots.held += 1
        if not cohort.alarm:
            self._wheel.watch(cohort, now + crowd.wait)
        if now > armed.near:
            self._wheel.note(lane, cohort)

    def move(self, lanes: Sequence[Lane], outcome: Outcome, now: float) -> None:
        """Let lanes of one crowd sleep again that woke to nothing; they keep their slots and their deadlines."""
        cohort = self._open(lanes[0].armed.crowd, outcome.position, at_tail=outcome.at_tail)
        wait = cohort.crowd.wait
        for lane in lanes:
            lane.cohort = cohort
            if lane.armed.expires < lane.since + wait:
                self._wheel.note(lane, cohort)
        cohort.members += lanes
        self._wheel.watch(cohort, max(now, lanes[0].since + wait))

    def leave(self, lane: Lane, cohort: Cohort) -> None:
        """Take a lane that ends out of its cohort, and give its slot back."""
        lane.cohort = None
        self._slots.release_of(lane.armed.holder)
        cohort.leave()
        if not len(cohort):
            self._hub.unpark(cohort)

    def end(self, lanes: Iterable[Lane], why: Why) -> None:
        """End the sleep of lanes; who has been woken already is on the way to an answer."""
        together: dict[Cohort, list[Lane]] = {}
        for lane in lanes:
            if lane.cohort is not None and lane.cohort.parked:
                together.setdefault(lane.cohort, []).append(lane)
        for cohort, members in together.items():
            self._end(members, cohort, why)

    def tick(self, now: float, early: Why) -> None:
        """End the sleep of those whose wait is over, and (`early`) of those whose token or channel is."""
        ended, rung = self._wheel.turn(now)
        self.end(ended, early)
        for cohort in rung:
            self._expire(cohort, now)

    def _open(self, crowd: Crowd, position: Position, *, at_tail: bool) -> Cohort:
        cohort = crowd.cohort
        if cohort is None or not at_tail or not cohort.idle:
            before, cohort = cohort, Cohort(crowd, self._woken)
            if at_tail and (before is None or not before.parked):
                crowd.cohort = cohort
        cohort.tip = b""
        self._hub.park(cohort, position, at_tail=at_tail, deadline=None)
        return cohort

    def _woken(self, cohort: Cohort) -> None:
        if len(cohort):
            self._deliver(cohort, None, cohort.why)

    def _expire(self, cohort: Cohort, now: float) -> None:
        """End the members whose wait is over, and watch the first of the others."""
        if not cohort.parked:
            return
        wait, due = cohort.crowd.wait, []
        for lane in cohort.members:
            if lane.cohort is not cohort:
                continue
            if lane.since + wait > now:
                self._wheel.watch(cohort, lane.since + wait)
                break
            due.append(lane)
        if due:
            self._end(due, cohort, TIMEOUT)

    def _end(self, lanes: list[Lane], cohort: Cohort, why: Why) -> None:
        """Let lanes leave a parked cohort, which sleeps on, so it is told where the tails end now."""
        leaving = Cohort(cohort.crowd, self._woken)
        position = cohort.position_at(self._hub.moment())
        for lane in lanes:
            lane.cohort = leaving
        leaving.members = lanes
        cohort.compact()
        if not len(cohort):
            self._hub.unpark(cohort)
        self._deliver(leaving, position, why)
