"""API keys: secrets that stand for a principal, known here by their hash alone (sans-I/O).

    gwk_<id>_<secret><checksum>         gwk_ci_3yZe7…

The id is public and finds the entry. The secret is 256 random bits in 43 characters of base 62, and the checksum a CRC-32 of
all before it in 6 more: so a typo is told from a key that does not exist without a look at anything, and scanners that look
for leaked secrets find keys with no false alarm.

What is stored is `sha256:<hex>` of the whole key. A slow hash such as Argon2 makes guessing dear where people choose the
secret. Nobody guesses 256 random bits, whatever a guess costs, so a fast hash is as safe here, and it is on the path of each
request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, final

import orjson

from gateway.auth.principal import API_KEYS, KeyRef, Principal
from gateway.auth.tokens import MAX_SUBJECT_CHARACTERS, UnknownKey
from gateway.errors import TokenExpired, TokenInvalid, TokenRevoked
from gateway.wire import parse_time_ms

PREFIX: Final = "gwk_"
SECRET_BYTES: Final = 32
ID_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,31}$"
HASH_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"
RESERVED_CLAIMS: Final = frozenset(("aud", "exp", "iat", "iss", "nbf", "scope", "scp", "sub"))
MAX_CLAIMS_BYTES: Final = 8192

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_CHARACTERS: Final = 43  # 62**43 > 2**256
_CHECKSUM_CHARACTERS: Final = 6  # 62**6 > 2**32
_KEY: Final = re.compile(r"gwk_([a-z0-9][a-z0-9-]{0,31})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})", re.ASCII)
_ID: Final = re.compile(ID_PATTERN.replace("$", r"\Z"), re.ASCII)
_HASH: Final = re.compile(HASH_PATTERN.replace("$", r"\Z"), re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


@final
@dataclass(frozen=True, slots=True)
class ApiKey:
    """One entry: what a key stands for. Times are Unix seconds, None: never.

    Raise ValueError, saying what was expected.
    """

    id: str
    hash: str
    subject: str
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)
    expires_at: float | None = None
    revoked_at: float | None = None

    def __post_init__(self) -> None:
        if not _ID.match(self.id):
            raise ValueError("expected an id of 1 to 32 small letters, digits and hyphens")
        if not _HASH.match(self.hash):
            raise ValueError("expected as hash sha256: and 64 hexadecimal digits")
        if not 0 < len(self.subject) <= MAX_SUBJECT_CHARACTERS or _CONTROL.search(self.subject):
            raise ValueError(
                f"expected a subject of 1 to {MAX_SUBJECT_CHARACTERS} characters, none of them a control character"
            )
        if any(not scope or " " in scope for scope in self.scopes):
            raise ValueError("expected scopes without spaces")
        if not RESERVED_CLAIMS.isdisjoint(self.claims):
            raise ValueError(f"expected claims other than {', '.join(sorted(RESERVED_CLAIMS))}")
        if len(self._written_claims()) > MAX_CLAIMS_BYTES:
            raise ValueError(f"expected claims of at most {MAX_CLAIMS_BYTES} bytes as JSON")

    def _written_claims(self) -> bytes:
        try:
            return orjson.dumps(dict(self.claims), option=orjson.OPT_SORT_KEYS)
        except TypeError as error:  # a key or value that is no JSON, deeper than orjson goes, or not Unicode
            raise ValueError("expected claims as JSON has them") from error

    @property
    def ref(self) -> KeyRef:
        """The identity of the entry: what changes in it makes it another one, so that what it said before ends."""
        parts = (self.hash, self.subject, sorted(self.scopes), self.expires_at)
        said = orjson.dumps(parts) + self._written_claims()
        return KeyRef(API_KEYS, self.id, "sha256", hashlib.blake2b(said, digest_size=16).hexdigest())

    @property
    def principal(self) -> Principal:
        """Whom the key stands for; its claims have `sub` and `scope` as a token's would."""
        claims = {**self.claims, "iss": API_KEYS, "sub": self.subject}
        if self.scopes:
            claims["scope"] = " ".join(sorted(self.scopes))
        return Principal(API_KEYS, self.subject, MappingProxyType(claims), self.scopes, self.expires_at, self.ref)


