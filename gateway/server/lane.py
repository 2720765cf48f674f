"""The lane: a connection between two polls and while it is parked, without the HTTP framework.

Theory of operation. aiohttp spends most of a poll's CPU time on parsing and routing a head that it has seen before, and most
of a parked poll's memory on objects that wait. So a connection whose poll is armed (see `arming`) leaves aiohttp: its transport
gets a `Lane` as its protocol, and the handler that aiohttp ran for it ends. From then on the lane compares what comes in with
the armed head, and answers 200 and 204 by itself. Whatever is not exactly that (another head, a body, two heads at once, a
limit that is reached, a token that has ended, a cursor that needs the archive) is *replayed*: a fresh aiohttp connection gets
the transport and the bytes, as if nobody had looked at them before.

One answer is outstanding per lane: what comes in meanwhile is kept, up to the bound of a head. While the socket does not take
an answer whole, the lane neither reads on nor replays, for aiohttp's flow control expects an empty write buffer.

A lane knows nothing but its connection. `lanes.Lanes` decides what a poll comes to, and does what concerns all of them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

from multidict import CIMultiDict

from gateway.server.arming import HEAD_END, MAX_HEAD, Armed, Cut
from gateway.server.crowd import Cohort
from gateway.server.departure import Departure, hand_on

_log = logging.getLogger(__name__)

_METHOD = b"GET "
# What no head of a poll has, however it goes on: the framework refuses it at once, and does not wait for the rest.
_BROKEN = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[^\t\r\n\x20-\x7e\x80-\xff]")


class Keeper(Protocol):
    """Who decides for lanes."""

    def poll(self, lane: Lane, armed: Armed, cursor: bytes, head: bytes) -> None:
        """Answer or park a poll, or have the lane replay it: `head`, as it came."""

    def find(self, lane: Lane, head: bytes) -> tuple[Armed, bytes] | None:
        """Look for a head among all armed ones."""

    def connection(self) -> asyncio.Protocol:
        """Return aiohttp's protocol of a new connection."""

    def now(self) -> float:
        """Return the monotonic time."""

    def left(self, lane: Lane) -> None:
        """Forget a lane that was replayed or whose connection is lost."""


class Handover(Departure):
    """The answer of a handler that gives its connection to a lane; on its way out it gets the fields that the lane will send.

    `take` is called with it and the connection.
    """

    def __init__(self, parts: Cut, headers: CIMultiDict[str], take: Callable[[Handover, Any], None]) -> None:
        super().__init__(headers=headers)
        self.parts = parts
        self._take = take

    def take(self, connection: Any) -> None:
        """Have the lane take it."""
        self._take(self, connection)


class Lane(asyncio.Protocol):
    """One connection. `since` is when (monotonic) it came into its present state: parked, answered, stuck, half a head.

    `unsent` is how many bytes of an answer the socket had left over when the lane was last found stuck.
    """

    __slots__ = ("_held", "_keeper", "armed", "cohort", "since", "stuck", "transport", "unsent")

    def __init__(self, keeper: Keeper, transport: asyncio.Transport, armed: Armed) -> None:
        self._keeper = keeper
        self.transport = transport
        self.armed = armed
        self.cohort: Cohort | None = None
        self.since = 0.0
        self.stuck = False
        self.unsent = 0
        self._held = b""

    def __repr__(self) -> str:
        state = "parked" if self.cohort is not None else "stuck" if self.stuck else "open"
        return f"<Lane {state} of {self.armed!r}, {len(self._held)} bytes held>"

    @property
    def holds(self) -> bool:
        """Whether it has bytes that wait for the rest of a head, or for an answer to be out."""
        return bool(self._held)

    # --- what the transport calls ---

    def data_received(self, data: bytes) -> None:
        """Take the next poll, if it is exactly that."""
        armed = self.armed
        if (
            self.cohort is None
            and not self._held
            and not self.stuck
            and data.startswith(armed.before)
            and data.endswith(armed.behind)
            and len(data) > armed.size
        ):
            self._keeper.poll(self, armed, data[len(armed.before) : -len(armed.behind)], data)
        else:
            self._take(data)

    def pause_writing(self) -> None:
        """Note that the socket does not take all; `since` is when that was written."""
        self.stuck = True
        self.unsent = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """Go on: the answer is out."""
        self.stuck = False
        self.since = self._keeper.now()
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Leave."""
        self._held = b""
        self._keeper.left(self)

    # --- what the keeper calls ---

    def send(self, data: bytes) -> None:
        """Write an answer."""
        try:
            self.transport.write(data)
        except Exception:  # noqa: BLE001
            # One connection's failing write must not end the slice for all others.
            _log.exception("an answer could not be written")
            self.transport.abort()

    def has_sent(self, now: float) -> bool:
        """Tell whether a stuck lane has got rid of some bytes since this was last asked; then it is stuck since now."""
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self.unsent:
            return False
        self.unsent, self.since = unsent, now
        return True

    def go_on(self) -> None:
        """Look at what came in before the answer was out."""
        if self._held and not self.stuck and self.cohort is None:
            data, self._held = self._held, b""
            self._take(data)

    def replay(self, data: bytes) -> None:
        """Give the connection back to aiohttp, with what it is to read first."""
        keeper, transport = self._keeper, self.transport
        keeper.left(self)
        # What came in while it was parked is the next request.
        data, self._held = data + self._held, b""
        transport.set_write_buffer_limits()
        hand_on(transport, keeper.connection(), data)

    # --- inside ---

    def _take(self, data: bytes) -> None:
        """Take what is not the armed head in one piece: join, find, replay, or keep it for later."""
        if self._held:
            data = self._held + data
        if self.cohort is not None or self.stuck:
            self._held = data
            if len(data) > MAX_HEAD:
                self.transport.abort()
            return
        end = data.find(HEAD_END)
        if end < 0 and len(data) <= MAX_HEAD and data[: len(_METHOD)] == _METHOD[: len(data)] and not _BROKEN.search(data):
            if not self._held:
                self.since = self._keeper.now()
            self._held = data
            return
        self._held = b""
        found = self._keeper.find(self, data) if end == len(data) - len(HEAD_END) else None
        if found is None:
            self.replay(data)
        else:
            self.armed = found[0]
            self._keeper.poll(self, *found, data)
