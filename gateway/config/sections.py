"""The sections of the configuration, as pydantic models.

The text under each field is its documentation: it is in the JSON schema, and the annotated example file is compared with
it. Cross-checks between sections are in `checks`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from gateway.auth.jwks import Inline, KeyFile, KeyUrl, Source
from gateway.auth.policy import AUTHENTICATED, NOBODY, Rule, parse_rule
from gateway.auth.templates import parse_template
from gateway.auth.tokens import Issuer as TrustedIssuer
from gateway.channels import Channel, Channels, parse_pattern
from gateway.config.access import ApiKeys, Bucket, Cors, RuleSection
from gateway.config.httpvalues import Name
from gateway.config.lives import LivingSection
from gateway.config.routes import RouteSection
from gateway.config.section import Section
from gateway.config.upstreams import UpstreamSection
from gateway.config.values import (
    Addresses,
    Count,
    File,
    HeaderName,
    Host,
    Networks,
    Number,
    Port,
    Prefix,
    Seconds,
    Size,
    Strings,
    Text,
    Topic,
    Url,
)
from gateway.kafka.connect import KafkaSettings

MAX_WORKERS = 256


class Tls(Section):
    """A certificate to serve HTTPS with; better done by a terminator in front."""

    certfile: File
    """PEM file with the certificate and its chain."""
    keyfile: File
    """PEM file with the private key."""


class Admin(Section):
    """The listener for operators: metrics and readiness."""

    host: Host = "127.0.0.1"
    """Address to listen on; keep it away from clients."""
    port: Port = 8081
    """TCP port; 0 takes a free one."""


class Server(Section):
    """The HTTP listeners."""

    host: Host = "0.0.0.0"  # noqa: S104  # a server in a container is of no use on loopback
    """Address to listen on."""
    port: Port = 8080
    """TCP port; 0 takes a free one."""
    prefix: Prefix = "/v1"
    """What the gateway's own paths begin with."""
    admin: Admin = Admin()
    """The listener for operators: /metrics, /readyz, /livez."""
    single_listener: bool = False
    """Serve the paths of the admin listener on the public one instead: for development."""
    trusted_proxies: Networks = ()
    """Networks, addresses or `unix` (peers on Unix sockets) whose X-Forwarded-For is believed, read from the right."""
    proxy_protocol: bool = False
    """Expect PROXY protocol v2 at the start of each connection from a trusted proxy."""
    tls: Tls | None = None
    """Serve HTTPS; null: plain HTTP, behind a terminator."""
    max_head_bytes: Annotated[Size, Field(ge=1024, le=1 << 20)] = 16 << 10
    """Longest header field; more is 431."""
    max_target_bytes: Annotated[Size, Field(ge=1024, le=1 << 20)] = 8 << 10
    """Longest request target; more is 414."""
    max_body_bytes: Annotated[Size, Field(ge=1024, le=1 << 30)] = 1 << 20
    """Largest request body; more is 413."""
    backlog: Annotated[Count, Field(ge=1, le=65535)] = 4096
    """Connections that the system may hold before they are accepted."""
    keepalive: Seconds = 75.0
    """Seconds that an idle connection stays open; a load balancer in front should give up its own sooner."""
    head_timeout: Annotated[Seconds, Field(ge=1)] = 10.0
    """Seconds within which a request head has to be complete."""
    workers: Annotated[Count, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that share the port, each with limits, tails and fetches of its own; one for each core that it may use."""


class Security(Section):
    """How to speak to Kafka."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Encryption and authentication, under the names that Kafka gives them."""
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """SASL mechanism; needed with the SASL protocols."""
    username: Text | None = None
    """SASL user name."""
    password: SecretStr | None = None
    """SASL password."""
    cafile: File | None = None
    """PEM file with the authorities to believe; null: those of the system."""
    certfile: File | None = None
    """PEM file with the gateway's own certificate, where Kafka asks for one."""
    keyfile: File | None = None
    """PEM file with the key of the certificate."""
    keypassword: SecretStr | None = None
    """Password of the key file."""
    check_hostname: bool = True
    """Compare the brokers' certificates with their names."""


class Kafka(Section):
    """The cluster, and the memory for what is read from it."""

    bootstrap_servers: Addresses
    """Brokers to begin with, as a list or as `a:9092,b:9092`."""
    client_id: Text = "longpoll-gateway"
    """Name that the brokers see in their logs and quotas."""
    security: Security = Security()
    """Encryption and authentication."""
    request_timeout: Annotated[Seconds, Field(ge=1, le=300)] = 10.0
    """Seconds after which a broker that does not answer counts as gone."""
    metadata_max_age: Annotated[Seconds, Field(ge=1, le=3600)] = 10.0
    """Seconds between two looks for new partitions and leaders."""
    tails_bytes: Annotated[Size, Field(ge=1 << 20)] = 256 << 20
    """Memory for the newest records of all partitions together."""
    tail_bytes: Annotated[Size, Field(ge=64 << 10)] = 32 << 20
    """Memory for the newest records of one partition, at most."""
    cold_cache_bytes: Annotated[Size, Field(ge=1 << 20)] = 64 << 20
    """Memory for older records that clients catch up on."""
    live_after: Annotated[Seconds, Field(ge=1)] = 300.0
    """Seconds after its last poll that a topic is still followed."""
    fetch_max_wait: Annotated[Seconds, Field(ge=0.01, le=30)] = 0.5
    """Seconds that a broker may hold a fetch; new records end it at once."""

    @property
    def settings(self) -> KafkaSettings:
        """How to reach the cluster, as the connections take it."""
        given = self.security
        return KafkaSettings(
            bootstrap_servers=self.bootstrap_servers,
            security_protocol=given.protocol,
            sasl_mechanism=given.mechanism or "PLAIN",
            sasl_username=given.username,
            sasl_password=_revealed(given.password),
            ssl_cafile=_text(given.cafile),
            ssl_certfile=_text(given.certfile),
            ssl_keyfile=_text(given.keyfile),
            ssl_password=_revealed(given.keypassword),
            ssl_check_hostname=given.check_hostname,
            client_id=self.client_id,
            request_timeout=self.request_timeout,
            metadata_max_age=self.metadata_max_age,
        )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


Algorithm = Literal["HS256", "RS256", "PS256", "ES256", "EdDSA"]


class Key(Section):
    """One key of an issuer: exactly one of secret, pem and file."""

    id: Text | None = None
    """The `kid` that tokens name it by; null: it has no name."""
    algorithm: Algorithm
    """The only algorithm that the key is good for."""
    secret: SecretStr | None = None
    """Shared secret of HS256, as text; at least 32 bytes."""
    pem: SecretStr | None = None
    """Public key in PEM."""
    file: File | None = None
    """File with the public key in PEM, or with the secret of HS256; read again when it changes."""

    @property
    def source(self) -> Inline | KeyFile:
        """Where the key comes from."""
        kind: Literal["secret", "pem"] = "secret" if self.algorithm == "HS256" else "pem"
        if self.file is not None:
            return KeyFile(self.file, kind, self.algorithm, self.id)
        given = self.secret or self.pem or SecretStr("")
        return Inline(kind, given.get_secret_value().encode(), self.algorithm, self.id)


class Issuer(Section):
    """Who signs tokens, and with which keys: at least one of keys, jwks_file and jwks_url."""

    issuer: Text
    """The `iss` claim, compared exactly."""
    audience: Strings = ()
    """Accepted `aud` claims, one of which has to be in a token; empty: only tokens without any."""
    algorithms: tuple[Algorithm, ...] = ()
    """Algorithms to accept; empty: those of the keys and, with a key set, all but the symmetric one."""
    keys: tuple[Key, ...] = ()
    """Keys given here or in files."""
    jwks_file: File | None = None
    """File with a JSON Web Key Set; read again when it changes."""
    jwks_url: Url | None = None
    """Where the issuer publishes its JSON Web Key Set."""
    jwks_refresh: Annotated[Seconds, Field(ge=10, le=3600)] = 600.0
    """Seconds between two reads from jwks_url, at most; a token with an unknown key brings one forward."""

    @property
    def accepted(self) -> frozenset[Algorithm]:
        """The algorithms to accept, with the default worked out."""
        if self.algorithms:
            return frozenset(self.algorithms)
        own: set[Algorithm] = {key.algorithm for key in self.keys}
        if self.jwks_file is not None or self.jwks_url is not None:
            own |= {"RS256", "PS256", "ES256", "EdDSA"}
        return frozenset(own)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the issuer's keys come from."""
        sources: list[Source] = [key.source for key in self.keys]
        if self.jwks_file is not None:
            sources.append(KeyFile(self.jwks_file, "jwks"))
        if self.jwks_url is not None:
            sources.append(KeyUrl(self.jwks_url, max_age=self.jwks_refresh))
        return tuple(sources)


class Auth(Section):
    """Whose tokens are accepted."""

    issuers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], Issuer] = Field(default={})
    """Issuers by a short alias, which rules, limits and logs use."""
    leeway: Annotated[Seconds, Field(le=300)] = 30.0
    """Seconds that clocks may differ, for `exp` and `nbf`."""
    cache_size: Annotated[Count, Field(ge=0, le=10_000_000)] = 50_000
    """Verified tokens to remember, at most."""
    cache_bytes: Annotated[Size, Field(ge=0)] = 64 << 20
    """Memory for them, about; an ordinary token takes 1 to 2 KiB."""

    @property
    def trusted(self) -> Mapping[TrustedIssuer, tuple[Source, ...]]:
        """The issuers with the sources of their keys, as the authenticator takes them."""
        return {
            TrustedIssuer(alias, given.issuer, given.audience, given.accepted, self.leeway): given.sources
            for alias, given in self.issuers.items()
        }


