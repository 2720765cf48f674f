"""What is minted for development is what the gateway takes, and nothing weaker."""

from __future__ import annotations

import json

import pytest
from auth.identities import NOW, claims_for, verifier_for

from gateway.auth.keys import ALGORITHMS, parse_keys
from gateway.auth.mint import DevIssuer, generate, mint


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_dev_issuer_mints_what_its_source_verifies(devs: dict[str, DevIssuer], algorithm: str) -> None:
    dev = devs[algorithm]
    token = dev.token("alice", now=NOW, lifetime=5, scope="a", sub="bob")
    principal = verifier_for(dev).verify(token, NOW)
    assert principal.subject == "bob"
    assert principal.expires_at == NOW + 35
    assert dev.private.decode() not in repr(dev)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS - {"HS256"}))
def test_its_jwks_has_the_public_half_only(devs: dict[str, DevIssuer], algorithm: str) -> None:
    (jwk,) = json.loads(devs[algorithm].jwks)["keys"]
    assert "d" not in jwk
    assert (jwk["alg"], jwk["kid"], jwk["use"]) == (algorithm, "dev-1", "sig")
    assert parse_keys("x", "jwks", devs[algorithm].jwks, algorithms=[algorithm]).keys


def test_without_audiences_there_is_no_aud() -> None:
    dev = generate(audiences=())
    assert "aud" not in verifier_for(dev).verify(dev.token("alice", now=NOW), NOW).claims


def test_what_does_not_fit_is_refused(devs: dict[str, DevIssuer]) -> None:
    claims = claims_for(devs["EdDSA"])
    with pytest.raises(ValueError, match="algorithm out of ES256, EdDSA"):
        mint("x" * 32, "none", claims)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        mint("x" * 31, "HS256", claims)
    for key, algorithm in (
        (devs["RS256"].private, "EdDSA"),
        (devs["EdDSA"].private, "RS256"),
        (devs["EdDSA"].public, "EdDSA"),
        (devs["RS256"].public, "RS256"),
        (devs["ES256"].public, "ES256"),
        ("garbage", "PS256"),
        (b"\xff", "EdDSA"),
        (devs["RS256"].public, "HS256"),
    ):
        with pytest.raises(ValueError, match="private key in PEM"):
            mint(key, algorithm, claims)
