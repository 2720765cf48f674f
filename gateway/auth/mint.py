"""Signed tokens and throw-away issuers, for development and tests; the gateway itself only verifies."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from gateway.auth.jwks import Inline
from gateway.auth.keys import ALGORITHMS, MIN_RSA_BITS, MIN_SECRET_BYTES
from gateway.auth.tokens import Issuer

_TO_JWK: dict[str, Any] = {
    "RS256": RSAAlgorithm.to_jwk,
    "PS256": RSAAlgorithm.to_jwk,
    "ES256": ECAlgorithm.to_jwk,
    "EdDSA": OKPAlgorithm.to_jwk,
}


def mint(key: str | bytes, algorithm: str, claims: Mapping[str, Any], kid: str | None = None) -> str:
    """Return a token with these claims, signed with a secret (HS256) or a private key in PEM.

    Raise ValueError for a key that does not fit the algorithm, or is weaker than the gateway would accept.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"expected an algorithm out of {', '.join(sorted(ALGORITHMS))}")
    if algorithm == "HS256" and len(key) < MIN_SECRET_BYTES:
        raise ValueError(f"expected a secret of at least {MIN_SECRET_BYTES} bytes for HS256")
    try:
        return jwt.encode(dict(claims), key, algorithm, headers=None if kid is None else {"kid": kid})
    except (PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"expected a private key in PEM that fits {algorithm}") from error


@final
@dataclass(frozen=True, slots=True)
class DevIssuer:
    """An issuer with one key pair, or one secret, in memory. `private` is PEM, or the secret of HS256."""

    issuer: Issuer
    algorithm: str
    kid: str
    private: bytes = field(repr=False)

    @property
    def source(self) -> Inline:
        """Return the verifying key as the authenticator takes it."""
        if self.algorithm == "HS256":
            return Inline("secret", self.private, kid=self.kid)
        return Inline("pem", self.public, algorithm=self.algorithm, kid=self.kid)

    @property
    def public(self) -> bytes:
        """Return the public key in PEM; not for HS256, which has none."""
        pair = load_pem_private_key(self.private, None)
        return pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def jwk(self) -> dict[str, Any]:
        """Return the public key as a JWK; not for HS256."""
        public = load_pem_private_key(self.private, None).public_key()
        members = _TO_JWK[self.algorithm](public, as_dict=True)
        return {**members, "alg": self.algorithm, "kid": self.kid, "use": "sig"}

    @property
    def jwks(self) -> bytes:
        """Return the JWK Set with that one key."""
        return orjson.dumps({"keys": [self.jwk]})

    def token(self, subject: str, *, now: float, lifetime: float = 3600.0, **claims: Any) -> str:
        """Return a token for `subject`, good from Unix time `now` for `lifetime` seconds; `claims` add or replace."""
        own: dict[str, Any] = {"iss": self.issuer.iss, "sub": subject, "iat": int(now), "exp": int(now + lifetime)}
        if self.issuer.audiences:
            own["aud"] = self.issuer.audiences[0]
        return mint(self.private, self.algorithm, own | claims, self.kid)


def generate(
    alias: str = "dev",
    *,
    iss: str = "https://issuer.invalid/",
    audiences: tuple[str, ...] = ("gateway",),
    algorithm: str = "EdDSA",
    kid: str = "dev-1",
    leeway: float = 30.0,
) -> DevIssuer:
    """Return a new issuer with a fresh key."""
    return DevIssuer(Issuer(alias, iss, audiences, frozenset((algorithm,)), leeway), algorithm, kid, _private(algorithm))


def _private(algorithm: str) -> bytes:
    if algorithm == "HS256":
        return secrets.token_urlsafe(MIN_SECRET_BYTES).encode()
    pair: Any
    if algorithm == "EdDSA":
        pair = Ed25519PrivateKey.generate()
    elif algorithm == "ES256":
        pair = generate_ec(SECP256R1())
    else:
        pair = generate_rsa(65537, MIN_RSA_BITS)
    pem: bytes = pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem
