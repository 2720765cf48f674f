"""Keys are pinned to one algorithm, weak ones are refused, and a JWK Set brings only what may verify."""

from __future__ import annotations

import json
from typing import Any

import pytest
from auth.identities import b64
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from gateway.auth.keys import ALGORITHMS, MAX_KEYS, Key, Parsed, parse_keys
from gateway.auth.mint import DevIssuer

SECRET = b"0123456789abcdef0123456789abcdef"
WEAK = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505
DSA = dsa.generate_private_key(1024).public_key()  # noqa: S505


def parse(kind: str, data: bytes, algorithms: object = ALGORITHMS, **options: Any) -> Parsed:
    return parse_keys("corp", kind, data, algorithms=algorithms, **options)  # type: ignore[arg-type]


def jwks(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def names(parsed: Parsed) -> list[str]:
    return sorted(key.ref.algorithm for key in parsed.keys)


def pem_of(public: Any) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_secret_is_taken_without_the_line_end_of_its_file(end: bytes) -> None:
    (key,) = parse("secret", SECRET + end).keys
    assert key.material == SECRET
    assert key.ref.algorithm == "HS256"
    assert key == parse("secret", SECRET).keys[0]


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_short_secret_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        parse("secret", b"x" * length)


def test_a_secret_needs_hs256_to_be_allowed() -> None:
    for options in ({"algorithms": ["RS256"]}, {"algorithm": "RS256"}):
        with pytest.raises(ValueError, match="expected HS256"):
            parse("secret", SECRET, **options)


def test_public_material_is_no_secret(devs: dict[str, DevIssuer]) -> None:
    for data in (devs["RS256"].public, json.dumps(devs["RS256"].jwk).encode(), b"ssh-ed25519 " + b"A" * 40):
        with pytest.raises(ValueError, match="not a public key"):
            parse("secret", data)


def test_a_secret_shows_nowhere() -> None:
    (key,) = parse("secret", SECRET).keys
    assert SECRET.decode() not in repr(key)
    assert key.ref.fingerprint not in repr(key)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
def test_an_rsa_pem_is_pinned_to_the_one_configured_algorithm(devs: dict[str, DevIssuer], algorithm: str) -> None:
    assert names(parse("pem", devs["RS256"].public, [algorithm, "ES256"])) == [algorithm]
    assert names(parse("pem", devs["RS256"].public, algorithm=algorithm)) == [algorithm]


@pytest.mark.parametrize(("name", "algorithms"), [("RS256", ALGORITHMS), ("ES256", ["RS256"]), ("EdDSA", ["HS256"])])
def test_a_pem_without_exactly_one_algorithm_is_refused(devs: dict[str, DevIssuer], name: str, algorithms: object) -> None:
    with pytest.raises(ValueError, match="exactly one algorithm of"):
        parse("pem", devs[name].public, algorithms)


def test_a_private_pem_is_refused(ed: DevIssuer) -> None:
    with pytest.raises(ValueError, match="private one"):
        parse("pem", ed.private)


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", SECRET])
def test_what_is_no_pem_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="public key in PEM"):
        parse("pem", data)


def test_weak_and_foreign_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="2048 to 8192 bits, got 1024"):
        parse("pem", pem_of(WEAK), ["RS256"])
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    for public in (p384, ed448.Ed448PrivateKey.generate().public_key(), DSA):
        with pytest.raises(ValueError, match="P-256"):
            parse("pem", pem_of(public))


@pytest.mark.parametrize("kid", ["", "k" * 257])
def test_a_configured_kid_has_bounds(kid: str) -> None:
    with pytest.raises(ValueError, match="kid"):
        parse("secret", SECRET, kid=kid)


@pytest.mark.parametrize("options", [{"kid": "a"}, {"algorithm": "RS256"}])
def test_a_jwk_set_names_its_own(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="names its own"):
        parse("jwks", jwks(), **options)


