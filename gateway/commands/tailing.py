"""`gateway tail`: the messages of channels, a line each, as they come."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from gateway.client import FileStore, Lost, Message, Reset, Subscription
from gateway.commands.connecting import EXIT_INTERRUPTED, connect, connection_options, errors_told
from gateway.commands.showing import as_json, as_line

_RATE_SECONDS = 5.0

_HELP = """Print the messages of channels as they come.

\b
Examples:
  gateway tail chat/42                          what comes from now on
  gateway tail news chat/42 --from -10          the ten newest first
  gateway tail news --from earliest --no-follow --json > news.jsonl
  gateway tail news --store news.position       goes on where it was ended

It goes on by itself when the connection is cut or the gateway restarted. A line has the time, the channel, partition/offset,
the key and the value. At its end it says how to go on.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the gateway, 130 interrupted.
"""


@click.command(help=_HELP, short_help="Print the messages of channels as they come.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@connection_options
@click.option("--from", "start", metavar="START", help="Begin at: latest, earliest, an RFC 3339 time, or -N (the N newest).")
@click.option("--cursor", help="Begin behind this cursor.")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="A file that keeps the position.")
@click.option("--wait", type=click.FloatRange(0, 55), default=30.0, show_default=True, help="Seconds that a poll is held.")
@click.option("--limit", type=click.IntRange(1, 1000), help="Most messages in an answer.")
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--no-follow", is_flag=True, help="End where nothing more is there.")
@click.option("--json", "as_documents", is_flag=True, help="One JSON object a line.")
def tail(
    channels: tuple[str, ...],
    url: str,
    token: str | None,
    token_file: Path | None,
    start: str | None,
    cursor: str | None,
    store: Path | None,
    wait: float,
    limit: int | None,
    count: int | None,
    *,
    no_follow: bool,
    as_documents: bool,
) -> None:
    """Print messages until there is an end."""
    with errors_told(), connect(url, token, token_file) as client:
        subscription = client.subscribe(
            *channels,
            start=start,
            cursor=cursor,
            store=None if store is None else FileStore(store),
            wait=wait,
            limit=limit,
            on_lost=_lost,
            on_reset=_reset,
            follow=not no_follow,
        )
        output = Console(highlight=False, soft_wrap=True)
        with subscription, _stopping(subscription) as stopped, _shown(output, as_documents=as_documents) as show:
            for number, message in enumerate(subscription, 1):
                show(message)
                if number == count:
                    subscription.stop()
        if store is None and subscription.cursor is not None and sys.stderr.isatty():
            click.echo(f"To go on: gateway tail {' '.join(channels)} --cursor {subscription.cursor}", err=True)
    if signal.SIGINT in stopped:
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _stopping(subscription: Subscription) -> Iterator[list[int]]:
    """Have signals stop it in order; give the list of those that came."""
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        subscription.stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _shown(output: Console, *, as_documents: bool) -> Iterator[Callable[[Message], None]]:
    """Give what shows a message, with a line of rates below where somebody looks at a terminal."""
    errors = Console(stderr=True, highlight=False)
    # A live line has to be on the console that the messages go to, if that is a terminal.
    screen = output if output.is_terminal else errors
    rates = _Rates()
    live: Any = Live(get_renderable=rates.line, console=screen, transient=True) if screen.is_terminal else nullcontext()
    with live:

        def show(message: Message) -> None:
            rates.add(message)
            if output.is_terminal:
                output.print(as_json(message) if as_documents else as_line(message), markup=False)
            else:
                click.echo(as_json(message) if as_documents else as_line(message).plain)

        yield show


class _Rates:
    """How many messages came, and how fast."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._count = 0
        self._late: float | None = None

    def add(self, message: Message) -> None:
        now = time.monotonic()
        self._count += 1
        self._times.append(now)
        self._late = None if message.timestamp is None else max(0.0, time.time() - message.timestamp / 1_000)
        self._forget(now)

    def line(self) -> Text:
        self._forget(time.monotonic())
        rate = len(self._times) / _RATE_SECONDS
        late = "" if self._late is None else f", the last one {self._late:,.3f} s old"
        return Text(f"{self._count:,} messages, {rate:,.1f} a second{late}", "dim")

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - _RATE_SECONDS:
            self._times.popleft()


def _lost(lost: Lost) -> None:
    click.echo(
        f"gateway: {lost.channel}: up to {lost.end - lost.first:,} records of partition {lost.partition} are lost to retention",
        err=True,
    )


def _reset(reset: Reset) -> None:
    click.echo(f"gateway: the position is not good any more ({reset.code}); going on where the gateway says", err=True)
