"""`gateway bench`: how many long-polling clients a deployment holds."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click
from rich.console import Console

from gateway.cli import EXIT_FAILED
from gateway.loadtest import report
from gateway.loadtest.crowd import Crowd, NotAllowed
from gateway.loadtest.ladder import Bounds, Ladder
from gateway.loadtest.running import Plan, climb

EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130
_SPARE_FILES = 100

_HELP = """Find out how many long-polling clients a deployment holds.

\b
Examples:
  gateway bench http://127.0.0.1:8080 --channel news
  gateway bench https://gw.example --channel load --clients 10000 --publish
  gateway bench "$URL" --channel load --steps 500,1000,2000 --json

Clients come in steps, twice as many each time. Each takes a first cursor and then holds polls, over a connection of its own.
A step is held if all are parked in time, requests do not fail, and, with --publish, a probe each second reaches all of them
in time. From the first step that is not held on, the gap is halved. This is load on whatever answers there: by default at
most 1,000 clients.

Exit codes: 0 all steps were held, 1 not all, 2 usage, 3 refused by the gateway, 130 interrupted.
"""


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of clients with commas between them."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return them; they have to ascend."""
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or counts[0] < 1 or list(counts) != sorted(set(counts)):
            self.fail("expected ascending numbers with commas between them", param, ctx)
        return counts


@click.command(help=_HELP, short_help="Find out how many long-polling clients a deployment holds.")
@click.argument("url")
@click.option("--channel", required=True, help="The channel that all of them poll.")
@click.option("--token", envvar="GATEWAY_TOKEN", show_envvar=True, help="The token of all of them.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with a token a line, given out in turn: limits count each subject for itself.",
)
@click.option("--clients", type=click.IntRange(1, 100_000), default=1_000, show_default=True, help="Most clients.")
@click.option("--steps", type=Counts(), help="These numbers of clients, in place of doubling.")
@click.option("--ramp", type=click.FloatRange(1), default=500.0, show_default=True, help="New clients a second, at most.")
@click.option(
    "--hold", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds for which a step is held."
)
@click.option("--publish", is_flag=True, help="Publish probes into the channel (JSON) and measure their delivery.")
@click.option(
    "--settle", type=click.FloatRange(0.1), default=15.0, show_default=True, help="Seconds until all have to be parked."
)
@click.option(
    "--latency", type=click.FloatRange(0.001), default=1.0, show_default=True, help="Seconds that p99 of deliveries may be."
)
@click.option(
    "--errors", type=click.FloatRange(0, 1), default=0.001, show_default=True, help="The share of requests that may fail."
)
@click.option("--insecure", is_flag=True, help="Do not check the certificate.")
@click.option("--json", "as_document", is_flag=True, help="Print the steps and the outcome as JSON.")
def bench(
    url: str,
    channel: str,
    token: str | None,
    token_file: Path | None,
    clients: int,
    steps: Sequence[int] | None,
    ramp: float,
    hold: float,
    settle: float,
    latency: float,
    errors: float,
    *,
    publish: bool,
    insecure: bool,
    as_document: bool,
) -> None:
    """Climb, and tell."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter("expected the gateway's URL, as https://gateway.example", param_hint="url")
    tokens = _tokens(token, token_file)
    ladder = Ladder(clients, steps or ())
    _allow_files(max(steps) if steps else clients)
    plan = Plan(ramp, hold, publish, Bounds(settle, latency, errors))
    screen = Console(stderr=as_document, highlight=False)

    async def run() -> None:
        async with Crowd(url, channel, tokens, verify=not insecure) as crowd:
            with screen.status(f"gateway bench {url}") if screen.is_terminal else _Nothing():
                await climb(crowd, ladder, plan, lambda step: screen.print(report.line(step), markup=False, soft_wrap=True))

    code = _outcome(run, ladder)
    if as_document:
        click.echo(
            json.dumps({"held": ladder.best, "verdict": ladder.verdict(), "steps": [each.document() for each in ladder.steps]})
        )
    elif ladder.steps:
        click.echo()
        report.show(screen, ladder)
    sys.exit(code)


class _Nothing:
    """Where no terminal is, nothing turns."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _outcome(run: Any, ladder: Ladder) -> int:
    """Run, and return the exit code."""
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except NotAllowed as refused:
        click.echo(f"gateway: {refused}", err=True)
        return EXIT_REFUSED
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        click.echo(f"gateway: a probe could not be published: {error or type(error).__name__}", err=True)
        return EXIT_FAILED
    return 0 if ladder.worst is None else EXIT_FAILED


def _tokens(token: str | None, file: Path | None) -> list[str]:
    if file is None:
        return [token] if token else []
    try:
        tokens = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise click.UsageError(f"--token-file: {file}: {error.strerror}") from error
    if not tokens:
        raise click.UsageError(f"--token-file: {file}: expected a token a line, got none")
    return tokens


def _allow_files(clients: int) -> None:
    """Raise the limit of open files as far as it may be; UsageError where that is not enough for so many clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise click.UsageError(f"{clients:,} clients need {wanted:,} open files; the limit is {hard:,} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
