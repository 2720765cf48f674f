"""Checks: values that are good by themselves and wrong together, and advice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gateway.auth.mint import generate
from gateway.config.loading import ConfigInvalid, inspect, read

KAFKA = "kafka: {bootstrap_servers: 'a:1'}\n"
SECRET = "0123456789abcdef0123456789abcdef"
ISSUERS = """
auth:
  issuers:
    one: {issuer: https://one/, audience: a, keys: [{algorithm: HS256, secret: 0123456789abcdef0123456789abcdef}]}
    two: {issuer: https://two/, audience: a, jwks_url: "https://two/keys"}
"""


def problems(text: str, base: Path | None = None) -> list[str]:
    try:
        read(text, {}, source="f", base=base)
    except ConfigInvalid as error:
        return [line.split(": ", 1)[1] for line in error.lines()]
    return []


def security(given: str) -> list[str]:
    return problems(f"kafka: {{bootstrap_servers: 'a:1', security: {{{given}}}}}")


def key(given: str, base: Path | None = None, more: str = "") -> list[str]:
    return problems(KAFKA + f"auth: {{issuers: {{a: {{issuer: x, keys: [{{{given}}}]{more}}}}}}}", base)


class TestServer:
    @pytest.mark.parametrize("prefix", ["/livez", "/readyz/v1", "/metrics"])
    def test_the_prefix_leaves_the_own_paths_alone(self, prefix):
        [problem] = problems(KAFKA + f"server: {{prefix: {prefix}}}")
        assert problem.startswith("server.prefix: expected a path that begins with none of /livez, /readyz, /metrics")

    @pytest.mark.parametrize(
        "own", ["host: '::', port: 8081", "host: 127.0.0.1, port: 8081", "admin: {host: 0.0.0.0, port: 8080}"]
    )
    def test_two_listeners_need_two_addresses(self, own):
        assert problems(KAFKA + f"server: {{{own}}}") == [
            "server.admin.port: expected another port than server.port, got the same"
        ]

    @pytest.mark.parametrize(
        "own",
        ["host: 10.0.0.1, port: 8081", "port: 0, admin: {port: 0}", "port: 8081, single_listener: true", "host: 127.0.0.1"],
    )
    def test_addresses_that_do_not_meet(self, own):
        assert problems(KAFKA + f"server: {{{own}}}") == []

    def test_operators_are_not_sent_to_one_of_several_workers(self):
        [problem] = problems(KAFKA + "server: {single_listener: true, workers: 2}")
        assert problem.startswith("server.single_listener: expected false with server.workers above 1 (each of its paths would")
        assert problems(KAFKA + "server: {single_listener: true, workers: 1}") == []
        assert problems(KAFKA + "server: {workers: 2}") == []

    def test_the_proxy_protocol_needs_a_proxy_and_ends_tls(self, tmp_path):
        certificate(tmp_path)
        text = KAFKA + "server: {proxy_protocol: true, tls: {certfile: cert.pem, keyfile: key.pem}}"
        assert problems(text, tmp_path) == [
            "server.tls: expected TLS to end at the proxy that sends the PROXY protocol, got both here",
            "server.trusted_proxies: expected the proxies that send the PROXY protocol, got none",
        ]
        assert problems(KAFKA + "server: {proxy_protocol: true, trusted_proxies: 10.0.0.0/8}") == []

    def test_certificates_are_tried(self, tmp_path):
        certificate(tmp_path)
        tls = "server: {tls: {certfile: %s, keyfile: %s}}"
        assert problems(KAFKA + tls % ("cert.pem", "key.pem"), tmp_path) == []
        assert problems(KAFKA + tls % ("cert.pem", "key.pem")) == []
        assert problems(KAFKA + tls % ("key.pem", "cert.pem"), tmp_path) == [
            "server.tls.certfile: expected a certificate in PEM, with keyfile holding its key, got files that do not serve as these"
        ]
        assert problems(KAFKA + tls % ("none.pem", "key.pem"), tmp_path) == [
            "server.tls.certfile: expected a file that can be read, got 'none.pem'"
        ]


def certificate(folder: Path) -> None:
    leaf = trustme.CA().issue_cert("localhost")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")


class TestApiKeys:
    GOOD = '{hash: "sha256:' + "0" * 64 + '", subject: x}'

    def given(self, text: str, base: Path | None = None, more: str = "") -> list[str]:
        return problems(KAFKA + f"api_keys: {{{text}}}\n{more}", base)

    def test_good_ones(self, tmp_path):
        (tmp_path / "keys.yaml").write_text(f"cd: {self.GOOD}")
        assert self.given(f"file: keys.yaml, keys: {{ci: {self.GOOD}}}", tmp_path) == []
        assert self.given("file: keys.yaml") == []

    def test_entries_are_tried(self):
        assert self.given(f"keys: {{ci: {self.GOOD[:-1]}, expires: soon}}}}") == [
            "api_keys.keys.ci: expected a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z, got something else"
        ]
        [problem] = self.given("keys: {ci: {hash: secret, subject: x}}")
        assert problem.startswith("api_keys.keys.ci.hash: expected text that matches")
        [problem] = self.given(f"keys: {{C_I: {self.GOOD}}}")
        assert problem.startswith("api_keys.keys.C_I: expected as name text that matches")

    def test_the_file_is_tried(self, tmp_path):
        """Each entry by itself, and against those that the configuration has."""
        (tmp_path / "keys.yaml").write_text(f"ci: {self.GOOD}\ncd: {{}}")
        assert sorted(self.given(f"file: keys.yaml, keys: {{ci: {self.GOOD}}}", tmp_path)) == [
            "api_keys.file: cd: expected hash as text, got something else",
            "api_keys.file: expected other ids than in api_keys.keys, got ci",
        ]
        (tmp_path / "keys.yaml").write_text("- a")
        assert self.given("file: keys.yaml", tmp_path) == [
            "api_keys.file: expected a mapping of ids to entries, got something else"
        ]
        assert self.given("file: none.yaml", tmp_path) == ["api_keys.file: expected a file that can be read, got 'none.yaml'"]

    def test_their_alias_is_no_issuers(self):
        assert problems(KAFKA + "auth: {issuers: {apikeys: {issuer: x, audience: a, jwks_url: 'https://x/'}}}") == [
            "auth.issuers.apikeys: expected another alias than apikeys, which API keys have"
        ]

    def test_they_count_as_an_issuer(self):
        """Rules may name them, and beside others have to say whose claims they mean."""
        rule = "channels: {a: {topic: t, allow: {issuers: [apikeys]}}}"
        keys = f"keys: {{ci: {self.GOOD}}}"
        assert self.given(keys, more=rule) == []
        assert self.given("", more=rule)[0].startswith("channels.a.allow.issuers: expected issuers out of none")
        one = ISSUERS[: ISSUERS.index("    two:")] + 'channels: {a: {topic: t, key: "{claims.sub}"}}'
        assert self.given("", more=one) == []
        assert self.given(keys, more=one) == [
            "channels.a.allow: expected the issuers whose claims are meant (several are configured), got none"
        ]

    def test_who_has_keys_needs_no_issuers(self):
        """Somebody can come in."""
        text = KAFKA + f"api_keys: {{keys: {{ci: {self.GOOD}}}}}\nchannels: {{a: {{topic: t}}}}"
        assert read(text, {}).api_keys.given


class TestKafka:
    @pytest.mark.parametrize(
        "given",
        [
            "",
            "protocol: SSL",
            "protocol: SASL_SSL, mechanism: PLAIN, username: u, password: p",
            "protocol: SASL_PLAINTEXT, mechanism: SCRAM-SHA-512, username: u, password: p",
        ],
    )
    def test_good_security(self, given):
        assert security(given) == []

    def test_sasl_needs_a_mechanism_and_a_name(self):
        assert security("protocol: SASL_SSL") == [
            f"kafka.security.{name}: expected a value with protocol SASL_SSL, got nothing"
            for name in ("mechanism", "password", "username")
        ]

    def test_what_the_protocol_does_not_use_is_a_slip(self):
        """Above all a password that would never be asked for, on a connection that was meant to be protected."""
        assert security("protocol: SSL, username: u, password: p") == [
            f"kafka.security.{name}: expected protocol SASL_SSL or SASL_PLAINTEXT beside it, got SSL"
            for name in ("password", "username")
        ]
        assert security("cafile: x") == ["kafka.security.cafile: expected protocol SSL or SASL_SSL beside it, got PLAINTEXT"]

    def test_certificates_and_authorities_are_tried(self, tmp_path):
        certificate(tmp_path)
        (tmp_path / "x.pem").write_text("x")
        text = "kafka: {bootstrap_servers: 'a:1', security: {protocol: SSL, %s}}"
        assert problems(text % "cafile: cert.pem, certfile: cert.pem, keyfile: key.pem, keypassword: x", tmp_path) == []
        assert problems(text % "cafile: none.pem, certfile: none.pem, keyfile: none.pem") == []
        assert problems(text % "cafile: x.pem", tmp_path) == [
            "kafka.security.cafile: expected certificates in PEM, got a file without any"
        ]
        assert problems(text % "certfile: cert.pem, keyfile: x.pem", tmp_path)[0].startswith("kafka.security.certfile")
        assert problems(text % "certfile: cert.pem", tmp_path) == [
            "kafka.security.keyfile: expected certfile and keyfile together, got one of them"
        ]
        assert problems(text % "keyfile: key.pem", tmp_path)[0].startswith("kafka.security.certfile: expected certfile and")

    def test_a_tail_fits_into_the_tails(self):
        assert problems("kafka: {bootstrap_servers: 'a:1', tails_bytes: 1MiB, tail_bytes: 2MiB}") == [
            "kafka.tail_bytes: expected at most kafka.tails_bytes, got more"
        ]


class TestIssuers:
    def test_issuers_differ(self):
        text = KAFKA + ISSUERS.replace("https://two/,", "https://one/,")
        assert problems(text) == ["auth.issuers.two.issuer: expected another value than that of one, got the same"]

    def test_an_issuer_needs_keys(self):
        assert problems(KAFKA + "auth: {issuers: {a: {issuer: x}}}") == [
            "auth.issuers.a: expected at least one of keys, jwks_file and jwks_url, got none"
        ]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("algorithm: HS256", "expected exactly one of secret and file, got none"),
            ("algorithm: RS256", "expected exactly one of pem and file, got none"),
            (f"algorithm: HS256, secret: {SECRET}, file: x", "expected exactly one of secret and file, got secret and file"),
            (f"algorithm: HS256, pem: {SECRET}", "expected secret or file with HS256, got pem"),
            (f"algorithm: ES256, secret: {SECRET}", "expected pem or file with ES256, got secret"),
            ("algorithm: HS256, secret: short", "expected a secret of at least 32 bytes for HS256, got something else"),
            ("algorithm: ES256, pem: x", "got something else"),
        ],
    )
    def test_keys_that_cannot_be_used(self, given, expected):
        [problem] = key(given)
        assert problem.startswith("auth.issuers.a.keys[0]: expected")
        assert expected in problem

    def test_a_key_has_one_of_the_issuers_algorithms(self):
        assert key(f"algorithm: HS256, secret: {SECRET}", more=", algorithms: [ES256]") == [
            "auth.issuers.a.keys[0]: expected one of the issuer's algorithms, got HS256"
        ]
        assert key(f"algorithm: HS256, secret: {SECRET}", more=", algorithms: [ES256, HS256]") == []

    def test_files_are_read(self, tmp_path):
        dev = generate()
        (tmp_path / "public.pem").write_bytes(dev.public)
        (tmp_path / "private.pem").write_bytes(dev.private)
        (tmp_path / "keys.json").write_bytes(dev.jwks)
        (tmp_path / "none.json").write_text('{"keys": []}')
        assert key("algorithm: EdDSA, file: public.pem", tmp_path) == []
        assert key("algorithm: EdDSA, file: public.pem") == []
        assert "this is a private one" in key("algorithm: EdDSA, file: private.pem", tmp_path)[0]
        jwks = KAFKA + "auth: {issuers: {a: {issuer: x, jwks_file: %s}}}"
        assert problems(jwks % "keys.json", tmp_path) == []
        assert problems(jwks % "none.json", tmp_path) == [
            "auth.issuers.a.jwks_file: expected a usable key, got none: the set is empty"
        ]
        assert problems(jwks % "public.pem", tmp_path)[0].startswith("auth.issuers.a.jwks_file: expected a JWK Set")


class TestChannels:
    @pytest.mark.parametrize(
        ("channel", "expected"),
        [
            ("a//b: {topic: t}", "channels.a//b: expected as name segments of"),
            ("a/{b}: {topic: t}", "channels.a/{b}.key: expected a key with each parameter of the pattern in it, got none with {b}"),
            ("a/{b}/{c}: {topic: t, key: '{b}'}", "got none with {c}"),
            ("a/{b}: {topic: t, key: '{b}{claims.sub}', allow: {issuers: [one]}}", "key: expected a character such as"),
            ("a: {topic: t, key: '{b}'}", "channels.a.key: expected no parameters but those of the channel's name"),
            ("a: {topic: t, key: '{'}", "channels.a.key: expected text with {parameter}"),
            ("a: {topic: t, partitioner: murmur2}", "channels.a.partitioner: expected a key beside it, got none"),
            ("a: {topic: t, allow: {}}", "channels.a.allow: expected a mapping such as"),
            ("a: {topic: t, allow: {claim: x}}", "channels.a.allow: expected claim, the name of one, with either contains or equals"),
            ("a: {topic: t, publish: {any: [{scope: x}, {scope: '{b}'}]}}", "channels.a.publish.any[1].scope: expected no parameters but"),
            ("a: {topic: t, allow: {issuers: [three]}}", "channels.a.allow.issuers: expected issuers out of one, two, got something else"),
            ("a: {topic: t, key: '{claims.sub}'}", "channels.a.allow: expected the issuers whose claims are meant"),
            ("a: {topic: t, allow: {claim: x, equals: y}}", "channels.a.allow: expected the issuers whose claims are meant"),
            ("a: {topic: t, publish: {claim: x, equals: y}}", "channels.a.publish: expected the issuers whose claims are meant"),
        ],
    )  # fmt: skip
    def test_mistakes(self, channel, expected):
        [problem] = problems(KAFKA + ISSUERS + f"channels:\n  {channel}")
        assert expected in problem

    @pytest.mark.parametrize(
        "channel",
        [
            "a: {topic: t}",
            "a: {topic: t, key: '{claims.sub}', allow: {issuers: [one]}}",
            "a: {topic: t, allow: {scope: x}, publish: {all: [{issuers: [one]}, {claim: x, equals: y}]}}",
            "a/{b}: {topic: t, key: '{b}', partitioner: murmur2}",
            "a/{b}/{c}: {topic: t, key: '{b}:{c}'}",
        ],
    )
    def test_good_ones(self, channel):
        assert problems(KAFKA + ISSUERS + f"channels:\n  {channel}") == []

    def test_one_issuer_needs_no_name(self):
        one = "\n".join(ISSUERS.splitlines()[:4])
        assert problems(KAFKA + one + "\nchannels: {a: {topic: t, key: '{claims.sub}'}}") == []

    def test_patterns_do_not_overlap(self):
        text = KAFKA + "channels:\n  a/{b}: {topic: t, key: '{b}'}\n  a/b: {topic: t}\n  '{x}/b': {topic: t, key: '{x}'}"
        assert problems(text) == ["channels.{x}/b: expected patterns of which no name fits two, got one that overlaps a/{b}"]


class TestSubscribe:
    def test_the_default_is_within_the_bound(self):
        assert problems(KAFKA + "subscribe: {max_wait: 20}") == [
            "subscribe.default_wait: expected at most subscribe.max_wait, got more"
        ]


class TestAdvice:
    def advice(self, tmp_path: Path, text: str) -> list[str]:
        file = tmp_path / "f"
        file.write_text(text)
        return [line.removeprefix(f"{file}:").split(": ", 1)[1] for line in inspect(file, {}).warnings()]

    def test_a_sound_configuration_gets_none(self, tmp_path):
        assert self.advice(tmp_path, KAFKA + ISSUERS + "channels: {a: {topic: t, cors: {origins: 'https://a'}}}") == []

    def test_what_is_unwise(self, tmp_path):
        text = """
server: {single_listener: true}
kafka: {bootstrap_servers: 'a:1', security: {protocol: SASL_PLAINTEXT, mechanism: PLAIN, username: u, password: p}}
auth: {issuers: {a: {issuer: x, jwks_url: 'http://x/'}}}
channels: {a: {topic: t, cors: {origins: '*'}}}
limits: {address: null, polls: null, publishes: null}
cors: {origins: '*'}
"""
        assert self.advice(tmp_path, text) == [
            "server.single_listener: metrics are public",
            "kafka.security: the password goes over the network in clear",
            "auth.issuers.a: no audience: its tokens without an `aud` claim are accepted, whatever they are for",
            "auth.issuers.a.jwks_url: keys come over plain HTTP: whoever is between can sign tokens",
            "limits.address: this limit is off",
            "limits.polls: this limit is off",
            "limits.publishes: this limit is off",
            "cors.origins: every web page may call",
            "channels.a.cors.origins: every web page may call",
        ]

    def test_what_is_missing_or_open(self, tmp_path):
        text = "server: {admin: {host: 10.0.0.1}}\nkafka: {bootstrap_servers: 'a:1', security: {protocol: SSL, check_hostname: false}}"
        assert self.advice(tmp_path, text) == [
            "channels: there are no channels, so there is nothing to read",
            "auth: there are no issuers, so nobody can come in",
            "server.admin.host: metrics can be asked for from elsewhere: keep the port closed to clients",
            "kafka.security.check_hostname: any broker with a certificate can pass for yours",
        ]

    def test_what_several_workers_do_not_share(self, tmp_path):
        """In numbers: what all together let through, and what they need."""
        sound = KAFKA + ISSUERS + "channels: {a: {topic: t}}\n"
        limits, keys, memory = self.advice(tmp_path, sound + "server: {workers: 4}")
        assert limits == (
            "server.workers: each of the 4 workers counts by itself, so that in all there may be: limits.address 800/s,"
            " limits.polls 200/s, limits.publishes 200/s, limits.concurrent_polls 400, limits.parked_polls 400000"
        )
        assert "knows its own Idempotency-Keys: a repeat may be stored again" in keys
        assert "reads each partition by itself" in memory
        assert memory.endswith("in all there are: kafka.tails_bytes 1024 MiB, kafka.cold_cache_bytes 256 MiB")
        limits, *_ = self.advice(tmp_path, sound + "limits: {address: null, polls: null}\nserver: {workers: 2}")
        assert "may be: limits.publishes 100/s, limits.concurrent_polls 200" in limits

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_loopback_is_nobodys_business(self, tmp_path, host):
        text = KAFKA + ISSUERS + f"channels: {{a: {{topic: t}}}}\nserver: {{host: '{host}', single_listener: true}}"
        assert self.advice(tmp_path, text) == []
