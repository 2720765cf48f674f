"""Verifying keys, each pinned to one algorithm, from secrets, PEM and JWK Sets (sans-I/O).

An algorithm is a property of the key, never of the token (RFC 8725, section 3.1): a `Key` verifies with its own algorithm
or not at all, so there is nothing that a token's header could talk us into. An RSA key that names no `alg` becomes one
`Key` for each algorithm that both its type and the issuer's configuration allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar, final

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm
from jwt.exceptions import InvalidKeyError

from gateway.auth.principal import KeyRef

Kind = Literal["secret", "pem", "jwks"]

MIN_SECRET_BYTES = 32  # RFC 7518, section 3.2: no shorter than the hash
MIN_RSA_BITS = 2048  # RFC 7518, section 3.3
MAX_RSA_BITS = 8192  # each doubling makes every verification four times as dear
MAX_KEYS = 64
MAX_KID_CHARACTERS = 256

_VERIFIERS: dict[str, Algorithm] = {
    "HS256": HMACAlgorithm(HMACAlgorithm.SHA256),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, SECP256R1),
    "EdDSA": OKPAlgorithm(),
}
ALGORITHMS = frozenset(_VERIFIERS)

_FROM_JWK = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}
# What PyJWT and cryptography raise for members that are missing, of a wrong type or out of range.
_UNUSABLE = (ValueError, TypeError, KeyError, InvalidKeyError, UnsupportedAlgorithm)
# Base64url of an RSA modulus of MAX_RSA_BITS; no other member that we read is longer.
_MAX_MEMBER_CHARACTERS = -(-MAX_RSA_BITS // 6)


@final
@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies signatures of one issuer by one algorithm."""

    ref: KeyRef
    material: Any = field(repr=False, compare=False)

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """Tell whether `signature` over `signed` was made with this key and its algorithm."""
        return _VERIFIERS[self.ref.algorithm].verify(signed, self.material, signature)


K = TypeVar("K")


class Parsed(NamedTuple, Generic[K]):
    """Keys read from one source, and why others in it are of no use (never the keys themselves)."""

    keys: tuple[K, ...]
    skipped: tuple[str, ...] = ()


def parse_keys(
    alias: str,
    kind: Kind,
    data: bytes,
    *,
    algorithms: Collection[str],
    algorithm: str | None = None,
    kid: str | None = None,
    remote: bool = False,
) -> Parsed[Key]:
    """Read the keys of issuer `alias` from a secret, a PEM public key or a JWK Set.

    `algorithms` are the issuer's; `algorithm` picks one of them for a secret or PEM, and `kid` names it (a JWK Set brings
    both itself). From a `remote` source symmetric keys are never taken: whoever can read that document could sign. Raise
    ValueError, saying what was expected, for a secret or PEM that cannot be used and for what is no JWK Set at all; unusable
    keys inside a JWK Set are skipped (RFC 7517, section 5).
    """
    if kid is not None and not 0 < len(kid) <= MAX_KID_CHARACTERS:
        raise ValueError(f"expected a kid of 1 to {MAX_KID_CHARACTERS} characters")
    if kind == "jwks":
        if kid is not None or algorithm is not None:
            raise ValueError("expected no kid and no algorithm beside a JWK Set, which names its own")
        return _from_jwks(alias, data, algorithms, remote=remote)
    allowed = frozenset(algorithms) & ({algorithm} if algorithm else ALGORITHMS)
    if kind == "secret":
        return Parsed((_from_secret(alias, data, allowed, kid),))
    return Parsed((_from_pem(alias, data, allowed, kid),))


def _from_secret(alias: str, data: bytes, allowed: Collection[str], kid: str | None) -> Key:
    if "HS256" not in allowed:
        raise ValueError("expected HS256 among the algorithms of an issuer that has a secret")
    secret = data.removesuffix(b"\n").removesuffix(b"\r")  # the line end that editors and `echo` add
    return _symmetric(alias, secret, kid)


def _symmetric(alias: str, secret: bytes, kid: str | None) -> Key:
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"expected a secret of at least {MIN_SECRET_BYTES} bytes for HS256")
    try:
        # Refuses PEM, SSH, DER and JWK: a *public* key used as secret is the classic algorithm confusion.
        material = _VERIFIERS["HS256"].prepare_key(secret)
    except InvalidKeyError as error:
        raise ValueError("expected a secret, not a public key, certificate or JWK") from error
    fingerprint = hashlib.blake2b(secret, digest_size=16, person=b"gateway-secret").hexdigest()
    return Key(KeyRef(alias, kid, "HS256", fingerprint), material)


