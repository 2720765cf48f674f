"""Routes beside upstreams, rules and the rest of the gateway: values that are good by themselves and wrong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from proxyconfig import KAFKA, ONE_ISSUER, TWO_ISSUERS, UPSTREAMS, advice, report, with_route

from gateway.server.ownpaths import own_paths

LEAST = "prefix: /\nupstream: shop"
ORDERS = "path: /orders/{id}\nupstream: shop"
ONE = "routes.one"
OWN = "expected a path that is none of the gateway's own, got one that it answers itself"
FRAMING = "expected a field that is passed on, got one of the connection or its framing, which the gateway decides on"
WAY = "expected a field that the gateway does not write itself, got one that says which way a request took"
PUBLIC = "expected no claims (the route is public, so that there may be no token), got a claim"
KNOWN = "expected no parameters but those of the route's path: %s, got another"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # where it is, and where it leads
        ("upstream: shop", f"5: {ONE}: expected exactly one of path and prefix, got neither"),
        ("path: /a\nprefix: /a\nupstream: shop", f"5: {ONE}: expected exactly one of path and prefix, got both"),
        ("prefix: /a", f"5: {ONE}: expected exactly one of upstream and split, got neither"),
        (LEAST + "\nsplit: {to: [{upstream: shop, weight: 1}]}", f"5: {ONE}: expected exactly one of upstream and split, got both"),
        ("path: /v1/subscribe\nupstream: shop", f"6: {ONE}.path: {OWN}"),
        ("path: /openapi.json\nupstream: shop", f"6: {ONE}.path: {OWN}"),
        ("prefix: /livez\nupstream: shop", f"6: {ONE}.prefix: {OWN}"),
        ("prefix: /\nupstream: shpo", f"7: {ONE}.upstream: expected one of the upstreams shop, shop-next, got an unknown one (did you mean shop?)"),
        ("prefix: /\nupstream: other", f"7: {ONE}.upstream: expected one of the upstreams shop, shop-next, got an unknown one"),
        ("prefix: /\nsplit:\n  to:\n    - {upstream: shop-nxt, weight: 1}", f"9: {ONE}.split.to[0].upstream: expected one of the upstreams shop, shop-next, got an unknown one (did you mean shop-next?)"),
        ("prefix: /\nsplit:\n  to:\n    - {upstream: shop, weight: 1}\n    - {upstream: shop, weight: 1}", f"10: {ONE}.split.to[1].upstream: expected each upstream once, got one again"),
        ("prefix: /\nsplit:\n  to: [{upstream: shop, weight: 0}]", f"8: {ONE}.split.to: expected a weight above 0, got none: nobody would get a request"),
        ("prefix: /\nsplit: {on: '{id}', to: [{upstream: shop, weight: 1}]}", f"7: {ONE}.split.on: {KNOWN % 'none'}"),
        ("prefix: /\npublic: true\nsplit:\n  on: '{claims.sub}'\n  to: [{upstream: shop, weight: 1}]", f"9: {ONE}.split.on: {PUBLIC}"),
        (LEAST + "\nheaders: {Host: a}", f"8: {ONE}.headers.Host: expected hosts in its place, got the field Host"),
        (LEAST + "\nheaders: {X-A: a, x-a: b}", f"8: {ONE}.headers: expected each field once (capitals make no difference), got x-a 2 times"),
        # what the backend sees
        (LEAST + "\nrewrite: {path: /v2}", f"8: {ONE}.rewrite.path: expected path beside it (a route with prefix has rewrite.prefix), got prefix"),
        (ORDERS + "\nrewrite: {prefix: /v2}", f"8: {ONE}.rewrite.prefix: expected prefix beside it (a route with path has rewrite.path), got path"),
        (ORDERS + "\nrewrite: {path: '/v2/{order}'}", f"8: {ONE}.rewrite.path: {KNOWN.replace('another', 'something else') % '{id}'}"),
        (LEAST + "\nrequest_headers:\n  set: {Content-Length: '5'}", f"9: {ONE}.request_headers.set.Content-Length: {FRAMING}"),
        (LEAST + "\nrequest_headers:\n  add:\n    transfer-encoding: chunked", f"10: {ONE}.request_headers.add.transfer-encoding: {FRAMING}"),
        (LEAST + "\nrequest_headers: {remove: [Cookie, Connection]}", f"8: {ONE}.request_headers.remove[1]: {FRAMING}"),
        (LEAST + "\nrequest_headers: {set: {Host: a}}", f"8: {ONE}.request_headers.set.Host: expected rewrite.host in its place, got the field Host"),
        (LEAST + "\nrequest_headers: {set: {X-Forwarded-For: a}}", f"8: {ONE}.request_headers.set.X-Forwarded-For: {WAY}"),
        (LEAST + "\nresponse_headers: {add: {Keep-Alive: a}}", f"8: {ONE}.response_headers.add.Keep-Alive: {FRAMING}"),
        (LEAST + "\nresponse_headers: {set: {X-A: a}, remove: [x-a]}", f"8: {ONE}.response_headers.remove[0]: expected none of the fields that are put in, got one (set alone replaces it)"),
        (LEAST + "\nresponse_headers: {set: {X-A: a, X-a: a}}", f"8: {ONE}.response_headers.set: expected each field once (capitals make no difference), got x-a 2 times"),
        (ORDERS + "\nrequest_headers: {set: {X-A: '{order}'}}", f"8: {ONE}.request_headers.set.X-A: {KNOWN % '{id}'}"),
        (LEAST + "\npublic: true\nrequest_headers: {set: {X-A: '{claims.sub}'}}", f"9: {ONE}.request_headers.set.X-A: {PUBLIC}"),
        (LEAST + "\nresponse_headers: {set: {X-A: '{claims.sub'}}", f'8: {ONE}.response_headers.set.X-A: expected text with {{parameter}}, {{headers.Name}}, {{claims.name}} or {{claims."a name with dots"}}; braces themselves are {{{{ and }}}}, got something else'),
        # who may
        (LEAST + "\npublic: true\nallow: {scope: a}", f"9: {ONE}.allow: expected a route that is not public beside it, got one that anybody may use"),
        (LEAST + "\nallow: {issuers: [other]}", f"8: {ONE}.allow.issuers: expected issuers out of main, got something else"),
        (LEAST + "\nallow: {scope: '{id}'}", f"8: {ONE}.allow.scope: expected no parameters but those of the route's path: none, got something else"),
        (LEAST + "\nallow: {claim: x}", f"8: {ONE}.allow: expected claim, the name of one, with either contains or equals, got something else"),
        (LEAST + "\npublic: true\nclaims: {X-User: '{claims.sub}'}", f"9: {ONE}.claims.X-User: {PUBLIC}"),
        (ORDERS + "\nclaims: {X-User: '{order}'}", f"8: {ONE}.claims.X-User: {KNOWN % '{id}'}"),
        (LEAST + "\nclaims: {X-User: '{claims.sub}{claims.org}'}", f'8: {ONE}.claims.X-User: expected a character such as ":" or "/" between two placeholders, so that they stay apart, got something else'),
        (LEAST + "\nclaims: {Authorization: a}", f"8: {ONE}.claims.Authorization: expected a field of its own, got one that clients prove with who they are"),
        (LEAST + "\nclaims: {X-API-Key: a}", f"8: {ONE}.claims.X-API-Key: expected a field of its own, got one that clients prove with who they are"),
        (LEAST + "\nclaims: {Upgrade: a}", f"8: {ONE}.claims.Upgrade: {FRAMING}"),
        (LEAST + "\nclaims: {Host: a}", f"8: {ONE}.claims.Host: expected rewrite.host in its place, got the field Host"),
        (LEAST + "\nclaims: {Forwarded: a}", f"8: {ONE}.claims.Forwarded: {WAY}"),
        (LEAST + "\nclaims: {X-User: a, x-user: b}", f"8: {ONE}.claims: expected each field once (capitals make no difference), got x-user 2 times"),
        (LEAST + "\nrequest_headers: {add: {x-user: b}}\nclaims: {X-User: a}", f"9: {ONE}.claims.X-User: expected a field that request_headers leaves alone, got one that it puts in as well"),
        # how long and how much
        (LEAST + "\ntimeouts: {first_byte: 200}", f"8: {ONE}.timeouts.first_byte: expected at most total, got more"),
        (LEAST + "\ntimeouts: {connect: 121}", f"8: {ONE}.timeouts.connect: expected at most total, got more"),
        (LEAST + "\ntimeouts: {idle: 121}", f"8: {ONE}.timeouts.idle: expected at most total, got more"),
        (LEAST + "\nhold: {first_byte: 121}", f"8: {ONE}.hold.first_byte: expected at most total, got more"),
        (LEAST + "\nhold: {first_byte: 20}", f"8: {ONE}.hold.first_byte: expected at least timeouts.first_byte (a long poll waits longer, not shorter), got less"),
        (LEAST + "\nhold: {total: 100}", f"8: {ONE}.hold.total: expected at least timeouts.total (a long poll waits longer, not shorter), got less"),
        (LEAST + "\nlimits: {}", f"8: {ONE}.limits: expected at least one of requests and concurrent (null: no limits), got neither"),
        (LEAST + "\nmax_body_bytes: 2MiB", f"8: {ONE}.max_body_bytes: expected at most server.max_body_bytes (1048576), which refuses larger bodies before a route is looked at, got more"),
        # the cache, and the end
        (LEAST + "\ncache: {max_bytes: 64KiB}", f"8: {ONE}.cache.max_answer_bytes: expected at most max_bytes, got more"),
        (LEAST + "\nmethods: [POST]\ncache: {}", f"9: {ONE}.cache: expected GET or HEAD among the route's methods (no other answers are stored), got neither"),
        (LEAST + "\nhold: {}\ncache: {collapse: false}", f"9: {ONE}.cache.collapse: expected true with hold (else each long poll would be one at the backend), got false"),
        (LEAST + "\ndeprecated: 2027-02-01\nsunset: 2027-01-31", f"9: {ONE}.sunset: expected a time that is not before deprecated, got an earlier one"),
        (LEAST + "\ndeprecation_info: https://a/", f"8: {ONE}.deprecation_info: expected deprecated beside it, got nothing"),
    ],
)  # fmt: skip
def test_mistakes(given, expected):
    """Each is told with its line, its path and what was expected."""
    assert report(with_route(given)) == [expected]


def test_all_mistakes_come_at_once():
    """Of single values, of values together, and in several routes and upstreams."""
    text = """
