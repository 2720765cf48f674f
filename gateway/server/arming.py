"""Which request heads a lane may answer, and what they resolved to (sans-I/O).

Theory of operation. Between two polls of one client nothing changes but the cursor. A poll that carried one and passed all of
HTTP, identity, limits, channel and policy is *armed*: its head, with the cursor's value cut out, stands from then on for what
it came to. Every other byte counts, method, target and token included, and so does the peer, which is where the client's
address comes from. So a head that fits cannot mean anything else than the armed one, and the parts that do depend on time
(the token's life, limits) are compared each time.

A lane compares with the head it saw last, two `memcmp`s. Any other head is looked for in a table, so that a proxy may send any
client's next poll over any of its pooled connections. Its keys are digests keyed with a secret of the process: nobody outside
can search for two heads with one digest. Lines that proxies add with a new value for each request (`ignored`) are left out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from gateway.auth.principal import KeyRef, Principal
from gateway.limits import Bucket, Holder
from gateway.server.crowd import Crowd

MAX_HEAD = 16 * 1024
"""Bytes of the longest head that is armed, and of what a lane keeps of a head that comes in parts."""

# A longer one is compared like the rest: the framework has a bound for fields, and shall apply it.
_LONGEST_IGNORED = 512
_LINE_END = b"\r\n"
HEAD_END = b"\r\n\r\n"
# The spellings that everybody uses. What else HTTP allows (a percent-encoded name, say) is not found, and goes to aiohttp.
_PARAMETER = re.compile(rb"[?&]cursor=([A-Za-z0-9_-]{1,2048})(?=[& ])")
_FIELD = re.compile(rb"\r\n(?i:cursor):[ \t]*([A-Za-z0-9_-]{1,2048})[ \t]*(?=\r\n)")


class Cut(NamedTuple):
    """A head without its cursor: what stands before and behind it, and its value."""

    before: bytes
    cursor: bytes
    behind: bytes


def cut(head: bytes) -> Cut | None:
    """Cut the cursor out of a request head; None where no one spelling is found."""
    line = head.find(_LINE_END)
    found = _PARAMETER.search(head, 0, line) or _FIELD.search(head, line)
    if found is None:
        return None
    start, end = found.span(1)
    return Cut(head[:start], head[start:end], head[end:])


class Armed:
    """What one head resolved to.

    `peer` is the socket's other end, `address` the client's (behind trusted proxies). Times are monotonic: after `over` nothing
    is answered by it, after `near` its end, at `expires`, comes before that of the wait. The end is the token's or a channel's.
    """

    __slots__ = (
        "address",
        "address_bucket",
        "before",
        "behind",
        "bucket",
        "crowd",
        "expires",
        "holder",
        "near",
        "over",
        "peer",
        "principal",
        "size",
    )

    def __init__(
        self,
        parts: Cut,
        crowd: Crowd,
        *,
        principal: Principal,
        peer: str,
        address: str,
        bucket: Bucket,
        address_bucket: Bucket,
        holder: Holder,
    ) -> None:
        self.before = parts.before
        self.behind = parts.behind
        self.size = len(parts.before) + len(parts.behind)
        self.crowd = crowd
        self.principal = principal
        self.peer = peer
        self.address = address
        self.bucket = bucket
        self.address_bucket = address_bucket
        self.holder = holder
        self.expires = self.over = self.near = float("inf")

    def __repr__(self) -> str:
        return f"<Armed {self.principal.id} for {self.crowd!r}{' void' if self.void else ''}>"

    @property
    def void(self) -> bool:
        """Whether nothing may be answered by it any more."""
        return self.over == float("-inf")

    def expire(self, at: float, least: float) -> None:
        """Note an end (monotonic); a poll that would end for it within `least` seconds is refused. The first end counts."""
        self.expires = min(self.expires, at)
        self.near = min(self.near, at - self.crowd.wait)
        self.over = min(self.over, at - min(self.crowd.wait, least))

    def revoke(self) -> None:
        """Answer nothing any more."""
        self.over = self.near = float("-inf")

    def head(self, cursor: bytes) -> bytes:
        """Return the head with a cursor in it."""
        return self.before + cursor + self.behind


class Arming:
    """The armed heads of the process: at most `bound`, the longest unused go first.

    `ignored`: names of header fields that are left out of the comparison. `secret` keys the digests.
    """

    def __init__(self, *, bound: int, ignored: Iterable[str], secret: bytes) -> None:
        self._bound = bound
        self._hash = blake2b(digest_size=16, key=secret)
        names = b"|".join(re.escape(name.encode()) for name in ignored)
        line = rb"\r\n(?i:%b):[\t\x20-\x7e\x80-\xff]{0,%d}(?=\r\n)" % (names, _LONGEST_IGNORED)
        self._ignored = re.compile(line) if names else None
        self._table: OrderedDict[bytes, Armed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Armed]:
        return iter(self._table.values())

    def add(self, parts: Cut, armed: Armed) -> None:
        """Remember what a head came to, in place of what was known of it."""
        digest = self._digest(armed.peer, parts)
        self._table[digest] = armed
        self._table.move_to_end(digest)
        if len(self._table) > self._bound:
            self._table.popitem(last=False)

    def find(self, peer: str, head: bytes) -> tuple[Armed, bytes] | None:
        """Return what a head from `peer` came to before, and the cursor that it carries now."""
        parts = cut(head)
        if parts is None:
            return None
        armed = self.get(peer, parts)
        return None if armed is None else (armed, parts.cursor)

    def get(self, peer: str, parts: Cut) -> Armed | None:
        """Return what a head that has been cut came to before."""
        digest = self._digest(peer, parts)
        armed = self._table.get(digest)
        if armed is not None:
            self._table.move_to_end(digest)
        return armed

    def bare(self, head: bytes) -> bytes:
        """Return a head without the fields that are ignored."""
        return head if self._ignored is None else self._ignored.sub(b"", head)

    def revoke(self, key: KeyRef | None = None) -> None:
        """Void and forget the heads of tokens that `key` has signed, or (None) all."""
        for digest in [digest for digest, armed in self._table.items() if key is None or armed.principal.key == key]:
            self._table.pop(digest).revoke()

    def _digest(self, peer: str, parts: Cut) -> bytes:
        state = self._hash.copy()
        before, behind = parts.before, parts.behind
        if self._ignored is not None:
            before, behind = self._ignored.sub(b"", before + b"\r\n")[:-2], self._ignored.sub(b"", behind)
        # With the length: the same bytes, cut in another place, are another request.
        state.update(b"%d %b " % (len(before), peer.encode()))
        state.update(before)
        state.update(behind)
        return state.digest()
