"""Tokens: what the program gives, when a new one is due, and what requests carry (sans-I/O)."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

MOST_TOKEN_CHARACTERS = 16_384


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its end in seconds of Unix time; None: what its claim `exp` says, or never."""

    value: str
    expires_at: float | None = None


Provider = Callable[[], str | Token]
AsyncProvider = Callable[[], str | Token | Awaitable[str | Token]]


class Credentials:
    """The token of a client. `fixed`: the only one there will be; without one there is a provider, or none is needed.

    `renew_before`: seconds before its end at which a new one is due.
    """

    def __init__(self, fixed: str | Token | None, *, provided: bool, renew_before: float) -> None:
        self.provided = provided
        self.generation = 0
        self._renew_before = renew_before
        self._token: Token | None = None
        if fixed is not None:
            self.take(fixed)

    def __repr__(self) -> str:
        return f"<Credentials {'none' if self._token is None else f'number {self.generation}'}>"

    def take(self, given: object) -> None:
        """Take a new token; ValueError if it is none that a header could carry."""
        token = given if isinstance(given, Token) else Token(given) if isinstance(given, str) else None
        if token is None or not 0 < len(token.value) <= MOST_TOKEN_CHARACTERS or not _is_visible(token.value):
            raise ValueError("expected a token of visible ASCII characters")
        end = _expiry(token.value) if token.expires_at is None else token.expires_at
        self._token = Token(token.value, end)
        self.generation += 1

    def is_due(self, unix_now: float) -> bool:
        """Tell whether the provider is to be asked before the next request."""
        if not self.provided:
            return False
        token = self._token
        return token is None or (token.expires_at is not None and unix_now >= token.expires_at - self._renew_before)

    def is_over(self, unix_now: float) -> bool:
        """Tell whether a request now would be refused for the token's end."""
        token = self._token
        return token is None or (token.expires_at is not None and unix_now >= token.expires_at)

    def header(self) -> dict[str, str]:
        """Return the field that a request carries; empty without a token."""
        return {} if self._token is None else {"Authorization": f"Bearer {self._token.value}"}


def _is_visible(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _expiry(token: str) -> float | None:
    """Return the claim `exp` of a JWT, unverified: it only says when to ask for the next one. None for all else."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004  # RFC 7519 §3: header, claims, signature
        return None
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
