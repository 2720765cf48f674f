"""Rules that decide who may use a channel (sans-I/O).

A rule is written as a mapping; several conditions in one mapping must all hold:

    {scope: "orders:read"}                        the token has this scope
    {claim: rooms, contains: "{room}"}            the claim, a list, has this string as one of its members
    {claim: tenant, equals: "acme"}               the claim is exactly this string
    {issuers: [corp]}                             the token is of one of these issuers, by alias
    {authenticated: true}                         any principal
    {all: [rule, …]}  {any: [rule, …]}            every, or at least one, of the rules

The strings to compare with are templates. Nothing is ever converted or compared in part: a claim that is absent, empty or
of another type opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, final

from gateway.auth.principal import Principal
from gateway.auth.templates import Template, parse_template
from gateway.errors import Forbidden

MAX_DEPTH = 8
MAX_BRANCHES = 64


class Rule(Protocol):
    """Decides from a principal and the path parameters."""

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether the principal may; a value that cannot be had is a no."""
        ...

    @property
    def guarded(self) -> bool:
        """Tell whether only named issuers' principals can pass."""
        ...

    @property
    def trusts_claims(self) -> bool:
        """Tell whether a claim opens this without its issuer being named."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Authenticated:
    """Any principal."""

    guarded: ClassVar[bool] = False
    trusts_claims: ClassVar[bool] = False

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:  # noqa: ARG002  # Rule
        """Tell that it may."""
        return True


@final
@dataclass(frozen=True, slots=True)
class Nobody:
    """No principal."""

    guarded: ClassVar[bool] = True
    trusts_claims: ClassVar[bool] = False

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:  # noqa: ARG002  # Rule
        """Tell that it may not."""
        return False


@final
@dataclass(frozen=True, slots=True)
class Issuers:
    """Principals of these issuers."""

    aliases: frozenset[str]
    guarded: ClassVar[bool] = True
    trusts_claims: ClassVar[bool] = False

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:  # noqa: ARG002  # Rule
        """Tell whether the principal is of one of them."""
        return principal.issuer in self.aliases


@final
@dataclass(frozen=True, slots=True)
class Scope:
    """Principals whose token has a scope."""

    scope: Template
    guarded: ClassVar[bool] = False

    @property
    def trusts_claims(self) -> bool:
        """Tell whether the name of the scope is made of claims."""
        return bool(self.scope.claims)

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether it is one of the token's scopes."""
        return _expanded(self.scope, principal, params) in principal.scopes


@final
@dataclass(frozen=True, slots=True)
class Contains:
    """Principals of whose claim, a list, a text is a member."""

    claim: str
    member: Template
    guarded: ClassVar[bool] = False
    trusts_claims: ClassVar[bool] = True

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether it is; a string claim is its own only member, but `scope` is a list with spaces between."""
        value = principal.claims.get(self.claim)
        if isinstance(value, str):
            members: object = value.split(" ") if self.claim == "scope" else [value]
        else:
            members = value
        wanted = _expanded(self.member, principal, params)
        # No number or truth value equals a string, so the comparison needs no look at the members' types.
        return wanted is not None and isinstance(members, list) and wanted in members


@final
@dataclass(frozen=True, slots=True)
class Equals:
    """Principals whose claim is exactly a text."""

    claim: str
    text: Template
    guarded: ClassVar[bool] = False
    trusts_claims: ClassVar[bool] = True

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether it is."""
        value = principal.claims.get(self.claim)
        return isinstance(value, str) and value == _expanded(self.text, principal, params)


