"""One address of an upstream: what it is doing and whether it may be given more (sans-I/O)."""

from __future__ import annotations

from typing import Final, NamedTuple, final

from gateway.proxy.breaker import Breaker, State
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.outliers import Outliers

HELD: Final = 1 / 16
"""What a held exchange weighs, in working ones: the target keeps a socket open and does nothing."""

_LEAST_SHARE: Final = 0.1
_SMOOTHING: Final = 1 / 8  # as TCP smooths its round trips (RFC 6298, section 2)


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" or "[IPv6]:port"; raise ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):  # noqa: PLR2004  # 16 bits
        raise ValueError("expected host:port")
    if ":" in host and not bracketed:
        raise ValueError("expected brackets around an IPv6 address")
    return (host[1:-1] if bracketed else host), int(port)


def join_address(host: str, port: int) -> str:
    """Return "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint(NamedTuple):
    """An address as it is configured or resolved. `name`: the host it was resolved from, None: `address` is as configured.

    Lower priorities are used first; `weight` is relative to others of the same priority.
    """

    address: str
    weight: int = 1
    priority: int = 0
    name: str | None = None


@final
class Target:
    """One address, "host:port" as dialled, with the exchanges it has.

    `working` and `held` count them. `period` changes whenever the target opens, is tried, closes, is ejected or comes back:
    only an exchange that ends in the period in which it began says something about the target now. `back_at`: since when it
    is in slow start. `turn` belongs to round robin. `latency`: seconds to the first byte, smoothed. `listed`: it is still one
    of its upstream's.
    """

    __slots__ = (
        "address",
        "back_at",
        "breaker",
        "healthiness",
        "held",
        "host",
        "latency",
        "listed",
        "name",
        "outliers",
        "period",
        "port",
        "priority",
        "turn",
        "weight",
        "working",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        breaker: Breaker | None = None,
        outliers: Outliers | None = None,
        healthiness: Healthiness | None = None,
    ) -> None:
        self.address = endpoint.address
        self.host, self.port = split_address(endpoint.address)
        self.name = endpoint.name or self.host
        self.weight = endpoint.weight
        self.priority = endpoint.priority
        self.breaker = breaker
        self.outliers = outliers
        self.healthiness = healthiness
        self.back_at: float | None = None
        self.working = 0
        self.held = 0
        self.period = 0
        self.turn = 0.0
        self.latency: float | None = None
        self.listed = True

    def __repr__(self) -> str:
        return f"<Target {self.address} {self.state}, {self.working} working, {self.held} held>"

    @property
    def load(self) -> float:
        """What it bears, in working exchanges."""
        return self.working + self.held * HELD

    @property
    def healthy(self) -> bool:
        """Whether active checks, if there are any, find it so."""
        return self.healthiness is None or self.healthiness.healthy

    @property
    def state(self) -> str:
        """Return available, unhealthy, ejected or open (which includes half-open), as its upstream last looked."""
        if not self.healthy:
            return "unhealthy"
        if self.outliers is not None and self.outliers.until is not None:
            return "ejected"
        return "available" if self.breaker is None or self.breaker.state is State.CLOSED else "open"

    def available(self, now: float) -> bool:
        """Tell whether an exchange may begin."""
        if not self.healthy:
            return False
        if self.outliers is not None and self.outliers.until is not None and now < self.outliers.until:
            return False
        return self.breaker is None or self.breaker.allows(now)

    def wait(self, now: float) -> float:
        """Return in how many seconds, as far as is known, neither ejection nor breaker will be in the way."""
        ejected = 0.0 if self.outliers is None or self.outliers.until is None else self.outliers.until - now
        opened = 0.0 if self.breaker is None or self.breaker.state is not State.OPEN else self.breaker.due - now
        return max(ejected, opened, 0.0)

    def adopt(self, endpoint: Endpoint) -> bool:
        """Take over weight, priority and name; tell whether any of them changed."""
        before = (self.weight, self.priority, self.name)
        self.weight, self.priority = endpoint.weight, endpoint.priority
        self.name = endpoint.name or self.host
        return before != (self.weight, self.priority, self.name)

    def share(self, now: float, slow_start: float) -> float:
        """Return its weight, of which a tenth counts when it came back and all of it `slow_start` seconds later."""
        if self.back_at is None:
            return self.weight
        grown = (now - self.back_at) / slow_start
        return self.weight * min(1.0, _LEAST_SHARE + (1.0 - _LEAST_SHARE) * grown)

    def note_latency(self, seconds: float) -> None:
        """Take a time to the first byte into the average."""
        self.latency = seconds if self.latency is None else self.latency + (seconds - self.latency) * _SMOOTHING
