"""A token is its principal's, or it is refused; no spelling, header or claim talks the verifier into anything."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from auth.identities import NOW, b64, claims_for, forge, hs256, verifier_for
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.keys import ALGORITHMS, MAX_KID_CHARACTERS, parse_keys
from gateway.auth.mint import DevIssuer, generate, mint
from gateway.auth.tokens import (
    MAX_CANDIDATES,
    MAX_SUBJECT_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
    Issuer,
    UnknownKey,
    Verifier,
    bearer,
)
from gateway.errors import TokenExpired, TokenInvalid, TokenMissing

ED = generate("corp", leeway=30.0)
HS = generate("hs", iss="https://hs.test/", algorithm="HS256")
GOOD = mint(ED.private, "EdDSA", claims_for(ED), ED.kid)


def token(dev: DevIssuer = ED, **claims: Any) -> str:
    """Mint a token; a claim given as ... is left out."""
    given = {name: value for name, value in claims_for(dev, **claims).items() if value is not ...}
    return forge({"alg": "EdDSA", "kid": dev.kid}, given, signer(dev))


def signer(dev: DevIssuer) -> Callable[[bytes], bytes]:
    key = jwt.get_algorithm_by_name(dev.algorithm).prepare_key(dev.private)
    return lambda signed: jwt.get_algorithm_by_name(dev.algorithm).sign(signed, key)


def refused(verifier: Verifier, text: str, now: float = NOW) -> str:
    with pytest.raises(TokenInvalid) as caught:
        verifier.verify(text, now)
    assert len(text) < 20 or text[-20:] not in str(caught.value) + caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_verifies_its_own(devs: dict[str, DevIssuer], name: str) -> None:
    dev = devs[name]
    verifier = verifier_for(*devs.values())
    principal = verifier.verify(dev.token("alice", now=NOW, lifetime=60, scope="a b"), NOW)
    assert principal.id == (name.lower(), "alice")
    assert principal.expires_at == NOW + 60 + 30
    assert principal.scopes == {"a", "b"}
    assert principal.claims["iss"] == dev.issuer.iss
    assert principal.key in [key.ref for key in verifier.keys(name.lower())]


def test_pyjwt_agrees_on_what_it_minted() -> None:
    assert jwt.decode(GOOD, ED.public, ["EdDSA"], audience="gateway", options={"verify_exp": False})["sub"] == "alice"


@pytest.mark.parametrize("header", ["Bearer x.y.z", "bearer x.y.z", "BEARER   x.y.z", "Bearer x.y.z  "])
def test_the_scheme_is_case_insensitive(header: str) -> None:
    assert bearer(header) == "x.y.z"


@pytest.mark.parametrize("header", [None, "", "Basic dXNlcg==", "Bearerx", "DPoP x", " Bearer x"])
def test_another_scheme_is_no_token(header: str | None) -> None:
    with pytest.raises(TokenMissing):
        bearer(header)


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer a b", "Bearer a, Bearer b", "Bearer é", "Bearer a\tb", "Bearer =", "Bearer a=b"]
)
def test_exactly_one_token68_follows(header: str) -> None:
    with pytest.raises(TokenInvalid):
        bearer(header)


def test_a_long_header_is_not_even_scanned() -> None:
    with pytest.raises(TokenInvalid) as caught:
        bearer("Bearer " + "a" * 20_000)
    assert caught.value.reason == "too long"


def test_a_long_token_is_refused_before_any_work() -> None:
    assert refused(verifier_for(ED), "a" * (MAX_TOKEN_CHARACTERS + 1)) == "too long"
    assert refused(verifier_for(ED), "a" * MAX_TOKEN_CHARACTERS) == "not three segments"


@given(st.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    refused(verifier_for(ED), text)


@given(st.binary(max_size=120), st.binary(max_size=120), st.binary(max_size=80))
def test_any_bytes_as_segments_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    refused(verifier_for(ED), forge(header, payload, lambda _: signature))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "scope", "scp"]), json_values, max_size=7))
def test_any_claims_that_the_issuer_signs_give_a_principal_or_a_documented_error(claims: dict[str, Any]) -> None:
    try:
        principal = verifier_for(ED).verify(token(**claims), NOW)
    except (TokenInvalid, TokenExpired):
        return
    assert isinstance(principal.subject, str)
    assert principal.expires_at is not None
    assert principal.expires_at > NOW


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) * 8 - 1))
def test_a_flipped_bit_never_verifies(bit: int) -> None:
    changed = bytearray(GOOD.encode())
    changed[bit // 8] ^= 1 << bit % 8
    refused(verifier_for(ED), changed.decode("latin-1"))


def test_no_other_spelling_of_a_token_verifies() -> None:
    """The last character of a signature carries bits that decoders usually ignore."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    verifier = verifier_for(ED)
    good = base64.urlsafe_b64decode(GOOD.split(".")[2] + "==")
    twins = [
        GOOD[:-1] + last
        for last in alphabet
        if base64.urlsafe_b64decode((GOOD[:-1] + last).split(".")[2] + "==") == good and GOOD[-1] != last
    ]
    assert twins
    for twin in [*twins, GOOD + "=", GOOD + "==", GOOD + "\n", " " + GOOD, GOOD.replace("-", "+").replace("_", "/") + "+"]:
        refused(verifier, twin)


