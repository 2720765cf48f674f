"""Templates fill in claims and path parameters, never in a way that two callers could share by trickery."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.auth.principal import Principal
from gateway.auth.templates import Claim, Header, Parameter, Template, Text, parse_template
from gateway.errors import Forbidden


def principal(**claims: object) -> Principal:
    return Principal("corp", "alice", MappingProxyType({"sub": "alice"} | claims), frozenset(), None, None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", [Text("a")]),
        ("{room}", [Parameter("room")]),
        ("{claims}", [Parameter("claims")]),
        ("{claims.sub}", [Claim("sub")]),
        ("{claims.x-1_Y}", [Claim("x-1_Y")]),
        ('{claims."https://a.example/b"}', [Claim("https://a.example/b")]),
        ('{claims."a.{b}"}', [Claim("a.{b}")]),
        ("x/{room}/y", [Text("x/"), Parameter("room"), Text("/y")]),
        ("{{x}}", [Text("{x}")]),
        ("{{{room}}}", [Text("{"), Parameter("room"), Text("}")]),
        ("{a}:{claims.b}", [Parameter("a"), Text(":"), Claim("b")]),
    ],
)
def test_a_template_is_parsed_once(text: str, parts: list[object]) -> None:
    assert list(parse_template(text).parts) == parts


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{}", "{a", "a}", "{a.b}", "{claims.}", "{claims.a.b}", '{claims."a}', '{claims.""}', "{1a}", "{a b}", "{é}"],
)
def test_what_is_no_template_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected text with \{parameter\}, \{claims.name\}"):
        parse_template(text)


@pytest.mark.parametrize("value", ["", None, 5, ["a"]])
def test_a_template_is_a_non_empty_string(value: object) -> None:
    with pytest.raises(ValueError, match="non-empty string"):
        parse_template(value)


def test_only_parameters_of_the_channel_may_be_used() -> None:
    assert parse_template("{room}", parameters=["room", "other"]).parameters == {"room"}
    with pytest.raises(ValueError, match=r"channel's name: \{a\}, \{b\}"):
        parse_template("{room}", parameters=["b", "a"])
    with pytest.raises(ValueError, match="none"):
        parse_template("{room}", parameters=[])


def test_a_template_knows_what_it_uses() -> None:
    template = parse_template("{a}/{claims.b}/{claims.c}")
    assert template.parameters == {"a"}
    assert template.claims == {"b", "c"}
    assert template.separators == {"/"}


def test_expansion_joins_text_claims_and_parameters() -> None:
    template = parse_template("t/{claims.sub}/{room}")
    assert template.expand(principal(), {"room": "42"}) == "t/alice/42"
    assert parse_template("fixed").expand(None, {}) == "fixed"


@pytest.mark.parametrize("value", [None, "", 5, True, 1.5, ["alice"], {"a": "b"}])
def test_a_claim_that_is_no_string_opens_nothing(value: object) -> None:
    with pytest.raises(Forbidden):
        parse_template("{claims.x}").expand(principal(x=value), {})


def test_header_fields_are_filled_in_where_they_are_allowed() -> None:
    """Names are found as the mapping finds them."""
    template = parse_template("{headers.X-Tenant}/{claims.sub}", headers=True)
    assert list(template.parts) == [Header("X-Tenant"), Text("/"), Claim("sub")]
    assert template.parameters == frozenset()
    assert template.expand(principal(), {}, CIMultiDict({"x-tenant": "acme"})) == "acme/alice"
    for headers in ({}, {"X-Tenant": ""}, {"X-Tenant": "a/b"}):
        with pytest.raises(Forbidden):
            template.expand(principal(), {}, headers)
    with pytest.raises(Forbidden):
        template.expand(principal(), {})


def test_what_a_caller_makes_up_decides_nothing() -> None:
    """Where header fields are not asked for, one in a template is a mistake."""
    with pytest.raises(ValueError, match=r"expected text with \{parameter\}, \{claims.name\}"):
        parse_template("{headers.X-Tenant}")
    with pytest.raises(ValueError, match=r"\{headers.Name\}"):
        parse_template("{headers.a b}", headers=True)


def test_what_is_absent_opens_nothing() -> None:
    for template, who in (("{claims.x}", principal()), ("{claims.sub}", None), ("{room}", principal(room="1"))):
        with pytest.raises(Forbidden):
            parse_template(template).expand(who, {"other": "1"})
    with pytest.raises(Forbidden):
        parse_template("{room}").expand(principal(), {"room": ""})


@pytest.mark.parametrize("text", ["{a}{b}", "{a}-{b}", "{claims.a}{b}", "{a}.x_1~{claims.b}", "{a}:{b}-{c}"])
def test_placeholders_that_could_run_together_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="between two placeholders"):
        parse_template(text)


def test_a_value_cannot_move_the_border_between_placeholders() -> None:
    template = parse_template("{claims.tenant}:{room}")
    assert template.expand(principal(tenant="a"), {"room": "b-c"}) == "a:b-c"
    for tenant, room in (("a:b", "c"), ("a", "b:c")):
        with pytest.raises(Forbidden):
            template.expand(principal(tenant=tenant), {"room": room})


values = st.text("a:/-", min_size=1, max_size=4)


@given(st.sampled_from(["{claims.a}:{b}", "{claims.a}/-:{b}", "x{b}-/{claims.a}:", "{b}::{claims.a}"]), *[values] * 4)
def test_different_values_never_give_the_same_text(text: str, a: str, b: str, c: str, d: str) -> None:
    template = parse_template(text)
    try:
        first = template.expand(principal(a=a), {"b": b})
        second = template.expand(principal(a=c), {"b": d})
    except Forbidden:
        return
    assert (first == second) == ((a, b) == (c, d))


@given(st.text("{}a.\"claims:'", max_size=30))
def test_any_text_is_a_template_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse_template(text), Template)
    except ValueError as error:
        assert str(error).startswith("expected")  # noqa: PT017  # no error is fine as well
