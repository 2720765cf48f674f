"""What may pass a rule is found before anything is asked for; tests of channels try each kind of rule."""

import pytest

from gateway.auth.policy import NOBODY, parse_rule
from gateway.auth.possible import possible, shape
from gateway.auth.principal import Principal
from gateway.auth.templates import parse_template

CALLER = Principal("main", "ann", {"sub": "ann", "teams": ["a/b", "ops"]}, frozenset({"read:7"}), None, None)


@pytest.mark.parametrize(
    ("rule", "value", "passes"),
    [
        ({"scope": "read:{id}"}, "[0-9]", True),
        ({"scope": "read:{id}"}, "[a-z]", False),
        ({"claim": "teams", "contains": "a{team}"}, "/b", True),
        ({"claim": "teams", "contains": "{team}/{team2}"}, "[a-z]", True),
        ({"any": [{"scope": "x"}, {"claim": "sub", "equals": "{who}"}]}, "[a-z]+", True),
        ({"all": [{"scope": "x"}, {"claim": "sub", "equals": "{who}"}]}, "[a-z]+", False),
    ],
)
def test_a_parameter_is_what_its_kind_of_path_lets_it_be(rule, value, passes):
    assert possible(parse_rule(rule, absent=NOBODY), CALLER, value) is passes


def test_without_a_kind_it_is_any_text_but_none():
    assert possible(parse_rule({"claim": "teams", "contains": "a{team}"}, absent=NOBODY), CALLER)
    assert not possible(parse_rule({"claim": "teams", "contains": "ops{team}"}, absent=NOBODY), CALLER)


def test_what_stands_for_nobody_passes_nothing():
    assert not possible(NOBODY, CALLER)


def test_a_header_may_be_anything_and_a_claim_is_what_it_is():
    pattern = shape(parse_template("{claims.sub}:{headers.X-A}", headers=True), CALLER)
    assert pattern is not None
    assert pattern.fullmatch("ann:\nx")
    assert not pattern.fullmatch("bob:x")
    assert shape(parse_template("{claims.none}"), CALLER) is None
