"""Routes: what their values may be, each by itself, and what they make for the parts that take values."""

from __future__ import annotations

import pytest
from proxyconfig import report, route, with_route

from gateway.auth.policy import AUTHENTICATED, Scope
from gateway.auth.templates import parse_template
from gateway.channels import Segment
from gateway.config.httpvalues import parameters
from gateway.lifecycle import Lifecycle
from gateway.proxy.rewriting import PathRewrite
from gateway.proxy.routes import Match

LEAST = "prefix: /\nupstream: shop"
ONE = "routes.one"


class TestGood:
    def test_the_least_is_a_prefix_and_an_upstream(self):
        one = route(LEAST)
        assert (one.path, one.prefix, one.shares) == (None, "/", (("shop", 1),))
        assert (one.hosts, one.methods, one.headers, one.query) == (None, None, {}, {})
        assert (one.public, one.authorization, one.compress, one.retries) == (False, "strip", False, True)
        assert (one.hold, one.cache, one.limits, one.max_body_bytes) == (None, None, None, None)
        assert (one.timeouts.connect, one.timeouts.first_byte, one.timeouts.idle, one.timeouts.total) == (
            2.0,
            30.0,
            30.0,
            120.0,
        )
        assert one.rule is AUTHENTICATED

    def test_hosts_are_compared_in_small_letters(self):
        assert route(LEAST + "\nhosts: API.Example.com, '*.Example.org'".replace("'", "")).hosts == (
            "api.example.com",
            "*.example.org",
        )
        assert route(LEAST + "\nhosts: [10.0.0.1, '[::1]']").hosts == ("10.0.0.1", "[::1]")

    def test_the_parameters_of_a_path(self):
        assert route("path: /a/{x}/b/{y_2}\nupstream: shop").parameters == {"x", "y_2"}
        assert route(LEAST).parameters == frozenset()
        assert parameters("/") == frozenset()

    def test_the_shares_of_a_split(self):
        given = "prefix: /\nsplit: {to: [{upstream: shop, weight: 0}, {upstream: shop-next, weight: 5}]}"
        assert route(given).shares == (("shop", 0), ("shop-next", 5))

    def test_the_rule(self):
        assert isinstance(route(LEAST + "\nallow: {scope: x}").rule, Scope)
        assert route(LEAST + "\npublic: true").rule is None

    @pytest.mark.parametrize(
        ("given", "unix"),
        [
            ("1970-01-02", 86400.0),
            ("1970-01-01T00:00:01Z", 1.0),
            ("1970-01-01t01:00:01.5+01:00", 1.5),
            ("'1970-01-01 00:00:01z'", 1.0),
        ],
    )
    def test_dates_and_times(self, given, unix):
        one = route(f"{LEAST}\ndeprecated: {given}\nsunset: {given}")
        assert (one.lifecycle.deprecated, one.lifecycle.sunset) == (unix, unix)
        assert route(LEAST).lifecycle == Lifecycle()

    def test_what_is_read_can_be_read_again(self):
        """As after it went to another process."""
        one = route(f"{LEAST}\ndeprecated: 2027-01-01")
        assert type(one).model_validate(one.model_dump()) == one

    def test_the_match(self):
        """Each condition of it."""
        given = "hosts: [a.example]\npath: /a/{x}\nmethods: [GET]\nheaders: {X-A: a}\nquery: {v: '2'}\nupstream: shop"
        assert route(given).match == Match(
            segments=(Segment("a", parameter=False), Segment("x", parameter=True)),
            hosts=("a.example",),
            methods=frozenset({"GET"}),
            headers=(("X-A", "a"),),
            query=(("v", "2"),),
        )
        assert route(LEAST).match == Match(segments=(), below=True)

    def test_what_is_changed_on_the_way(self):
        """Paths, fields, and what is told of the principal."""
        one = route(
            "path: /a/{x}\nupstream: shop\nrewrite: {path: '/b/{x}'}\nclaims: {X-User: '{claims.sub}'}\n"
            "request_headers: {set: {X-A: '{x}'}, remove: [X-B]}"
        )
        assert one.rewrite.change == PathRewrite(("/b/", "x", ""))
        assert one.request_headers.edits(one.parameters).remove == ("X-B",)
        [(name, template)] = one.told
        assert (name, template.claims) == ("X-User", {"sub"})
        assert route(LEAST).rewrite.change is None
        assert route(LEAST + "\nrewrite: {prefix: /v2}").rewrite.change == PathRewrite(("/v2",))

    def test_what_a_split_goes_by(self):
        """The client address, unless it is said."""
        split = "prefix: /\nsplit: {%s to: [{upstream: shop, weight: 1}]}"
        assert route(split % "on: '{headers.X-A}',").key == parse_template("{headers.X-A}", headers=True)
        assert route(split % "").key is None
        assert route(LEAST).key is None

    @pytest.mark.parametrize(
        "given",
        [
            "path: /\nupstream: shop",
            "path: /a/b.c/{id}/x-y~z\nupstream: shop",
            "prefix: /a/b\nupstream: shop\nrewrite: {prefix: /, host: 'shop.internal:8080'}",
            "path: /a/{id}\nupstream: shop\nrewrite: {path: '/v2/{id}/x', host: '[::1]:80'}",
            LEAST + "\nmethods: GET, M-SEARCH",
            LEAST + "\nheaders: {X-Beta: '*'}\nquery: {v: ''}",
            LEAST
            + "\nrequest_headers: {set: {X-A: '{claims.sub}:{headers.X-B}'}, add: {X-B: '{{headers.x}}'}, remove: [Cookie]}",
            LEAST + "\nresponse_headers: {set: {Server: x}, add: {Via: y}, remove: [X-Powered-By]}",
            LEAST + "\nsuccessor: /v2/orders?x=1",
            LEAST + "\nsuccessor: https://api.example.com/v2",
            LEAST + "\nmax_body_bytes: 0\ncors: {origins: 'https://a'}",
            LEAST + "\nhold: {}\ncache: {}\ncompress: true",
        ],
    )
    def test_good_ones(self, given):
        assert report(with_route(given)) == []


