"""Rules open what they say and nothing else; what is off in one is told with its place."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.policy import (
    AUTHENTICATED,
    MAX_BRANCHES,
    MAX_DEPTH,
    NOBODY,
    All,
    AnyOf,
    Contains,
    Equals,
    Issuers,
    Rule,
    Scope,
    check,
    parse_rule,
    trusts_any_issuer,
)
from gateway.auth.principal import Principal
from gateway.auth.templates import parse_template
from gateway.errors import Forbidden


def principal(issuer: str = "corp", scopes: str = "", **claims: object) -> Principal:
    everything = MappingProxyType({"sub": "alice", **claims})
    return Principal(issuer, "alice", everything, frozenset(scopes.split()), None, None)


def parse(value: object, **known: Any) -> Rule:
    return parse_rule(value, absent=NOBODY, **known)


def allowed(value: object, who: Principal, **params: str) -> bool:
    rule = parse(value)
    try:
        check(rule, who, params)
    except Forbidden:
        return False
    return True


def test_each_form_becomes_its_rule() -> None:
    room = parse_template("{room}")
    assert parse({"scope": "{room}"}) == Scope(room)
    assert parse({"claim": "rooms", "contains": "{room}"}) == Contains("rooms", room)
    assert parse({"claim": "room", "equals": "{room}"}) == Equals("room", room)
    assert parse({"issuers": ["a", "b"]}) == Issuers(frozenset(("a", "b")))
    assert parse({"authenticated": True}) == AUTHENTICATED
    assert parse({"all": [{"scope": "{room}"}]}) == All((Scope(room),))
    assert parse({"any": [{"scope": "{room}"}, {"issuers": ["a"]}]}) == AnyOf((Scope(room), Issuers(frozenset(("a",)))))
    assert parse({"claim": "r", "equals": "{room}", "scope": "{room}"}) == All((Equals("r", room), Scope(room)))


def test_nothing_configured_is_what_the_caller_says() -> None:
    assert parse_rule(None, absent=AUTHENTICATED) is AUTHENTICATED
    assert parse_rule(None, absent=NOBODY) is NOBODY
    check(AUTHENTICATED, principal(), {})
    with pytest.raises(Forbidden):
        check(NOBODY, principal(), {})


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [("orders:read", True), ("x orders:read", True), ("orders:readx", False), ("orders", False), ("", False)],
)
def test_a_scope_is_held_whole(scopes: str, expected: bool) -> None:
    assert allowed({"scope": "orders:read"}, principal(scopes=scopes)) is expected


def test_a_scope_may_name_the_room() -> None:
    assert allowed({"scope": "chat:{room}"}, principal(scopes="chat:42"), room="42")
    assert not allowed({"scope": "chat:{room}"}, principal(scopes="chat:42"), room="4")
    assert not allowed({"scope": "chat:{room}"}, principal(scopes="chat:"))


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        (["room42"], True),
        (["a", "room42", 5], True),
        ("room42", True),
        (["room4"], False),
        (["room421"], False),
        (["Room42"], False),
        (["room42 "], False),
        ("room42 room43", False),
        ("room421", False),
        ("", False),
        ([], False),
        ([["room42"]], False),
        ({"room42": True}, False),
        (42, False),
        (True, False),
        (None, False),
    ],
)
def test_contains_is_membership_by_exact_equality(rooms: object, expected: bool) -> None:
    assert allowed({"claim": "rooms", "contains": "{room}"}, principal(rooms=rooms), room="room42") is expected


def test_a_number_is_not_its_digits() -> None:
    assert not allowed({"claim": "rooms", "contains": "{room}"}, principal(rooms=[42, True, None]), room="42")


def test_contains_splits_scope_and_nothing_else() -> None:
    assert allowed({"claim": "scope", "contains": "b"}, principal(scope="a b"))
    assert not allowed({"claim": "scp", "contains": "b"}, principal(scp="a b"))


@pytest.mark.parametrize("params", [{}, {"room": ""}])
def test_without_the_parameter_nothing_opens(params: dict[str, str]) -> None:
    for rule in ({"contains": "{room}"}, {"equals": "{room}"}):
        assert not allowed({"claim": "rooms", **rule}, principal(rooms=["", None]), **params)
        assert not allowed({"claim": "rooms", **rule}, principal(rooms=""), **params)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("acme", True), ("acme2", False), ("acm", False), (["acme"], False), (None, False), ("", False), (5, False)],
)
def test_equals_is_exact(value: object, expected: bool) -> None:
    assert allowed({"claim": "tenant", "equals": "acme"}, principal(tenant=value)) is expected


def test_an_absent_claim_opens_nothing() -> None:
    assert not allowed({"claim": "tenant", "equals": "{claims.tenant}"}, principal())
    assert not allowed({"claim": "rooms", "contains": "x"}, principal())


def test_another_issuers_subject_opens_nothing_where_issuers_are_named() -> None:
    rule = {"issuers": ["corp"], "claim": "sub", "equals": "alice"}
    assert allowed(rule, principal("corp"))
    assert not allowed(rule, principal("partner"))


def test_all_and_any_combine() -> None:
    rule = {"any": [{"scope": "admin"}, {"all": [{"scope": "read"}, {"claim": "rooms", "contains": "{room}"}]}]}
    assert allowed(rule, principal(scopes="admin"), room="1")
    assert allowed(rule, principal(scopes="read", rooms=["1"]), room="1")
    assert not allowed(rule, principal(scopes="read", rooms=["2"]), room="1")
    assert not allowed(rule, principal(rooms=["1"]), room="1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("orders:read", "^expected a mapping"),
        ([], "^expected a mapping"),
        ({}, "^expected a mapping"),
        ({"scopes": "a"}, "^expected no other keys than scope, issuers, authenticated, all, any, claim"),
        ({5: "a"}, "^expected no other keys"),
        ({"scope": ""}, "^scope: expected a non-empty string"),
        ({"scope": ["a"]}, "^scope: expected a non-empty string"),
        ({"scope": "{a.b}"}, "^scope: expected text with"),
        ({"claim": "a"}, "^expected claim, the name of one, with either"),
        ({"contains": "a"}, "^expected claim"),
        ({"claim": "", "contains": "a"}, "^expected claim"),
        ({"claim": 5, "contains": "a"}, "^expected claim"),
        ({"claim": "a", "contains": "a", "equals": "a"}, "^expected claim"),
        ({"claim": "a", "contains": 5}, "^contains: expected a non-empty string"),
        ({"claim": "a", "equals": True}, "^equals: expected a non-empty string"),
        ({"issuers": "corp"}, "^issuers: expected a list"),
        ({"issuers": []}, "^issuers: expected a list"),
        ({"issuers": [5]}, "^issuers: expected a list"),
        ({"issuers": ["nobody"]}, "^issuers: expected issuers out of corp, partner"),
        ({"authenticated": False}, "^authenticated: expected true"),
        ({"authenticated": 1}, "^authenticated: expected true"),
        ({"all": []}, "^all: expected a list of rules"),
        ({"any": {"scope": "a"}}, "^any: expected a list of rules"),
        ({"any": [{"scope": "a"}, None]}, r"^any\[1\]: expected a mapping"),
        ({"all": [{"any": [{"scope": "{nope}"}]}]}, r"^all\[0\].any\[0\].scope: expected no parameters but"),
    ],
)
def test_what_is_no_rule_is_told_with_its_place(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(value, parameters=["room"], issuers=["partner", "corp"])


def test_without_any_issuer_none_can_be_named() -> None:
    with pytest.raises(ValueError, match="out of none"):
        parse({"issuers": ["corp"]}, issuers=[])


def test_depth_and_size_are_bounded() -> None:
    rule: dict[str, Any] = {"scope": "a"}
    for _ in range(MAX_DEPTH):
        rule = {"all": [rule]}
    parse(rule)
    with pytest.raises(ValueError, match="at most"):
        parse({"all": [rule]})
    parse({"any": [{"scope": "a"}] * (MAX_BRANCHES - 1)})
    with pytest.raises(ValueError, match="at most"):
        parse({"any": [{"scope": "a"}] * MAX_BRANCHES})


CLAIM = {"claim": "rooms", "contains": "1"}
CORP = {"issuers": ["corp"]}


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        (None, "fixed", False),
        (None, "{claims.sub}", False),  # nobody passes, so nobody speaks for others
        ({"authenticated": True}, "fixed", False),
        ({"authenticated": True}, "{claims.sub}", True),
        ({"scope": "a"}, "fixed", False),
        ({"scope": "a"}, "{claims.sub}", True),
        ({"scope": "x:{claims.sub}"}, "fixed", True),
        (CLAIM, "fixed", True),
        ({"claim": "a", "equals": "b"}, "fixed", True),
        (CORP, "{claims.sub}", False),
        (CORP | CLAIM, "{claims.sub}", False),
        ({"all": [CORP, {"any": [CLAIM, {"scope": "a"}]}]}, "{claims.sub}", False),
        ({"any": [CORP | CLAIM, {"scope": "a"}]}, "fixed", False),
        ({"any": [CORP | CLAIM, {"scope": "a"}]}, "{claims.sub}", True),
        ({"any": [CORP | CLAIM, CLAIM]}, "fixed", True),
        ({"any": [CORP, {"issuers": ["b"]}]}, "{claims.sub}", False),
    ],
)
def test_claims_without_named_issuers_are_found(value: object, key: str, expected: bool) -> None:
    assert trusts_any_issuer(parse(value), parse_template(key)) is expected


rules = st.recursive(
    st.none() | st.booleans() | st.text("ab{}", max_size=4) | st.lists(st.text("ab", max_size=2), max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["scope", "claim", "contains", "equals", "issuers", "authenticated", "all", "any"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(rules)
def test_any_configuration_is_a_rule_or_a_value_error(value: object) -> None:
    try:
        rule = parse(value)
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017  # no error is fine as well
    else:
        assert rule.allows(principal(a="a", b=["b"]), {"a": "a"}) in (True, False)
        assert rule.guarded in (True, False)