def confusions(rs: DevIssuer, es: DevIssuer) -> dict[str, str]:
    """Return the classic attacks on `alg`, each aimed at the issuer of `rs`, which is configured for RS256."""
    claims = claims_for(rs)
    head = {"alg": "RS256", "kid": rs.kid}
    public = rs.public
    der = base64.b64decode("".join(public.decode().splitlines()[1:-1]))
    return {
        "none": forge({"alg": "none"}, claims, lambda _: b""),
        "none, with some signature": forge(head | {"alg": "none"}, claims, lambda _: b"x"),
        "None": forge(head | {"alg": "None"}, claims, lambda _: b"x"),
        "no alg": forge({"kid": rs.kid}, claims, signer(rs)),
        "empty alg": forge(head | {"alg": ""}, claims, signer(rs)),
        "alg a list": forge(head | {"alg": ["RS256"]}, claims, signer(rs)),
        "alg in lower case": forge(head | {"alg": "rs256"}, claims, signer(rs)),
        "HS256 keyed with the public PEM": forge(head | {"alg": "HS256"}, claims, hs256(public)),
        "HS256 keyed with the PEM, stripped": forge(head | {"alg": "HS256"}, claims, hs256(public.strip())),
        "HS256 keyed with the public DER": forge(head | {"alg": "HS256"}, claims, hs256(der)),
        "HS256 keyed with nothing": forge(head | {"alg": "HS256"}, claims, hs256(b"")),
        "PS256 by the RSA key itself": forge(head | {"alg": "PS256"}, claims, pss(rs)),
        "RS256 named, PS256 signed": forge(head, claims, pss(rs)),
        "RS384": mint_any(rs, "RS384", claims),
        "ES256 by another key": forge(head | {"alg": "ES256"}, claims, signer(es)),
        "a key of its own in jwk": forge(head | {"jwk": es.jwk, "alg": "ES256"}, claims, signer(es)),
        "a key of its own behind jku": forge(head | {"jku": "https://evil.test/"}, claims, signer(es)),
        "the signature of all zeros": forge(head, claims, lambda _: bytes(256)),
        "no signature": forge(head, claims, lambda _: b""),
        "crit": forge(head | {"crit": ["exp"]}, claims, signer(rs)),
        "crit, empty": forge(head | {"crit": []}, claims, signer(rs)),
        "b64": forge(head | {"b64": False}, claims, signer(rs)),
        "typ of a logout token": forge(head | {"typ": "logout+jwt"}, claims, signer(rs)),
        "typ no string": forge(head | {"typ": 1}, claims, signer(rs)),
        "kid no string": forge(head | {"kid": 1}, claims, signer(rs)),
        "kid empty": forge(head | {"kid": ""}, claims, signer(rs)),
        "kid endless": forge(head | {"kid": "k" * (MAX_KID_CHARACTERS + 1)}, claims, signer(rs)),
        "kid a path": forge(head | {"kid": "../../dev/null"}, claims, hs256(b"")),
        "header a list": forge([head], claims, signer(rs)),
        "claims a list": forge(head, [claims], signer(rs)),
        "claims a string": forge(head, b'"x"', signer(rs)),
        "claims in UTF-16": forge(head, json.dumps(claims).encode("utf-16"), signer(rs)),
        "claims with NaN": forge(head, b'{"exp":NaN}', signer(rs)),
        "claims too deep": forge(head, b"[" * 2000, signer(rs)),
        "another issuer": forge(head, claims_for(es), signer(rs)),
        "issuer unknown": forge(head, claims | {"iss": "https://evil.test/"}, signer(rs)),
        "issuer with a slash less": forge(head, claims | {"iss": rs.issuer.iss[:-1]}, signer(rs)),
        "issuer a list": forge(head, claims | {"iss": [rs.issuer.iss]}, signer(rs)),
        "no issuer": forge(head, {name: claims[name] for name in ("aud", "sub", "exp")}, signer(rs)),
    }


def pss(dev: DevIssuer) -> Callable[[bytes], bytes]:
    algorithm = jwt.get_algorithm_by_name("PS256")
    return lambda signed: algorithm.sign(signed, algorithm.prepare_key(dev.private))


def mint_any(dev: DevIssuer, algorithm: str, claims: dict[str, Any]) -> str:
    return jwt.encode(claims, dev.private, algorithm, headers={"kid": dev.kid})


def test_algorithm_confusion_and_header_tricks_open_nothing(devs: dict[str, DevIssuer]) -> None:
    verifier = verifier_for(*devs.values())
    verified = []
    for name, attack in confusions(devs["RS256"], devs["ES256"]).items():
        with contextlib.suppress(TokenInvalid):
            verified.append((name, verifier.verify(attack, NOW)))
    assert not verified
    assert verifier.verify(forge({"alg": "RS256"}, claims_for(devs["RS256"]), signer(devs["RS256"])), NOW)


def test_confusion_opens_nothing_even_where_the_issuer_allows_both(devs: dict[str, DevIssuer]) -> None:
    """One issuer with a secret and an RSA key: each token only verifies by the key of its own algorithm."""
    rs = devs["RS256"]
    issuer = Issuer("rs256", rs.issuer.iss, ("gateway",), frozenset(("RS256", "HS256", "PS256")))
    verifier = Verifier([issuer], secret=b"x")
    both = parse_keys("rs256", "secret", HS.private, algorithms=issuer.algorithms).keys
    both += parse_keys("rs256", "pem", rs.public, algorithms=issuer.algorithms, algorithm="RS256").keys
    verifier.replace("rs256", both)
    for key in (rs.public, b"", bytes(32)):
        with pytest.raises(TokenInvalid):
            verifier.verify(forge({"alg": "HS256"}, claims_for(rs), hs256(key)), NOW)
    for lie, sign in (("PS256", pss(rs)), ("PS256", signer(rs)), ("HS256", signer(rs)), ("RS256", hs256(HS.private))):
        with pytest.raises(TokenInvalid):
            verifier.verify(forge({"alg": lie}, claims_for(rs), sign), NOW)
    assert verifier.verify(forge({"alg": "HS256"}, claims_for(rs), hs256(HS.private)), NOW)
    assert verifier.verify(forge({"alg": "RS256"}, claims_for(rs), signer(rs)), NOW)


def test_typ_may_be_what_access_tokens_have() -> None:
    for typ in ("JWT", "jwt", "at+jwt", "application/at+jwt", "application/JWT"):
        assert verifier_for(ED).verify(forge({"alg": "EdDSA", "typ": typ}, claims_for(ED), signer(ED)), NOW)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": ...}, "exp"),
        ({"exp": None}, "exp"),
        ({"exp": str(int(NOW) + 60)}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": -1}, "exp"),
        ({"exp": 1e300}, "exp"),
        ({"exp": 253_402_300_800}, "exp"),
        ({"nbf": NOW + 31}, "nbf lies"),
        ({"nbf": "0"}, "nbf is"),
        ({"nbf": None}, "nbf is"),
        ({"iat": NOW + 31}, "iat lies"),
        ({"iat": [0]}, "iat is"),
        ({"sub": ...}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 5}, "sub"),
        ({"sub": ["alice"]}, "sub"),
        ({"sub": "a" * (MAX_SUBJECT_CHARACTERS + 1)}, "sub is longer"),
        ({"sub": "a\nb"}, "sub is longer"),
        ({"sub": "a\x00"}, "sub is longer"),
        ({"aud": ...}, "aud"),
        ({"aud": 5}, "aud"),
        ({"aud": {"gateway": 1}}, "aud"),
        ({"aud": ["gateway", 5]}, "aud"),
        ({"aud": []}, "meant for another"),
        ({"aud": "gatewa"}, "meant for another"),
        ({"aud": ["Gateway", "gateway "]}, "meant for another"),
        ({"scope": 5}, "scope"),
        ({"scope": None}, "scope"),
        ({"scp": [5]}, "scp"),
        ({"scp": {"a": 1}}, "scp"),
    ],
)
def test_a_claim_that_is_off_is_refused_though_the_signature_is_good(claims: dict[str, Any], reason: str) -> None:
    assert refused(verifier_for(ED), token(**claims)).startswith(reason)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 29},
        {"exp": NOW + 0.5},
        {"nbf": NOW + 30},
        {"iat": NOW + 30.0, "nbf": 0},
        {"sub": "a" * MAX_SUBJECT_CHARACTERS},
        {"sub": "Zoë|öö 日本"},
        {"aud": ["x", "gateway"]},
    ],
)
def test_a_claim_inside_its_bounds_is_taken(claims: dict[str, Any]) -> None:
    assert verifier_for(ED).verify(token(**claims), NOW)


def test_without_audiences_a_token_for_somebody_is_refused() -> None:
    dev = generate("corp", audiences=())
    assert verifier_for(dev).verify(dev.token("alice", now=NOW), NOW)
    assert refused(verifier_for(dev), dev.token("alice", now=NOW, aud="gateway")) == "meant for another audience"


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, set()),
        ({"scope": "a  b c:d "}, {"a", "b", "c:d"}),
        ({"scope": ["a b", "c"]}, {"a b", "c"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scp": ["a"], "scope": "b"}, {"a", "b"}),
        ({"scope": "a\tb"}, {"a\tb"}),
        ({"scope": "", "scp": [""]}, set()),
    ],
)
def test_scopes_are_split_at_spaces_or_listed(claims: dict[str, Any], scopes: set[str]) -> None:
    assert verifier_for(ED).verify(token(**claims), NOW).scopes == scopes


def test_claims_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        verifier_for(ED).verify(GOOD, NOW).claims["sub"] = "bob"  # type: ignore[index]


@pytest.mark.parametrize("cached", [False, True])
def test_the_end_is_one_instant_exp_plus_leeway(cached: bool) -> None:
    verifier = verifier_for(ED)
    if cached:
        verifier.verify(GOOD, NOW)
    end = NOW + 60 + 30
    assert verifier.verify(GOOD, end - 0.001).expires_at == end
    for _ in range(2):
        with pytest.raises(TokenExpired):
            verifier.verify(GOOD, end)


def test_expiry_is_told_only_to_who_has_a_good_token() -> None:
    forged = forge({"alg": "EdDSA"}, claims_for(ED, exp=1), lambda _: bytes(64))
    assert refused(verifier_for(ED), forged) == "bad signature"
    assert refused(verifier_for(ED), token(exp=1, aud="x")) == "meant for another audience"


def test_a_token_too_early_is_not_remembered_as_good_or_bad() -> None:
    verifier = verifier_for(ED)
    early = token(nbf=NOW + 40)
    assert refused(verifier, early) == "nbf lies in the future"
    assert verifier.match(early, NOW) is None
    assert verifier.verify(early, NOW + 10).subject == "alice"


def test_a_verified_token_is_found_again() -> None:
    verifier = verifier_for(ED)
    assert verifier.match(GOOD, NOW) is None
    principal = verifier.verify(GOOD, NOW)
    assert verifier.match(GOOD, NOW) is principal
    assert verifier.verify(GOOD, NOW) is principal
    assert repr(verifier) == "<Verifier keys {corp: 1} cached 1 generation 1>"


def test_a_kid_chooses_the_key() -> None:
    one, two = generate("corp", kid="1"), generate("corp", kid="2")
    verifier = Verifier([one.issuer], secret=b"x")
    keys = [key for dev in (one, two) for key in parse_keys("corp", "jwks", dev.jwks, algorithms=["EdDSA"]).keys]
    verifier.replace("corp", keys)
    assert verifier.verify(one.token("alice", now=NOW), NOW).key == keys[0].ref
    assert verifier.verify(two.token("alice", now=NOW), NOW).key == keys[1].ref
    swapped = mint(one.private, "EdDSA", claims_for(one), "2")
    assert refused(verifier, swapped) == "bad signature"
    assert verifier.verify(mint(two.private, "EdDSA", claims_for(two)), NOW).key == keys[1].ref  # no kid: all are tried


def test_an_unnamed_key_verifies_any_name() -> None:
    verifier = Verifier([ED.issuer], secret=b"x")
    verifier.replace("corp", parse_keys("corp", "pem", ED.public, algorithms=["EdDSA"]).keys)
    assert verifier.verify(GOOD, NOW)
    with pytest.raises(UnknownKey):
        verifier.verify(mint(generate().private, "EdDSA", claims_for(ED), "other"), NOW)
    assert refused(verifier, mint(generate().private, "EdDSA", claims_for(ED))) == "bad signature"


