"""Stored answers, bounded in bytes (sans-I/O)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, final

from gateway.proxy.caching import CacheRequest
from gateway.proxy.stored import Stored

# One URI keeps no more answers than this: they are looked through one by one, and who asks chooses what Vary tells apart.
MAX_VARIANTS: Final = 32
MAX_SHY: Final = 4_096


@final
class Store:
    """Answers by URI; the least recently used go once all take more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._variants: dict[str, list[Stored]] = {}
        self._recent: OrderedDict[Stored, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def __repr__(self) -> str:
        return f"<Store {len(self)} answers, {self.bytes} of {self.max_bytes} bytes>"

    def knows(self, uri: str) -> bool:
        """Tell whether any answer of the URI is stored."""
        return uri in self._variants

    def names(self, uri: str) -> Iterable[str]:
        """Return the fields that tell the stored answers of a URI apart."""
        return {name for stored in self._variants.get(uri, ()) for name, _ in stored.vary}

    def find(self, request: CacheRequest) -> Stored | None:
        """Return the newest answer that Vary lets stand for the request; one to GET answers HEAD too (section 4.3.5)."""
        methods = ("GET", "HEAD") if request.method == "HEAD" else (request.method,)
        found = [one for one in self._variants.get(request.uri, ()) if one.method in methods and one.suits(request)]
        if not found:
            return None
        newest = max(found, key=lambda one: one.date)
        self._recent.move_to_end(newest)
        return newest

    def put(self, stored: Stored) -> bool:
        """Store an answer in place of the one that it replaces; False if it alone is more than all may take."""
        variants = self._variants.get(stored.uri, [])
        for old in [one for one in variants if one.method == stored.method and one.vary == stored.vary]:
            self.remove(old)
        if stored.cost > self.max_bytes:
            return False
        variants = self._variants.setdefault(stored.uri, [])
        if len(variants) == MAX_VARIANTS:
            self.remove(variants[0])
        variants.append(stored)
        self._recent[stored] = None
        self.bytes += stored.cost
        while self.bytes > self.max_bytes:
            self.remove(next(iter(self._recent)))
        return True

    def remove(self, stored: Stored) -> None:
        """Forget an answer; it may be gone already."""
        if stored not in self._recent:
            return
        del self._recent[stored]
        self.bytes -= stored.cost
        variants = self._variants[stored.uri]
        variants.remove(stored)
        if not variants:
            del self._variants[stored.uri]

    def invalidate(self, uri: str) -> None:
        """Forget all answers of a URI (section 4.4)."""
        for stored in tuple(self._variants.get(uri, ())):
            self.remove(stored)


@final
class Shy:
    """What turned out to be for one client only, for `seconds`: nobody waits for such an answer again until then.

    Varnish calls it hit-for-miss. At most MAX_SHY are remembered, by digest: the oldest go.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __repr__(self) -> str:
        return f"<Shy {len(self)} of {MAX_SHY}>"

    def mark(self, key: str, now: float) -> None:
        """Remember a key."""
        digest = _digest(key)
        self._until[digest] = now + self._seconds
        self._until.move_to_end(digest)
        while len(self._until) > MAX_SHY:
            self._until.popitem(last=False)

    def clear(self, key: str) -> None:
        """Forget a key: its answer was for all this time."""
        self._until.pop(_digest(key), None)

    def has(self, key: str, now: float) -> bool:
        """Tell whether a key is remembered."""
        return bool(self._until) and self._until.get(_digest(key), 0.0) > now


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