def _from_pem(alias: str, data: bytes, allowed: Collection[str], kid: str | None) -> Key:
    if b"PRIVATE KEY-----" in data:
        raise ValueError("expected a public key: this is a private one, which only the issuer should have")
    try:
        material = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError('expected a public key in PEM ("-----BEGIN PUBLIC KEY-----")') from error
    implied = _implied(material)
    usable = sorted(implied & frozenset(allowed))
    if len(usable) != 1:
        raise ValueError(f"expected exactly one algorithm of {', '.join(sorted(implied))} for this key")
    return _asymmetric(alias, material, usable[0], kid)


def _implied(material: object) -> frozenset[str]:
    """Return the algorithms that a key's type allows; ValueError if it is of no use or too weak."""
    match material:
        case RSAPublicKey(key_size=bits):
            if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
                raise ValueError(f"expected an RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, got {bits}")
            return frozenset(("RS256", "PS256"))
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return frozenset(("ES256",))
        case Ed25519PublicKey():
            return frozenset(("EdDSA",))
    raise ValueError("expected an RSA, P-256 or Ed25519 key")


def _asymmetric(alias: str, material: Any, algorithm: str, kid: str | None) -> Key:
    der = material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(KeyRef(alias, kid, algorithm, hashlib.blake2b(der, digest_size=16).hexdigest()), material)


def _from_jwks(alias: str, data: bytes, algorithms: Collection[str], *, remote: bool) -> Parsed[Key]:
    document = _members(data)
    keys: dict[KeyRef, Key] = {}  # a set that lists a key twice has it once
    skipped = []
    for index, jwk in enumerate(document):
        try:
            keys |= {key.ref: key for key in _from_jwk(alias, jwk, frozenset(algorithms), remote=remote)}
        except _UNUSABLE as error:
            reason = error if type(error) is ValueError else "expected the members that its kty needs"
            skipped.append(f"keys[{index}]: {reason}")
    return Parsed(tuple(keys.values()), tuple(skipped))


def _members(data: bytes) -> list[object]:
    try:
        document = orjson.loads(data)
    except ValueError as error:
        raise ValueError("expected a JWK Set in JSON") from error
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f'expected a JWK Set: an object with "keys", a list of at most {MAX_KEYS}')
    return listed


def _from_jwk(alias: str, jwk: object, algorithms: frozenset[str], *, remote: bool) -> list[Key]:
    if not isinstance(jwk, dict):
        raise ValueError("expected an object")  # noqa: TRY004  # bad input, not a bad call
    kid = _kid(jwk)
    _check_use(jwk)
    if any(isinstance(value, str) and len(value) > _MAX_MEMBER_CHARACTERS for value in map(jwk.get, "knexy")):
        raise ValueError("expected no longer key")
    if jwk.get("kty") == "oct":
        if remote:
            raise ValueError("expected no symmetric key from a URL")
        _pinned(jwk, frozenset(("HS256",)), algorithms)
        return [_symmetric(alias, HMACAlgorithm.from_jwk(jwk), kid)]
    material = _public(jwk)
    return [_asymmetric(alias, material, name, kid) for name in _pinned(jwk, _implied(material), algorithms)]


def _kid(jwk: dict[str, Any]) -> str | None:
    kid = jwk.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARACTERS):
        raise ValueError(f"expected a kid of 1 to {MAX_KID_CHARACTERS} characters")
    return kid


def _check_use(jwk: dict[str, Any]) -> None:
    """Raise ValueError unless the key may verify signatures (RFC 7517, sections 4.2 and 4.3)."""
    if jwk.get("use", "sig") != "sig":
        raise ValueError('expected "use": "sig"')
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError('expected "verify" among key_ops')


def _public(jwk: dict[str, Any]) -> object:
    if "d" in jwk:
        raise ValueError("expected a public key: this is a private one, which only the issuer should have")
    kty = jwk.get("kty")
    from_jwk = _FROM_JWK.get(kty) if isinstance(kty, str) else None
    if from_jwk is None:
        raise ValueError("expected kty RSA, EC or OKP")
    return from_jwk(jwk)


def _pinned(jwk: dict[str, Any], implied: frozenset[str], algorithms: frozenset[str]) -> list[str]:
    """Return the algorithms to pin a JWK to: what its type implies, narrowed by its `alg` and by the issuer's."""
    named = implied if jwk.get("alg") is None else implied & {str(jwk["alg"])}
    usable = sorted(named & algorithms)
    if not usable:
        raise ValueError(f"expected an algorithm of the issuer's: {', '.join(sorted(algorithms))}")
    return usable
