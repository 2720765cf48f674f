"""The cache holds what was verified, no longer than it is good, and never more than it may."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.cache import PrincipalCache
from gateway.auth.principal import KeyRef, Principal
from gateway.errors import TokenExpired

KEYS = [KeyRef("corp", str(number), "EdDSA", "f") for number in range(2)]


def principal(subject: str, expires_at: float | None = 100.0, key: KeyRef | None = KEYS[0]) -> Principal:
    return Principal("corp", subject, MappingProxyType({}), frozenset(), expires_at, key)


def test_the_least_recently_used_goes_first() -> None:
    cache = PrincipalCache(b"k", 2, 10**6)
    for name in "ab":
        cache.put(name, principal(name))
    cache.get("a", 0)
    cache.put("c", principal("c"))
    assert [name for name in "abc" if cache.get(name, 0)] == ["a", "c"]


def test_bytes_are_bounded_and_given_back() -> None:
    cache = PrincipalCache(b"k", 100, 2500)
    for name in "abcd":
        cache.put(name, principal(name))
    assert repr(cache) == "<PrincipalCache 2 of 100, 2012 of 2500 bytes>"
    cache.put("x" * 1000, principal("x"))
    assert len(cache) == 0
    cache.put("a", principal("a"))
    cache.put("a", principal("a"))
    assert repr(cache) == "<PrincipalCache 1 of 100, 1006 of 2500 bytes>"
    cache.forget(KEYS)
    assert repr(cache) == "<PrincipalCache 0 of 100, 0 of 2500 bytes>"


def test_the_end_is_told_once_and_forgotten() -> None:
    cache = PrincipalCache(b"k", 2, 10**6)
    cache.put("a", principal("a", 100.0))
    cache.put("b", principal("b", None))
    assert cache.get("a", 99.9)
    with pytest.raises(TokenExpired):
        cache.get("a", 100.0)
    assert cache.get("a", 100.0) is None
    assert cache.get("b", 1e12)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("pgf"), st.integers(0, 1)), max_size=60))
def test_it_is_a_bounded_dict_in_order_of_use(steps: list[tuple[str, str, int]]) -> None:
    cache = PrincipalCache(b"k", 3, 10**6)
    model: dict[str, Principal] = {}
    for name, step, number in steps:
        if step == "p":
            model.pop(name, None)
            model[name] = principal(name, key=KEYS[number])
            cache.put(name, model[name])
            if len(model) > 3:
                del model[next(iter(model))]
        elif step == "g":
            expected = model.pop(name, None)
            if expected is not None:
                model[name] = expected
            assert cache.get(name, 0) is expected
        else:
            model = {name: one for name, one in model.items() if one.key != KEYS[number]}
            cache.forget({KEYS[number]})
        assert len(cache) == len(model)
