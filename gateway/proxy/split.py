"""Which of several upstreams a caller is given, by weight and always the same one (sans-I/O).

Weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005): each name has a score for the key, -ln(u) / weight with
u from the hash of both, and the least score wins. A name's score depends on its own weight alone. So a weight that changes
moves keys only to that name, or only away from it, and no more of them than the new shares ask for; with cumulated weights
keys would also move between the names on either side. The order of the names does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, final

_PERSON: Final = b"gateway split"
_UNIT: Final = 2.0**-64


@final
class Split:
    """Names with their weights, of which at least one is above 0; ValueError otherwise, and for a name that is there twice."""

    def __init__(self, weights: Iterable[tuple[str, int]]) -> None:
        self._weights = tuple(weights)
        names = [name for name, _ in self._weights]
        if len(set(names)) < len(names):
            raise ValueError("expected each name once")
        if any(weight < 0 for _, weight in self._weights) or not any(weight for _, weight in self._weights):
            raise ValueError("expected weights of at least 0, one of them more")
        self._scores = [
            (blake2b(name.encode(), digest_size=8, person=_PERSON), 1.0 / weight, name)
            for name, weight in self._weights
            if weight
        ]

    def __repr__(self) -> str:
        return f"Split({', '.join(f'{name} {weight}' for name, weight in self._weights)})"

    def choose(self, key: bytes) -> str:
        """Return the name for a key."""
        if len(self._scores) == 1:
            return self._scores[0][2]
        best, least = "", math.inf
        for prefix, factor, name in self._scores:
            state = prefix.copy()
            state.update(b"\0" + key)
            # The half keeps it above 0, where the logarithm ends.
            uniform = (int.from_bytes(state.digest()) + 0.5) * _UNIT
            if (score := -math.log(uniform) * factor) < least:
                best, least = name, score
        return best
