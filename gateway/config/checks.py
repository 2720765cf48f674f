"""What values have to be to each other: mistakes that no single value shows, and advice about what works but is unwise."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import combinations
from pathlib import Path as FilePath

from gateway.auth.jwks import Inline, KeyFile
from gateway.auth.keyfile import parse_file
from gateway.auth.keys import parse_keys
from gateway.auth.policy import NOBODY, parse_rule, trusts_any_issuer
from gateway.auth.principal import API_KEYS
from gateway.auth.templates import parse_template
from gateway.channels import Channel, parse_pattern
from gateway.config import lives, proxyadvice, proxychecks
from gateway.config.access import ApiKeys
from gateway.config.document import Path
from gateway.config.findings import Finding, Names, authorities, pem, said
from gateway.config.sections import ChannelSection, Config, Issuer, Key, Security, Server

_OWN_PATHS = ("/livez", "/readyz", "/metrics")
_MAX_KEY_BYTES = 256 << 10


def check(config: Config, names: Names) -> Iterator[Finding]:
    """Give each mistake of what is left of a file."""
    yield from _server(config.server)
    yield from _security(config.kafka.security)
    if config.kafka.tail_bytes > config.kafka.tails_bytes:
        yield ("kafka", "tail_bytes"), "expected at most kafka.tails_bytes, got more"
    yield from _issuers(config.auth.issuers)
    yield from _api_keys(config.api_keys)
    if config.api_keys:
        names = names._replace(issuers=names.issuers | {API_KEYS})
    yield from _channels(config, names.issuers)
    yield from proxychecks.check(config, names)
    if config.subscribe.default_wait > config.subscribe.max_wait:
        yield ("subscribe", "default_wait"), "expected at most subscribe.max_wait, got more"


def _server(server: Server) -> Iterator[Finding]:
    if server.prefix.startswith(_OWN_PATHS):
        yield ("server", "prefix"), f"expected a path that begins with none of {', '.join(_OWN_PATHS)}, got one that does"
    admin = server.admin
    if not server.single_listener and admin.port == server.port != 0 and _share(admin.host, server.host):
        yield ("server", "admin", "port"), "expected another port than server.port, got the same"
    if server.single_listener and server.workers > 1:
        one = "each of its paths would answer for one worker only"
        yield ("server", "single_listener"), f"expected false with server.workers above 1 ({one}), got true"
    if server.proxy_protocol and not server.trusted_proxies:
        yield ("server", "trusted_proxies"), "expected the proxies that send the PROXY protocol, got none"
    if server.tls is not None:
        yield from ((("server", "tls", "certfile"), found) for found in pem(server.tls.certfile, server.tls.keyfile))
    if server.proxy_protocol and server.tls is not None:
        yield ("server", "tls"), "expected TLS to end at the proxy that sends the PROXY protocol, got both here"


def _share(one: str, other: str) -> bool:
    return one == other or any(host in ("0.0.0.0", "::") for host in (one, other))  # noqa: S104  # compared, not bound


def _security(security: Security) -> Iterator[Finding]:
    here: Path = ("kafka", "security")
    sasl = {"mechanism": security.mechanism, "username": security.username, "password": security.password}
    for name, value in sasl.items():
        if security.protocol.startswith("SASL") and value is None:
            yield (*here, name), f"expected a value with protocol {security.protocol}, got nothing"
        if not security.protocol.startswith("SASL") and value is not None:
            yield (*here, name), f"expected protocol SASL_SSL or SASL_PLAINTEXT beside it, got {security.protocol}"
    files = {"cafile": security.cafile, "certfile": security.certfile, "keyfile": security.keyfile}
    for name, file in files.items():
        if not security.protocol.endswith("SSL") and file is not None:
            yield (*here, name), f"expected protocol SSL or SASL_SSL beside it, got {security.protocol}"
    if security.certfile is not None and security.keyfile is not None:
        password = security.keypassword.get_secret_value() if security.keypassword is not None else ""
        yield from (((*here, "certfile"), found) for found in pem(security.certfile, security.keyfile, password))
    elif security.certfile is not None or security.keyfile is not None:
        missing = "keyfile" if security.keyfile is None else "certfile"
        yield (*here, missing), "expected certfile and keyfile together, got one of them"
    if security.cafile is not None:
        yield from (((*here, "cafile"), found) for found in authorities(security.cafile))


def _issuers(issuers: dict[str, Issuer]) -> Iterator[Finding]:
    for (first, one), (second, other) in combinations(issuers.items(), 2):
        if one.issuer == other.issuer:
            yield ("auth", "issuers", second, "issuer"), f"expected another value than that of {first}, got the same"
    for alias, issuer in issuers.items():
        here: Path = ("auth", "issuers", alias)
        if alias == API_KEYS:
            yield here, f"expected another alias than {API_KEYS}, which API keys have"
        if not issuer.sources:
            yield here, "expected at least one of keys, jwks_file and jwks_url, got none"
        for index, key in enumerate(issuer.keys):
            for sentence in _key(alias, issuer, key):
                yield (*here, "keys", index), sentence
        if issuer.jwks_file is not None:
            for sentence in _parse(alias, issuer, KeyFile(issuer.jwks_file, "jwks")):
                yield (*here, "jwks_file"), sentence


def _api_keys(section: ApiKeys) -> Iterator[Finding]:
    here: Path = ("api_keys",)
    for name, given in section.keys.items():
        yield from (((*here, "keys", name), sentence) for _, sentence in said((), given.key, name))
    if section.file is not None:
        yield from (((*here, "file"), sentence) for sentence in _listed(section.file, section.keys.keys()))


def _listed(file: FilePath, given: AbstractSet[str]) -> Iterator[str]:
    """Try the file as the authenticator will read it; one that is not found has been told of already."""
    try:
        parsed = parse_file(file.read_bytes())
    except OSError:
        return
    except ValueError as error:
        yield f"{error}, got something else"
    else:
        yield from (f"{sentence}, got something else" for sentence in parsed.skipped)
        for key in parsed.keys:
            if key.id in given:
                yield f"expected other ids than in api_keys.keys, got {key.id}"


def _key(alias: str, issuer: Issuer, key: Key) -> Iterator[str]:
    given = [name for name in ("secret", "pem", "file") if getattr(key, name) is not None]
    fitting = ("secret", "file") if key.algorithm == "HS256" else ("pem", "file")
    if len(given) != 1:
        yield f"expected exactly one of {' and '.join(fitting)}, got {' and '.join(given) or 'none'}"
    elif given[0] not in fitting:
        yield f"expected {' or '.join(fitting)} with {key.algorithm}, got {given[0]}"
    elif key.algorithm not in issuer.accepted:
        yield f"expected one of the issuer's algorithms, got {key.algorithm}"
    else:
        yield from _parse(alias, issuer, key.source)


def _parse(alias: str, issuer: Issuer, source: Inline | KeyFile) -> Iterator[str]:
    """Try the keys as the authenticator will read them; a file that is not found has been told of already."""
    try:
        data = source.data if isinstance(source, Inline) else source.path.read_bytes()[:_MAX_KEY_BYTES]
        parsed = parse_keys(alias, source.kind, data, algorithms=issuer.accepted, algorithm=source.algorithm, kid=source.kid)
    except OSError:
        return
    except ValueError as error:  # its text says what was expected, and never shows the key
        sentence = str(error)
        yield sentence if ", got" in sentence else f"{sentence}, got something else"
    else:
        if not parsed.keys:
            yield f"expected a usable key, got none: {'; '.join(parsed.skipped) or 'the set is empty'}"


def _channels(config: Config, aliases: frozenset[str]) -> Iterator[Finding]:
    sound: list[Channel] = []
    for pattern, section in config.channels.items():
        here: Path = ("channels", pattern)
        problems = list(_channel(pattern, section, aliases))
        yield from (((*here, *path), sentence) for path, sentence in problems)
        if not problems:
            channel = section.channel(pattern)
            for other in sound:
                if not channel.literal and not other.literal and channel.overlaps(other):
                    yield here, f"expected patterns of which no name fits two, got one that overlaps {other.pattern}"
            sound.append(channel)
            if len(aliases) > 1:
                yield from (((*here, *path), sentence) for path, sentence in _trust(channel))


def _channel(pattern: str, section: ChannelSection, aliases: frozenset[str]) -> Iterator[Finding]:
    try:
        segments = parse_pattern(pattern)
    except ValueError as error:
        yield (), f"expected as name {error}, got another"
        return
    parameters = {segment.text for segment in segments if segment.parameter}
    for name, rule in (("allow", section.allow), ("publish", section.publish)):
        if rule is not None:
            yield from said((name,), parse_rule, rule.written, absent=NOBODY, parameters=parameters, issuers=aliases)
    unused = parameters
    if section.key is not None:
        yield from said(("key",), parse_template, section.key, parameters=parameters)
        unused = parameters - _parameters(section.key, parameters)
    if unused:
        # Else every name that fits the pattern would show the same records, whatever the rule says of one of them.
        missing = ", ".join(f"{{{name}}}" for name in sorted(unused))
        yield ("key",), f"expected a key with each parameter of the pattern in it, got none with {missing}"
    if section.partitioner is not None and section.key is None:
        yield ("partitioner",), "expected a key beside it, got none"
    yield from lives.check(section)


def _parameters(key: str, default: AbstractSet[str]) -> AbstractSet[str]:
    try:
        return parse_template(key).parameters
    except ValueError:
        return default


def _trust(channel: Channel) -> Iterator[Finding]:
    templates = () if channel.key is None else (channel.key,)
    for name, rule in (("allow", channel.allow), ("publish", channel.publish)):
        if trusts_any_issuer(rule, *templates):
            yield (name,), "expected the issuers whose claims are meant (several are configured), got none"


def advise(config: Config) -> Iterator[Finding]:
    """Give advice on what works, but is seldom meant."""
    if not config.channels and not config.routes:
        yield ("channels",), "there are no channels, so there is nothing to read"
    if not config.auth.issuers and not config.api_keys and not any(route.public for route in config.routes.values()):
        yield ("auth",), "there are no issuers, so nobody can come in"
    yield from _server_advice(config.server)
    yield from _workers_advice(config)
    yield from _security_advice(config.kafka.security)
    for alias, issuer in config.auth.issuers.items():
        if not issuer.audience:
            yield (
                ("auth", "issuers", alias),
                "no audience: its tokens without an `aud` claim are accepted, whatever they are for",
            )
        if issuer.jwks_url is not None and issuer.jwks_url.startswith("http://"):
            yield ("auth", "issuers", alias, "jwks_url"), "keys come over plain HTTP: whoever is between can sign tokens"
    for name in ("address", "polls", "publishes"):
        if getattr(config.limits, name) is None:
            yield ("limits", name), "this limit is off"
    yield from _channel_advice(config)
    yield from proxyadvice.advise(config)


def _server_advice(server: Server) -> Iterator[Finding]:
    if server.single_listener and not _loopback(server.host):
        yield ("server", "single_listener"), "metrics are public"
    if not server.single_listener and not _loopback(server.admin.host):
        yield ("server", "admin", "host"), "metrics can be asked for from elsewhere: keep the port closed to clients"


def _workers_advice(config: Config) -> Iterator[Finding]:
    count = config.server.workers
    if count == 1:
        return
    here: Path = ("server", "workers")
    limits, kafka = config.limits, config.kafka
    buckets = {"address": limits.address, "polls": limits.polls, "publishes": limits.publishes}
    rates = [f"limits.{name} {count * bucket.rate:g}/s" for name, bucket in buckets.items() if bucket is not None]
    held = f"limits.concurrent_polls {count * limits.concurrent_polls}, limits.parked_polls {count * limits.parked_polls}"
    yield here, f"each of the {count} workers counts by itself, so that in all there may be: {', '.join([*rates, held])}"
    yield here, f"each of the {count} workers knows its own Idempotency-Keys: a repeat may be stored again by another one"
    sizes = {"kafka.tails_bytes": kafka.tails_bytes, "kafka.cold_cache_bytes": kafka.cold_cache_bytes}
    memory = ", ".join(f"{name} {count * size >> 20} MiB" for name, size in sizes.items())
    yield (
        here,
        f"each of the {count} workers reads each partition by itself, and keeps what it read; in all there are: {memory}",
    )


def _security_advice(security: Security) -> Iterator[Finding]:
    if security.protocol == "SASL_PLAINTEXT" and security.mechanism == "PLAIN":
        yield ("kafka", "security"), "the password goes over the network in clear"
    if security.protocol.endswith("SSL") and not security.check_hostname:
        yield ("kafka", "security", "check_hostname"), "any broker with a certificate can pass for yours"


def _channel_advice(config: Config) -> Iterator[Finding]:
    if "*" in config.cors.origins:
        yield ("cors", "origins"), "every web page may call"
    for pattern, section in config.channels.items():
        if section.cors is not None and "*" in section.cors.origins:
            yield ("channels", pattern, "cors", "origins"), "every web page may call"


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
