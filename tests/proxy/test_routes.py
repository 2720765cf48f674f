"""The first route that fits, in one order that does not depend on the configuration's."""

from __future__ import annotations

import itertools
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.proxy.paths import parse_path, parse_prefix
from gateway.proxy.routes import Conflict, Entry, Found, Match, RouteConflict, Routes, WrongMethod, host_name


def match(path: str | None = None, *, prefix: str | None = None, methods: str | None = None, **more) -> Match:
    return Match(
        parse_path(path) if prefix is None else parse_prefix(prefix),
        below=prefix is not None,
        methods=None if methods is None else frozenset(methods.split()),
        hosts=more.get("hosts"),
        headers=tuple(more.get("headers", {}).items()),
        query=tuple(more.get("query", {}).items()),
    )


def routes(**matches: Match) -> Routes[str]:
    return Routes(Entry(name, match, name) for name, match in matches.items())


def find(table: Routes[str], target: str, *, method: str = "GET", host: str = "h", **headers: str) -> object:
    path, _, query = target.partition("?")
    found = table.find(host, method, path, query, CIMultiDict(headers))
    return found.route if isinstance(found, Found) else found


class TestPath:
    def test_a_literal_wins_over_templates_and_those_over_prefixes(self):
        table = routes(
            everything=match(prefix="/"),
            orders=match(prefix="/orders"),
            open=match(prefix="/orders/open"),
            order=match("/orders/{id}"),
            new=match("/orders/new"),
        )
        assert find(table, "/orders/new") == "new"
        assert find(table, "/orders/5") == "order"
        assert find(table, "/orders/open") == "order"
        assert find(table, "/orders/open/5") == "open"
        assert find(table, "/orders/5/6") == "orders"
        assert find(table, "/orders/") == find(table, "/orders") == "orders"
        assert find(table, "/order") == find(table, "/ordersX") == find(table, "/") == "everything"

    def test_of_templates_the_one_with_more_literals_wins(self):
        """Even where a literal comes later than the other's."""
        table = routes(early=match("/a/{x}/{y}"), late=match("/{x}/b/c"), one=match("/{x}/{y}/{z}"))
        assert find(table, "/a/b/c") == "late"
        assert find(table, "/a/b/x") == "early"
        assert find(table, "/x/y/d") == "one"
        assert find(table, "/x/y") is None

    def test_prefixes_are_found_beside_templates(self):
        table = routes(prefix=match(prefix="/a/b"), deep=match("/{x}/{y}/{z}/end"), plain=match("/a/{x}"))
        assert find(table, "/a/b/c/end") == "deep"
        assert find(table, "/a/b/c") == "prefix"
        assert find(table, "/a/b") == "plain"
        assert table.routes() == ["prefix", "deep", "plain"]

    def test_a_slash_at_the_end_is_a_segment(self):
        table = routes(root=match("/"), with_slash=match("/a/"), without=match("/a"), any=match("/b/{x}"))
        assert [find(table, path) for path in ("/", "/a/", "/a", "/b/1", "/b/", "/b/1/")] == [
            "root", "with_slash", "without", "any", None, None,
        ]  # fmt: skip

    def test_parameters_are_decoded_once_and_never_split(self):
        table = routes(order=match("/{a}/x/{b}"))
        assert table.find("h", "GET", "/1%2F2/x/%2541%20", "", {}) == Found("order", {"a": "1/2", "b": "%41 "}, "")

    def test_the_rest_behind_a_prefix_is_raw(self):
        table = routes(order=match(prefix="/a/b"))
        assert table.find("h", "GET", "/%61/b/%7E%2f;x=1/", "", {}) == Found("order", {}, "/%7E%2f;x=1/")
        assert table.find("h", "GET", "/a/b", "", {}) == Found("order", {}, "")

    def test_equal_segments_are_equal_however_they_are_encoded(self):
        """Else a route that guards a path could be walked around."""
        table = routes(guarded=match("/admin"), rest=match(prefix="/"))
        assert find(table, "/%61dm%69n") == "guarded"

    @pytest.mark.parametrize(
        "path",
        ["/admin%2Fkeys", "/admin%5cKeys", "/%2fadmin/keys", "/admin;/keys", "/admin;a=b", "/a%2Fadmin", "/a;x/b"],
    )
    def test_nobody_gets_to_a_routes_paths_by_another_route(self, path):
        """Backends may decode a path before they split it, and cut parameters off."""
        table = routes(guarded=match(prefix="/admin"), deep=match("/a/{x}"), rest=match(prefix="/"))
        assert find(table, path) is None

    @pytest.mark.parametrize(
        ("path", "route"),
        [
            ("/admin/a%2Fb;x", "guarded"),
            ("/public/a%2Fb", "item"),
            ("/x%2Fy;z", "rest"),
            ("/public;x", "rest"),
            ("/%2F..x", "rest"),
        ],
    )
    def test_encoded_slashes_and_parameters_that_lead_nowhere_else_are_let_through(self, path, route):
        """Many an API has them."""
        table = routes(guarded=match(prefix="/admin"), item=match("/public/{id}"), rest=match(prefix="/"))
        assert find(table, path) == route

    @pytest.mark.parametrize("path", ["", "*", "/..", "/a/../b", "/a//b", "/a/%2e%2E/b", "/a/..%2fb", "/%zz", "/a\\b"])
    def test_what_is_no_plain_path_takes_no_route(self, path):
        assert find(routes(all=match(prefix="/")), path) is None