class ChannelSection(LivingSection):
    """One channel: the key in the mapping is its pattern, such as `chat/{room}`."""

    topic: Topic
    """Kafka topic to read."""
    key: Text | None = None
    """Only records with exactly this key: text with `{parameter}` and `{claims.name}`; null: all records."""
    allow: RuleSection | None = None
    """Who may read; null: every principal."""
    publish: RuleSection | None = None
    """Who may publish through the gateway; null: nobody."""
    format: Literal["json", "text", "binary"] = "json"
    """What the values are."""
    headers: tuple[HeaderName, ...] = ()
    """Record headers that clients may see."""
    priority: Annotated[Count, Field(ge=0, le=1000)] = 100
    """Place inside one answer: lower is more urgent."""
    partitioner: Literal["murmur2"] | None = None
    """How producers chose the partition from the key: then only that one is read. Null: unknown, all are read."""
    on_loss: Literal["report", "fail"] = "report"
    """When retention passed a cursor: say what is lost and go on, or answer 410."""
    on_reset: Literal["fail", "earliest", "latest"] = "fail"
    """When the topic was re-created: answer 409, or go on from there."""
    cors: Cors | None = None
    """Origins for this channel, in place of the general ones."""
    description: Annotated[str, Field(max_length=1000)] = ""
    """For people, in the list of channels."""

    def channel(self, pattern: str, issuers: Collection[str] | None = None) -> Channel:
        """Make the channel of this section; raises ValueError, saying what was expected.

        `issuers` are the aliases that rules may name, None leaves that open.
        """
        segments = parse_pattern(pattern)
        parameters = [segment.text for segment in segments if segment.parameter]

        def rule(section: RuleSection | None, absent: Rule) -> Rule:
            written = None if section is None else section.written
            return parse_rule(written, absent=absent, parameters=parameters, issuers=issuers)

        return Channel(
            pattern=pattern,
            segments=segments,
            topic=self.topic,
            allow=rule(self.allow, AUTHENTICATED),
            publish=rule(self.publish, NOBODY),
            key=None if self.key is None else parse_template(self.key, parameters=parameters),
            format=self.format,
            headers=self.headers,
            priority=self.priority,
            partitioner=self.partitioner,
            on_loss=self.on_loss,
            on_reset=self.on_reset,
            origins=None if self.cors is None else self.cors.origins,
            description=self.description,
            lifecycle=self.lifecycle,
        )


