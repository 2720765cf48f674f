"""Loading: a file becomes a Config, or all of its mistakes at once."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gateway.config.loading import MAX_FILE_BYTES, ConfigInvalid, inspect, json_schema, load, read
from gateway.config.sections import Config

SECRET = "0123456789abcdef0123456789abcdef"
WHOLE = """
server: {port: "${PORT:-8080}"}
kafka:
  bootstrap_servers: ${KAFKA}
auth:
  issuers:
    main: {issuer: https://id.example.com/, audience: gateway, keys: [{algorithm: HS256, secret: "${SECRET}"}]}
channels:
  orders: {topic: orders, allow: {scope: "orders:read"}}
"""
ENV = {"KAFKA": "a:1,b:2", "SECRET": SECRET}


def lines(text: str | bytes, **env: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        read(text, env, source="f")
    return caught.value.lines()


class TestGood:
    def test_a_file_is_read_with_its_environment(self, tmp_path):
        (tmp_path / "gateway.yaml").write_text(WHOLE)
        config = load(tmp_path / "gateway.yaml", ENV | {"PORT": "9"})
        assert config.server.port == 9
        assert config.kafka.bootstrap_servers == ("a:1", "b:2")
        assert [channel.pattern for channel in config.table] == ["orders"]

    def test_files_are_looked_for_beside_the_configuration(self, tmp_path, monkeypatch):
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "secret").write_text(SECRET + "\n")
        (tmp_path / "conf" / "gateway.yaml").write_text(WHOLE.replace('secret: "${SECRET}"', "file: secret"))
        monkeypatch.chdir(tmp_path)
        config = load("conf/gateway.yaml", ENV)
        assert config.auth.issuers["main"].keys[0].file == tmp_path / "conf" / "secret"

    def test_the_least_is_kafka(self):
        config = read("kafka: {bootstrap_servers: 'a:1'}", {})
        assert config.channels == {}
        assert len(config.table) == 0

    def test_nothing_can_be_changed_afterwards(self):
        config = read("kafka: {bootstrap_servers: 'a:1'}", {})
        with pytest.raises(ValueError, match="frozen"):
            config.server.port = 1

    def test_advice_comes_with_its_line(self, tmp_path):
        (tmp_path / "gateway.yaml").write_text(WHOLE + "cors: {origins: '*'}")
        inspected = inspect(tmp_path / "gateway.yaml", ENV)
        assert inspected.warnings() == [f"{tmp_path}/gateway.yaml:10: cors.origins: every web page may call"]
        assert inspected.config == load(tmp_path / "gateway.yaml", ENV)


class TestBad:
    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigInvalid) as caught:
            load(tmp_path / "none.yaml", {})
        assert str(caught.value) == f"{tmp_path}/none.yaml:1: expected a file that can be read, got: No such file or directory"
        with pytest.raises(ConfigInvalid, match="Is a directory"):
            load(tmp_path, {})

    def test_a_file_that_is_too_long(self):
        assert lines(b"#" * (MAX_FILE_BYTES + 1)) == [f"f:1: expected at most {MAX_FILE_BYTES} bytes, got more"]

    def test_all_mistakes_come_at_once_in_the_order_of_lines(self):
        """Of syntax and variables, of single values, and of values against each other."""
        text = """
server: {port: x, prefix: /metrics}
kafka:
  bootstrap_servers: ${KAFKA}
  bootstrap_servers: a:1
  security: {protocol: SASL_SSL, mechanism: DIGEST}
auth:
  issuers:
    one: {issuer: x, keys: [{algorithm: HS256, secret: short}]}
    two: {issuer: x, jwks_url: ftp://x}
channels:
  a: {topic: t, allow: {issuers: [one, three]}}
  b: {topic: 5}
  c/{x}: {topic: t, key: "{x}"}
  "{y}/{z}": {topic: t, key: "{y}:{z}"}
subscribe: {default_wait: 50, max_wait: 40}
"""
        found = [line.split(": expected ")[0] for line in lines(text)]
        assert found == [
            "f:2: server.port",
            "f:2: server.prefix",
            "f:4: kafka.bootstrap_servers",
            "f:5: kafka.bootstrap_servers",
            "f:6: kafka.security.mechanism",
            "f:6: kafka.security.password",
            "f:6: kafka.security.username",
            "f:9: auth.issuers.one.keys[0]",
            "f:10: auth.issuers.two.issuer",
            "f:10: auth.issuers.two.jwks_url",
            "f:12: channels.a.allow.issuers",
            "f:13: channels.b.topic",
            "f:15: channels.{y}/{z}",
            "f:16: subscribe.default_wait",
        ]

    def test_an_issuer_with_a_mistake_is_not_unknown(self):
        text = "kafka: {bootstrap_servers: 'a:1'}\nauth: {issuers: {one: {issuer: 5}}}\nchannels: {a: {topic: t, allow: {issuers: [one]}}}"
        assert [line.split(": expected ")[0] for line in lines(text)] == ["f:2: auth.issuers.one.issuer"]

    def test_checks_need_no_kafka(self):
        text = "channels: {a: {topic: t, partitioner: murmur2}}"
        assert [line.split(": expected ")[0] for line in lines(text)] == ["f:1: channels.a.partitioner", "f:1: kafka"]

    def test_a_missing_variable_is_told_once(self):
        assert lines("kafka:\n  bootstrap_servers: ${K}") == [
            "f:2: kafka.bootstrap_servers: expected the environment variable K to be set, got nothing"
        ]

    def test_a_file_that_is_no_yaml_is_only_that(self):
        [line] = lines("kafka: [")
        assert line.startswith("f:1: expected YAML")

    @pytest.mark.parametrize("values", ["A: {issuer: x}", "A: 5", "a: {keys: {x: 1}}", "5: 5"])
    def test_names_that_are_refused_end_the_pruning(self, values):
        assert lines(f"kafka: {{bootstrap_servers: 'a:1'}}\nauth: {{issuers: {{{values}}}}}")

    @pytest.mark.parametrize("text", ["channels: {a: {topic: t, allow: {any: [{any: [{x: 1}]}]}}}", "kafka: 5", "kafka: {}"])
    def test_what_is_cut_out_leaves_something_to_check(self, text):
        assert lines(text + "\nsubscribe: {default_wait: 55, max_wait: 1}")[-1].startswith("f:2: subscribe.default_wait")


class TestSchema:
    def test_the_schema_is_itself_valid(self):
        Draft202012Validator.check_schema(json_schema())

    def test_every_key_is_described(self):
        def undescribed(node: object, place: str) -> list[str]:
            if not isinstance(node, dict):
                return []
            found = [
                f"{place}.{name}"
                for name, inner in node.get("properties", {}).items()
                if not inner.get("description") and "$ref" not in inner  # a section is described by its class
            ]
            return found + [line for name, inner in node.items() for line in undescribed(inner, f"{place}.{name}")]

        assert undescribed(json_schema(), "") == []

    @pytest.mark.parametrize(
        ("text", "valid"),
        [
            (WHOLE, True),
            ("kafka: {bootstrap_servers: [a:1], tails_bytes: 1GiB}\nserver: {port: '${X}', single_listener: '${X}', trusted_proxies: unix}", True),
            ("kafka: {bootstrap_servers: [a:1], tails_bytes: 5 apples}", False),
            ("kafka: {bootstrap_servers: [a:1]}\nserver: {port: x}", False),
            ("kafka: {bootstrap_servers: [a:1]}\nserver: {prot: 1}", False),
            ("kafka: {bootstrap_servers: [a:1]}\nlog: {level: '${LEVEL:-info}'}", True),
            ("kafka: {bootstrap_servers: [a:1]}\nlog: {level: loud}", False),
            ("kafka: {bootstrap_servers: [a:1]}\nchannels: {a: {topic: t, allow: {any: [{scope: x}, {all: [{authenticated: true}]}]}}}", True),
            ("kafka: {bootstrap_servers: [a:1]}\nchannels: {a: {topic: t, allow: {any: [{scop: x}]}}}", False),
            ("kafka: {bootstrap_servers: [a:1]}\nupstreams: {a: {targets: ['a:1', {dns: 'b:1'}]}}\nroutes: {a: {prefix: /, upstream: a, methods: GET}}", True),
            ("kafka: {bootstrap_servers: [a:1]}\nupstreams: {a: {targets: ['a:1', {dsn: 'b:1'}]}}", False),
            ("{}", False),
        ],
    )  # fmt: skip
    def test_editors_see_what_the_gateway_sees(self, text, valid):
        assert Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text)) is valid

    def test_the_schema_is_json(self):
        assert json.loads(json.dumps(json_schema())) == json_schema()


def plausible() -> st.SearchStrategy[object]:
    """Give values in the shape of a configuration: keys that exist, and values of any kind."""
    names = [
        *Config.model_fields, "bootstrap_servers", "security", "port", "admin", "issuers", "keys", "issuer", "algorithm", "secret", "a", "a/{b}", "topic", "key",
        "allow", "publish", "any", "all", "scope", "claim", "contains", "tls", "certfile", "keyfile", "cafile", "protocol", "password",
        "targets", "address", "dns", "hash_on", "health", "breaker", "path", "prefix", "hosts", "methods", "upstream", "split", "on", "to", "weight",
        "request_headers", "set", "remove", "claims", "hold", "cache", "limits", "deprecated", "sunset", "openapi", "successor",
    ]  # fmt: skip
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        | st.sampled_from(["a:1", "${X}", "x", "{b}", "{claims.sub}", "SASL_SSL", "HS256", "64KiB", "https://x/", "murmur2", "/v1", "2027-01-01"])
    )  # fmt: skip
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=6)
    )


@given(plausible())
def test_any_yaml_is_a_config_or_invalid(values):
    try:
        config = read(yaml.safe_dump(values), {"X": "1"})
    except ConfigInvalid as error:
        found = error
    else:
        assert len(config.table) == len(config.channels)
        return
    assert found.problems
    assert found.lines() == str(found).split("\n")


@given(st.text() | st.binary())
def test_any_bytes_are_a_config_or_invalid(text):
    with pytest.raises(ConfigInvalid):
        read(text, {})
