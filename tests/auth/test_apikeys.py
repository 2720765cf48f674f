"""API keys: their form, their hashes, and what becomes of them."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from auth.identities import NOW
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import apikeys
from gateway.auth.apikeys import ApiKey, Keyring, entry, hashed, make, moment
from gateway.auth.principal import KeyRef
from gateway.auth.tokens import Issuer, UnknownKey
from gateway.errors import TokenExpired, TokenInvalid, TokenRevoked

SECRET = bytes(range(32))
KEY = make("ci", SECRET)
OTHER = make("ci", bytes(32))


def api_key(id_: str = "ci", text: str = KEY, **given: Any) -> ApiKey:
    return ApiKey(id_, hashed(text), **({"subject": "ci"} | given))


class TestForm:
    def test_a_key_is_prefix_id_secret_and_checksum(self):
        """As secret scanners look for it, and as a bearer token may be (RFC 6750, section 2.1)."""
        assert re.fullmatch(r"gwk_ci_[0-9A-Za-z]{49}", KEY)
        assert re.fullmatch(r"[A-Za-z0-9._~+/-]+", KEY)
        assert make("ci", bytes(32))[7:50] == "0" * 43
        assert len(make("ci", b"\xff" * 32)) == len(KEY)

    @given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
    def test_every_secret_has_its_own_key(self, one: bytes, other: bytes):
        """All of the 256 bits are in it."""
        assert (make("a", one) == make("a", other)) == (one == other)

    @pytest.mark.parametrize(
        ("id_", "random"), [("", SECRET), ("A", SECRET), ("a_b", SECRET), ("a" * 33, SECRET), ("a", b"x" * 31)]
    )
    def test_what_cannot_be_a_key_is_not_made(self, id_: str, random: bytes):
        """The id has no underscore, so that a key is taken apart in one way."""
        with pytest.raises(ValueError, match="expected an id"):
            make(id_, random)

    def test_what_is_stored_is_the_plain_hash_of_the_whole(self):
        """So that an operator can find out by himself whose key he has before him."""
        assert hashed(KEY) == "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()

    @given(st.integers(0, len(KEY) - 1), st.sampled_from("0aZ_-b9x"))
    def test_a_typo_is_no_unknown_key(self, place: int, character: str):
        """One wrong character anywhere, also in the id, sends nobody to look at the file."""
        typo = KEY[:place] + character + KEY[place + 1 :]
        for keyring in (Keyring(), Keyring([api_key()])):
            if typo != KEY:
                with pytest.raises(TokenInvalid) as caught:
                    keyring.verify(typo, NOW)
                assert not isinstance(caught.value, UnknownKey)


class TestEntries:
    def test_an_entry_has_every_value(self):
        """As it is written in YAML."""
        members = {
            "hash": hashed(KEY),
            "subject": "ci",
            "scopes": ["b", "a"],
            "claims": {"team": "x"},
            "expires": "2027-01-01",
            "revoked": "2026-12-01T00:00:00Z",
        }
        key = entry("ci", members)
        assert key == api_key(
            scopes=frozenset("ab"), claims={"team": "x"}, expires_at=1_798_761_600.0, revoked_at=1_796_083_200.0
        )
        least = {"hash": hashed(KEY), "subject": "ci", "scopes": None, "claims": None, "expires": None}
        assert entry("ci", least) == api_key()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hash": None}, "expected hash as text"),
            ({"hash": "sha256:" + "A" * 64}, "expected as hash sha256:"),
            ({"hash": hashed(KEY) + "\n"}, "expected as hash sha256:"),
            ({"subject": 5}, "expected subject as text"),
            ({"subject": ""}, "expected a subject"),
            ({"subject": "a\nb"}, "expected a subject"),
            ({"subject": "a" * 256}, "expected a subject"),
            ({"scopes": "a b"}, "expected scopes as a list"),
            ({"scopes": [5]}, "expected scopes as a list"),
            ({"scopes": ["a b"]}, "expected scopes without spaces"),
            ({"scopes": [""]}, "expected scopes without spaces"),
            ({"claims": ["a"]}, "expected claims as a mapping"),
            ({"claims": {"sub": "root"}}, "expected claims other than"),
            ({"claims": {"a": "x" * 9000}}, "expected claims of at most"),
            ({"claims": {"a": {1: 2}}}, "expected claims as JSON has them"),
            ({"claims": {"a": "\ud800"}}, "expected claims as JSON has them"),
            ({"expires": "soon"}, "expected a date"),
            ({"expires": 5}, "expected expires as text"),
            ({"revoked": "2026-13-01"}, "expected a date"),
            ({"revoke": True}, "no other keys than claims, expires, hash"),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, object], message: str):
        """Nothing is guessed, and nothing converted."""
        with pytest.raises(ValueError, match=message):
            entry("ci", {"hash": hashed(KEY), "subject": "ci"} | change)

    def test_an_entry_is_a_mapping_under_an_id(self):
        """What is none has no key."""
        with pytest.raises(ValueError, match="expected a mapping"):
            entry("ci", "sha256:")
        with pytest.raises(ValueError, match="expected an id"):
            entry("C_I", {"hash": hashed(KEY), "subject": "ci"})

    def test_a_date_begins_at_midnight_in_utc(self):
        """RFC 3339 for all else."""
        assert moment("1970-01-02") == 86_400.0
        assert moment("1970-01-02T02:00:00.5+02:00") == 86_400.5

    def test_secrets_and_claims_are_not_shown(self):
        """A log has room for neither."""
        shown = repr(api_key(claims={"mail": "a@b"}))
        assert "a@b" not in shown
        assert SECRET.hex() not in shown


class TestKeyring:
    def test_a_key_stands_for_its_principal(self):
        """With the claims that a token would have, so that rules and templates need not know the difference."""
        keyring = Keyring([api_key(scopes=frozenset(("b", "a")), claims={"team": "x"}, expires_at=NOW + 1)])
        principal = keyring.verify(KEY, NOW)
        assert principal.id == (apikeys.API_KEYS, "ci")
        assert principal.claims == {"iss": "apikeys", "sub": "ci", "scope": "a b", "team": "x"}
        assert (principal.scopes, principal.expires_at) == ({"a", "b"}, NOW + 1)
        assert principal.key == KeyRef("apikeys", "ci", "sha256", principal.key.fingerprint)
        assert keyring.verify(KEY, NOW) is principal
        assert "scope" not in Keyring([api_key()]).verify(KEY, NOW).claims

    def test_who_has_not_the_secret_is_told_nothing(self):
        """Not even that the key is revoked or expired."""
        for key in (api_key(), api_key(revoked_at=NOW), api_key(expires_at=NOW)):
            with pytest.raises(TokenInvalid):
                Keyring([key]).verify(OTHER, NOW)

    @pytest.mark.parametrize("text", ["", "gwk_", "gwk_ci_x", KEY + "0", KEY + "\n", "é" + KEY, KEY.upper(), "\udc80" * 60])
    def test_what_is_no_key_is_invalid(self, text: str):
        """Any text gives the documented error."""
        with pytest.raises(TokenInvalid):
            Keyring([api_key()]).verify(text, NOW)

    def test_an_unknown_key_is_worth_a_look(self):
        """Its name and issuer are what a source of keys is asked by."""
        with pytest.raises(UnknownKey) as caught:
            Keyring().verify(KEY, NOW)
        assert (caught.value.issuer, caught.value.kid) == ("apikeys", "ci")

    def test_its_time_is_over(self):
        """At the instant, as for tokens; no leeway, for there is one clock only."""
        keyring = Keyring([api_key(expires_at=NOW)])
        keyring.verify(KEY, NOW - 0.1)
        with pytest.raises(TokenExpired):
            keyring.verify(KEY, NOW)

    def test_a_revoked_key_says_so_to_who_has_it(self):
        """Revoked is more than expired."""
        with pytest.raises(TokenRevoked):
            Keyring([api_key(revoked_at=NOW, expires_at=NOW - 1)]).verify(KEY, NOW)

    def test_what_goes_is_withdrawn_and_no_other(self):
        """Gone, revoked, or changed in anything that it stands for."""
        keyring = Keyring()
        assert keyring.replace([api_key("a"), api_key("b")]) == frozenset()
        generation = keyring.generation
        assert keyring.replace([api_key("a"), api_key("b")]) == frozenset()
        assert keyring.generation == generation
        assert keyring.replace([api_key("a"), api_key("b", revoked_at=NOW)]) == {api_key("b").ref}
        assert keyring.generation == generation + 1
        assert keyring.replace([api_key("b", revoked_at=NOW)]) == {api_key("a").ref}
        assert keyring.replace([]) == frozenset()
        assert repr(keyring) == f"<Keyring 0 generation {generation + 3}>"

    @pytest.mark.parametrize(
        "change",
        [
            {"text": OTHER},
            {"subject": "cd"},
            {"scopes": frozenset("a")},
            {"claims": {"a": 1}},
            {"expires_at": NOW},
        ],
    )
    def test_a_key_that_stands_for_something_else_is_another(self, change: dict[str, Any]):
        """Else a poll that is parked would go on with the rights that it had."""
        keyring = Keyring()
        keyring.replace([api_key()])
        assert keyring.replace([api_key(**change)]) == {api_key().ref}

    def test_keys_that_are_given_stay(self):
        """A file takes nothing from the configuration."""
        keyring = Keyring([api_key()])
        assert keyring.replace([api_key(text=OTHER), api_key("b")]) == frozenset()
        assert keyring.verify(KEY, NOW).subject == "ci"
        assert len(keyring) == 2


def test_no_issuer_has_the_alias():
    """Its tokens would pass for API keys in rules, limits and logs."""
    with pytest.raises(ValueError, match="another alias than apikeys"):
        Issuer("apikeys", "https://a.test/", (), frozenset(("EdDSA",)))