@pytest.mark.parametrize("name", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_jwk_is_pinned_to_its_alg(devs: dict[str, DevIssuer], name: str) -> None:
    parsed = parse("jwks", devs[name].jwks, remote=True)
    assert names(parsed) == [name]
    assert parsed.keys[0].ref.kid == "dev-1"
    assert not parsed.skipped


@pytest.mark.parametrize(
    ("algorithms", "expected"),
    [(["RS256"], ["RS256"]), (["PS256"], ["PS256"]), (ALGORITHMS, ["PS256", "RS256"]), (["ES256"], [])],
)
def test_a_jwk_without_alg_has_what_its_type_and_the_issuer_allow(
    devs: dict[str, DevIssuer], algorithms: list[str], expected: list[str]
) -> None:
    jwk = devs["RS256"].jwk
    del jwk["alg"]
    assert names(parse("jwks", jwks(jwk), algorithms)) == expected


def test_the_same_key_as_pem_and_jwk_is_the_same_key(ed: DevIssuer) -> None:
    assert parse("jwks", ed.jwks).keys == parse("pem", ed.public, kid=ed.kid).keys


def test_a_key_listed_twice_is_one(ed: DevIssuer) -> None:
    assert len(parse("jwks", jwks(ed.jwk, ed.jwk)).keys) == 1


def test_symmetric_keys_come_from_files_only() -> None:
    oct_key = {"kty": "oct", "k": b64(SECRET), "kid": "s"}
    (key,) = parse("jwks", jwks(oct_key)).keys
    assert (key.material, key.ref.algorithm) == (SECRET, "HS256")
    remote = parse("jwks", jwks(oct_key), remote=True)
    assert remote == Parsed((), ("keys[0]: expected no symmetric key from a URL",))
    assert "at least 32 bytes" in parse("jwks", jwks({"kty": "oct", "k": b64(b"short")})).skipped[0]
    assert "the issuer's" in parse("jwks", jwks(oct_key), ["RS256"]).skipped[0]
    assert "the issuer's" in parse("jwks", jwks(oct_key | {"alg": "RS256"})).skipped[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use": "enc"}, "use"),
        ({"use": None}, "use"),
        ({"key_ops": ["sign"]}, "key_ops"),
        ({"key_ops": "verify"}, "key_ops"),
        ({"alg": "HS256"}, "algorithm"),
        ({"alg": "PS256"}, "algorithm"),
        ({"alg": "none"}, "algorithm"),
        ({"alg": ["EdDSA"]}, "algorithm"),
        ({"kid": ""}, "kid"),
        ({"kid": 7}, "kid"),
        ({"kid": "k" * 257}, "kid"),
        ({"kty": "EC"}, "members"),
        ({"kty": ["OKP"]}, "kty"),
        ({"kty": "AKP"}, "kty"),
        ({"kty": None}, "kty"),
        ({"crv": "Ed448"}, "expected"),
        ({"crv": "P-256"}, "members"),
        ({"x": None}, "members"),
        ({"x": 5}, "members"),
        ({"x": "AAAA"}, "members"),
        ({"x": "é"}, "expected"),
        ({"x": "A" * 2000}, "longer"),
        ({"d": "AAAA"}, "private"),
    ],
)
def test_a_jwk_that_may_not_verify_is_skipped_and_the_others_stay(
    ed: DevIssuer, devs: dict[str, DevIssuer], change: dict[str, object], reason: str
) -> None:
    parsed = parse("jwks", jwks(ed.jwk | change, devs["ES256"].jwk), remote=True)
    assert names(parsed) == ["ES256"]
    assert len(parsed.skipped) == 1
    assert reason in parsed.skipped[0]


@pytest.mark.parametrize("change", [{"use": "sig"}, {"key_ops": ["verify", "sign"]}, {"alg": None}, {"kid": None}])
def test_a_jwk_that_may_verify_is_taken(ed: DevIssuer, change: dict[str, object]) -> None:
    assert names(parse("jwks", jwks(ed.jwk | change))) == ["EdDSA"]


def test_weak_rsa_in_a_set_is_skipped() -> None:
    weak = RSAAlgorithm.to_jwk(WEAK, as_dict=True)
    assert "got 1024" in parse("jwks", jwks(weak), remote=True).skipped[0]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"null", b'{"keys":{}}', b'{"keys":"x"}', b"\xff", b"[" * 5000, jwks(*[{}] * 65)]
)
def test_what_is_no_jwk_set_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JWK Set"):
        parse("jwks", data)


def test_an_empty_set_and_a_full_one_are_sets() -> None:
    assert parse("jwks", jwks()) == Parsed((), ())
    assert len(parse("jwks", jwks(*[None] * MAX_KEYS)).skipped) == MAX_KEYS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["RSA", "EC", "OKP", "P-256", "AQAB"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "k", "alg", "use", "kid"]), inner, max_size=9)
    ),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=3))
def test_any_members_are_skipped_or_taken(keys: list[object]) -> None:
    parsed = parse("jwks", json.dumps({"keys": keys}).encode(), remote=True)
    assert all(isinstance(key, Key) for key in parsed.keys)


@given(st.binary(max_size=200), st.sampled_from(["secret", "pem", "jwks"]))
def test_any_bytes_are_keys_or_a_value_error(data: bytes, kind: str) -> None:
    try:
        parse(kind, data)
    except ValueError as error:
        assert str(error).startswith("expected")  # noqa: PT017  # no error is fine as well
