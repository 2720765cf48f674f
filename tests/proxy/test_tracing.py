"""Trace context, by W3C Trace Context level 1 (https://www.w3.org/TR/trace-context-1/)."""

from __future__ import annotations

import pytest

from gateway.proxy.tracing import trace_fields

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


def random(count: int) -> bytes:
    return bytes(range(1, count + 1))


def unasked(count: int) -> bytes:
    raise AssertionError(count)


BEGUN = f"00-{random(16).hex()}-{random(24)[16:].hex()}-01"


@pytest.mark.parametrize(
    "parent", [GOOD, GOOD[:-2] + "00", f"01-{TRACE}-{PARENT}-ff", f"cc-{TRACE}-{PARENT}-01-what-comes-later"]
)
def test_a_valid_parent_is_passed_as_it_is(parent: str):
    """Section 4.3: who does not take part passes it unchanged; section 3.2.4: higher versions by their known parts."""
    assert trace_fields([parent], [], random=unasked) == [("traceparent", parent)]


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        ["x"],
        [GOOD.upper()],
        [GOOD + "\n"],
        [GOOD + "-x"],
        [GOOD + "0"],
        [GOOD[:-1]],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"01-{TRACE}-{PARENT}-01x"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [GOOD, GOOD],
    ],
)
def test_without_a_valid_parent_a_trace_begins(parents: list[str]):
    """Section 3.2.2 says what is invalid; section 4.3: a new trace then, and no state of another."""
    assert trace_fields(parents, ["a=1"], random=random) == [("traceparent", BEGUN)]


def test_a_trace_that_begins_may_be_unsampled():
    """Section 3.2.2.5.1: the flag is what backends decide by."""
    assert trace_fields([], [], random=random, sampled=False) == [("traceparent", BEGUN[:-1] + "0")]


def test_the_states_of_several_fields_are_one_list():
    """Section 3.3.1.1; an empty one says nothing."""
    fields = trace_fields([GOOD], ["a=1,b=2", "", "c=3"], random=unasked)
    assert fields == [("traceparent", GOOD), ("tracestate", "a=1,b=2,c=3")]
    assert trace_fields([GOOD], [""], random=unasked) == [("traceparent", GOOD)]


@pytest.mark.parametrize(("flags", "left"), [("01", "01"), ("00", "00"), ("ff", "01"), ("fe", "00")])
def test_a_new_parent_belongs_to_the_same_trace(flags: str, left: str):
    """Section 4.3: only the parent id changes, in the version that the gateway knows; unknown flags are 0."""
    fields = trace_fields([f"01-{TRACE}-{PARENT}-{flags}-x"], ["a=1"], random=random, new_parent=True)
    assert fields == [("traceparent", f"00-{TRACE}-{random(8).hex()}-{left}"), ("tracestate", "a=1")]
