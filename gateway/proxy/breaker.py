"""A circuit breaker for one target (sans-I/O).

Theory of operation. A target that fails gets rest, and whoever would have waited for it is told at once (M. Nygard, Release
It!, 2nd edition, 2018, chapter 5, "Circuit Breaker"). *Closed*, everything passes, and `consecutive` failures in a row open
the breaker. *Open*, nothing passes for a while. After that it is *half-open*: at most `trials` exchanges at a time are let
through. The first of them that succeeds closes the breaker, the first that fails opens it again for twice as long, up to
`max_open`; closing brings the rest back to `open`. The table below is all of that.

Three things are less obvious:

- What counts is the verdict of an exchange that began in the present period. Those that began before the breaker opened end
  late, often by a time-out; they would open a breaker again whose target is well by now. Whoever calls `record` sees to it
  that they are left out (`Target.period`).
- A NEUTRAL verdict says nothing about the target. It counts for nothing, but it gives back the trial it took.
- A held trial may last minutes without a verdict, and a backend of nothing but long polls would let a single client in
  meanwhile. Refused connections, resets and errors come quickly, so a held trial that nothing is heard of for `open` seconds
  is a success.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final, final

from gateway.proxy.verdict import Verdict


class State(Enum):
    """Whether exchanges pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Event(Enum):
    """What happens to a breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    LAST_FAILURE = "last failure"  # as many in a row as it takes
    RESTED = "rested"


TRANSITIONS: Final = {
    (State.CLOSED, Event.SUCCESS): State.CLOSED,
    (State.CLOSED, Event.FAILURE): State.CLOSED,
    (State.CLOSED, Event.LAST_FAILURE): State.OPEN,
    (State.CLOSED, Event.RESTED): State.CLOSED,
    (State.OPEN, Event.SUCCESS): State.OPEN,
    (State.OPEN, Event.FAILURE): State.OPEN,
    (State.OPEN, Event.LAST_FAILURE): State.OPEN,
    (State.OPEN, Event.RESTED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.SUCCESS): State.CLOSED,
    (State.HALF_OPEN, Event.FAILURE): State.OPEN,
    (State.HALF_OPEN, Event.LAST_FAILURE): State.OPEN,
    (State.HALF_OPEN, Event.RESTED): State.HALF_OPEN,
}


@final
class Breaker:
    """Opens after `consecutive` failures in a row, for `open` to `max_open` seconds; `trials` at a time when half-open.

    `state` is as of the last call that was given the time; `due` is when time alone changes it (infinite: never);
    `rest`: seconds that it is, or would next be, open.
    """

    __slots__ = ("_failures", "consecutive", "due", "max_open", "open", "rest", "state", "taken", "trials")

    def __init__(self, *, consecutive: int, open: float, max_open: float, trials: int) -> None:  # noqa: A002  # its key
        if consecutive < 1 or trials < 1 or not 0 < open <= max_open:
            raise ValueError("expected at least one failure and one trial, and 0 < open <= max_open")
        self.consecutive = consecutive
        self.open = open
        self.max_open = max_open
        self.trials = trials
        self.state = State.CLOSED
        self.due = math.inf
        self.rest = open
        self.taken = 0
        self._failures = 0

    def __repr__(self) -> str:
        if self.state is State.HALF_OPEN:
            return f"<Breaker half-open, {self.taken} of {self.trials} trials>"
        return f"<Breaker {self.state.value}, {self._failures} of {self.consecutive} failures>"

    def allows(self, now: float) -> bool:
        """Tell whether an exchange may begin."""
        return self.state is State.CLOSED or self.due <= now or (self.state is State.HALF_OPEN and self.taken < self.trials)

    def look(self, now: float) -> None:
        """Bring the state up to date."""
        if self.due <= now:
            self._happens(Event.RESTED if self.state is State.OPEN else Event.SUCCESS, now)

    def begin(self, now: float, *, held: bool = False) -> None:
        """Note that an exchange begins, which `allows` allowed; half-open, it takes a trial."""
        self.look(now)
        if self.state is not State.HALF_OPEN:
            return
        if self.taken >= self.trials:
            raise AssertionError("began an exchange that the breaker does not allow: choose and begin, no await in between")
        self.taken += 1
        if held:
            self.hold(now)

    def hold(self, now: float) -> None:
        """Note that a trial under way is held from now on."""
        self.due = min(self.due, now + self.open)

    def record(self, verdict: Verdict, now: float) -> None:
        """Note the end of an exchange that began in the present period."""
        if self.state is State.HALF_OPEN:
            self.taken -= 1
        if verdict in (Verdict.OK, Verdict.ERROR):
            self._failures = 0
            if self.state is State.CLOSED:
                return
            self._happens(Event.SUCCESS, now)
        elif verdict is Verdict.FAILURE:
            self._failures += 1
            self._happens(Event.FAILURE if self._failures < self.consecutive else Event.LAST_FAILURE, now)

    def _happens(self, event: Event, now: float) -> None:
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if self.state is before:
            return
        self.taken = 0
        self._failures = 0
        self.due = math.inf
        if self.state is State.CLOSED:
            self.rest = self.open
        elif self.state is State.OPEN:
            if before is State.HALF_OPEN:
                self.rest = min(self.max_open, self.rest * 2)
            self.due = now + self.rest