class TestHost:
    TABLE = routes(
        exact=match(prefix="/", hosts=("API.example.com", "10.0.0.1", "[2001:DB8::1]", "deep.a.example.org.")),
        wide=match(prefix="/", hosts=("*.example.org",)),
        narrow=match(prefix="/", hosts=("*.a.example.org",)),
        elsewhere=match("/only", hosts=("deep.a.example.org",)),
        anywhere=match("/any/{x}"),
    )

    @pytest.mark.parametrize(
        ("host", "route"),
        [
            ("api.example.com", "exact"),
            ("API.Example.COM.:8443", "exact"),
            ("10.0.0.1:80", "exact"),
            ("[2001:db8::1]", "exact"),
            ("[2001:DB8::1]:443", "exact"),
            ("2001:db8::1", None),
            ("[2001:db8::1", None),
            ("x.example.org", "wide"),
            ("x.y.example.org:1", "wide"),
            ("a.example.org", "wide"),
            ("x.a.example.org", "narrow"),
            ("deep.a.example.org", "exact"),
            ("example.org", None),
            (".example.org", None),
            ("xexample.org", None),
            ("example.com", None),
            ("", None),
            (".", None),
            (":", None),
            ("x." * 126 + "example.org", None),
        ],
    )
    def test_hosts_are_names_without_case_port_and_last_dot(self, host, route):
        assert find(self.TABLE, "/x", host=host) == route

    def test_the_host_decides_before_the_path(self):
        assert find(self.TABLE, "/only", host="deep.a.example.org") == "elsewhere"
        assert find(self.TABLE, "/any/1", host="deep.a.example.org") == "exact"
        assert find(self.TABLE, "/any/1", host="other") == "anywhere"

    def test_what_does_not_fit_for_a_host_is_sought_around_it(self):
        table = routes(
            exact=match("/a", hosts=("x.b.c",)),
            wide=match("/b", hosts=("*.c",)),
            narrow=match("/c", hosts=("*.b.c",)),
            any=match("/d"),
        )
        assert [find(table, path, host="x.b.c") for path in ("/a", "/b", "/c", "/d", "/e")] == [
            "exact",
            "wide",
            "narrow",
            "any",
            None,
        ]

    def test_a_host_of_the_same_length_as_its_wildcard_has_it_around_it(self):
        for names in itertools.permutations(("a.example.org", "*.example.org", "*.org")):
            table = Routes(
                Entry(name, match(f"/{len(name)}{name[0].replace('*', 'w')}", hosts=(name,)), name) for name in names
            )
            assert find(table, "/13w", host="a.example.org") == "*.example.org"
            assert find(table, "/5w", host="a.example.org") == "*.org"

    @given(st.text(max_size=12))
    def test_any_text_is_a_host_of_no_harm(self, host):
        assert find(self.TABLE, "/any/1", host=host) in ("anywhere", "exact", "wide")
        assert host_name(host_name(host)) == host_name(host) or ".." in host or "." in host[:-1]


