"""Keeps the targets of an upstream in step with DNS.

Each name has a task of its own and is resolved again every `refresh` seconds, a little less at random so that instances do
not ask in step. A failure, or an answer without addresses, takes nothing away: the addresses last got are kept, since a DNS
server that is down says nothing about the backends. While a name fails it is asked sooner, after 1, 2, 4 … seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, final

from gateway.proxy.events import Event
from gateway.proxy.target import Endpoint, join_address
from gateway.proxy.upstream import Upstream

_log = logging.getLogger(__name__)

MAX_ADDRESSES: Final = 256
"""Of one name; more are left out, the highest ones."""

Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
"""Gives the addresses of a host; raises OSError."""


class Name(NamedTuple):
    """A host whose addresses are targets, with what they have in common."""

    host: str
    port: int
    weight: int = 1
    priority: int = 0


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system for the A and AAAA addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@final
class Names:
    """Resolves `names` for an upstream, which has `fixed` endpoints as well; `told` gets what changed.

    `errors` says for each name that could not be resolved last time why.
    """

    def __init__(
        self,
        upstream: Upstream,
        fixed: Sequence[Endpoint],
        names: Sequence[Name],
        *,
        refresh: float,
        told: Callable[[list[Event]], None],
        clock: Callable[[], float],
        rand: Callable[[], float],
        resolve: Resolve = resolve,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstream = upstream
        self._fixed = tuple(fixed)
        self._refresh = refresh
        self._told = told
        self._clock = clock
        self._rand = rand
        self._resolve = resolve
        self._pause = pause
        self._found: dict[Name, tuple[str, ...]] = dict.fromkeys(names, ())
        self._failures: dict[Name, int] = {}
        self.errors: dict[Name, str] = {}

    def __repr__(self) -> str:
        found = ", ".join(f"{name.host} {len(addresses)}" for name, addresses in self._found.items())
        return f"<Names {self._upstream.name}: {found}; {len(self.errors)} failing>"

    async def look(self) -> None:
        """Resolve all names once, at the same time. To be awaited before `run`, so that there are targets at the start."""
        async with asyncio.TaskGroup() as group:
            for name in self._found:
                group.create_task(self._look(name))

    async def run(self) -> None:
        """Resolve them again and again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._found:
                group.create_task(self._follow(name))

    async def _follow(self, name: Name) -> None:
        while True:
            await self._pause(self._delay(name))
            await self._look(name)

    def _delay(self, name: Name) -> float:
        failures = self._failures.get(name, 0)
        # The exponent is bounded because an outage may last: 2.0**1024 overflows.
        seconds = min(self._refresh, 2.0 ** min(failures - 1, 32)) if failures else self._refresh
        return seconds * (1.0 - self._rand() / 10)

    async def _look(self, name: Name) -> None:
        try:
            found = tuple(sorted(set(await self._resolve(name.host, name.port)))[:MAX_ADDRESSES])
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name has such labels
            self._failed(name, getattr(error, "strerror", None) or type(error).__name__)
            return
        if not found:
            self._failed(name, "no addresses")
            return
        self._failures.pop(name, None)
        if self.errors.pop(name, None) is not None:
            _log.info("%s of upstream %s is resolved again", name.host, self._upstream.name)
        if found != self._found[name]:
            self._found[name] = found
            self._told(self._upstream.update(self._endpoints(), self._clock()))

    def _failed(self, name: Name, reason: str) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        if reason != self.errors.get(name):  # said once, not at every retry of a long outage
            _log.warning(
                "%s of upstream %s is not resolved, %d addresses stay: %s",
                name.host,
                self._upstream.name,
                len(self._found[name]),
                reason,
            )
        self.errors[name] = reason

    def _endpoints(self) -> list[Endpoint]:
        # Sorted addresses: DNS servers turn them round, which is no change.
        resolved = (
            Endpoint(join_address(address, name.port), name.weight, name.priority, name.host)
            for name, addresses in self._found.items()
            for address in addresses
        )
        return [*self._fixed, *resolved]
