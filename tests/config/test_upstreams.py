"""Upstreams: what their values may be, each by itself and beside the others."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from proxyconfig import advice, report, upstream, with_upstream

from gateway.config.loading import read

USED = "routes: {one: {prefix: /, upstream: shop, public: true}}"


class TestGood:
    def test_the_least_is_a_target(self):
        shop = upstream("targets: [10.0.0.1:8080]")
        assert [target.place for target in shop.targets] == ["10.0.0.1:8080"]
        assert (shop.balance, shop.dns_refresh, shop.slow_start) == ("least_outstanding", 30.0, 0.0)
        assert (shop.limits.concurrent, shop.connections.idle, shop.health, shop.tls) == (1000, 64, None, None)
        assert shop.outliers.max_share == 0.5
        assert shop.breaker.max_open == 60.0
        assert shop.retries.statuses == (502, 503, 504)

    def test_targets_are_texts_or_mappings(self):
        first, second, third = upstream(
            "targets: ['[::1]:80', {address: 'b:1', weight: 2, priority: 1}, {dns: 'shop.internal:80'}]"
        ).targets
        assert (first.address, first.weight, first.priority) == ("[::1]:80", 1, 0)
        assert (second.address, second.weight, second.priority) == ("b:1", 2, 1)
        assert (third.address, third.dns, third.place) == (None, "shop.internal:80", "shop.internal:80")

    def test_what_requests_are_hashed_by(self):
        assert upstream("targets: [a:1]\nbalance: hash\nhash_on: '{claims.sub}'").key.claims == {"sub"}
        assert upstream("targets: [a:1]").key is None

    def test_tls(self):
        """Certificates are looked at, unless it is said that they are not."""
        assert upstream("targets: [a:1]").tls_context is None
        checking = upstream("targets: [a:1]\ntls: {}").tls_context
        assert (checking.check_hostname, checking.verify_mode) == (True, ssl.CERT_REQUIRED)
        open_ = upstream("targets: [a:1]\ntls: {verify: false}").tls_context
        assert (open_.check_hostname, open_.verify_mode) == (False, ssl.CERT_NONE)

    def test_tls_with_files(self, tmp_path):
        """The authorities of the file alone are believed, and the own certificate is shown."""
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        files = "cafile: ca.pem, certfile: both.pem, keyfile: both.pem"
        config = read(with_upstream(f"targets: [a:1]\ntls: {{{files}}}"), {}, base=tmp_path)
        assert len(config.upstreams["shop"].tls_context.get_ca_certs()) == 1

    def test_what_watches_and_repeats_can_be_switched_off(self):
        shop = upstream("targets: [a:1]\nhealth: null\noutliers: null\nbreaker: null\nretries: null")
        assert (shop.health, shop.outliers, shop.breaker, shop.retries) == (None, None, None, None)

    @pytest.mark.parametrize(
        "given",
        [
            "health: {path: /healthz, statuses: [200, 204], body: ok}",
            "health: {tcp: true, interval: 2, timeout: 2}",
            "balance: hash\nhash_on: '{claims.sub}'",
            "balance: hash\nhash_on: '{room}:{headers.X-Room}'",
            "retries: {statuses: [429, 500, 599]}",
            "tls: {}",
            "tls: {server_name: shop.internal, certfile: a, keyfile: b}",
            "connections: {idle: 0}",
        ],
    )
    def test_good_ones(self, given):
        assert report(with_upstream(f"targets: [a:1]\n{given}")) == []


ADDRESS = "an address with its port, such as 10.0.0.1:8080, shop.internal:8080 or [::1]:8080"
SHOP = "upstreams.shop"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("targets: []", f"4: {SHOP}.targets: expected a list of at least 1, got a list"),
        ("balance: random", f"3: {SHOP}.targets: expected a value (Where requests go), got nothing"),
        ("targets:\n  - 10.0.0.1", f"5: {SHOP}.targets[0]: expected {ADDRESS}, got '10.0.0.1'"),
        ("targets:\n  - a:1\n  - http://a:1", f"6: {SHOP}.targets[1]: expected {ADDRESS}, got 'http://a:1'"),
        ("targets:\n  - address: a", f"5: {SHOP}.targets[0].address: expected {ADDRESS}, got 'a'"),
        ("targets:\n  - 5", f"5: {SHOP}.targets[0]: expected a mapping, got a number"),
        ("targets:\n  - dns: shop", f"5: {SHOP}.targets[0].dns: expected a DNS name with a port, such as shop.internal:8080, got 'shop'"),
        ("targets:\n  - dns: 10.0.0.1:80", f"5: {SHOP}.targets[0].dns: expected a DNS name with a port, such as shop.internal:8080 (addresses go under address), got '10.0.0.1:80'"),
        ("targets:\n  - {address: 'a:1', dns: 'b:1'}", f"5: {SHOP}.targets[0]: expected exactly one of address and dns, got address and dns"),
        ("targets:\n  - {weight: 2}", f"5: {SHOP}.targets[0]: expected exactly one of address and dns, got neither"),
        ("targets:\n  - a:1\n  - b:1\n  - A:1", f"7: {SHOP}.targets[2]: expected each target once (more requests: weight), got targets[0] again"),
        ("targets:\n  - {address: 'a:1', weight: 0}", f"5: {SHOP}.targets[0].weight: expected a number of at least 1, got '0'"),
        ("targets:\n  - {address: 'a:1', weight: 1001}", f"5: {SHOP}.targets[0].weight: expected a number of at most 1000, got '1001'"),
        ("targets:\n  - {address: 'a:1', priority: 10}", f"5: {SHOP}.targets[0].priority: expected a number of at most 9, got '10'"),
        ("targets:\n  - {address: 'a:1', wieght: 1}", f"5: {SHOP}.targets[0].wieght: expected one of address, dns, weight, priority, got an unknown key (did you mean weight?)"),
        ("targets:\n  - {address: 'a:1', priority: 1}", f"4: {SHOP}.targets: expected a target with priority 0, which is the first group, got none"),
    ],
)  # fmt: skip
def test_mistakes_in_targets(given, expected):
    """Each is told with its line, its path and what was expected."""
    assert report(with_upstream(given)) == [expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("balance: best", "balance: expected 'round_robin', 'least_outstanding', 'hash' or 'random', got 'best'"),
        ("balance: hash", "hash_on: expected a template with balance hash, got nothing"),
        ("hash_on: '{claims.sub}'", "hash_on: expected balance hash beside it, got least_outstanding"),
        ("balance: hash\nhash_on: '{claims.}'", 'hash_on: expected text with {parameter}, {headers.Name}, {claims.name} or {claims."a name with dots"}; braces themselves are {{ and }}, got something else'),
        ("balance: hash\nhash_on: '{a}{b}'", 'hash_on: expected a character such as ":" or "/" between two placeholders, so that they stay apart, got something else'),
        ("balance: hash\nhash_on: all", "hash_on: expected something that differs between requests, such as {claims.sub}, got plain text"),
        ("dns_refresh: 0", "dns_refresh: expected a number of at least 1, got '0'"),
        ("slow_start: -1", "slow_start: expected a number of at least 0, got '-1'"),
        ("tls: {cafile: a, verify: false}", "tls.cafile: expected verify beside it, got false: certificates are not looked at"),
        ("tls: {certfile: a}", "tls.keyfile: expected certfile and keyfile together, got one of them"),
        ("tls: {keyfile: a}", "tls.certfile: expected certfile and keyfile together, got one of them"),
        ("tls: {server_name: 'a:1'}", "tls.server_name: expected an IP address or a host name, got 'a:1'"),
        ("connections: {idle: 0, keepalive: 5}", "connections.keepalive: expected idle above 0 beside it, got 0: no connection is kept"),
        ("limits: {concurrent: 0}", "limits.concurrent: expected a number of at least 1, got '0'"),
        ("limits: {queue_timeout: 0}", "limits.queue_timeout: expected a number above 0, got '0'"),
        ("health: {}", "health: expected exactly one of path and tcp, got neither"),
        ("health: {path: /a, tcp: true}", "health: expected exactly one of path and tcp, got both"),
        ("health: {path: healthz}", "health.path: expected a path such as /healthz, got 'healthz'"),
        ("health: {path: '/a#b'}", "health.path: expected a path such as /healthz, got '/a#b'"),
        ("health: {tcp: true, body: ok}", "health.body: expected path beside it (with tcp there is no answer to look at), got tcp"),
        ("health: {tcp: true, statuses: [200]}", "health.statuses: expected path beside it (with tcp there is no answer to look at), got tcp"),
        ("health: {path: /a, statuses: [99]}", "health.statuses[0]: expected a number of at least 100, got '99'"),
        ("health: {path: /a, statuses: [600]}", "health.statuses[0]: expected a number of at most 599, got '600'"),
        ("health: {path: /a, statuses: []}", "health.statuses: expected a list of at least 1, got a list"),
        ("health: {path: /a, jitter: 1}", "health.jitter: expected a number below 1, got '1'"),
        ("health: {path: /a, interval: 1, timeout: 2}", "health.timeout: expected at most interval, got more"),
        ("health: {path: /a, rise: 0}", "health.rise: expected a number of at least 1, got '0'"),
        ("outliers: {ejection: 400}", "outliers.ejection: expected at most max_ejection, got more"),
        ("outliers: {max_share: 0}", "outliers.max_share: expected a number above 0, got '0'"),
        ("outliers: {rate: 1.5}", "outliers.rate: expected a number of at most 1, got '1.5'"),
        ("breaker: {open: 100}", "breaker.open: expected at most max_open, got more"),
        ("breaker: {trials: 0}", "breaker.trials: expected a number of at least 1, got '0'"),
        ("retries: {statuses: [404]}", "retries.statuses[0]: expected 429, or a status of 500 to 599: others are answers, got '404'"),
        ("retries: {budget: 2}", "retries.budget: expected a number of at most 1, got '2'"),
        ("retries: {budget: -0.1}", "retries.budget: expected a number of at least 0, got '-0.1'"),
        ("retries: {backoff: 1}", "retries.backoff: expected at most max_backoff, got more"),
        ("retries: {attempts: 0}", "retries.attempts: expected a number of at least 1, got '0'"),
    ],
)  # fmt: skip
def test_mistakes(given, expected):
    """Each is told with its line (of the last key where it is in the file), its path and what was expected."""
    [problem] = report(with_upstream(f"targets: [a:1]\n{given}"))
    line, sentence = problem.split(": ", 1)
    assert sentence == f"{SHOP}.{expected}"
    assert int(line) == (3 if expected.endswith("hash, got nothing") else 4 + len(given.splitlines()))


def test_a_name_is_a_label():
    """In capitals or with dots it would not do in metrics."""
    [problem] = report("kafka: {bootstrap_servers: 'a:1'}\nupstreams:\n  Shop: {targets: ['a:1']}")
    assert problem == "3: upstreams.Shop: expected as name text that matches ^[a-z0-9][a-z0-9_-]{0,63}$, got another"


def test_certificates_are_tried(tmp_path: Path):
    """Files that are missing or hold something else are told of."""
    leaf = trustme.CA().issue_cert("localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "x.pem").write_text("x")
    text = with_upstream("targets: [a:1]\ntls: {cafile: %s, certfile: %s, keyfile: %s}")
    assert report(text % ("cert.pem", "cert.pem", "key.pem"), tmp_path) == []
    assert report(text % ("none.pem", "cert.pem", "key.pem"), tmp_path) == [
        f"5: {SHOP}.tls.cafile: expected a file that can be read, got 'none.pem'"
    ]
    assert report(text % ("x.pem", "cert.pem", "x.pem"), tmp_path) == [
        f"5: {SHOP}.tls.cafile: expected certificates in PEM, got a file without any",
        f"5: {SHOP}.tls.certfile: expected a certificate in PEM, with keyfile holding its key, got files that do not serve as these",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tls: {verify: false}", "5: upstreams.shop.tls.verify: anybody who is between can pass for a target, and read what is sent to it"),
        ("retries: {attempts: 1}", "5: upstreams.shop.retries.attempts: one attempt in all is no retry: null says so"),
    ],
)  # fmt: skip
def test_what_is_unwise(tmp_path: Path, given, expected):
    """It works, and is told of as a warning."""
    found = advice(tmp_path, with_upstream(f"targets: [a:1]\n{given}", more=USED))
    assert found == [expected]


def test_an_upstream_that_no_route_uses(tmp_path: Path):
    """It is a slip, most likely; a weight of 0 is no use."""
    idle = "3: upstreams.shop: no route leads here"
    assert idle in advice(tmp_path, with_upstream("targets: [a:1]"))
    split = "routes: {one: {prefix: /, public: true, split: {to: [{upstream: shop, weight: 0}, {upstream: b, weight: 1}]}}}"
    text = with_upstream("targets: [a:1]", more=f"  b: {{targets: ['a:2']}}\n{split}")
    assert idle in advice(tmp_path, text)