class TestConditions:
    def test_more_conditions_come_first(self):
        table = routes(
            plain=match("/a"),
            get=match("/a", methods="GET"),
            beta=match("/a", methods="GET", headers={"X-Beta": "1"}),
            two=match("/a", methods="GET", headers={"X-Beta": "1"}, query={"v": "2"}),
        )
        assert find(table, "/a?v=2", x_beta="1") == "get"
        assert find(table, "/a?v=2", **{"x-beta": "1"}) == "two"
        assert find(table, "/a?v=3", **{"x-beta": "1"}) == "beta"
        assert find(table, "/a?v=2", **{"x-beta": "2"}) == "get"
        assert find(table, "/a", method="PUT") == "plain"

    @pytest.mark.parametrize(
        ("query", "fits"),
        [
            ("v=a%20b", True),
            ("v=a+b", True),
            ("%76=a%20b&x", True),
            ("x=1&v=a%20b&v=c", True),
            ("v=c&v=a%20b", False),
            ("v=a%2520b", False),
            ("v", False),
            ("V=a%20b", False),
            ("", False),
        ],
    )
    def test_a_query_parameter_has_exactly_the_value_once_decoded(self, query, fits):
        assert (find(routes(r=match("/", query={"v": "a b"})), f"/?{query}") == "r") is fits

    def test_a_star_is_any_value_even_none(self):
        table = routes(r=match("/", query={"v": "*"}, headers={"X-A": "*"}))
        assert find(table, "/?v", **{"X-A": ""}) == find(table, "/?v=1", **{"x-a": "2"}) == "r"
        assert find(table, "/", **{"X-A": "1"}) is find(table, "/?v") is None

    def test_a_less_specific_route_takes_what_conditions_refuse(self):
        table = routes(beta=match("/a", headers={"X-Beta": "1"}), rest=match(prefix="/"))
        assert find(table, "/a") == "rest"


class TestMethods:
    def test_head_fits_where_get_does(self):
        table = routes(r=match("/a", methods="GET"), head=match("/b", methods="HEAD"))
        assert find(table, "/a", method="HEAD") == "r"
        assert find(table, "/b", method="GET") == WrongMethod(("HEAD",))

    def test_options_fits_where_it_is_listed_or_all_are(self):
        table = routes(get=match("/a", methods="GET"), options=match("/b", methods="OPTIONS"), all=match("/c"))
        assert find(table, "/a", method="OPTIONS") == WrongMethod(("GET", "HEAD"))
        assert find(table, "/b", method="OPTIONS") == "options"
        assert find(table, "/c", method="OPTIONS") == "all"

    def test_a_wrong_method_names_all_right_ones(self):
        table = routes(
            get=match("/a/{x}", methods="GET"),
            post=match("/a/b", methods="POST"),
            put=match(prefix="/a", methods="PUT"),
            beta=match("/a/b", methods="DELETE", headers={"X-Beta": "1"}),
        )
        assert find(table, "/a/b", method="PATCH") == WrongMethod(("GET", "HEAD", "POST", "PUT"))
        assert find(table, "/a/b", method="PUT") == "put"
        assert find(table, "/b", method="PATCH") is None

    @pytest.mark.parametrize("method", ["get", "Get", ""])
    def test_methods_are_taken_literally(self, method):
        """RFC 9110, section 9.1: they are case-sensitive."""
        assert find(routes(r=match("/a", methods="GET")), "/a", method=method) == WrongMethod(("GET", "HEAD"))


