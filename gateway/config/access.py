"""Who may, from which web pages and how often: the sections that channels and routes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.config.section import Section
from gateway.config.values import Count, Number, Origins, Strings, Text


class Cors(Section):
    """Which web pages may call."""

    origins: Origins = ()
    """Origins such as https://app.example.com, or `*`; empty: none."""


class RuleSection(Section):
    """Who may: every condition in one rule has to hold. Texts may hold `{parameter}` and `{claims.name}`."""

    scope: Text | None = None
    """The token has this scope."""
    claim: Text | None = None
    """A claim to look at, with contains or equals."""
    contains: Text | None = None
    """The claim is a list, and this is one of its members."""
    equals: Text | None = None
    """The claim is exactly this text."""
    issuers: Strings | None = None
    """The token is of one of these issuers, by alias."""
    authenticated: Literal[True] | None = None
    """Any principal may."""
    all_: tuple[RuleSection, ...] | None = Field(default=None, alias="all")
    """Every one of these rules holds."""
    any_: tuple[RuleSection, ...] | None = Field(default=None, alias="any")
    """At least one of these rules holds."""

    @property
    def written(self) -> dict[str, object]:
        """The rule as it was given, which is how `policy` parses it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Bucket(Section):
    """A token bucket."""

    rate: Annotated[Number, Field(gt=0, le=1e6)]
    """Requests a second, in the long run."""
    burst: Annotated[Count, Field(ge=1, le=10_000_000)]
    """Requests at once, after a while without any."""

    @property
    def window(self) -> float:
        """Seconds in which an empty bucket becomes full: with `burst` as quota, the same bucket in other words."""
        return self.burst / self.rate
