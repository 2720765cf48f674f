"""Verification of signed tokens and the bounded cache of verified ones (sans-I/O).

Order of work, cheapest first: length, shape, header, issuer, key, signature, and only then the claims: nothing that an
unsigned token says is ever told back. The bytes that are parsed are the bytes that were signed, and base64url is taken
in its one canonical form (RFC 4648, section 3.5), so no two spellings of a token exist.

Verified tokens are cached until `expires_at`, until their key is withdrawn, or until newer ones need the place; refusals
never. So an answer from the cache is always the answer that verification would give.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, final

import orjson

from gateway.auth.cache import PrincipalCache
from gateway.auth.keys import ALGORITHMS, MAX_KID_CHARACTERS, Key
from gateway.auth.principal import API_KEYS, KeyRef, Principal
from gateway.errors import TokenExpired, TokenInvalid, TokenMissing

MAX_TOKEN_CHARACTERS = 8192
MAX_SUBJECT_CHARACTERS = 255  # OpenID Connect Core, section 2
MAX_LEEWAY = 300.0
MAX_CANDIDATES = 8  # signatures tried for one token; without a kid there may be several keys of its algorithm
_MAX_DATE = 253_402_300_799  # the last second of the year 9999: what is later cannot be meant

# RFC 6750, section 2.1; the scheme is case-insensitive (RFC 9110, section 11.1).
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.ASCII | re.IGNORECASE)
_SCHEME = re.compile(r"bearer( |\Z)", re.IGNORECASE)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# RFC 8725, section 3.11: an ID token's sibling (logout+jwt, secevent+jwt, dpop+jwt) is signed by the same keys.
_TYPES = frozenset(("jwt", "at+jwt"))


class UnknownKey(TokenInvalid):
    """The issuer has no key for this token; a look at its sources may bring it. Outwardly a `TokenInvalid`."""

    def __init__(self, issuer: str, kid: str | None) -> None:
        super().__init__("no key of the issuer fits")
        self.issuer = issuer
        self.kid = kid


class NotYetValid(TokenInvalid):
    """The token is good but for its time, which has not come yet. Outwardly a `TokenInvalid`."""


_NO_SCOPES: frozenset[str] = frozenset()  # an empty set takes 216 bytes, and most tokens have one


@final
@dataclass(frozen=True, slots=True)
class Issuer:
    """Somebody whose tokens are trusted.

    `alias` is our name for it, `iss` its own, matched exactly. A token's `aud` must name one of `audiences`; if that is
    empty, a token that has an `aud` is meant for somebody else (RFC 7519, section 4.1.3). `leeway` is in seconds, 0 to 300,
    for clocks that differ. Raise ValueError for values out of bounds.
    """

    alias: str
    iss: str
    audiences: tuple[str, ...]
    algorithms: frozenset[str]
    leeway: float = 30.0

    def __post_init__(self) -> None:
        if not self.alias or not self.iss:
            raise ValueError("expected a non-empty alias and iss")
        if self.alias == API_KEYS:
            raise ValueError(f"expected another alias than {API_KEYS}, which API keys have")
        if not self.algorithms or not self.algorithms <= ALGORITHMS:
            raise ValueError(f"expected algorithms out of {', '.join(sorted(ALGORITHMS))}")
        if not 0 <= self.leeway <= MAX_LEEWAY:
            raise ValueError(f"expected a leeway of 0 to {MAX_LEEWAY:.0f} seconds")


def bearer(authorization: str | None) -> str:
    """Return the token of an Authorization header field.

    Raise TokenMissing without the field or with another scheme, TokenInvalid unless exactly one token68 follows.
    """
    if authorization is None or not _SCHEME.match(authorization):
        raise TokenMissing
    if len(authorization) > MAX_TOKEN_CHARACTERS + 64:  # the scheme and some spaces
        raise TokenInvalid("too long")
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise TokenInvalid("not one token68 after the scheme")
    return found[1]


@final
class Verifier:
    """Knows issuers and their keys, and tells whose a token is.

    `secret` keys the digests of the cache, which holds at most `max_cached` principals and, roughly, `max_cached_bytes`.
    `generation` counts changes of any key set. Raise ValueError when two issuers share an alias or an `iss`.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        *,
        secret: bytes,
        max_cached: int = 50_000,
        max_cached_bytes: int = 128 * 1024 * 1024,
    ) -> None:
        listed = list(issuers)
        self._by_iss = {issuer.iss: issuer for issuer in listed}
        self._keys: dict[str, tuple[Key, ...]] = {issuer.alias: () for issuer in listed}
        if len(self._by_iss) != len(listed) or len(self._keys) != len(listed):
            raise ValueError("expected issuers that differ in alias and in iss")
        self.generation = 0
        self._cache = PrincipalCache(secret, max_cached, max_cached_bytes)

    def __repr__(self) -> str:
        keys = ", ".join(f"{alias}: {len(keys)}" for alias, keys in self._keys.items())
        return f"<Verifier keys {{{keys}}} cached {len(self._cache)} generation {self.generation}>"

    def keys(self, alias: str) -> tuple[Key, ...]:
        """Return the issuer's present keys."""
        return self._keys[alias]

    def replace(self, alias: str, keys: Iterable[Key]) -> frozenset[KeyRef]:
        """Give the issuer these keys and no others; return those withdrawn, whose cached tokens are forgotten."""
        given = {key.ref: key for key in keys}
        before = frozenset(key.ref for key in self._keys[alias])
        if given.keys() == before:
            return frozenset()
        self._keys[alias] = tuple(given.values())
        self.generation += 1
        withdrawn = before - given.keys()
        self._cache.forget(withdrawn)
        return withdrawn

    def match(self, token: str, now: float) -> Principal | None:
        """Return the principal of a token that was verified before, None if it is not known.

        `now` is Unix time. Raise TokenExpired, or TokenInvalid for what is too long or not ASCII.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenInvalid("too long")
        try:
            return self._cache.get(token, now)
        except UnicodeEncodeError as error:
            raise TokenInvalid("not ASCII") from error

    def verify(self, token: str, now: float) -> Principal:
        """Return the principal of a token at Unix time `now`.

        Raise TokenInvalid (UnknownKey if only the key is missing), or TokenExpired for a good token whose time is over.
        """
        known = self.match(token, now)
        if known is not None:
            return known
        parts = _parse(token)
        issuer = self._by_iss.get(_text(parts.claims, "iss"))
        if issuer is None:
            raise TokenInvalid("no such issuer")
        if parts.algorithm not in issuer.algorithms:
            raise TokenInvalid("the algorithm is not one of the issuer's")
        key = self._signer(issuer.alias, parts)
        principal = _principal(issuer, key, parts.claims, now)
        self._cache.put(token, principal)
        return principal

    def _signer(self, alias: str, parts: _Parts) -> Key:
        """Return the issuer's key that signed the token.

        A key that has a name verifies only tokens that carry this name or none; one without verifies any.
        """
        fitting = [
            key
            for key in self._keys[alias]
            if key.ref.algorithm == parts.algorithm and (parts.kid is None or key.ref.kid in (None, parts.kid))
        ]
        for key in fitting[:MAX_CANDIDATES]:
            if key.verify(parts.signed, parts.signature):
                return key
        if fitting if parts.kid is None else any(key.ref.kid == parts.kid for key in self._keys[alias]):
            raise TokenInvalid("bad signature")
        raise UnknownKey(alias, parts.kid)


class _Parts(NamedTuple):
    """A token taken apart; nothing in it is trusted before `signature` over `signed` is verified."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def _parse(token: str) -> _Parts:
    """Take a compact JWS apart (RFC 7515, section 7.1); TokenInvalid for everything else."""
    segments = token.split(".")
    if len(segments) != 3:  # noqa: PLR2004  # header, payload, signature
        raise TokenInvalid("not three segments")
    header = _object(segments[0])
    if "crit" in header or "b64" in header:
        raise TokenInvalid("extensions of the header are not supported")  # RFC 7515, section 4.1.11: must reject
    if "typ" in header and _text(header, "typ").lower().removeprefix("application/") not in _TYPES:
        raise TokenInvalid("typ names another kind of token")
    kid = _text(header, "kid") if "kid" in header else None
    if kid is not None and len(kid) > MAX_KID_CHARACTERS:
        raise TokenInvalid("kid is too long")
    signed = token[: -len(segments[2]) - 1].encode()
    return _Parts(_text(header, "alg"), kid, _object(segments[1]), signed, _bytes(segments[2]))


