"""The file of API keys."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.apikeys import entry, hashed
from gateway.auth.keyfile import parse_file, read_entries, write_entries

GOOD = {"hash": hashed("x"), "subject": "ci", "scopes": ["a"], "claims": {"n": 1, "on": True}, "expires": "2027-01-01"}


def test_what_is_written_is_read():
    """A date stays the text that it is."""
    assert read_entries(write_entries({"b": GOOD, "a": GOOD})) == {"b": GOOD, "a": GOOD}
    assert parse_file(write_entries({"ci": GOOD})).keys == (entry("ci", GOOD),)
    unquoted = f"ci: {{hash: '{GOOD['hash']}', subject: ci, expires: 2027-01-01}}".encode()
    assert parse_file(unquoted).keys[0].expires_at == 1_798_761_600.0


@pytest.mark.parametrize("data", [b"", b"# nothing yet\n", b"{}", write_entries({})])
def test_an_empty_file_has_no_keys(data: bytes):
    """It is where every file begins."""
    assert parse_file(data) == ((), ())


def test_a_bad_entry_leaves_the_others():
    """And what is wrong with it is said, without a hash."""
    parsed = parse_file(write_entries({"A": GOOD, "ci": GOOD, "x": 5}))
    assert [key.id for key in parsed.keys] == ["ci"]
    assert [line.partition(": expected")[0] for line in parsed.skipped] == ["A", "x"]
    assert hashed("x") not in "".join(parsed.skipped)


@pytest.mark.parametrize(
    "data",
    [
        b"- a",
        b"text",
        b"a: [",
        b"5: {}",
        b"\xff",
        b"a: {x: 1, x: 2}",
        b"a: 1\na: 2",
        b"a: &a [*a",
        b"a: !!python/object:os.system {}",
        b"a: *b",
        b"? [1]\n: 2",
        b"a: !!int x",
        b"a: " + b"[" * 20_000,
    ],
)
def test_what_is_no_mapping_is_refused_whole(data: bytes):
    """A file that is being written, or that two hands have been at, changes nothing."""
    with pytest.raises(ValueError, match="expected"):
        parse_file(data)


@given(st.binary(max_size=60))
def test_any_bytes_give_keys_or_the_documented_error(data: bytes):
    """Nothing else is raised."""
    with contextlib.suppress(ValueError):
        parse_file(data)