class TestConflicts:
    @pytest.mark.parametrize(
        ("one", "other", "why"),
        [
            (match("/a"), match("/a"), "any method of /a on any host"),
            (match("/a/{x}"), match("/a/{y}"), "any method of /a/{x} on any host"),
            (match("/a/{x}"), match("/{y}/b"), "any method of /a/b on any host"),
            (match("/{y}/b"), match("/a/{x}"), "any method of /a/b on any host"),
            (match(prefix="/a"), match(prefix="/%61"), "any method of /a, and what is below it, on any host"),
            (match(prefix="/"), match(prefix="/"), "any method of /, and what is below it, on any host"),
            (match("/a", methods="GET PUT"), match("/a", methods="PUT POST"), "PUT /a on any host"),
            (match("/a", methods="GET"), match("/a", methods="HEAD"), "HEAD /a on any host"),
            (match("/a", methods="GET"), match("/a", query={"v": "1"}), "GET /a on any host"),
            (match("/a", query={"w": "1"}), match("/a", query={"v": "1"}), "any method of /a on any host"),
            (match("/a", query={"v": "*"}), match("/a", query={"v": "1"}), "any method of /a on any host"),
            (match("/a", headers={"X": "1"}), match("/a", headers={"x": "1"}), "any method of /a on any host"),
            (match("/a", headers={"X": "1"}), match("/a", headers={"x": "*"}), "any method of /a on any host"),
            (match("/a", hosts=("b", "A.")), match("/a", hosts=("a", "c")), "any method of /a on a"),
            (match("/a", hosts=("*.A", "b")), match("/a", hosts=("*.a", "b")), "any method of /a on *.a"),
        ],
    )
    def test_two_routes_that_one_request_fits_equally_are_named(self, one, other, why):
        with pytest.raises(RouteConflict, match="one and other: both fit") as caught:
            routes(one=one, other=other)
        assert caught.value.conflicts == (Conflict("one", "other", f"both fit {why}, and neither is the more specific one"),)
        assert caught.value.names == (("one", "other"),)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (match("/a"), match(prefix="/a")),
            (match("/a"), match("/{x}")),
            (match("/a"), match("/a/")),
            (match("/{x}/"), match("/a/{x}")),
            (match("/{x}/a"), match("/{x}/b")),
            (match("/a/{x}"), match("/b/{x}")),
            (match("/{x}"), match("/{x}/{y}")),
            (match(prefix="/a"), match(prefix="/a/b")),
            (match("/a"), match("/a", methods="GET")),
            (match("/a", methods="GET"), match("/a", methods="POST")),
            (match("/a", query={"v": "1"}), match("/a", query={"v": "2"})),
            (match("/a", query={"v": "1"}, methods="GET"), match("/a", query={"v": "2"}, methods="GET")),
            (match("/a", query={"v": "1"}), match("/a", query={"v": "1", "V": "1"})),
            (match("/a", headers={"X": "1"}), match("/a", headers={"x": "2"})),
            (match("/a", hosts=("a",)), match("/a", hosts=("b",))),
            (match("/a", hosts=("a",)), match("/a")),
            (match("/a", hosts=("*.b.c",)), match("/a", hosts=("*.c",))),
            (match("/a", hosts=("x.c",)), match("/a", hosts=("*.c",))),
        ],
    )
    def test_routes_that_can_be_told_apart_live_side_by_side(self, one, other):
        assert len(routes(one=one, other=other)) == 2

    def test_all_conflicts_are_listed_at_once(self):
        with pytest.raises(RouteConflict) as caught:
            routes(a=match("/{x}"), b=match("/{y}"), c=match("/c"), d=match("/c"), e=match("/{z}"), f=match("/f"))
        assert caught.value.names == (("a", "b"), ("c", "d"), ("a", "e"), ("b", "e"))
        assert str(caught.value).count("; ") == 3

    def test_one_route_may_name_a_host_twice(self):
        assert repr(routes(one=match("/", hosts=("a", "A.")))) == "Routes(one)"


# --- the trie against a plain list ---