@final
@dataclass(frozen=True, slots=True)
class All:
    """Principals that pass every rule."""

    rules: tuple[Rule, ...]

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether it passes all."""
        return all(rule.allows(principal, params) for rule in self.rules)

    @property
    def guarded(self) -> bool:
        """Tell whether one of the rules names issuers."""
        return any(rule.guarded for rule in self.rules)

    @property
    def trusts_claims(self) -> bool:
        """Tell whether a rule trusts claims, and no other names issuers."""
        return not self.guarded and any(rule.trusts_claims for rule in self.rules)


@final
@dataclass(frozen=True, slots=True)
class AnyOf:
    """Principals that pass at least one rule."""

    rules: tuple[Rule, ...]

    def allows(self, principal: Principal, params: Mapping[str, str]) -> bool:
        """Tell whether it passes one."""
        return any(rule.allows(principal, params) for rule in self.rules)

    @property
    def guarded(self) -> bool:
        """Tell whether every rule names issuers."""
        return all(rule.guarded for rule in self.rules)

    @property
    def trusts_claims(self) -> bool:
        """Tell whether some rule trusts claims."""
        return any(rule.trusts_claims for rule in self.rules)


AUTHENTICATED: Final = Authenticated()
NOBODY: Final = Nobody()


def _expanded(template: Template, principal: Principal, params: Mapping[str, str]) -> str | None:
    try:
        return template.expand(principal, params)
    except Forbidden:
        return None


def check(rule: Rule, principal: Principal, params: Mapping[str, str]) -> None:
    """Raise Forbidden unless the rule lets the principal use a channel with these path parameters."""
    if not rule.allows(principal, params):
        raise Forbidden


def trusts_any_issuer(rule: Rule, *templates: Template) -> bool:
    """Tell whether claims open something though no issuer is named for them.

    `templates` are those that the rule stands before, such as the channel's key. To be refused in a configuration that has
    more than one issuer: each could then speak for the others' subjects.
    """
    return rule.trusts_claims or (not rule.guarded and any(template.claims for template in templates))


def parse_rule(
    value: object,
    *,
    absent: Rule,
    parameters: Collection[str] | None = None,
    issuers: Collection[str] | None = None,
) -> Rule:
    """Parse a rule as a configuration gives it; `absent` stands for None, where nothing is configured.

    For reading that is AUTHENTICATED, for publishing NOBODY. `parameters` are the channel's path parameters and `issuers`
    the aliases there are, None leaves these open. Raise ValueError, saying where in the rule and what was expected.
    """
    if value is None:
        return absent
    return _Parser(parameters, issuers).rule(value, "", 0)


@final
class _Parser:
    """Parses one rule, with bounds on its depth and size."""

    def __init__(self, parameters: Collection[str] | None, issuers: Collection[str] | None) -> None:
        self._parameters = parameters
        self._issuers = issuers
        self._budget = MAX_BRANCHES
        self._conditions: dict[str, Callable[[Any, str, int], Rule]] = {
            "scope": lambda value, where, _: Scope(self._template(value, where)),
            "issuers": self._named,
            "authenticated": self._authenticated,
            "all": lambda value, where, depth: All(self._branches(value, where, depth)),
            "any": lambda value, where, depth: AnyOf(self._branches(value, where, depth)),
        }

    def rule(self, value: object, where: str, depth: int) -> Rule:
        self._budget -= 1
        if depth > MAX_DEPTH or self._budget < 0:
            raise ValueError(_at(where, f"expected at most {MAX_DEPTH} levels and {MAX_BRANCHES} rules"))
        if not isinstance(value, dict) or not value:
            raise ValueError(_at(where, 'expected a mapping such as {scope: "orders:read"}'))
        conditions = dict(value)
        rules: list[Rule] = []
        if not conditions.keys().isdisjoint(("claim", "contains", "equals")):
            rules.append(self._claim(conditions, where))
        for name, condition in conditions.items():
            if name not in self._conditions:
                raise ValueError(_at(where, f"expected no other keys than {', '.join(self._conditions)}, claim"))
            rules.append(self._conditions[name](condition, f"{where}.{name}", depth))
        return rules[0] if len(rules) == 1 else All(tuple(rules))

    def _claim(self, conditions: dict[Any, Any], where: str) -> Rule:
        name = conditions.pop("claim", None)
        tests = [test for test in ("contains", "equals") if test in conditions]
        if not isinstance(name, str) or not name or len(tests) != 1:
            raise ValueError(_at(where, "expected claim, the name of one, with either contains or equals"))
        template = self._template(conditions.pop(tests[0]), f"{where}.{tests[0]}")
        return Contains(name, template) if tests == ["contains"] else Equals(name, template)

    def _template(self, value: object, where: str) -> Template:
        try:
            return parse_template(value, parameters=self._parameters)
        except ValueError as error:
            raise ValueError(_at(where, str(error))) from None

    def _named(self, value: object, where: str, _: int) -> Rule:
        if not isinstance(value, list) or not value or not all(isinstance(alias, str) for alias in value):
            raise ValueError(_at(where, "expected a list of issuers, by alias"))
        if self._issuers is not None and not frozenset(self._issuers).issuperset(value):
            raise ValueError(_at(where, f"expected issuers out of {', '.join(sorted(self._issuers)) or 'none'}"))
        return Issuers(frozenset(value))

    def _authenticated(self, value: object, where: str, _: int) -> Rule:
        if value is not True:
            raise ValueError(_at(where, "expected true"))
        return AUTHENTICATED

    def _branches(self, value: object, where: str, depth: int) -> tuple[Rule, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError(_at(where, "expected a list of rules"))
        return tuple(self.rule(rule, f"{where}[{index}]", depth + 1) for index, rule in enumerate(value))


def _at(where: str, expected: str) -> str:
    """Put the place inside the rule, such as `all[1].scope`, before what was expected there."""
    place = where.removeprefix(".")
    return f"{place}: {expected}" if place else expected
