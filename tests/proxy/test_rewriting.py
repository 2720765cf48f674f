"""Backends see other paths and fields, whose shape no caller can change."""

from __future__ import annotations

from types import MappingProxyType
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.auth.principal import Principal
from gateway.auth.templates import parse_template
from gateway.errors import Forbidden
from gateway.proxy.paths import parse_path, parse_prefix
from gateway.proxy.rewriting import HeaderEdits, PathRewrite, Values, parse_edits, parse_path_rewrite, parse_prefix_rewrite
from gateway.proxy.routes import Entry, Found, Match, Routes


def found(rest: str = "", **parameters: str) -> Found[None]:
    return Found(None, parameters, rest)


def values(headers: dict[str, str] | None = None, parameters: dict[str, str] | None = None, **claims: object) -> Values:
    principal = Principal("corp", "alice", MappingProxyType({"sub": "alice", **claims}), frozenset(), None, None)
    return Values(parameters or {}, principal, CIMultiDict(headers or {}))


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("/v2/{id}", "/v2/a%2Fb%20%3F%23%25%3B%C3%A9~"),
            ("/{other}/item-{id}.json", "/1/item-a%2Fb%20%3F%23%25%3B%C3%A9~.json"),
            ("/", "/"),
            ("/fixed%2F;v=1", "/fixed%2F;v=1"),
        ],
    )
    def test_parameters_are_put_in_encoded(self, text, path):
        assert parse_path_rewrite(text, ["id", "other"]).apply(found(id="a/b ?#%;é~", other="1")) == path

    @pytest.mark.parametrize(
        ("prefix", "rest", "path"),
        [("/api", "", "/api"), ("/api", "/", "/api/"), ("/api/v1", "/a%2fb;x", "/api/v1/a%2fb;x"), ("/", "", "/"), ("/", "/x", "/x"), ("/", "/", "/")],
    )  # fmt: skip
    def test_a_prefix_is_replaced_and_the_rest_kept(self, prefix, rest, path):
        assert parse_prefix_rewrite(prefix).apply(found(rest)) == path

    @given(st.text(st.sampled_from("aZ0-._~!$&'()*+,;=:@/"), max_size=20), st.sampled_from(["/a", "/a/b", "/"]))
    def test_a_prefix_replaced_by_itself_changes_nothing(self, tail, prefix):
        """What is matched is kept byte for byte."""
        path = prefix.rstrip("/") + "/" + tail
        routes = Routes([Entry("r", Match(parse_prefix(prefix), below=True), None)])
        taken = routes.find("h", "GET", path, "", {})
        if taken is not None:
            assert parse_prefix_rewrite(prefix).apply(taken) == path

    @given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
    def test_a_rewritten_path_has_the_segments_of_its_pattern(self, value):
        path = parse_path_rewrite("/a/{id}/b", ["id"]).apply(found(id=value))
        assert path.isascii()
        assert path.count("/") == 3
        assert unquote(path) == f"/a/{value}/b"

    @pytest.mark.parametrize("text", ["", "a", "/a b", "/{a", "/{A}", "/é", "/a?b", "/%"])
    def test_what_is_no_path(self, text):
        with pytest.raises(ValueError, match="a path such as"):
            parse_path_rewrite(text, [])
        with pytest.raises(ValueError, match="a path such as"):
            parse_prefix_rewrite(text)

    def test_a_prefix_ends_without_a_slash(self):
        with pytest.raises(ValueError, match="without a slash at its end"):
            parse_prefix_rewrite("/a/")

    def test_only_parameters_of_the_route_are_known(self):
        with pytest.raises(ValueError, match=r"route's path: \{a\}, \{b\}"):
            parse_path_rewrite("/{c}", ["b", "a"])
        with pytest.raises(ValueError, match="route's path: none"):
            parse_path_rewrite("/{c}", [])

    def test_a_path_that_a_route_took_is_written_anew(self):
        routes = Routes([Entry("r", Match(parse_path("/users/{id}")), None)])
        taken = routes.find("h", "GET", "/users/%7ea%2Fb", "", {})
        assert parse_path_rewrite("/v2/{id}/x", ["id"]) == PathRewrite(("/v2/", "id", "/x"))
        assert parse_path_rewrite("/v2/{id}/x", ["id"]).apply(taken) == "/v2/~a%2Fb/x"


class TestHeaders:
    def test_fields_are_removed_set_and_added(self):
        headers = CIMultiDict([("x-a", "1"), ("X-A", "2"), ("X-B", "3"), ("Server", "s"), ("X-C", "4")])
        edits = parse_edits({"X-A": "{claims.sub}/{id}"}, {"X-C": "{headers.x-b}"}, ["server", "x-b", "X-None"], ["id"])
        edits.apply(headers, values({"X-B": "3"}, {"id": "7"}))
        assert sorted(headers.items()) == [("X-A", "alice/7"), ("X-C", "3"), ("X-C", "4")]

    def test_all_is_read_before_anything_is_changed(self):
        headers = CIMultiDict({"A": "1", "B": "2"})
        edits = parse_edits({"A": "{headers.B}", "B": "{headers.A}"}, {"C": "{headers.A}"}, ["B"], [])
        edits.apply(headers, Values({}, None, headers))
        assert dict(headers) == {"A": "2", "B": "1", "C": "1"}

    def test_no_edits_change_nothing(self):
        headers = CIMultiDict({"A": "1"})
        HeaderEdits().apply(headers, values())
        assert dict(headers) == {"A": "1"}

    @pytest.mark.parametrize(
        "value", [None, "", 5, "a\r\nX-Admin: 1", "a\nb", "a\0b", "\x7f", " alice", "alice\t", "\ud800", "a\x1b"]
    )
    def test_a_field_whose_value_cannot_be_had_is_left_out(self, value):
        """Where it is to be set, the sender's own goes all the same: nobody passes for somebody else."""
        headers = CIMultiDict({"X-User": "root", "X-Also": "kept"})
        parse_edits({"X-User": "{claims.name}"}, {"X-Also": "{claims.name}"}, [], []).apply(headers, values(name=value))
        assert dict(headers) == {"X-Also": "kept"}

    @pytest.mark.parametrize("value", ["a", "a b\tc", "Zoë 🙂", "a: b, c"])
    def test_a_value_of_a_field_is_taken_as_it_is(self, value):
        headers: CIMultiDict[str] = CIMultiDict()
        parse_edits({"X-Name": "{claims.name}"}, {}, [], []).apply(headers, values(name=value))
        assert headers["X-Name"] == value

    def test_where_text_is_needed_its_absence_is_an_error(self):
        assert values().text(parse_template("{claims.sub}")) == "alice"
        with pytest.raises(Forbidden):
            Values({}, None, {}).text(parse_template("{claims.sub}"))

    def test_edits_are_templates(self):
        with pytest.raises(ValueError, match="expected text with"):
            parse_edits({"A": "{"}, {}, [], [])
        with pytest.raises(ValueError, match="expected no parameters"):
            parse_edits({}, {"A": "{id}"}, [], [])
