"""What operators do: serve, check, config schema, dev and token. Mistakes are told in lines, never as a stack trace."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gateway.auth.authenticator import Authenticator
from gateway.auth.jwks import Inline, KeyUrl
from gateway.auth.mint import generate, mint
from gateway.auth.tokens import Issuer
from gateway.channels import MAX_CHANNELS
from gateway.cli import version
from gateway.commands.keys import Claim
from gateway.config.loading import ConfigInvalid, Inspected, inspect, json_schema, read
from gateway.config.sections import MAX_WORKERS, Config
from gateway.config.tables import tables
from gateway.devbroker.server import Broker
from gateway.errors import GatewayError, SubscriptionTooWide, TokenInvalid
from gateway.fanout.cursor import TopicPosition, check_width
from gateway.kafka.cluster import Cluster
from gateway.kafka.connect import Connections, Unreachable
from gateway.kafka.observer import Silent

EXIT_FAILED = 1
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT

_config_option = click.option(
    "-c",
    "--config",
    "file",
    required=True,
    envvar="GATEWAY_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The configuration file.",
)


@click.command()
@_config_option
@click.option(
    "--workers", type=click.IntRange(1, MAX_WORKERS), help="Processes that share the port, in place of server.workers."
)
def serve(file: Path, workers: int | None) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    \b
    Examples:
      gateway serve -c gateway.yaml
      GATEWAY_CONFIG=gateway.yaml gateway serve --workers 4

    Exit codes: 0 done, 1 could not run, 2 the command line or the configuration is wrong.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    inspected = _inspect(file, workers)
    from gateway import app  # noqa: PLC0415  # the other commands start faster without it
    from gateway import workers as several  # noqa: PLC0415

    one = inspected.config.server.workers == 1
    sys.exit(_run(app.run(inspected.config) if one else several.run(inspected, version=version())))


@click.command(hidden=True)
def worker() -> None:
    """Run as one of several workers; `serve` starts it."""
    from gateway import workers  # noqa: PLC0415  # as in serve

    try:
        order, link = workers.receive()
    except ValueError as error:
        raise click.UsageError("workers are started by `gateway serve`") from error
    with _mistakes_told():
        config = read(order.text, os.environ, source=order.source, base=Path(order.base))
    sys.exit(_run(workers.work(config, order, link)))


@click.command()
@_config_option
@click.option("--broker", is_flag=True, help="Also ask the brokers for the topics and their partitions.")
@click.option("--routes", is_flag=True, help="Also show the routes, the most exact first, and the upstreams.")
def check(file: Path, *, broker: bool, routes: bool) -> None:
    """Check a configuration, and say what is unwise in it.

    \b
    Examples:
      gateway check -c gateway.yaml
      gateway check -c gateway.yaml --broker --routes

    Exit codes: 0 it is good, 1 could not run, 2 it is wrong, which is told line by line.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    inspected = _inspect(file)
    config = inspected.config
    warnings = inspected.warnings()
    if broker:
        warnings += _run(_ask_brokers(config))
    for warning in warnings:
        click.echo(f"warning: {warning}")
    for line in tables(config) if routes else ():
        click.echo(line)
    issuers = ", ".join(config.auth.issuers) or "none"
    workers = f", workers: {config.server.workers}" if config.server.workers > 1 else ""
    passed = f", routes: {len(config.routes)}, upstreams: {len(config.upstreams)}" if config.routes or config.upstreams else ""
    counts = f"channels: {len(config.channels)}{passed}, issuers: {issuers}{workers}, warnings: {len(warnings)}"
    click.echo(f"{file}: OK: {counts}")


async def _ask_brokers(config: Config) -> list[str]:
    connections = Connections(config.kafka.settings)
    try:
        names = {section.topic for section in config.channels.values()}
        told = await Cluster(config.kafka.settings, connections, Silent()).refresh(names)
    except Unreachable as error:
        return [f"kafka.bootstrap_servers: no broker answers: {error.reason}"]
    finally:
        await connections.close()
    counts = {name: len(topic.leaders) for name, topic in told.items() if not topic.error}
    return [*_missing(config, counts), *_too_wide(config, counts)]


def _missing(config: Config, counts: Mapping[str, int]) -> Iterator[str]:
    for pattern, section in config.channels.items():
        if not counts.get(section.topic):
            yield f"channels.{pattern}.topic: the brokers show no topic {section.topic}"