def test_only_a_name_that_no_key_has_is_an_unknown_key(devs: dict[str, DevIssuer]) -> None:
    """A known name with another algorithm, or with a bad signature, must send nobody to fetch keys."""
    rs = devs["RS256"]
    issuer = Issuer("rs256", rs.issuer.iss, ("gateway",), frozenset(("RS256", "PS256")))
    verifier = Verifier([issuer], secret=b"x")
    with pytest.raises(UnknownKey) as caught:
        verifier.verify(rs.token("alice", now=NOW), NOW)
    assert (caught.value.issuer, caught.value.kid) == ("rs256", "dev-1")
    with pytest.raises(UnknownKey):
        verifier.verify(mint(rs.private, "RS256", claims_for(rs)), NOW)
    verifier.replace("rs256", parse_keys("rs256", "jwks", rs.jwks, algorithms=issuer.algorithms).keys)
    assert refused(verifier, forge({"alg": "PS256", "kid": rs.kid}, claims_for(rs), pss(rs))) == "bad signature"
    with pytest.raises(UnknownKey):
        verifier.verify(forge({"alg": "RS256", "kid": "new"}, claims_for(rs), signer(rs)), NOW)


def test_a_token_costs_a_bounded_number_of_signatures() -> None:
    others = [generate("corp") for _ in range(MAX_CANDIDATES)]
    verifier = Verifier([ED.issuer], secret=b"x")
    keys = [key for dev in (*others, ED) for key in parse_keys("corp", "pem", dev.public, algorithms=["EdDSA"]).keys]
    verifier.replace("corp", keys)
    assert refused(verifier, mint(ED.private, "EdDSA", claims_for(ED))) == "bad signature"
    verifier.replace("corp", keys[1:])
    assert verifier.verify(mint(ED.private, "EdDSA", claims_for(ED)), NOW)


def test_a_withdrawn_key_takes_its_tokens_along_and_no_others() -> None:
    one, two = generate("corp", kid="1"), generate("corp", kid="2")
    verifier = Verifier([one.issuer], secret=b"x")
    keys = [key for dev in (one, two) for key in parse_keys("corp", "jwks", dev.jwks, algorithms=["EdDSA"]).keys]
    assert verifier.replace("corp", keys) == frozenset()
    tokens = [dev.token("alice", now=NOW) for dev in (one, two)]
    for text in tokens:
        verifier.verify(text, NOW)
    assert verifier.replace("corp", keys[::-1]) == frozenset()
    assert verifier.generation == 1
    assert verifier.replace("corp", keys[1:]) == {keys[0].ref}
    assert verifier.generation == 2
    assert verifier.match(tokens[0], NOW) is None
    assert verifier.match(tokens[1], NOW) is not None
    with pytest.raises(UnknownKey):
        verifier.verify(tokens[0], NOW)


def test_the_same_subject_of_two_issuers_is_two_principals(devs: dict[str, DevIssuer]) -> None:
    verifier = verifier_for(devs["ES256"], devs["EdDSA"])
    first, second = (verifier.verify(devs[name].token("alice", now=NOW), NOW) for name in ("ES256", "EdDSA"))
    assert first.id != second.id
    assert first != second
    assert hash(first) != hash(second)


@pytest.mark.parametrize(
    "change",
    [
        {"alias": ""},
        {"iss": ""},
        {"algorithms": frozenset()},
        {"algorithms": frozenset(("none",))},
        {"leeway": -1.0},
        {"leeway": 301.0},
    ],
)
def test_an_issuer_has_bounds(change: dict[str, Any]) -> None:
    good = {"alias": "corp", "iss": "https://a/", "audiences": (), "algorithms": frozenset(("RS256",))}
    Issuer(**good)
    with pytest.raises(ValueError, match="expected"):
        Issuer(**good | change)


def test_issuers_must_differ(devs: dict[str, DevIssuer]) -> None:
    one = devs["ES256"].issuer
    for other in (Issuer("x", one.iss, (), one.algorithms), Issuer(one.alias, "x", (), one.algorithms)):
        with pytest.raises(ValueError, match="differ"):
            Verifier([one, other], secret=b"x")


def test_a_token_of_surrogates_is_refused() -> None:
    assert refused(verifier_for(ED), "a\udc80.b.c") == "not ASCII"


def test_lone_surrogates_in_claims_are_refused() -> None:
    signed = forge({"alg": "EdDSA"}, b'{"iss":"\\ud800"}', signer(ED))
    assert refused(verifier_for(ED), signed) == "not JSON"


def test_hs256_is_not_fooled_by_length() -> None:
    text = HS.token("alice", now=NOW)
    assert verifier_for(HS).verify(text, NOW)
    refused(verifier_for(HS), f"{text.rsplit('.', 1)[0]}.{b64(b'short')}")
