"""Explaining: each of pydantic's errors becomes a sentence that helps and tells no secret."""

from __future__ import annotations

import pytest

from gateway.config.loading import ConfigInvalid, read

KAFKA = "kafka: {bootstrap_servers: 'a:1'}\n"


def problems(text: str, **env: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        read(text, env, source="f")
    return caught.value.lines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {port: x}", "server.port: expected a whole number, got 'x'"),
        ("server: {port: 1.5}", "server.port: expected a whole number, got '1.5'"),
        ("server: {port: ''}", "server.port: expected a whole number, got ''"),
        ("server: {port: }", "server.port: expected a whole number, got nothing"),
        ("server: {port: ~}", "server.port: expected a whole number, got '~'"),
        ("server: {port: [1]}", "server.port: expected a whole number, got a list"),
        ("server: {port: {a: 1}}", "server.port: expected a whole number, got a mapping"),
        ("server: {port: 70000}", "server.port: expected a number of at most 65535, got '70000'"),
        ("server: {port: -1}", "server.port: expected a number of at least 0, got '-1'"),
        ("server: {port: yes}", "server.port: expected a number, got 'yes'"),
        (f"limits: {{parked_polls: '{'9' * 5000}'}}", "limits.parked_polls: expected a whole number of fewer digits, got '999"),
        ("limits: {polls: {rate: 0, burst: 1}}", "limits.polls.rate: expected a number above 0, got '0'"),
        ("limits: {polls: {burst: 1}}", "limits.polls.rate: expected a value (Requests a second, in the long run), got nothing"),
        ("limits: {polls: 5}", "limits.polls: expected a mapping, got a number"),
        ("limits: {polls: true}", "limits.polls: expected a mapping, got true or false"),
        ("limits: {polls: x}", "limits.polls: expected a mapping, got text"),
        ("drain: {delay: x}", "drain.delay: expected a number, got 'x'"),
        ("drain: {delay: []}", "drain.delay: expected a number, got a list"),
        ("drain: {delay: .inf}", "drain.delay: expected a finite number, got '.inf'"),
        ("log: {access: maybe}", "log.access: expected true or false, got 'maybe'"),
        ("log: {access: [1]}", "log.access: expected true or false, got a list"),
        ("log: {level: loud}", "log.level: expected 'debug', 'info', 'warning' or 'error', got 'loud'"),
        ("log: ", "log: expected a mapping, got nothing"),
        ("channels: []", "channels: expected a mapping, got a list"),
        ("channels: {a: {topic: 5}}", "channels.a.topic: expected text (in quotes, if it looks like something else), got '5'"),
        ("channels: {a: {topic: b c}}", "channels.a.topic: expected a Kafka topic: 1 to 249 of A-Z a-z 0-9 . _ -, got 'b c'"),
        ("channels: {a: {topic: b, headers: x}}", "channels.a.headers: expected a list, got text"),
        ("channels: {a: {topic: b, key: ''}}", "channels.a.key: expected text of at least 1 character(s), got ''"),
        (f"kafka: {{bootstrap_servers: 'a:1', client_id: {'x' * 1001}}}", "kafka.client_id: expected text of at most 1000 characters, got 'xxx"),
        ("kafka: {bootstrap_servers: []}", "kafka.bootstrap_servers: expected a list of at least 1, got a list"),
        ("kafka: {bootstrap_servers: 'a:1,b'}", "kafka.bootstrap_servers[1]: expected an address such as kafka-1:9092 or [::1]:9092, got 'a:1,b'"),
        ("kafka: {bootstrap_servers: [5]}", "kafka.bootstrap_servers[0]: expected text (in quotes, if it looks like something else), got '5'"),
        ("auth: {issuers: {A: {issuer: x, jwks_url: 'https://x/'}}}", "auth.issuers.A: expected as name text that matches ^[a-z0-9][a-z0-9_-]{0,31}$, got another"),
        ("auth: {issuers: {a: {issuer: x, jwks_url: 'https://u:p@x/'}}}", "got 'https://…@x/'"),
        ("channels: {a: {topic: t, allow: {issuers: [5]}}}", "a.allow.issuers[0]: expected text (in quotes, if it looks like something else), got '5'"),
        ("server: {tls: {certfile: 5, keyfile: x}}", "server.tls.certfile: expected the path of a file, got '5'"),
    ],
)  # fmt: skip
def test_sentences(text, expected):
    whole = text if text.startswith("kafka") else KAFKA + text
    [problem] = problems(whole)
    assert expected in problem


def test_unknown_keys_get_the_known_ones_and_a_guess():
    [typo, foreign] = problems(KAFKA + "drain: {dely: 1}\nchannels: {a: {topic: t, allow: {xyz: 1}}}")
    assert typo == "f:2: drain.dely: expected one of delay, window, got an unknown key (did you mean delay?)"
    assert foreign.startswith("f:3: channels.a.allow.xyz: expected one of scope, claim, contains, equals, issuers,")
    assert foreign.endswith("got an unknown key")


def test_the_whole_may_be_of_the_wrong_kind():
    assert problems("[1]") == ["f:1: expected a mapping, got a list"]
    assert problems("text") == ["f:1: expected a mapping, got text"]
    assert problems("") == ["f:1: kafka: expected a value (The cluster, and the memory for what is read from it), got nothing"]


def test_long_values_are_cut():
    [problem] = problems(KAFKA + f"server: {{prefix: {'x' * 500}}}")
    assert problem.endswith("got '" + "x" * 60 + "…'")


class TestSecrets:
    SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"

    @pytest.mark.parametrize(
        "text",
        [
            "kafka: {bootstrap_servers: 'a:1', security: {password: [SECRET]}}",
            "kafka: {bootstrap_servers: 'a:1', security: {pasword: SECRET}}",
            "kafka: {bootstrap_servers: 'a:1', security: SECRET}",
            "kafka: {bootstrap_servers: 'a:1', security: {protocol: PLAINTEXT, password: SECRET}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: SECRET}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [SECRET]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: RS256, secret: SECRET}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: RS256, pem: SECRET}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: RS256, pem: '-----BEGIN PRIVATE KEY-----SECRET'}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: HS256, secret: SECRET, pem: SECRET}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: HS256, secret: {SECRET: 1}}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: HS256, secret: 'SECRET}]}}}",
            KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: HS256, secret: !x SECRET}]}}}",
            KAFKA + "server: {port: '${VARIABLE}', host: '${VARIABLE} ', prefix: '${VARIABLE}'}",
        ],
    )  # fmt: skip
    def test_no_problem_repeats_a_secret(self, text):
        report = "\n".join(problems(text.replace("SECRET", self.SECRET), VARIABLE=self.SECRET))
        assert "hunter2" not in report

    def test_a_short_secret_is_not_repeated_either(self):
        [problem] = problems(KAFKA + "auth: {issuers: {a: {issuer: x, keys: [{algorithm: HS256, secret: 12345}]}}}")
        assert problem == (
            "f:2: auth.issuers.a.keys[0].secret: expected text (in quotes, if it looks like something else),"
            " got a value that is kept secret"
        )

    def test_a_config_does_not_show_its_secrets(self):
        text = KAFKA + f"auth: {{issuers: {{a: {{issuer: x, keys: [{{algorithm: HS256, secret: {self.SECRET}}}]}}}}}}"
        config = read(text, {})
        assert self.SECRET not in repr(config) + repr(config.auth.trusted) + config.model_dump_json()
