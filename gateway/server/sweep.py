"""Which lanes have been idle or stuck for too long: a sweep over all of them once a second (sans-I/O)."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.fanout.hub import TICK
from gateway.server.lane import Lane

STUCK_SECONDS = 30.0
"""Time without progress after which a client that does not read its answer is cut off."""

_SHARES = round(1.0 / TICK)


class Sweep:
    """Goes round all lanes, a tenth of them each tick. `keepalive` and `head_timeout` in seconds."""

    def __init__(self, *, keepalive: float, head_timeout: float) -> None:
        self._keepalive = keepalive
        self._head_timeout = head_timeout
        self._least = min(keepalive, head_timeout, STUCK_SECONDS)
        self._ahead: list[Lane] = []

    def __repr__(self) -> str:
        return f"<Sweep, {len(self._ahead)} lanes ahead>"

    def over(self, lanes: Mapping[Lane, None], now: float) -> list[Lane]:
        """Look at the next tenth of the lanes; return those whose time is over. Of them, the stuck ones are to be cut off."""
        if not self._ahead:
            self._ahead = list(lanes)
        share = len(lanes) // _SHARES + 1
        # Those that have gone since are still among the next ones.
        found = [
            lane
            for lane in self._ahead[-share:]
            if lane.cohort is None and now - lane.since >= self._least and lane in lanes and self._is_over(lane, now)
        ]
        del self._ahead[-share:]
        return found

    def _is_over(self, lane: Lane, now: float) -> bool:
        if lane.stuck:
            return not lane.has_sent(now) and now - lane.since >= STUCK_SECONDS
        return now - lane.since >= (self._head_timeout if lane.holds else self._keepalive)
