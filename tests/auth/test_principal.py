"""A principal is its issuer and subject, and keeps its claims to itself."""

from __future__ import annotations

from types import MappingProxyType

from gateway.auth.principal import KeyRef, Principal


def test_claims_and_fingerprints_are_not_shown() -> None:
    key = KeyRef("corp", "1", "HS256", "fingerprint-of-a-secret")
    principal = Principal("corp", "alice", MappingProxyType({"email": "a@x.test"}), frozenset(), 5.0, key)
    assert principal.id == ("corp", "alice")
    assert "a@x.test" not in repr(principal)
    assert "fingerprint-of" not in repr(principal)
    assert hash(principal) == hash(Principal("corp", "alice", {}, frozenset(), 5.0, key))
    assert principal != Principal("corp", "alice", {}, frozenset(), 5.0, key)


def test_a_key_replaced_under_its_old_name_is_another_key() -> None:
    assert KeyRef("corp", "1", "RS256", "a") != KeyRef("corp", "1", "RS256", "b")
