"""Whether a rule may let somebody pass, before the path parameters are known: only to decide what to list (sans-I/O)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.auth.policy import All, AnyOf, Contains, Equals, Rule, Scope
from gateway.auth.principal import Principal
from gateway.auth.templates import Header, Parameter, Template, Text
from gateway.errors import Forbidden

_ANYTHING = "(?s:.+)"


def possible(rule: Rule, principal: Principal, value: str = _ANYTHING) -> bool:
    """Tell whether some path parameters pass the rule, each condition by itself.

    `value` is a regular expression of what a parameter may be.
    """
    match rule:
        case All(rules):
            return all(possible(each, principal, value) for each in rules)
        case AnyOf(rules):
            return any(possible(each, principal, value) for each in rules)
        case Scope(scope):
            return _some(scope, principal, principal.scopes, value)
        case Contains(claim, member):
            given = principal.claims.get(claim)
            if isinstance(given, str):
                given = given.split(" ") if claim == "scope" else [given]
            return isinstance(given, list) and _some(member, principal, given, value)
        case Equals(claim, text):
            return _some(text, principal, [principal.claims.get(claim)], value)
    return rule.allows(principal, {})


def shape(template: Template, principal: Principal, value: str = _ANYTHING) -> re.Pattern[str] | None:
    """Build a pattern of all texts that the template can give this principal; None where a claim is unusable."""
    pattern = ""
    for part in template.parts:
        match part:
            case Text(text):
                pattern += re.escape(text)
            case Parameter():
                pattern += value
            case Header():
                pattern += _ANYTHING
            case _:
                try:
                    pattern += re.escape(Template((part,), template.separators).expand(principal, {}))
                except Forbidden:
                    return None
    return re.compile(pattern)


def _some(template: Template, principal: Principal, values: Iterable[object], value: str) -> bool:
    pattern = shape(template, principal, value)
    return pattern is not None and any(isinstance(given, str) and pattern.fullmatch(given) for given in values)