def make(id: str, random: bytes) -> str:  # noqa: A002  # it is its name
    """Return a new key out of 32 random bytes; ValueError for an id that is none, or other than 32 bytes."""
    if not _ID.match(id) or len(random) != SECRET_BYTES:
        raise ValueError("expected an id of 1 to 32 small letters, digits and hyphens, and 32 random bytes")
    body = f"{PREFIX}{id}_{_base62(int.from_bytes(random, 'big'), _SECRET_CHARACTERS)}"
    return body + _checksum(body)


def hashed(key: str) -> str:
    """Return what is stored of a key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def moment(text: str) -> float:
    """Return a date (its first second in UTC) or an RFC 3339 time as Unix seconds; ValueError for everything else."""
    found = parse_time_ms(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    if found is None:
        raise ValueError("expected a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z")
    return found / 1000


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARACTERS)


@final
class Keyring:
    """The API keys there are: those `given`, which stay, and those of a file, which is read again.

    `generation` counts changes. A key that is given hides one of the file with its id.
    """

    def __init__(self, given: Iterable[ApiKey] = ()) -> None:
        self._given = {key.id: key for key in given}
        self._entries: dict[str, tuple[ApiKey, Principal]] = {}
        self.generation = 0
        self.replace(())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Keyring {len(self)} generation {self.generation}>"

    def replace(self, listed: Iterable[ApiKey]) -> frozenset[KeyRef]:
        """Take these as the keys of the file; return those withdrawn: gone, revoked, or changed in what they stand for."""
        keys = {**{key.id: key for key in listed}, **self._given}
        if keys == {id_: key for id_, (key, _) in self._entries.items()}:
            return frozenset()
        before = self._good()
        old = self._entries
        self._entries = {
            id_: old[id_] if id_ in old and old[id_][0] == key else (key, key.principal) for id_, key in keys.items()
        }
        self.generation += 1
        return before - self._good()

    def _good(self) -> frozenset[KeyRef]:
        entries = self._entries.values()
        return frozenset(held.key for key, held in entries if key.revoked_at is None and held.key is not None)

    def verify(self, text: str, now: float) -> Principal:
        """Return the principal of a key at Unix time `now`.

        Raise TokenInvalid (UnknownKey if only the entry is missing); for the right secret, TokenRevoked or TokenExpired.
        """
        found = _KEY.fullmatch(text)
        if found is None:
            raise TokenInvalid("not the shape of an API key")
        entry = self._entries.get(found[1])
        if entry is None or not hmac.compare_digest(hashed(text), entry[0].hash):
            # Looked at last, for a good key has a good checksum. Only a whole one is worth a look at the file.
            if _checksum(text[:-_CHECKSUM_CHARACTERS]) != found[2]:
                raise TokenInvalid("an API key that is mistyped")
            if entry is None:
                raise UnknownKey(API_KEYS, found[1])
            raise TokenInvalid("another secret than that of the API key")
        key, principal = entry
        if key.revoked_at is not None:
            raise TokenRevoked
        if key.expires_at is not None and now >= key.expires_at:
            raise TokenExpired
        return principal


def entry(id: str, members: object) -> ApiKey:  # noqa: A002  # it is its name
    """Return the key that is written under `id`: a mapping with hash, subject, scopes, claims, expires and revoked.

    Raise ValueError, saying what was expected.
    """
    if not isinstance(members, dict) or not members.keys() <= _MEMBERS:
        raise ValueError(f"expected a mapping with no other keys than {', '.join(sorted(_MEMBERS))}")
    text = {name: _text(members, name) for name in ("hash", "subject")}
    scopes, claims = members.get("scopes") or [], members.get("claims") or {}
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("expected scopes as a list of texts")
    if not isinstance(claims, dict):
        raise ValueError("expected claims as a mapping")  # noqa: TRY004  # bad input, not a bad call
    times: dict[str, float | None] = {
        name: None if members.get(name) is None else moment(_text(members, name)) for name in ("expires", "revoked")
    }
    return ApiKey(
        id, text["hash"], text["subject"], frozenset(scopes), claims, expires_at=times["expires"], revoked_at=times["revoked"]
    )


_MEMBERS: Final = frozenset(("hash", "subject", "scopes", "claims", "expires", "revoked"))


def _text(members: Mapping[Any, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"expected {name} as text")  # noqa: TRY004  # bad input, not a bad call
    return value
