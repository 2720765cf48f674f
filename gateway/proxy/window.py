"""A sum over the last seconds (sans-I/O)."""

from __future__ import annotations

from typing import Final, final

_SLOTS: Final = 10


@final
class Window:
    """The sum of what was added within about the last `seconds`: it slides by tenths, as Finagle's WindowedAdder does.

    `now` is monotonic.
    """

    __slots__ = ("_slots", "_tick", "_total", "_width")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _SLOTS
        self._slots = [0.0] * _SLOTS
        self._tick = 0
        self._total = 0.0

    def __repr__(self) -> str:
        return f"<Window {self._total:g} in {self._width * _SLOTS:g} s>"

    def add(self, amount: float, now: float) -> None:
        """Add an amount, which may be negative."""
        tick = int(now / self._width)
        if tick != self._tick:
            self._slide(tick)
        self._slots[tick % _SLOTS] += amount
        self._total += amount

    def total(self, now: float) -> float:
        """Return the sum."""
        tick = int(now / self._width)
        if tick != self._tick:
            self._slide(tick)
        return self._total

    def clear(self) -> None:
        """Forget everything."""
        self._slots = [0.0] * _SLOTS
        self._total = 0.0

    def _slide(self, tick: int) -> None:
        for passed in range(self._tick + 1, min(tick, self._tick + _SLOTS) + 1):
            self._slots[passed % _SLOTS] = 0.0
        self._tick = tick
        # Summed anew: subtracting what leaves would let the rounding errors of fractions pile up.
        self._total = sum(self._slots)
