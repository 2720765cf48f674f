"""Answers to cohorts: delivered in slices of a few milliseconds, between which the loop turns.

So a broadcast to many thousands delays nobody else. Each slice reads for itself: records that came meanwhile go out with it.
What aiohttp's side would count and log for each answer is counted here for each slice: equal answers are one addition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.fanout.cursor import Position
from gateway.fanout.hub import CHANGED, RECORDS, Why
from gateway.limits import Slots
from gateway.server.accounts import Accounts
from gateway.server.crowd import Cohort
from gateway.server.lane import Lane
from gateway.server.outcome import Outcome
from gateway.server.parking import DRAINED, REVOKED
from gateway.server.places import Places

_log = logging.getLogger(__name__)

SLICE_SECONDS = 0.002
"""Time after which a slice of answers lets the loop turn."""

_CHECK_EVERY = 16


@dataclass(slots=True)
class Delivery:
    """Lanes on their way to one answer, and `why`. `position` is where they stand, None: where the hub woke them."""

    lanes: Iterator[Lane]
    cohort: Cohort
    position: Position | None
    why: Why
    outcome: Outcome | None = None

    def place(self) -> Position:
        """Return where they stand."""
        if self.position is None:
            self.position = self.cohort.position()
        return self.position

    def look(self, now: float) -> Outcome | None:
        """Find out what they are told; None where the tails hold their place no more."""
        cohort = self.cohort
        if self.why in (RECORDS, CHANGED):
            # Moves tell what came to the end of the tails; who knows more than they do keeps that.
            after = cohort.after if cohort.apart is None else None
            found = None if after is None else cohort.crowd.look_after(after)
            return found or cohort.crowd.look_from(self.place(), now)
        if self.outcome is None:
            self.outcome = cohort.crowd.nothing(self.place())
        return self.outcome


class Deliveries:
    """The queue of deliveries; its length is how many are under way.

    `move` gets lanes for whom there was nothing. `turn_away` gets one whose place the tails hold no more, the cohort that it
    is to leave, and the cursor of that place. While `closing`, each answer ends its connection.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        accounts: Accounts,
        places: Places,
        clock: Callable[[], float],
        move: Callable[[list[Lane], Outcome, float], None],
        turn_away: Callable[[Lane, Cohort, bytes], None],
    ) -> None:
        self._slots = slots
        self._accounts = accounts
        self._places = places
        self._clock = clock
        self._move = move
        self._turn_away = turn_away
        self._queue: deque[Delivery] = deque()
        self.closing = False

    def __repr__(self) -> str:
        return f"<Deliveries, {len(self._queue)} under way{' closing' if self.closing else ''}>"

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, cohort: Cohort, position: Position | None, why: Why) -> None:
        """Deliver to all members of a cohort that is not parked. `position` as in Delivery."""
        if not self._queue:
            # A delivery is in the queue until it is done, so otherwise a slice has been scheduled, or is under way.
            asyncio.get_running_loop().call_soon(self._slice)
        self._queue.append(Delivery(iter(cohort.members), cohort, position, why))

    def _slice(self) -> None:
        """Answer until the time of a slice is over, and schedule the next one if anything is left."""
        until = self._clock() + SLICE_SECONDS
        while self._queue:
            try:
                done = self._portion(self._queue[0], until)
            except Exception:  # noqa: BLE001
                # One crowd's trouble must not end the deliveries of all others.
                _log.exception("a delivery failed")
                for lane in self._queue[0].lanes:
                    lane.transport.abort()
                done = True
            if done:
                self._queue.popleft()
            if self._queue and self._clock() > until:
                asyncio.get_running_loop().call_soon(self._slice)
                return

    def _portion(self, delivery: Delivery, until: float) -> bool:
        """Answer some lanes of a delivery; tell whether all are."""
        cohort = delivery.cohort
        crowd = cohort.crowd
        now = self._clock()
        outcome = delivery.look(now)
        crowd.touch(now)  # its topics must not be given up between this answer and the next poll
        if outcome is None:
            return self._return(delivery, until)
        if delivery.why in (RECORDS, CHANGED) and not outcome.answer.body:
            self._wait_on(delivery, outcome, now)
            return True
        data = outcome.data(crowd)
        closing = self.closing or delivery.why in (DRAINED, REVOKED)
        if closing:
            data = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        done: list[Lane] = []
        for lane in delivery.lanes:
            if lane.cohort is not cohort:
                continue  # its client has left
            lane.cohort = None
            lane.armed.holder.held -= 1
            lane.send(data)
            done.append(lane)
            if len(done) % _CHECK_EVERY == 0 and self._clock() > until:
                break
        else:
            until = 0.0
            cohort.empty()
        self._slots.held -= len(done)
        now = self._clock()
        self._accounts.answered(done, outcome, delivery.why, now)
        for lane in done:
            lane.since = now
            if closing:
                lane.transport.close()
            elif lane.holds:
                lane.go_on()
        return not until

    def _wait_on(self, delivery: Delivery, outcome: Outcome, now: float) -> None:
        lanes = [lane for lane in delivery.lanes if lane.cohort is delivery.cohort]
        if lanes:
            self._move(lanes, outcome, now)

    def _return(self, delivery: Delivery, until: float) -> bool:
        """Turn some lanes away whose place the tails hold no more; tell whether all are."""
        cursor = self._places.cursor(delivery.place())
        for lane in delivery.lanes:
            if lane.cohort is delivery.cohort:
                self._turn_away(lane, delivery.cohort, cursor)
                if self._clock() > until:
                    return False
        return True