upstreams:
  shop: {targets: [a], retries: {backoff: 1}}
routes:
  one: {path: a, upstream: shop, hold: {total: 1}}
  two: {prefix: /, upstream: nobody, timeouts: {first_byte: 500}}
"""
    assert [line.split(": expected ")[0] for line in report(KAFKA + text)] == [
        "4: upstreams.shop.retries.backoff",
        "4: upstreams.shop.targets[0]",
        "6: routes.one.hold.first_byte",
        "6: routes.one.hold.total",
        "6: routes.one.path",
        "7: routes.two.timeouts.first_byte",
        "7: routes.two.upstream",
    ]


def test_an_upstream_with_a_mistake_is_not_unknown():
    """What a route refers to is there, whatever is wrong with it."""
    text = KAFKA + "upstreams: {shop: {targets: []}}\nroutes: {one: {prefix: /, upstream: shop}}"
    assert report(text) == ["2: upstreams.shop.targets: expected a list of at least 1, got a list"]


def test_without_upstreams_none_is_known():
    """There is nothing to guess."""
    text = KAFKA + "routes: {one: {prefix: /, upstream: shop}}"
    assert report(text) == ["2: routes.one.upstream: expected one of the upstreams (there are none), got an unknown one"]


def test_own_paths_follow_the_prefix_and_the_listener():
    """With one listener for all, the paths of operators are the gateway's as well."""
    own = own_paths("/gw", single_listener=False)
    paths = ["/gw/subscribe", "/gw/publish", "/gw/channels", "/gw/client.js", "/gw/cursors/abc", "/openapi.json", "/livez"]
    assert all(path in own for path in paths)
    assert not any(path in own for path in ("/v1/subscribe", "/gw/cursors", "/gw/subscribe/", "/metrics", "/readyz", "/"))
    metrics = with_route("path: /metrics\nupstream: shop")
    assert report(metrics) == []
    assert report(metrics + "server: {single_listener: true}") == [f"6: {ONE}.path: {OWN}"]