class RefusedTokens(Section):
    """The memory for tokens that were refused: presented again, they cost no second verification."""

    size: Annotated[Count, Field(ge=0, le=1_000_000)] = 10_000
    """Refused tokens to remember."""
    keep: Annotated[Seconds, Field(ge=0, le=3600)] = 60.0
    """Seconds to remember them."""


class Limits(Section):
    """What one client, and all together, may ask for. A bucket that is null is switched off."""

    address: Bucket | None = Bucket(rate=200, burst=1000)
    """Requests of one client address (IPv6: /64), before tokens are looked at."""
    polls: Bucket | None = Bucket(rate=50, burst=200)
    """Polls of one principal."""
    publishes: Bucket | None = Bucket(rate=50, burst=200)
    """Publishes of one principal."""
    concurrent_polls: Annotated[Count, Field(ge=1)] = 100
    """Polls that one principal may hold at once."""
    parked_polls: Annotated[Count, Field(ge=1)] = 100_000
    """Polls that the process holds at once."""
    refused_tokens: RefusedTokens = RefusedTokens()
    """The memory for refused tokens."""


class Subscribe(Section):
    """Polls."""

    default_wait: Annotated[Seconds, Field(le=55)] = 30.0
    """Seconds to hold a poll that does not say how long."""
    max_wait: Annotated[Seconds, Field(le=55)] = 55.0
    """Seconds to hold a poll, at most; less than the time-outs of all proxies on the way."""
    scan_bytes: Annotated[Size, Field(ge=64 << 10, le=1 << 30)] = 8 << 20
    """Bytes of history that one poll looks through before it answers with its progress."""
    scan_time: Annotated[Seconds, Field(gt=0, le=10)] = 0.05
    """Seconds of history reading after which one poll answers with its progress."""


