"""What lanes' answers are counted and logged as: what aiohttp's side gives, for many equal answers at once."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence

from gateway.fanout.hub import CHANGED, RECORDS, TIMEOUT, Why
from gateway.metrics import Count, Metrics
from gateway.server.accesslog import AccessLog
from gateway.server.lane import Lane
from gateway.server.middleware import CLOSED_BY_CLIENT
from gateway.server.outcome import Outcome

_GONE = 499
_LINES_AT_ONCE = 64
_LINES_LATER = 200


class Accounts:
    """Counts and logs. `route` is the label by which responses are counted; `unix_clock` tells how old records are."""

    def __init__(
        self, metrics: Metrics, access_log: AccessLog | None, *, route: str, unix_clock: Callable[[], float] = time.time
    ) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._route = route
        self._unix_clock = unix_clock
        self._latency = metrics.record_latency.bind("poll")
        self._sent_bytes = metrics.sent_bytes.bind("poll")
        self._ends: dict[tuple[int, str], tuple[Count, Count]] = {}
        self._messages: dict[str, Count] = {}
        self._room = _LINES_AT_ONCE
        self._late: deque[tuple[Lane, float]] = deque()

    def answered(self, lanes: Sequence[Lane], outcome: Outcome, why: Why, now: float) -> None:
        """Note equal answers to some lanes, which have not waited on since."""
        answer, times = outcome.answer, len(lanes)
        if why in (RECORDS, CHANGED):
            why = "messages" if answer.delivered else "progress"
            now_ms = self._unix_clock() * 1_000
            for timestamp_ms in answer.timestamps_ms:
                self._latency.observe((now_ms - timestamp_ms) / 1_000, times)
        elif why == TIMEOUT:
            why = "empty"
        self._count(outcome.status, why, times)
        if answer.body:
            self._sent_bytes.value += times * len(answer.body)
            for pattern, messages in answer.delivered.items():
                count = self._messages.get(pattern)
                if count is None:
                    count = self._messages[pattern] = self._metrics.messages.bind(pattern)
                count.value += times * messages
        log = self._access_log
        if log is not None:
            for lane in lanes[: log.sampled_of(times, outcome.status)]:
                self._write(log, lane, outcome.status, len(answer.body), why, now)

    def left(self, lane: Lane, now: float) -> None:
        """Note a client that left while its poll was parked.

        Each is logged. Where thousands leave in one turn of the loop (a load balancer went away), most lines are written later.
        """
        self._count(_GONE, CLOSED_BY_CLIENT, 1)
        if self._access_log is None:
            return
        if self._room:
            self._room -= 1
            self._write(self._access_log, lane, _GONE, 0, CLOSED_BY_CLIENT, now)
        else:
            self._late.append((lane, now))

    def catch_up(self, most: int = _LINES_LATER) -> None:
        """Write up to `most` of the lines that were put off; to be called once a tick, and with all of them at the end."""
        self._room = _LINES_AT_ONCE
        if self._access_log is not None:
            for _ in range(min(most, len(self._late))):
                lane, then = self._late.popleft()
                self._write(self._access_log, lane, _GONE, 0, CLOSED_BY_CLIENT, then)

    @property
    def late(self) -> int:
        """Number of lines that were put off."""
        return len(self._late)

    def _count(self, status: int, why: str, times: int) -> None:
        counts = self._ends.get((status, why))
        if counts is None:
            metrics = self._metrics
            counts = metrics.responses.bind(self._route, str(status)), metrics.answers.bind("poll", why)
            self._ends[status, why] = counts
        counts[0].value += times
        counts[1].value += times

    def _write(self, log: AccessLog, lane: Lane, status: int, size: int, code: str, now: float) -> None:
        armed = lane.armed
        log.write(
            request_id=secrets.token_hex(8),
            client=armed.address,
            method="GET",
            target=armed.head(b"").split(b" ", 2)[1].decode("latin-1"),
            status=status,
            sent=size,
            duration=now - lane.since,
            code=code,
            transport="poll",
            issuer=armed.principal.issuer,
            subject=armed.principal.subject,
        )