class TestConflicts:
    ROUTES = "%supstreams: {shop: {targets: ['a:1']}}\nroutes:\n  one: {%%s, upstream: shop, public: true}\n  two: {%%s, upstream: shop, public: true}\n"

    @pytest.mark.parametrize(
        ("one", "two", "request_"),
        [
            ("path: /a", "path: /a", "any method of /a on any host"),
            ("path: '/a/{x}'", "path: '/{y}/b'", "any method of /a/b on any host"),
            ("prefix: /a", "prefix: /a", "any method of /a, and what is below it, on any host"),
            ("path: /a, methods: [GET, POST]", "path: /a, methods: [POST]", "POST /a on any host"),
            ("path: /a, hosts: [x.y, a.b]", "path: /a, hosts: [a.b]", "any method of /a on a.b"),
            ("path: /a, headers: {X-A: a}", "path: /a, query: {b: a}", "any method of /a on any host"),
        ],
    )
    def test_two_routes_for_the_same_requests(self, one, two, request_):
        """Both are named, with a request that both fit."""
        [problem] = report(self.ROUTES % KAFKA % (one, two))
        told = f"5: routes.two: expected no two routes for the same requests, got one like one: both fit {request_}, "
        assert problem == told + "and neither is the more specific one"

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            ("path: /a", "prefix: /a"),
            ("path: /a", "path: '/{x}'"),
            ("path: /a, methods: [GET]", "path: /a, methods: [POST]"),
            ("path: /a, hosts: [a.b]", "path: /a, hosts: ['*.b']"),
            ("path: /a, headers: {X-A: a}", "path: /a"),
            ("path: /a, headers: {X-A: a}", "path: /a, headers: {X-A: b}"),
        ],
    )
    def test_routes_that_can_be_told_apart(self, one, two):
        assert report(self.ROUTES % KAFKA % (one, two)) == []

    def test_a_route_with_a_mistake_is_not_compared(self):
        """What was meant by the condition that is refused, nobody knows."""
        [problem] = report(self.ROUTES % KAFKA % ("path: /a, methods: [get]", "path: /a, methods: [POST]"))
        assert problem.startswith("4: routes.one.methods[0]: ")


