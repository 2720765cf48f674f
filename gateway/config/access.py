"""Who may, from which web pages and how often: the sections that channels and routes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from gateway.auth.apikeys import HASH_PATTERN, ID_PATTERN, ApiKey, entry
from gateway.config.section import Section
from gateway.config.values import Count, File, Number, Origins, Strings, Text


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


class ApiKeyEntry(Section):
    """What one API key stands for."""

    hash: Annotated[str, Field(pattern=HASH_PATTERN)]
    """SHA-256 of the whole key; `gateway keys create` makes both."""
    subject: Annotated[str, Field(min_length=1, max_length=255)]
    """Whom it stands for: the `sub` of rules, keys and limits."""
    scopes: Strings = ()
    """Its scopes."""
    claims: dict[str, JsonValue] = Field(default={})
    """Its claims, besides `sub` and `scope`."""
    expires: Text | None = None
    """Date, or RFC 3339 time, from which on it is refused; null: never."""
    revoked: Text | None = None
    """When it was revoked; null: it is good."""

    def key(self, name: str) -> ApiKey:
        """Make the key of this section; raises ValueError, saying what was expected."""
        members = {"hash": self.hash, "subject": self.subject, "scopes": list(self.scopes), "claims": dict(self.claims)}
        return entry(name, members | {"expires": self.expires, "revoked": self.revoked})


class ApiKeys(Section):
    """API keys, beside tokens: in the header X-API-Key, or as bearer token. Rules know them as issuer `apikeys`."""

    file: File | None = None
    """File with keys, in the form of `keys`; read again when it changes. Null: none."""
    keys: dict[Annotated[str, Field(pattern=ID_PATTERN)], ApiKeyEntry] = Field(default={})
    """Keys given here, by id."""

    def __bool__(self) -> bool:
        return self.file is not None or bool(self.keys)

    @property
    def given(self) -> tuple[ApiKey, ...]:
        """The keys given here."""
        return tuple(section.key(name) for name, section in self.keys.items())
