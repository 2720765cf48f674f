"""What happened to the targets of an upstream, for logs and metrics (sans-I/O)."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.proxy.target import Target


@dataclass(frozen=True, slots=True)
class Joined:
    """A target is new."""

    target: Target


@dataclass(frozen=True, slots=True)
class Left:
    """A target is listed no more; it finishes what it has."""

    target: Target


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """Active checks find a target unhealthy."""

    target: Target


@dataclass(frozen=True, slots=True)
class Healthy:
    """Active checks find a target healthy again."""

    target: Target


@dataclass(frozen=True, slots=True)
class Ejected:
    """A target is ejected for so many seconds."""

    target: Target
    seconds: float


@dataclass(frozen=True, slots=True)
class Spared:
    """A target would have been ejected, but too many others are."""

    target: Target


@dataclass(frozen=True, slots=True)
class Returned:
    """A target's ejection is over."""

    target: Target


@dataclass(frozen=True, slots=True)
class Opened:
    """A breaker opened for so many seconds."""

    target: Target
    seconds: float


@dataclass(frozen=True, slots=True)
class HalfOpened:
    """A breaker lets trials through."""

    target: Target


@dataclass(frozen=True, slots=True)
class Closed:
    """A breaker closed."""

    target: Target


Event = Joined | Left | Unhealthy | Healthy | Ejected | Spared | Returned | Opened | HalfOpened | Closed
