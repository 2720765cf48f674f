"""What active checks make of a target: rise and fall (sans-I/O).

The terms are HAProxy's. A target is taken for healthy until checks say otherwise, so that requests are served before the first
check is back. `fall` failed checks in a row make it unhealthy, `rise` good ones in a row healthy again: one lost packet moves
nothing.
"""

from __future__ import annotations

from typing import final


@final
class Healthiness:
    """Whether checks find a target healthy."""

    __slots__ = ("_against", "fall", "healthy", "rise")

    def __init__(self, *, rise: int, fall: int) -> None:
        if rise < 1 or fall < 1:
            raise ValueError("expected rise and fall of at least one check")
        self.rise = rise
        self.fall = fall
        self.healthy = True
        self._against = 0

    def __repr__(self) -> str:
        needed = self.fall if self.healthy else self.rise
        return f"<Healthiness {'healthy' if self.healthy else 'unhealthy'}, {self._against} of {needed} against>"

    def record(self, ok: bool) -> bool:
        """Note a check; tell whether it changed `healthy`."""
        if ok is self.healthy:
            self._against = 0
            return False
        self._against += 1
        if self._against < (self.fall if self.healthy else self.rise):
            return False
        self._against = 0
        self.healthy = ok
        return True
