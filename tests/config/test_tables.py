"""The tables of routes and upstreams, as `gateway check --routes` shows them."""

from __future__ import annotations

from proxyconfig import KAFKA, UPSTREAMS, with_route, with_upstream

from gateway.config.loading import read
from gateway.config.tables import tables


def lines(text: str) -> list[str]:
    return list(tables(read(text, {})))


def test_routes_come_in_the_order_in_which_they_are_tried():
    """Host before path, path before conditions; whatever the file's order."""
    text = """
routes:
  all: {prefix: /, upstream: shop}
  longer: {prefix: /a/b, upstream: shop}
  shorter: {prefix: /a, upstream: shop}
  template: {path: "/a/{x}/{y}", upstream: shop}
  literals: {path: "/a/b/{y}", upstream: shop}
  literal: {path: /a, upstream: shop}
  condition: {path: /a, methods: [GET], upstream: shop}
  wildcard: {prefix: /, hosts: ["*.b"], upstream: shop}
  narrow: {prefix: /, hosts: ["*.a.b"], upstream: shop}
  host: {prefix: /, hosts: [a.b, "*.c"], upstream: shop}
"""
    names = [line.split()[1].rstrip(":") for line in lines(KAFKA + UPSTREAMS + text) if line.startswith("route ")]
    assert names == [
        "host", "narrow", "wildcard", "condition", "literal", "literals", "template", "longer", "shorter", "all"
    ]  # fmt: skip


def test_what_a_route_does():
    """The least, and all that there is."""
    least = lines(with_route("prefix: /\nupstream: shop\nrewrite: {prefix: /v2, host: b}"))[:2]
    assert least == [
        "route one: any method any host /… → shop as /v2/… on b",
        "  with a token; connect 2 s, first byte 30 s, idle 30 s, total 120 s",
    ]
    given = """
path: /a/{x}
hosts: [a.b, c.d]
methods: [GET, POST]
headers: {X-A: a}
query: {v: "2"}
split: {to: [{upstream: shop, weight: 3}, {upstream: shop-next, weight: 1}]}
rewrite: {path: "/b/{x}"}
allow: {scope: a}
claims: {X-User: "{claims.sub}"}
hold: {first_byte: 60}
limits: {requests: {rate: 5, burst: 10}, concurrent: 3}
retries: false
cache: {}
compress: true
deprecated: 2027-01-01
sunset: 2028-01-01
"""
    head, rest, *_ = lines(with_route(given))
    assert head == "route one: GET, POST a.b, c.d /a/{x} X-A: a ?v=2 → shop 0.75, shop-next 0.25 as /b/{x}"
    assert rest == (
        "  by a rule; held, first byte 60 s, total 120 s, connect 2 s; at most 5/s; at most 3 at once; tells X-User;"
        " never repeated; stored; compressed; deprecated; gone after 2028-01-01T00:00:00+00:00"
    )
    assert lines(with_route("prefix: /a\nupstream: shop\npublic: true\nlimits: {concurrent: 1}"))[:2] == [
        "route one: any method any host /a/… → shop",
        "  for everybody; connect 2 s, first byte 30 s, idle 30 s, total 120 s; at most 1 at once",
    ]
    assert "; at most 1/s" in lines(with_route("prefix: /a\nupstream: shop\nlimits: {requests: {rate: 1, burst: 1}}"))[1]


def test_what_an_upstream_does():
    """Where it is, and what is done for it."""
    given = "targets: [a:1, {address: 'b:1', weight: 2, priority: 1}, {dns: 'c:1'}]\nbalance: hash\nhash_on: '{claims.sub}'"
    head, rest = lines(with_upstream(given + "\ntls: {}\nhealth: {path: /healthz}"))
    assert head == "upstream shop: a:1, b:1 (weight 2, priority 1), each address of c:1"
    assert rest == (
        "  hash on {claims.sub}; HTTPS; at most 1000 at once, 100000 held, 100 waiting 1 s; asked every 5 s for /healthz;"
        " left out for 10 s after 5 failures; breaker open for 5 s after 5; 3 attempts, budget 0.2"
    )
    bare = "targets: [a:1]\nhealth: {tcp: true}\noutliers: null\nbreaker: null\nretries: null"
    assert lines(with_upstream(bare))[1] == (
        "  least_outstanding; plain HTTP; at most 1000 at once, 100000 held, 100 waiting 1 s; asked every 5 s"
    )
    assert lines(with_upstream("targets: [a:1]\nretries: null"))[1].endswith("breaker open for 5 s after 5")