segment = st.sampled_from(["a", "b", "{x}", "{y}"])
paths = st.lists(segment, min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(f"{{p{index}}}" if part[0] == "{" else part for index, part in enumerate(parts))
)
prefixes = st.lists(st.sampled_from("ab"), max_size=3).map(lambda parts: "/" + "/".join(parts))
conditions = st.fixed_dictionaries(
    {},
    optional={
        "methods": st.sampled_from(["GET", "POST", "GET POST", "HEAD"]),
        "headers": st.dictionaries(st.sampled_from(["X-A", "x-b"]), st.sampled_from("1*"), max_size=2),
        "query": st.dictionaries(st.sampled_from("vw"), st.sampled_from("12*"), max_size=2),
        "hosts": st.lists(st.sampled_from(["a.b.c", "b.c", "*.b.c", "*.c"]), min_size=1, max_size=2).map(tuple),
    },
)
matches = st.one_of(
    st.builds(lambda path, more: match(path, **more), paths, conditions),
    st.builds(lambda prefix, more: match(prefix=prefix, **more), prefixes, conditions),
)
requests = st.tuples(
    st.sampled_from(["a.b.c", "b.c", "x.b.c", "x.c", "c", "other"]),
    st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
    st.lists(st.sampled_from(["a", "b", "c", "%61"]), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.dictionaries(st.sampled_from("vw"), st.sampled_from("12"), max_size=2),
    st.dictionaries(st.sampled_from(["X-A", "X-B"]), st.sampled_from("12"), max_size=2),
)


def places(match: Match, request: tuple) -> list[tuple]:
    """Give the places in the order of precedence, smaller first, at which a match fits a request, the method aside."""
    host, _, path, query, headers = request
    texts = [unquote(text) for text in path[1:].split("/")]
    head = texts[: len(match.segments)] if match.below else texts
    if len(head) != len(match.segments):
        return []
    if not all(one.parameter or one.text == text for one, text in zip(match.segments, head, strict=True)):
        return []
    lowered = {name.lower(): value for name, value in headers.items()}
    if any(value not in (lowered.get(name.lower()), lowered.get(name.lower()) and "*") for name, value in match.headers):
        return []
    if any(value not in (query.get(name), query.get(name) and "*") for name, value in match.query):
        return []
    kind = (1, -len(match.segments)) if match.below else (0, -sum(not one.parameter for one in match.segments))
    found = []
    for name in match.hosts or ["any"]:
        if name == host:
            found.append((0, 0, *kind, -match.conditions))
        elif name[0] == "*" and host.endswith(name[1:]):
            found.append((1, -len(name), *kind, -match.conditions))
        elif name == "any":
            found.append((2, 0, *kind, -match.conditions))
    return found


def takes(match: Match, method: str) -> bool:
    return match.methods is None or method in match.methods or (method == "HEAD" and "GET" in match.methods)


def listed(entries: list[Entry[str]], request: tuple) -> object:
    """Find a request's route as a list of all of them would."""
    fitting = sorted((place, entry.name) for entry in entries for place in places(entry.match, request))
    known = {entry.name: entry.match for entry in entries}
    for _, name in fitting:
        if takes(known[name], request[1]):
            return name
    allowed = {method for _, name in fitting for method in known[name].allowed}
    return WrongMethod(tuple(sorted(allowed))) if allowed else None


@settings(max_examples=200)
@given(st.lists(matches, max_size=8), st.lists(requests, min_size=1, max_size=8), st.randoms())
def test_the_trie_finds_what_a_list_in_order_of_precedence_does(wanted, asked, random):
    entries: list[Entry[str]] = []
    for index, one in enumerate(wanted):
        more = [*entries, Entry(f"r{index}", one, f"r{index}")]
        try:
            Routes(more)
        except RouteConflict:
            continue
        entries = more
    shuffled = random.sample(entries, len(entries))
    table, other = Routes(entries), Routes(shuffled)
    for request in asked:
        host, method, path, query, headers = request
        text = "&".join(f"{name}={value}" for name, value in query.items())
        found = table.find(host, method, path, text, CIMultiDict(headers))
        assert (found.route if isinstance(found, Found) else found) == listed(entries, request)
        assert other.find(host, method, path, text, CIMultiDict(headers)) == found


ALL = [
    (host, method, "/" + "/".join(path), dict(query), dict(headers))
    for host in ("a.b.c", "b.c", "x.b.c", "x.c", "other")
    for method in ("GET", "HEAD", "POST")
    for size in (1, 2, 3)
    for path in itertools.product("abc", repeat=size)
    for query in ([("v", v), ("w", w)] for v in "12" for w in "12")
    for headers in ([("X-A", "1"), ("X-B", "1")],)
]


@settings(max_examples=60)
@given(matches, matches)
def test_there_is_a_conflict_iff_some_request_fits_two_routes_at_the_same_place(one, other):
    entries = [Entry("one", one, "one"), Entry("other", other, "other")]
    shared = any(
        set(places(one, request)) & set(places(other, request))
        for request in ALL
        if takes(one, request[1]) and takes(other, request[1])
    )
    try:
        Routes(entries)
    except RouteConflict as conflict:
        assert shared, str(conflict)  # noqa: PT017  # no error is fine as well
    else:
        assert not shared
