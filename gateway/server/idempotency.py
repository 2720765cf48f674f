"""Idempotency-Keys: a repeated publish gets the first answer instead of a second record (sans-I/O but for its futures).

A key is in flight until its first request is settled; others with the same key and body wait for that. Only an outcome that is
certain to have stored nothing frees the key.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.errors import IdempotencyMismatch, Overloaded

T = TypeVar("T")


@dataclass(slots=True)
class Use(Generic[T]):
    """The first use of a key: the digest of its body, when it is forgotten (monotonic), and its outcome."""

    digest: bytes
    forgotten_at: float
    outcome: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Memory(Generic[T]):
    """The keys of the last `window` seconds, at most `size` of them; more than that at once is Overloaded.

    A key is kept for its whole window: forgetting one early would let a repeat publish twice, silently.
    """

    def __init__(self, *, window: float, size: int) -> None:
        self._window = window
        self._size = size
        self._uses: OrderedDict[Hashable, Use[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def begin(self, key: Hashable, digest: bytes, now: float) -> tuple[Use[T], bool]:
        """Return the key's use and whether it is this one; IdempotencyMismatch if the body was another."""
        self._expire(now)
        use = self._uses.get(key)
        if use is not None:
            if use.digest != digest:
                raise IdempotencyMismatch
            return use, False
        if len(self._uses) >= self._size:
            raise Overloaded(retry_after=max(1.0, next(iter(self._uses.values())).forgotten_at - now), bound="idempotency")
        use = self._uses[key] = Use(digest, now + self._window)
        return use, True

    def free(self, key: Hashable) -> None:
        """Forget a use that has certainly stored nothing, so that a repeat is a first use."""
        self._uses.pop(key, None)

    def _expire(self, now: float) -> None:
        while self._uses:
            key, use = next(iter(self._uses.items()))
            if use.forgotten_at > now or not use.outcome.done():
                return
            del self._uses[key]