HOST = "a host such as api.example.com, or *.example.com for all below it, without a port"
PATH = "a path such as /orders/{id}, of segments as RFC 3986 has them or one {parameter} each"
PREFIX = "a prefix such as /orders, without {parameter} and without a slash at its end"
METHOD = "a method in capitals such as GET (CONNECT is never passed on)"
NAME = "the name of a header field such as X-Name"
VALUE = "the value of a header field: text without line breaks, and without spaces around it"
MOMENT = "a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hosts: []", "hosts: expected a list of at least 1, got a list"),
        ("hosts: ['*']", f"hosts[0]: expected {HOST}, got '*'"),
        ("hosts: ['a.*.b']", f"hosts[0]: expected {HOST}, got 'a.*.b'"),
        ("hosts: ['a:80']", f"hosts[0]: expected {HOST}, got 'a:80'"),
        ("hosts: ['https://a']", f"hosts[0]: expected {HOST}, got 'https://a'"),
        ("hosts: ['[::x]']", f"hosts[0]: expected {HOST}, got '[::x]'"),
        ("methods: []", "methods: expected a list of at least 1, got a list"),
        ("methods: [get]", f"methods[0]: expected {METHOD}, got 'get'"),
        ("methods: [GET, 'A B']", f"methods[1]: expected {METHOD}, got 'A B'"),
        ("methods: [CONNECT]", f"methods[0]: expected {METHOD}, got 'CONNECT'"),
        ("headers: {X Beta: a}", f"headers.X Beta: expected as name {NAME}, got another"),
        ("headers: {X-Beta: 1}", "headers.X-Beta: expected text (in quotes, if it looks like something else), got '1'"),
        ("headers: {X-Beta: ' a'}", f"headers.X-Beta: expected {VALUE}, got ' a'"),
        ("query: {v: 2}", "query.v: expected text (in quotes, if it looks like something else), got '2'"),
        ("upstream: Shop", "upstream: expected text that matches ^[a-z0-9][a-z0-9_-]{0,63}$, got 'Shop'"),
        ("rewrite: {path: v2}", "rewrite.path: expected a path such as /v2/{id}, got 'v2'"),
        ("rewrite: {prefix: /v2/}", "rewrite.prefix: expected a path such as /v2, without parameters and without a slash at its end, got '/v2/'"),
        ("rewrite: {host: 'http://a'}", "rewrite.host: expected a host such as shop.internal, or with a port shop.internal:8080, got 'http://a'"),
        ("rewrite: {host: 'a:'}", "rewrite.host: expected a host such as shop.internal, or with a port shop.internal:8080, got 'a:'"),
        ("request_headers: {set: {'X:': a}}", f"request_headers.set.X:: expected as name {NAME}, got another"),
        ('request_headers: {set: {X-A: "a\\nb"}}', f"request_headers.set.X-A: expected {VALUE}, got 'a\\nb'"),
        ("response_headers: {remove: ['a b']}", f"response_headers.remove[0]: expected {NAME}, got 'a b'"),
        ("public: maybe", "public: expected true or false, got 'maybe'"),
        ("claims: {X-User: ''}", "claims.X-User: expected text of at least 1 character(s), got ''"),
        ("authorization: drop", "authorization: expected 'strip' or 'forward', got 'drop'"),
        ("limits: {requests: {burst: 5}}", "limits.requests.rate: expected a value (Requests a second, in the long run), got nothing"),
        ("limits: {concurrent: 0}", "limits.concurrent: expected a number of at least 1, got '0'"),
        ("timeouts: {connect: 0}", "timeouts.connect: expected a number above 0, got '0'"),
        ("timeouts: {read: 5}", "timeouts.read: expected one of connect, first_byte, idle, total, got an unknown key"),
        ("hold: true", "hold: expected a mapping, got true or false"),
        ("max_body_bytes: 5 apples", "max_body_bytes: expected a size in bytes such as 65536 or 64KiB, got '5 apples'"),
        ("cors: {origins: [app.example.com]}", "cors.origins[0]: expected an origin as browsers send it, such as https://app.example.com, or *, got 'app.example.com'"),
        ("cache: {max_bytes: 1}", "cache.max_bytes: expected a number of at least 65536, got '1'"),
        ("version: 1", "version: expected text (in quotes, if it looks like something else), got '1'"),
        ("deprecated: soon", f"deprecated: expected {MOMENT}, got 'soon'"),
        ("deprecated: 2027-02-30", f"deprecated: expected {MOMENT}, got '2027-02-30'"),
        ("deprecated: 5", f"deprecated: expected {MOMENT}, got '5'"),
        ("sunset: 2027-01-01T12:00:00", f"sunset: expected {MOMENT}, got '2027-01-01T12:00:00'"),
        ("deprecation_info: /docs", "deprecation_info: expected a URL such as https://id.example.com/keys, without user name, password and fragment, got '/docs'"),
        ("successor: v2", "successor: expected a path such as /v2/orders, or a URL, got 'v2'"),
        ("successor: /v2/{id}", "successor: expected a path such as /v2/orders, or a URL, got '/v2/{id}'"),
        ("descripton: x", "descripton: expected one of version, deprecated,"),
    ],
)  # fmt: skip
def test_mistakes(given, expected):
    """Each is told with its line, its path and what was expected."""
    rest = LEAST.replace("upstream: shop", "") if given.startswith("upstream") else LEAST
    [problem] = report(with_route(f"{given}\n{rest}"))
    assert problem.startswith(f"6: {ONE}.{expected}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("path: orders", f"path: expected {PATH}, got 'orders'"),
        ("path: /a//b", f"path: expected {PATH}, got '/a//b'"),
        ("path: /a/../b", f"path: expected {PATH}, got '/a/../b'"),
        ("path: '/a b'", f"path: expected {PATH}, got '/a b'"),
        ("path: '/a/{Id}'", f"path: expected {PATH}, got '/a/{{Id}}'"),
        ("path: '/a/x{id}'", f"path: expected {PATH}, got '/a/x{{id}}'"),
        ("path: '/{a}/{a}'", "path: expected each parameter once, got '/{a}/{a}'"),
        ("prefix: orders", f"prefix: expected {PATH}, got 'orders'"),
        ("prefix: /orders/", f"prefix: expected {PREFIX}, got '/orders/'"),
        ("prefix: '/{a}'", f"prefix: expected {PREFIX}, got '/{{a}}'"),
    ],
)  # fmt: skip
def test_mistakes_in_paths(given, expected):
    """A path that no request can have, or that two readers could read differently, is refused."""
    assert report(with_route(f"{given}\nupstream: shop")) == [f"6: {ONE}.{expected}"]


def test_a_name_is_a_label():
    """In capitals or with dots it would not do in metrics."""
    [problem] = report("kafka: {bootstrap_servers: 'a:1'}\nroutes:\n  a.b: {prefix: /}")
    assert problem == "3: routes.a.b: expected as name text that matches ^[a-z0-9][a-z0-9_-]{0,63}$, got another"


def test_a_weight_is_needed():
    """A split says what everybody gets."""
    found = report(with_route("prefix: /\nsplit:\n  to:\n    - upstream: shop"))
    assert found == [
        f"9: {ONE}.split.to[0].weight: expected a value (Its share, beside the weights of the others), got nothing"
    ]
    found = report(with_route("prefix: /\nsplit:\n  to: []"))
    assert found == [f"8: {ONE}.split.to: expected a list of at least 1, got a list"]