def _too_wide(config: Config, counts: Mapping[str, int]) -> Iterator[str]:
    # With a partitioner the key's own partition is the only one that is read.
    whole = {section.topic for section in config.channels.values() if section.partitioner is None}
    wide = {name: counts.get(name, 0) for name in whole}
    for name, count in wide.items():
        if not _fits({name: count}):
            yield f"topic {name} has {count} partitions: no cursor holds as many, so every subscription is refused"
    if all(_fits({name: count}) for name, count in wide.items()):
        widest = dict(sorted(wide.items(), key=lambda item: -item[1])[:MAX_CHANNELS])
        if not _fits(widest):
            yield f"not every subscription fits into a cursor: its topics may have {sum(widest.values())} partitions together"


def _fits(counts: Mapping[str, int]) -> bool:
    try:
        check_width({name: TopicPosition(0, dict.fromkeys(range(count), 0), 0) for name, count in counts.items()})
    except SubscriptionTooWide:
        return False
    return True


@click.group()
def config() -> None:
    """About the configuration file."""


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors.

    \b
    Examples:
      gateway config schema > gateway.schema.json

    Exit codes: 0 done.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    click.echo(json.dumps(json_schema(), indent=2))


def _inspect(file: Path, workers: int | None = None) -> Inspected:
    with _mistakes_told():
        return inspect(file, os.environ, workers=workers)


@contextmanager
def _mistakes_told() -> Iterator[None]:
    try:
        yield
    except ConfigInvalid as error:
        for line in error.lines():
            click.echo(line, err=True)
        sys.exit(EXIT_WRONG)


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    try:
        import uvloop  # noqa: PLC0415  # does not exist for every platform
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except (OSError, GatewayError) as error:  # an address in use, a broker that is away
        click.echo(f"gateway: {error}", err=True)
        sys.exit(EXIT_FAILED)


@click.command()
@_config_option
@click.option("--issuer", "alias", metavar="ALIAS", help="Which issuer, if there are several.")
@click.option("--sub", required=True, help="Whom the token is for.")
@click.option("--scope", "scopes", multiple=True, help="A scope; repeatable, or several with spaces.")
@click.option("--claim", "claims", multiple=True, type=Claim(), metavar="NAME=JSON", help="A claim; repeatable.")
@click.option("--expires-in", type=click.FloatRange(1), default=3600, show_default=True, help="Seconds.")
@click.option(
    "--private-key",
    type=click.Path(path_type=Path),
    help="PEM file of the issuer's private key; without it, a configured secret of HS256 signs.",
)
def token(
    file: Path,
    alias: str | None,
    sub: str,
    scopes: tuple[str, ...],
    claims: tuple[tuple[str, Any], ...],
    expires_in: float,
    private_key: Path | None,
) -> None:
    """Print a token that the gateway accepts, for development and tests.

    \b
    Examples:
      gateway token -c gateway.yaml --sub alice --scope orders:read
      gateway token -c gateway.yaml --sub alice --claim 'rooms=["42"]' --private-key key.pem

    Exit codes: 0 done, 1 could not run, 2 the command line or the configuration is wrong.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    config = _inspect(file).config
    now = time.time()
    issuer = _chosen(config, alias)
    taken = {"iss", "sub", "aud", "iat", "exp", "scope"} & {name for name, _ in claims}
    if taken:
        raise click.UsageError(f"--claim: {', '.join(sorted(taken))}: set by the issuer or by an option of its own")
    whole: dict[str, Any] = {"iss": issuer.iss, "sub": sub, "iat": int(now), "exp": int(now + expires_in), **dict(claims)}
    if issuer.audiences:
        whole["aud"] = issuer.audiences[0]
    if scopes:
        whole["scope"] = " ".join(scopes)
    signed = _by_secret(config, issuer, whole) if private_key is None else _by_private_key(private_key, issuer, whole)
    _run(_check_accepted(config, issuer, signed, now))
    click.echo(signed)


def _chosen(config: Config, alias: str | None) -> Issuer:
    issuers = {issuer.alias: issuer for issuer in config.auth.trusted}
    if alias is None and len(issuers) == 1:
        alias = next(iter(issuers))
    if alias not in issuers:
        raise click.UsageError(f"--issuer: expected one of: {', '.join(issuers) or '(none is configured)'}")
    return issuers[alias]


def _by_secret(config: Config, issuer: Issuer, claims: dict[str, Any]) -> str:
    for source in config.auth.trusted[issuer]:
        if not isinstance(source, KeyUrl) and source.kind == "secret":
            data = source.data if isinstance(source, Inline) else source.path.read_bytes()
            return mint(data.removesuffix(b"\n").removesuffix(b"\r"), "HS256", claims, source.kid)
    # The gateway refuses private keys in its configuration: who can only verify cannot leak the power to sign.
    raise click.UsageError(f"issuer {issuer.alias} has public keys only, which cannot sign: give --private-key FILE")


def _by_private_key(file: Path, issuer: Issuer, claims: dict[str, Any]) -> str:
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"--private-key: {file}: {error.strerror}") from error
    algorithms = sorted(issuer.algorithms - {"HS256"})
    for algorithm in algorithms:
        try:
            return mint(pem, algorithm, claims)
        except ValueError:
            continue
    raise click.UsageError(f"--private-key: expected a private key in PEM for one of: {', '.join(algorithms)}")


async def _check_accepted(config: Config, issuer: Issuer, signed: str, now: float) -> None:
    """Verify as the gateway will; whether a URL lists the key, only the gateway finds out."""
    sources = config.auth.trusted[issuer]
    if any(isinstance(source, KeyUrl) for source in sources):
        return
    authenticator = Authenticator({issuer: sources})
    await authenticator.load_files()
    try:
        await authenticator.authenticate(f"Bearer {signed}", now)
    except TokenInvalid as error:
        raise click.UsageError(f"the gateway would not accept this token: {error.reason}") from error


_DEMO = """
server: {host: 127.0.0.1, port: "${PORT}", single_listener: true}
kafka: {bootstrap_servers: "${KAFKA}"}
auth:
  issuers:
    dev: {issuer: "${ISSUER}", audience: gateway, keys: [{id: "${KID}", algorithm: EdDSA, pem: "${KEY}"}]}
