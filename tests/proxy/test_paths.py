"""Paths are compared decoded once, kept as sent, and refused where two readers could differ."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.channels import PatternInvalid, Segment
from gateway.proxy.paths import is_raw, otherwise, parse_path, parse_prefix, rest, split


class TestSplit:
    @pytest.mark.parametrize(
        ("path", "segments"),
        [
            ("/", [""]),
            ("/orders", ["orders"]),
            ("/orders/", ["orders", ""]),
            ("/a/b%20c/d", ["a", "b c", "d"]),
            ("/a%2Fb/c", ["a/b", "c"]),
            ("/a%5cb", ["a\\b"]),
            ("/%7euser", ["~user"]),
            ("/caf%C3%A9", ["café"]),
            ("/%252e%252e/x", ["%2e%2e", "x"]),
            ("/.well-known/x", [".well-known", "x"]),
            ("/.../..x/x../a.", ["...", "..x", "x..", "a."]),
            ("/a;v=1/b:c@d", ["a;v=1", "b:c@d"]),
            ("/a%2F.b/%2Fc/d%2F", ["a/.b", "/c", "d/"]),
        ],
    )
    def test_each_segment_is_decoded_once(self, path, segments):
        assert split(path) == segments

    @pytest.mark.parametrize("dots", [".", "..", "%2e", "%2E.", ".%2e", "..;", "..;a=b", "%2e%2e%3bx", ".;"])
    @pytest.mark.parametrize("around", ["/{}", "/a/{}", "/a/{}/b", "/{}/", "/x%2f{}", "/{}%2Fx", "/x%5C{}", "/a/x%5c{}%5cy/"])
    def test_dot_segments_open_nothing_however_they_are_written(self, around, dots):
        assert split(around.format(dots)) is None

    @pytest.mark.parametrize("path", ["//", "//a", "/a//b", "/a//", "/%41//b"])
    def test_an_empty_segment_stands_only_at_the_end(self, path):
        """Many servers take several slashes for one: they would see a path that another route guards."""
        assert split(path) is None

    @pytest.mark.parametrize(
        "path",
        ["", "a", "*", "http://a/b", "/a\\b", "/\\..\\b", "/%", "/%4", "/a%zz", "/%%32e", "/%FF", "/%C3", "/%ED%A0%80", "/%00", "/a%0Ab", "/%7f",
         "/%C2%85", "/é", "/a\x00", "/a\tb", "/\udcff", "/%٤1"],
    )  # fmt: skip
    def test_what_is_no_path_opens_nothing(self, path):
        assert split(path) is None

    @given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda s: s not in (".", ".."))))
    def test_what_is_encoded_properly_comes_back(self, segments):
        """All but what holds a dot segment behind an encoded separator or with parameters."""
        found = split("/" + "/".join(quote(segment, safe="") for segment in segments))
        if found is None:
            assert any("." in segment and set("/\\;") & set(segment) for segment in segments)
        else:
            assert found == (segments or [""])

    @given(st.text("/.;%2eEfF5cC\\a", max_size=12).map("/".__add__))
    @example("/%2e%2e%2f")
    def test_no_reader_finds_a_dot_segment_in_what_is_let_through(self, path):
        if split(path) is not None:
            seen = unquote(path).replace("\\", "/").split("/")
            assert not {segment.partition(";")[0] for segment in seen} & {".", ".."}
            assert "//" not in path

    @given(st.text(max_size=20))
    def test_any_text_is_segments_or_nothing(self, path):
        segments = split(path)
        assert segments is None or (len(segments) == path.count("/") and path[0] == "/")


@pytest.mark.parametrize(
    ("path", "depth", "expected"),
    [("/a/b", 0, "/a/b"), ("/a", 1, ""), ("/a/", 1, "/"), ("/a%2Fb/%7e/c", 1, "/%7e/c"), ("/", 0, "/"), ("/a/b/c", 2, "/c")],
)
def test_the_rest_of_a_path_is_kept_byte_for_byte(path, depth, expected):
    assert rest(path, depth) == expected


class TestPatterns:
    def test_a_path_has_literals_and_parameters(self):
        assert parse_path("/orders/{id}/a%20b:c@d") == (
            Segment("orders", parameter=False),
            Segment("id", parameter=True),
            Segment("a b:c@d", parameter=False),
        )
        assert [segment.text for segment in parse_path("/")] == [""]
        assert [segment.text for segment in parse_path("/a/")] == ["a", ""]

    @pytest.mark.parametrize(
        "text",
        ["", "a", "//", "//a", "/a//b", "/a//", "/{A}", "/a{b}", "/{}", "/{a}/{a}", "/..", "/%2e", "/a?b", "/a#b", "/%", "/a b", "/%FF", "/é",
         "/a" * 33],
    )  # fmt: skip
    def test_what_cannot_be_a_path(self, text):
        with pytest.raises(PatternInvalid):
            parse_path(text)

    def test_a_prefix_is_literal(self):
        assert parse_prefix("/") == ()
        assert parse_prefix("/a/b") == parse_path("/a/b")

    @pytest.mark.parametrize("text", ["", "a", "/a/", "/{a}", "/a/{b}/c", "//"])
    def test_what_cannot_be_a_prefix(self, text):
        with pytest.raises(PatternInvalid):
            parse_prefix(text)

    @pytest.mark.parametrize(
        ("text", "raw"), [("", True), ("/a/b%2F;=", True), ("a b", False), ("%2", False), ("é", False), ("?", False)]
    )
    def test_raw_is_what_may_be_sent(self, text, raw):
        assert is_raw(text) is raw


@pytest.mark.parametrize(
    ("path", "other"),
    [("/a/b", "/a/b"), ("/a%2fb%5Cc", "/a/b/c"), ("/a;x=1/b;y", "/a/b"), ("/%2F%2Fa", "/a"), ("/a%252Fb", "/a%252Fb")],
)
def test_how_others_read_a_path(path, other):
    """Decoded before it is split, without parameters, and with no empty segments."""
    assert otherwise(path) == other