class TestIssuers:
    EXPECTED = "expected the issuers whose claims are meant (several are configured), got none"

    @pytest.mark.parametrize(
        "given",
        [
            "claims: {X-User: '{claims.sub}'}",
            "allow: {claim: x, equals: y}",
            "request_headers: {add: {X-User: '{claims.sub}'}}",
        ],
    )
    def test_with_several_it_is_said_whose_claims_are_meant(self, given):
        """Else one issuer could speak for the subjects of the other."""
        [problem] = report(with_route(f"{LEAST}\n{given}", auth=TWO_ISSUERS))
        assert problem.endswith(f"{ONE}.allow: {self.EXPECTED}")

    @pytest.mark.parametrize(
        "given",
        [
            "claims: {X-User: '{claims.sub}'}\nallow: {issuers: [main]}",
            "claims: {X-User: fixed}",
            "allow: {scope: x}",
            "public: true",
        ],
    )
    def test_claims_with_an_issuer_and_no_claims(self, given):
        assert report(with_route(f"{LEAST}\n{given}", auth=TWO_ISSUERS)) == []

    def test_a_template_that_is_none_is_told_of_once(self):
        [problem] = report(with_route(f"{LEAST}\nclaims: {{X-User: '{{claims.'}}", auth=TWO_ISSUERS))
        assert f"{ONE}.claims.X-User: expected text with" in problem


class TestOpenapi:
    PATH = f"8: {ONE}.openapi"

    @pytest.mark.parametrize(
        "document", ['{"openapi": "3.1.0", "paths": {}}', "openapi: 3.0.3\npaths: {/a: {get: {}}}\ninfo: {title: x}"]
    )
    def test_documents(self, tmp_path: Path, document):
        """JSON or YAML, of versions 3.0 and 3.1."""
        (tmp_path / "api").write_text(document)
        assert report(with_route(f"{LEAST}\nopenapi: api"), tmp_path) == []
        assert report(with_route(f"{LEAST}\nopenapi: api")) == []

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            ("{", "expected a document in JSON or YAML, got a file that is neither"),
            ("[" * 5000, "expected at most 200000 values, 64 levels deep, got more"),
            ("x: !!timestamp 2027-02-30", "expected a document in JSON or YAML, got a file that is neither"),
            ("[]", "expected an OpenAPI document (`openapi: 3.0.…` or `3.1.…`), got something else"),
            ("swagger: '2.0'\npaths: {}", "expected an OpenAPI document (`openapi: 3.0.…` or `3.1.…`), got something else"),
            ("openapi: 3.1.0", "expected an OpenAPI document with paths, got one without"),
            ("#" * ((4 << 20) + 1), "expected a document of at most 4194304 bytes, got more"),
        ],
        ids=range(7),
    )
    def test_files_that_are_none(self, tmp_path: Path, document, expected):
        (tmp_path / "api").write_text(document)
        assert report(with_route(f"{LEAST}\nopenapi: api"), tmp_path) == [f"{self.PATH}: {expected}"]

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        found = report(with_route(f"{LEAST}\nopenapi: api"), tmp_path)
        assert found == [f"{self.PATH}: expected a file that can be read, got 'api'"]


