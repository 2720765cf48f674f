"""The verified identity behind a request, and the key that vouches for it (sans-I/O)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

API_KEYS: Final = "apikeys"
"""The issuer alias of principals that have an API key; no issuer of tokens can have it."""


@final
@dataclass(frozen=True, slots=True)
class KeyRef:
    """The identity of a verifying key: two are equal iff they would verify the same tokens.

    `issuer` is the alias, `kid` the key's name (None: it has none), `fingerprint` a digest of the key itself, so that a key
    replaced under its old name is another key. The fingerprint is not shown: a secret's could be tried against guesses.
    """

    issuer: str
    kid: str | None
    algorithm: str
    fingerprint: str = field(repr=False)


@final
@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: the issuer's alias and the token's `sub`, with what the token says about it.

    `claims` is read-only and may hold personal data, so it is not shown. `expires_at` is in Unix seconds, `exp` plus the
    issuer's leeway: the one instant that both the check and a held poll use; None: never. `key` is what verified the token
    (None: no token did); once it is withdrawn the principal is one no more.
    """

    issuer: str
    subject: str
    claims: Mapping[str, object] = field(repr=False, hash=False)
    scopes: frozenset[str]
    expires_at: float | None
    key: KeyRef | None
    id: tuple[str, str] = field(init=False, repr=False, compare=False)
    """(alias, subject): the name under which limits and logs know the caller. One object, since many tables hold it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", (self.issuer, self.subject))