channels:
  news:
    topic: news
    publish: {scope: publish}
    description: One stream for everybody.
  chat/{room}:
    topic: chat
    key: "{room}"
    publish: {scope: publish}
    description: Rooms side by side in one topic, told apart by the records' key.
  notifications:
    topic: notifications
    key: "{claims.sub}"
    publish: {scope: publish}
    description: Each subject sees only its own.
cors: {origins: "*"}
drain: {delay: 0, window: 1}
"""

_WELCOME = """\
gateway dev: {base} with a Kafka broker at {kafka}, in memory: all is gone when this ends.

Wait for a message (the poll returns when there is one, at the latest after 55 seconds):
  curl -sS -H 'Authorization: Bearer {token}' '{base}/v1/subscribe?channel=news&wait=55'

Publish one, from another shell:
  curl -sS -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{{"text":"hello"}}' \
'{base}/v1/publish?channel=news'

The same with this command:
  export GATEWAY_URL={base} GATEWAY_TOKEN={token}
  {program} tail news
  {program} publish news '{{"text":"hello from here"}}'

The same through Kafka:
  echo '{{"text":"hello from kcat"}}' | kcat -P -b {kafka} -t news

Channels: news, chat/{{room}}, notifications. The token is for the subject alice and good for a day.
"""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="HTTP port; 0: a free one.")
@click.option("--kafka-port", type=click.IntRange(0, 65535), default=9092, show_default=True, help="0: a free one.")
def dev(port: int, kafka_port: int) -> None:
    """Run a gateway with demo channels, a Kafka broker in memory, and a token: to try things out.

    \b
    Examples:
      gateway dev
      gateway dev --port 0 --kafka-port 0

    Exit codes: 0 ended, 1 could not run, 2 usage.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    sys.exit(_run(_dev(port, kafka_port)))


async def _dev(port: int, kafka_port: int) -> int:
    from gateway import app  # noqa: PLC0415  # as in serve

    issuer = generate("dev", iss="https://dev.invalid/", audiences=("gateway",))
    broker = await _start_broker(kafka_port)
    try:
        env = {
            "PORT": str(port),
            "KAFKA": broker.address,
            "ISSUER": issuer.issuer.iss,
            "KID": issuer.kid,
            "KEY": issuer.public.decode(),
        }
        token = issuer.token("alice", now=time.time(), lifetime=86400.0, scope="publish")

        def ready(url: str) -> None:
            called = Path(sys.argv[0])
            program = called if called.name == "gateway" else "gateway"
            click.echo(_WELCOME.format(base=url, kafka=broker.address, token=token, program=program))

        return await app.run(read(_DEMO, env, source="demo"), ready=ready)
    finally:
        await broker.stop()


async def _start_broker(port: int) -> Broker:
    broker = Broker(port=port)
    try:
        await broker.start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        click.echo(f"gateway dev: port {port} is taken, so the broker gets another one", err=True)
        broker = Broker()
        await broker.start()
    for topic in ("news", "chat", "notifications"):
        broker.create_topic(topic, 4)
    return broker
