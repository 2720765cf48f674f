"""What is stored stays within its bytes, and these are what it really takes."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy.caches import NOW, at, get, head

from gateway.proxy.caching import CacheRequest
from gateway.proxy.store import MAX_SHY, MAX_VARIANTS, Shy, Store
from gateway.proxy.stored import Stored, packed, unpacked
from gateway.proxy.storing import Keep, judge

COST_OF_ONE = 10_000


def answer(request: CacheRequest, *, body: bytes = b"", vary: str = "", date: float = 0.0) -> Stored:
    fields = head(("Cache-Control", "max-age=9"), ("Date", at(date)), ("Vary", vary))
    keep, stored = judge(request, 200, fields, asked=NOW, received=NOW)
    assert keep is Keep.STORE
    return Stored(stored.uri, stored.method, stored.status, stored.head, stored.vary, stored.freshness, stored.date, body)


def test_the_least_recently_used_go() -> None:
    """Over its bytes the store forgets what was not asked for the longest."""
    store = Store(4 * COST_OF_ONE)
    pages = [get(target=f"/{number}") for number in range(5)]
    for page in pages[:3]:
        store.put(answer(page, body=bytes(COST_OF_ONE)))
    assert store.find(pages[0]) is not None
    store.put(answer(pages[3], body=bytes(COST_OF_ONE)))
    assert [store.find(page) is not None for page in pages] == [True, False, True, True, False]
    assert store.bytes <= store.max_bytes
    assert repr(store) == f"<Store 3 answers, {store.bytes} of 40000 bytes>"


def test_what_is_too_large_is_not_stored_and_what_it_replaces_goes() -> None:
    """An answer that alone is more than all may take leaves nothing outdated behind."""
    store = Store(COST_OF_ONE)
    assert store.put(answer(get()))
    assert not store.put(answer(get(), body=bytes(COST_OF_ONE)))
    assert (len(store), store.bytes, store.knows("https://api.example.com/a")) == (0, 0, False)


def test_the_newest_that_fits_is_found() -> None:
    """RFC 9111, 4.1: of several that fit, the one with the latest Date."""
    store = Store(10 * COST_OF_ONE)
    newest = answer(get(("X", "1")), vary="X", date=5)
    for one in (answer(get(), date=1), newest, answer(get(("Y", "1")), vary="Y", date=3)):
        store.put(one)
    assert store.find(get(("X", "1"), ("Y", "1"))) is newest
    assert set(store.names("https://api.example.com/a")) == {"x", "y"}


def test_variants_are_bounded() -> None:
    """Who sends ever new values of what Vary names pushes out only his own kind."""
    store = Store(100 * COST_OF_ONE)
    other = get(target="/other")
    store.put(answer(other))
    for number in range(MAX_VARIANTS + 5):
        store.put(answer(get(("X", str(number))), vary="X"))
    assert len(store) == MAX_VARIANTS + 1
    assert store.find(get(("X", "4"))) is None
    assert store.find(other) is not None


def test_removing_twice() -> None:
    """What is gone may be removed again."""
    store = Store(COST_OF_ONE)
    one = answer(get())
    store.put(one)
    store.remove(one)
    store.remove(one)
    store.invalidate(one.uri)
    assert store.bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3_000)), max_size=60))
def test_the_account_is_the_sum(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is stored, replaced and pushed out: the account is the sum of what is there, and within bounds."""
    store = Store(COST_OF_ONE)
    for page, value, size in steps:
        store.put(answer(get(("X", str(value)), target=f"/{page}"), vary="X", body=bytes(size)))
        assert store.bytes == sum(stored.cost for stored in store._recent) <= store.max_bytes
        assert {id(one) for variants in store._variants.values() for one in variants} == {id(one) for one in store._recent}


@pytest.mark.parametrize(("size", "fields", "varies"), [(0, 3, 0), (200, 8, 0), (2_000, 8, 2), (20_000, 12, 1)])
def test_the_account_is_honest(size: int, fields: int, varies: int) -> None:
    """Ten thousand answers take what the store says, or up to 15 % less."""
    store = Store(2**40)
    said = [("Cache-Control", "public, max-age=60"), ("Date", at(0)), *((f"X-Field-{n}", "some value") for n in range(fields))]
    _, model = judge(get(), 200, head(*said), asked=NOW, received=NOW)
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start(1)
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            store.put(
                replace(
                    model,
                    uri=f"https://api.example.com/items/{number}?page={number}",
                    head=model.head + str(number).encode(),
                    body=os.urandom(size),
                    date=10**9 + number,
                    vary=tuple((sys.intern(f"x-{n}"), f"value {number}") for n in range(varies)) if varies else (),
                    freshness=replace(model.freshness, received=NOW + number, initial_age=number / 7),
                )
            )
        gc.collect()
        real = tracemalloc.get_traced_memory()[0] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    assert 0.85 < real / store.bytes < 1.02, (real, store.bytes)


@given(
    st.lists(st.tuples(st.from_regex(r"\A[!-9;-~]{1,9}\Z"), st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"))))
)
def test_heads_come_back_as_they_were(fields: list[tuple[str, str]]) -> None:
    """A head is the same after it was packed."""
    assert list(unpacked(packed(head(*fields))).items()) == fields


def test_shyness_is_bounded_and_ends() -> None:
    """The oldest are forgotten beyond the bound, each after its time, and when told."""
    shy = Shy(10.0)
    assert not shy.has("0", 0.0)
    for number in range(MAX_SHY + 1):
        shy.mark(str(number), 0.0)
    assert repr(shy) == f"<Shy {MAX_SHY} of {MAX_SHY}>"
    assert not shy.has("0", 0.0)
    assert shy.has("1", 9.9)
    assert not shy.has("1", 10.0)
    shy.clear("2")
    assert not shy.has("2", 0.0)
    shy.clear("2")