ONE_UPSTREAM = "upstreams: {shop: {targets: ['a:1']}}\n"
HASHED = "upstreams: {shop: {targets: ['a:1'], balance: hash, hash_on: '%s'}}\n"


class TestAdvice:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (LEAST + "\nhold: {total: 300}\n", ["8: routes.one.hold.total: a drain takes 15 seconds (drain.delay and drain.window), and ends what is held longer"]),
            (LEAST + "\ncompress: true\ncache: {}", ["8: routes.one.compress: what is stored is stored as the backend sent it, and compressed again for each client"]),
            ("prefix: /\nsplit: {to: [{upstream: shop, weight: 1}]}\ncache: {}", ["8: routes.one.cache: what one upstream answered is stored for all, whichever upstream the split has for them"]),
            (LEAST + "\ncors: {origins: '*'}", ["8: routes.one.cors.origins: every web page may call"]),
            (LEAST, []),
        ],
    )  # fmt: skip
    def test_what_is_unwise(self, tmp_path: Path, given, expected):
        """It works, and is told of as a warning."""
        text = with_route(given, upstreams=ONE_UPSTREAM)
        assert advice(tmp_path, text) == expected

    def test_a_hold_within_the_drain_and_the_keepalive(self, tmp_path: Path):
        """No warning without a reason."""
        given = LEAST + "\nhold: {first_byte: 90, total: 200}"
        patient = "drain: {delay: 100, window: 100}\nserver: {keepalive: 100}\n"
        text = with_route(given, upstreams="upstreams: {shop: {targets: ['a:1']}}\n", more=patient)
        assert advice(tmp_path, text) == []
        early = (
            "8: routes.one.hold.first_byte: a load balancer in front that goes by server.keepalive (75 seconds) gives up before"
        )
        assert early in advice(tmp_path, text.replace("server: {keepalive: 100}\n", ""))

    def test_nobody_can_use_it(self, tmp_path: Path):
        text = with_route(LEAST, auth="auth: {}\n")
        told = advice(tmp_path, text)
        assert "5: routes.one: it needs a token, and there are no issuers, so nobody can use it" in told
        assert "2: auth: there are no issuers, so nobody can come in" in told
        assert advice(tmp_path, with_route(LEAST + "\npublic: true", auth="auth: {}\n", upstreams=ONE_UPSTREAM)) == []

    def test_anybody_as_often_as_it_likes(self, tmp_path: Path):
        text = with_route(LEAST + "\npublic: true", more="limits: {address: null}")
        told = "5: routes.one.limits: anybody may call, as often as it likes: limits.address is off as well"
        assert told in advice(tmp_path, text)
        assert told not in advice(tmp_path, text.replace("public: true", "public: true\n    limits: {concurrent: 5}"))

    @pytest.mark.parametrize(
        ("hash_on", "given", "missing"),
        [
            ("{room}", LEAST, "{room}"),
            ("{room}:{claims.sub}", LEAST + "\npublic: true", "{room}, {claims.sub}"),
            ("{claims.sub}", LEAST, None),
            ("{id}", ORDERS, None),
        ],
    )
    def test_what_an_upstream_hashes_is_not_there(self, tmp_path: Path, hash_on, given, missing):
        found = advice(tmp_path, with_route(given, upstreams=HASHED % hash_on))
        told = f"5: routes.one: there is no {missing} for hash_on of its upstream here: its requests go to any target"
        assert found == ([] if missing is None else [told])


def test_what_is_sound_gets_no_report():
    """Neither mistakes nor guesses."""
    assert report(KAFKA + ONE_ISSUER + UPSTREAMS) == []
