"""Where a subscription is: what was processed of it, and what must not be processed again (sans-I/O).

Theory of operation. The gateway's cursor stands behind a whole answer; a program processes one message after the other. So a
position is the cursor of the last answer that was processed as a whole, and for each partition of each channel the highest
offset that was processed beyond it. Read again from that cursor, what is not above those offsets is left out: a channel is one
topic, and the offsets of a partition ascend, so (channel, partition, offset) tells a record from every other one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.client.messages import CURSOR, Batch, Message

Offsets = Mapping[str, Mapping[int, int]]
"""The highest offset by channel and partition."""


@dataclass(frozen=True, slots=True)
class Position:
    """A cursor of these channels, and what was processed behind it. Stores keep it as the JSON of `document`.

    Without a cursor it is in the midst of the very first answer, which is asked for again from the subscription's start.
    """

    cursor: str | None
    beyond: Offsets = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    def document(self) -> dict[str, object]:
        """Return it as a JSON object."""
        beyond = {channel: {str(number): offset for number, offset in of.items()} for channel, of in self.beyond.items()}
        return {"cursor": self.cursor, "beyond": beyond, "channels": list(self.channels)}

    @classmethod
    def read(cls, document: object) -> Position:
        """Return what `document` gave; ValueError for anything else."""
        if not isinstance(document, dict) or not isinstance(cursor := document.get("cursor", 0), str | None):
            raise ValueError("no position")  # noqa: TRY004  # one error for all that is wrong with it
        beyond, channels = document.get("beyond", {}), document.get("channels", [])
        is_good = cursor is None or CURSOR.fullmatch(cursor)
        if not is_good or not isinstance(beyond, dict) or not isinstance(channels, list):
            raise ValueError("no position")
        return cls(cursor, {str(channel): _offsets(of) for channel, of in beyond.items()}, tuple(map(str, channels)))


def _offsets(document: object) -> dict[int, int]:
    if not isinstance(document, dict):
        raise ValueError("no offsets")  # noqa: TRY004  # as above
    offsets = {int(number): offset for number, offset in document.items()}
    if not all(isinstance(offset, int) for offset in offsets.values()):
        raise ValueError("no offsets")
    return offsets


class Progress:
    """What was delivered and what of it is processed. A batch is taken, its messages delivered and acknowledged in order."""

    def __init__(self, position: Position | None, channels: tuple[str, ...] = ()) -> None:
        self._channels = channels
        self._cursor = None if position is None else position.cursor
        self._done = {channel: dict(of) for channel, of in position.beyond.items()} if position else {}
        self._open: deque[Message] = deque()  # delivered or to be delivered, not acknowledged
        self._batches: deque[tuple[int, str]] = deque()  # how many messages are open up to the end of a batch, and its cursor
        self._taken = self._acknowledged = 0
        self._next = self._cursor

    def __repr__(self) -> str:
        return f"<Progress at {'no' if self._cursor is None else 'a'} cursor, {len(self._open)} messages open>"

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the next poll: behind all that was delivered."""
        return self._next

    @property
    def position(self) -> Position | None:
        """What a program that starts anew goes on from; None as long as there is nothing."""
        if self._cursor is None and not self._done:
            return None
        return Position(self._cursor, {channel: dict(of) for channel, of in self._done.items()}, self._channels)

    def take(self, batch: Batch) -> Sequence[Message]:
        """Take an answer; return the messages to deliver, without those that are processed already."""
        fresh = [message for message in batch.messages if not self._is_done(message)]
        self._open.extend(fresh)
        self._taken += len(fresh)
        self._next = batch.cursor
        self._batches.append((self._taken, batch.cursor))
        self._move()
        return fresh

    def acknowledge(self, message: Message) -> int:
        """Note that a message, and everything delivered before it, is processed; return how many that are.

        None are where it is not open: acknowledged before, or from before a reset.
        """
        if message not in self._open:
            return 0
        count = 0
        while True:
            done = self._open.popleft()
            self._done.setdefault(done.channel, {})[done.partition] = done.offset
            count += 1
            if done is message or done == message:
                break
        self._acknowledged += count
        self._move()
        return count

    def restart(self, cursor: str) -> None:
        """Go on from another cursor: what was processed before tells nothing about what comes."""
        self._cursor = self._next = cursor
        self._done.clear()
        self._open.clear()
        self._batches.clear()
        self._taken = self._acknowledged = 0

    def _is_done(self, message: Message) -> bool:
        return message.offset <= self._done.get(message.channel, {}).get(message.partition, -1)

    def _move(self) -> None:
        """Move the cursor behind the batches that are processed as a whole.

        The offsets stay: should the gateway, or another one, send something again, it is known.
        """
        while self._batches and self._batches[0][0] <= self._acknowledged:
            self._cursor = self._batches.popleft()[1]
