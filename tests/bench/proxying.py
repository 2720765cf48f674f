"""What a proxy under test is to do, whichever it is, and how it is asked.

It has two upstreams with the same backends: `polls` under /hold, dealt out by the fewest that are outstanding, and `items` for
everything else, in turn. Where a proxy has them: checks of /healthz, the backends' own failures noticed, up to three attempts.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.fleet import SPARE_FILES, Plan
from bench.serving import Missing, Running, Setting

ITEM, OWN, HOLD = "/items/1", "/own/1", "/hold"
CHECK, CHECK_SECONDS = "/healthz", 1.0
RISE, FALL = 2, 3
FAILURES, OUT_SECONDS = 5, 2.0
"""Failures in a row after which a backend is left out, and for how long."""
ATTEMPTS = 3
CONNECT_SECONDS, HOLD_SECONDS = 2.0, 75.0
KEPT = 512
"""Idle connections kept for each backend."""


@dataclass(frozen=True)
class Proxying:
    """The ports of the backends, the most clients at once, seconds to the first byte of an item, and of slow start."""

    ports: Sequence[int]
    clients: int
    first_byte: float = 30.0
    slow_start: float = 0.0


ProxyContext = Callable[[Setting, Proxying], contextlib.AbstractContextManager[Running]]


def requests(port: int, path: str, clients: int, tokens: Sequence[str] = ()) -> Plan:
    """Return a plan by which clients ask for a path again and again, with a token each where there are some."""
    head = f"GET {path} HTTP/1.1\r\nHost: bench\r\n" + ("Authorization: Bearer {0}\r\n" if tokens else "") + "\r\n"
    values = [(token,) for token in tokens] or [("",)] * clients
    return Plan(port, head, head, [], values, hold=True, options={"requests": 1})


def check_files(clients: int) -> None:
    """Raise Missing where one process cannot have two connections for each client."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 2 * clients > files - SPARE_FILES:
        raise Missing(f"{clients:,} held polls take two connections each, more than the limit of {files:,} open files")
