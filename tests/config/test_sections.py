"""Sections: what they make for the parts that take values, not configurations."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.auth.apikeys import ApiKey
from gateway.auth.jwks import Inline, KeyFile, KeyUrl
from gateway.auth.policy import AUTHENTICATED, NOBODY
from gateway.config import access, sections
from gateway.config.access import Bucket, RuleSection
from gateway.config.loading import read
from gateway.config.section import Section
from gateway.kafka.connect import KafkaSettings

TEXT = """
kafka:
  bootstrap_servers: a:1
  client_id: me
  request_timeout: 3
  metadata_max_age: 4
  security:
    protocol: SASL_SSL
    mechanism: SCRAM-SHA-256
    username: u
    password: p
    cafile: ca.pem
    certfile: cert.pem
    keyfile: key.pem
    keypassword: kp
    check_hostname: false
auth:
  leeway: 5
  issuers:
    keys:
      issuer: https://one/
      audience: a, b
      keys:
        - {id: k1, algorithm: HS256, secret: 0123456789abcdef0123456789abcdef}
        - {algorithm: ES256, file: es.pem}
    set:
      issuer: https://two/
      jwks_file: set.json
      jwks_url: https://two/keys
      jwks_refresh: 60
    chosen:
      issuer: https://three/
      algorithms: [EdDSA]
      jwks_url: https://three/keys
api_keys:
  keys:
    ci: {hash: "sha256:%s", subject: robot, scopes: [a, b], claims: {team: x}, expires: 2027-01-01, revoked: 2026-12-01}
    cd: {hash: "sha256:%s", subject: robot}
channels:
  chat/{room}:
    topic: chat
    key: "{room}"
    allow: {issuers: [keys], claim: rooms, contains: "{room}"}
    publish: {any: [{scope: "chat:write"}, {all: [{authenticated: true}, {issuers: [set]}]}]}
    format: text
    headers: [trace]
    priority: 5
    partitioner: murmur2
    on_loss: fail
    on_reset: earliest
    cors: {origins: ["https://a.example"]}
    description: Rooms.
  news: {topic: news}
"""
HASH = "0" * 64
CONFIG = read(TEXT % (HASH, HASH), {})


def test_kafka_settings_have_every_value():
    assert CONFIG.kafka.settings == KafkaSettings(
        bootstrap_servers=("a:1",),
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username="u",
        sasl_password="p",
        ssl_cafile="ca.pem",
        ssl_certfile="cert.pem",
        ssl_keyfile="key.pem",
        ssl_password="kp",
        ssl_check_hostname=False,
        client_id="me",
        request_timeout=3.0,
        metadata_max_age=4.0,
    )


def test_kafka_settings_without_security():
    settings = read("kafka: {bootstrap_servers: 'a:1'}", {}).kafka.settings
    assert settings.security_protocol == "PLAINTEXT"
    assert settings.sasl_password is None
    assert settings.ssl_cafile is None


def test_issuers_come_with_the_sources_of_their_keys():
    trusted = {issuer.alias: (issuer, sources) for issuer, sources in CONFIG.auth.trusted.items()}
    issuer, sources = trusted["keys"]
    assert (issuer.iss, issuer.audiences, issuer.leeway) == ("https://one/", ("a", "b"), 5.0)
    assert issuer.algorithms == {"HS256", "ES256"}
    assert sources == (
        Inline("secret", b"0123456789abcdef0123456789abcdef", "HS256", "k1"),
        KeyFile(Path("es.pem"), "pem", "ES256"),
    )
    issuer, sources = trusted["set"]
    assert sources == (KeyFile(Path("set.json"), "jwks"), KeyUrl("https://two/keys", max_age=60.0))


def test_key_sets_bring_no_symmetric_keys_unless_asked():
    algorithms = {issuer.alias: issuer.algorithms for issuer in CONFIG.auth.trusted}
    assert algorithms["set"] == {"RS256", "PS256", "ES256", "EdDSA"}
    assert algorithms["chosen"] == {"EdDSA"}


def test_api_keys_have_every_value():
    ci, cd = CONFIG.api_keys.given
    assert ci == ApiKey(
        "ci",
        f"sha256:{HASH}",
        "robot",
        frozenset(("a", "b")),
        {"team": "x"},
        expires_at=1_798_761_600.0,
        revoked_at=1_796_083_200.0,
    )
    assert cd == ApiKey("cd", f"sha256:{HASH}", "robot")


def test_channels_have_every_value():
    chat, news = CONFIG.table
    assert (chat.pattern, chat.topic, chat.format, chat.headers) == ("chat/{room}", "chat", "text", ("trace",))
    assert (chat.priority, chat.partitioner, chat.on_loss, chat.on_reset) == (5, "murmur2", "fail", "earliest")
    assert (chat.origins, chat.description) == (("https://a.example",), "Rooms.")
    assert chat.key.parameters == {"room"}
    assert chat.allow.guarded
    assert not chat.publish.guarded
    assert (news.key, news.allow, news.publish, news.origins) == (None, AUTHENTICATED, NOBODY, None)


def test_a_bucket_in_the_limiters_words():
    """`burst` tokens refill in `window` seconds: that is `rate` a second."""
    assert Bucket(rate=50, burst=200).window == 4.0


def test_no_key_is_without_effect():
    """Each field is read somewhere: rules as they are written, everything else by its name."""
    sources = [path.read_text() for path in Path(sections.__file__).parents[1].rglob("*.py") if "check" not in path.name]
    read_ = frozenset(re.findall(r"\.(\w+)\b", "\n".join(sources)))
    kinds = [*vars(access).values(), *vars(sections).values()]
    # What routes and upstreams hold is read by gateway.proxy, from values of its own.
    models = [kind for kind in kinds if getattr(kind, "__module__", "") in (access.__name__, sections.__name__)]
    models = [kind for kind in models if isinstance(kind, type) and issubclass(kind, Section)]
    unread = [
        f"{kind.__name__}.{name}"
        for kind in models
        if kind is not RuleSection
        for name in kind.model_fields
        if name not in read_
    ]
    assert unread == []
