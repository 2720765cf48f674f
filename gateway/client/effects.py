"""What a session asks its shell to do, and what it is told of it (sans-I/O).

A session is a generator of effects. The shell carries one out and hands back its result: for `Send` an `Answer` or a
`Failure`, for `Renew` the new token or a `Failure`, for `Load` the stored position or None, for `Tell` what the program's
callback returned; for the others None. Where the program wants an end, the result is `STOPPED`, whatever the effect was. This
is the seam where another transport than the long poll would come in: it is a `Send` and what is answered to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.client.messages import Lost, Message, Reset
from gateway.client.positions import Position


class Stopped(Enum):
    """The one value that tells of an end that the program wants."""

    STOPPED = "stopped"


STOPPED: Final = Stopped.STOPPED


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and read the whole answer.

    `target`: path and query. `patience`: seconds to the first byte of the answer.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    patience: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Get a token from the program's provider."""


@dataclass(frozen=True, slots=True)
class Load:
    """Get the position from the store."""


@dataclass(frozen=True, slots=True)
class Save:
    """Put a position into the store."""

    position: Position


@dataclass(frozen=True, slots=True)
class Tell:
    """Call back the program."""

    what: Lost | Reset


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a message to the program. The result comes when it asks for the next one."""

    message: Message


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the names of `headers` are lower-case. `seconds`: how long it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no answer, or no token; `reason` says why in words."""

    reason: str


Effect = Send | Sleep | Renew | Load | Save | Tell | Deliver
