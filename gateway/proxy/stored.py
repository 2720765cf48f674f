"""One stored answer, packed (sans-I/O)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDict

from gateway.proxy.caching import CacheRequest
from gateway.proxy.freshness import Freshness

Vary = tuple[tuple[str, str | None], ...]

# Of an answer and its places in the store: its objects without body, head, URI and the values of Vary (names of fields are
# shared). Measured over 10,000 answers: 427 to 507 with tracemalloc, the resident set grew by 20 to 40 more.
FIXED_COST: Final = 500
_COST_PER_FIELD: Final = 56 + 16 + 8
_COMMA = re.compile(r"[ \t]*,[ \t]*")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """An answer with what decides about its use.

    The head is kept as bytes: a mapping of ten fields takes four times as much, and nobody could say exactly how much.
    """

    uri: str
    method: str
    status: int
    head: bytes
    vary: Vary
    freshness: Freshness
    date: int
    body: bytes = b""

    @property
    def headers(self) -> CIMultiDict[str]:
        """The fields of the head, in their order and with their repetitions; a new mapping each time."""
        return unpacked(self.head)

    @property
    def cost(self) -> int:
        """Bytes that it takes, all included."""
        vary = sum(_COST_PER_FIELD + sys.getsizeof(value) for _, value in self.vary)
        return FIXED_COST + sys.getsizeof(self.body) + sys.getsizeof(self.head) + sys.getsizeof(self.uri) + vary

    def suits(self, request: CacheRequest) -> bool:
        """Tell whether the request has what Vary names as the first one had it (RFC 9111, section 4.1)."""
        return all(value_of(request.headers, name) == value for name, value in self.vary)


def packed(headers: CIMultiDict[str]) -> bytes:
    """Return the fields as bytes; a line end cannot be in them."""
    return "\n".join(f"{name}:{value}" for name, value in headers.items()).encode("utf-8", "surrogateescape")


def unpacked(head: bytes) -> CIMultiDict[str]:
    """Return the fields that `packed` took."""
    lines = head.decode("utf-8", "surrogateescape").split("\n") if head else []
    return CIMultiDict(line.split(":", 1) for line in lines)  # type: ignore[misc]  # two parts: `packed` wrote a colon


def names_of(headers: CIMultiDict[str], field: str) -> list[str]:
    """Return the lower-case members of a list of field names."""
    members = ",".join(headers.getall(field, ())).split(",")
    return [name.strip().lower() for name in members if name.strip()]


def value_of(headers: CIMultiDict[str], name: str) -> str | None:
    """Return a field as Vary compares it: lines joined, white space around commas gone; None if it is absent."""
    lines = headers.getall(name, None)
    return None if lines is None else _COMMA.sub(",", ",".join(lines)).strip()


def vary_of(headers: CIMultiDict[str], names: Iterable[str]) -> Vary:
    """Return the fields that Vary names with the values that a request has for them."""
    return tuple((sys.intern(name), value_of(headers, name)) for name in sorted(set(names)))