class Publish(Section):
    """Publishes."""

    timeout: Annotated[Seconds, Field(ge=1, le=300)] = 10.0
    """Seconds to wait for the brokers before a publish fails."""
    max_batch: Annotated[Count, Field(ge=1, le=10_000)] = 1000
    """Records of one batch."""
    idempotency_window: Annotated[Seconds, Field(ge=1)] = 600.0
    """Seconds that an Idempotency-Key is remembered."""
    idempotency_size: Annotated[Count, Field(ge=1, le=10_000_000)] = 100_000
    """Idempotency-Keys to remember."""


class Lane(Section):
    """How repeated polls are answered without the HTTP framework."""

    enabled: bool = True
    """Take connections of repeated polls out of the HTTP framework; off: to find out whether it makes a difference."""
    ignore_headers: tuple[HeaderName, ...] = (
        "X-Request-Id",
        "X-Correlation-Id",
        "X-Amzn-Trace-Id",
        "X-Cloud-Trace-Context",
        "Traceparent",
        "Tracestate",
        "CF-Ray",
    )
    """Header fields of requests that may differ from poll to poll: ids that proxies add."""
    armed_heads: Annotated[Count, Field(ge=0, le=10_000_000)] = 200_000
    """Request heads to remember; beyond, polls that come over another connection cost more."""


class Drain(Section):
    """The end of the process, at SIGTERM."""

    delay: Annotated[Seconds, Field(le=600)] = 5.0
    """Seconds to go on accepting while /readyz already fails, so that load balancers notice."""
    window: Annotated[Seconds, Field(le=600)] = 10.0
    """Seconds over which parked polls are ended, so that clients do not come back all at once."""


class Log(Section):
    """What is written, one JSON object a line: requests to standard output, all else to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level to write."""
    access: bool = True
    """Write one line for each request."""
    sample: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """Share of successful polls to write; failed ones and all other requests always are."""


class Config(Section):
    """The whole file."""

    server: Server = Server()
    """The HTTP listeners."""
    kafka: Kafka
    """The cluster, and the memory for what is read from it."""
    auth: Auth = Auth()
    """Whose tokens are accepted."""
    api_keys: ApiKeys = ApiKeys()
    """API keys, beside tokens: in the header X-API-Key, or as bearer token. Rules know them as issuer `apikeys`."""
    channels: dict[str, ChannelSection] = Field(default={})
    """What clients may name, by pattern: `orders`, `chat/{room}`."""
    upstreams: dict[Name, UpstreamSection] = Field(default={})
    """Backends that routes lead to, by name."""
    routes: dict[Name, RouteSection] = Field(default={})
    """What is passed on to backends, by name: a label in metrics and logs."""
    limits: Limits = Limits()
    """What one client, and all together, may ask for."""
    subscribe: Subscribe = Subscribe()
    """Polls."""
    publish: Publish = Publish()
    """Publishes."""
    cors: Cors = Cors()
    """Which web pages may call."""
    lane: Lane = Lane()
    """How repeated polls are answered without the HTTP framework."""
    drain: Drain = Drain()
    """The end of the process."""
    log: Log = Log()
    """What is written, one JSON object a line: requests to standard output, all else to standard error."""

    @property
    def table(self) -> Channels:
        """The channels, parsed; a configuration that was checked cannot fail here."""
        return Channels(section.channel(pattern) for pattern, section in self.channels.items())