def _bytes(segment: str) -> bytes:
    """Decode base64url without padding; only the canonical form, else the last character could be changed unnoticed."""
    if not _BASE64URL.fullmatch(segment) or len(segment) % 4 == 1:
        raise TokenInvalid("not base64url")
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode():
        raise TokenInvalid("not canonical base64url")
    return data


def _object(segment: str) -> dict[str, Any]:
    try:
        value = orjson.loads(_bytes(segment))
    except ValueError as error:
        raise TokenInvalid("not JSON") from error
    if not isinstance(value, dict):
        raise TokenInvalid("not a JSON object")
    return value


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise TokenInvalid(f"{name} is not a non-empty string")
    return value


def _principal(issuer: Issuer, key: Key, claims: dict[str, Any], now: float) -> Principal:
    """Check the claims of a token whose signature is good (RFC 7519, section 4.1)."""
    expires_at = _date(claims, "exp") + issuer.leeway
    for name in ("nbf", "iat"):
        if name in claims and _date(claims, name) > now + issuer.leeway:
            raise NotYetValid(f"{name} lies in the future")
    _check_audience(issuer.audiences, claims.get("aud"))
    subject = _text(claims, "sub")
    if len(subject) > MAX_SUBJECT_CHARACTERS or _CONTROL.search(subject):
        raise TokenInvalid(f"sub is longer than {MAX_SUBJECT_CHARACTERS} characters or has control characters")
    scopes = _scopes(claims, "scope") | _scopes(claims, "scp")
    if now >= expires_at:
        raise TokenExpired
    claims["iss"] = issuer.iss  # the same text, but one object for all of the issuer's tokens
    return Principal(issuer.alias, subject, MappingProxyType(claims), scopes or _NO_SCOPES, expires_at, key.ref)


def _date(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    # bool is an int to Python, and `true` no date to anybody.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_DATE:
        raise TokenInvalid(f"{name} is not a date")
    return float(value)


def _check_audience(accepted: tuple[str, ...], aud: object) -> None:
    named = [aud] if isinstance(aud, str) else aud
    if named is None and not accepted:
        return
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise TokenInvalid("aud is not a string or a list of strings")
    if not any(one in accepted for one in named):
        raise TokenInvalid("meant for another audience")


def _scopes(claims: dict[str, Any], name: str) -> frozenset[str]:
    """Return a scope claim's values: a string split at spaces (RFC 8693, section 4.2), or a list as it is."""
    value = claims.get(name, [])
    values = value.split(" ") if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise TokenInvalid(f"{name} is not a string or a list of strings")
    return frozenset(values) - {""}
