"""Random bytes for ids, drawn from the system in advance: asking it for a few at a time costs as much as all the rest of an id."""

from __future__ import annotations

import os
from typing import final

_DRAWN = 4096


@final
class Entropy:
    """Random bytes, each given once. A process that is forked makes its own."""

    def __init__(self) -> None:
        self._drawn = b""
        self._at = 0

    def __call__(self, size: int) -> bytes:
        """Return `size` bytes, at most 4,096."""
        at = self._at
        end = at + size
        if end > len(self._drawn):
            self._drawn, at, end = os.urandom(_DRAWN), 0, size
        self._at = end
        return self._drawn[at:end]
