"""`gateway publish`: one message, or a line each of a file or of standard input, as fast as may be or at a rate."""

from __future__ import annotations

import base64
import binascii
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.cli import EXIT_FAILED
from gateway.client import Client, Published
from gateway.commands.connecting import connect, connection_options, errors_told

_HELP = """Publish messages: one, or a line each of a file or of standard input.

\b
Examples:
  gateway publish news '{"text": "hello"}'
  gateway publish notes --form text 'plain words'
  gateway publish news --file news.jsonl --rate 100
  seq 1000 | gateway publish news --key counter
  gateway publish users --key 42 --tombstone

Lines of a JSON channel are JSON, those of a text channel are taken as they are, those of a binary one are base64. Lines that
are refused are told with their number, and the others go on.

Exit codes: 0 all is stored, 1 something is not, 2 usage, 3 refused by the gateway, 130 interrupted.
"""
_BATCHES_A_SECOND = 10


@click.command(help=_HELP, short_help="Publish messages: one, or a line each of a file or of standard input.")
@click.argument("channel")
@click.argument("value", required=False)
@connection_options
@click.option("--file", type=click.File("rb"), help="Publish its lines; - is standard input, the default without a value.")
@click.option("--key", help="The key, where the channel does not fix it.")
@click.option(
    "--form", type=click.Choice(["json", "text", "binary"]), default="json", show_default=True, help="What the values are."
)
@click.option("--tombstone", is_flag=True, help="Publish a tombstone for the key.")
@click.option("--batch", type=click.IntRange(1, 1000), default=100, show_default=True, help="Most lines in a request.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Messages a second; without it as fast as may be.")
@click.option("--json", "as_documents", is_flag=True, help="Print where each message was stored, one JSON object a line.")
def publish(
    channel: str,
    value: str | None,
    url: str,
    token: str | None,
    token_file: Path | None,
    file: BinaryIO | None,
    key: str | None,
    form: str,
    batch: int,
    rate: float | None,
    *,
    tombstone: bool,
    as_documents: bool,
) -> None:
    """Publish, and tell what became of it."""
    if sum((value is not None, file is not None, tombstone)) > 1:
        raise click.UsageError("expected one of: a value, --file, --tombstone")
    if tombstone and key is None:
        raise click.UsageError("--tombstone: expected --key as well")
    with errors_told(), connect(url, token, token_file) as client:
        if value is not None or tombstone:
            content = None if tombstone else _value(value or "", form)
            _tell(client.publish(channel, content, key=key, tombstone=tombstone, form=form), as_documents=as_documents)
            return
        many = _Many(client, channel, key, form, as_documents=as_documents)
        many.publish(file or sys.stdin.buffer, batch, rate)
    if many.refused:
        sys.exit(EXIT_FAILED)


def _value(text: str, form: str) -> Any:
    """Return what a text on the command line, or a line, stands for; ValueError where it is not of that form."""
    try:
        if form == "json":
            return json.loads(text)
        return text if form == "text" else base64.b64decode(text, validate=True)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except binascii.Error as error:
        raise ValueError(f"expected base64: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON: {error}") from error


def _tell(published: Published, *, as_documents: bool) -> None:
    if as_documents:
        document = {"partition": published.partition, "offset": published.offset, "cursor": published.cursor}
        click.echo(json.dumps(document))
    else:
        click.echo(f"partition {published.partition}, offset {published.offset}, cursor {published.cursor}")


class _Many:
    """Publishes lines and counts what becomes of them."""

    def __init__(self, client: Client, channel: str, key: str | None, form: str, *, as_documents: bool) -> None:
        self.stored = self.refused = 0
        self._client = client
        self._channel = channel
        self._key = key
        self._form = form
        self._as_documents = as_documents

    def publish(self, lines: Iterable[bytes], batch: int, rate: float | None) -> None:
        """Publish all lines in their order."""
        if rate is not None:
            batch = min(batch, max(1, int(rate / _BATCHES_A_SECOND)))
        began = time.monotonic()
        try:
            with _progress(lines) as advance:
                for numbered in _batches(lines, batch):
                    if rate is not None:
                        # By the clock of the whole, so that a slow request is made up for.
                        time.sleep(max(0.0, began + (self.stored + self.refused) / rate - time.monotonic()))
                    self._send(numbered)
                    advance(sum(len(line) for _, line in numbered), self.stored)
        finally:
            seconds = time.monotonic() - began
            refused = f", {self.refused:,} refused" if self.refused else ""
            speed = f", {self.stored / seconds:,.0f} a second" if seconds > 0 else ""
            click.echo(f"{self.stored:,} messages stored{refused} in {seconds:.1f} s{speed}", err=True)

    def _send(self, numbered: list[tuple[int, bytes]]) -> None:
        values: list[Any] = []
        numbers: list[int] = []
        for number, line in numbered:
            try:
                values.append(_value(line.decode().rstrip("\r\n"), self._form))
            except ValueError as error:  # what is not UTF-8 is one as well
                self._refuse(number, str(error))
            else:
                numbers.append(number)
        if not values:
            return
        result = self._client.publish_batch(self._channel, values, key=self._key, form=self._form)
        for number, each in zip(numbers, result.results, strict=True):
            if isinstance(each, Published):
                self.stored += 1
                if self._as_documents:
                    click.echo(json.dumps({"line": number, "partition": each.partition, "offset": each.offset}))
            else:
                self._refuse(number, f"{each.problem.code}: {each.problem.detail or each.problem.title}")

    def _refuse(self, number: int, why: str) -> None:
        self.refused += 1
        click.echo(f"line {number}: {why}", err=True)


def _batches(lines: Iterable[bytes], size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Give lines with their numbers, several at once; empty ones are left out."""
    held: list[tuple[int, bytes]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        held.append((number, line))
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


@contextmanager
def _progress(lines: Any) -> Iterator[Any]:
    """Give what moves the bar: bytes that are through, and the messages so far. Without a terminal nothing is shown."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with nullcontext():
            yield lambda _size, _stored: None
        return
    total = _size(lines)
    columns = [TextColumn("{task.fields[stored]:,} messages"), BarColumn(), TimeElapsedColumn()]
    if total is not None:
        columns.insert(2, TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, stored=0)
        yield lambda size, stored: progress.update(task, advance=size, stored=stored)


def _size(lines: Any) -> int | None:
    """Return how many bytes there will be, where that is known: of a file."""
    try:
        return Path(lines.name).stat().st_size if lines.seekable() else None
    except (OSError, AttributeError, TypeError):
        return None
