"""`gateway channels` and `gateway cursor`: what a token may use, and where a cursor stands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gateway.commands.connecting import connect, connection_options, errors_told
from gateway.commands.showing import plain

_CHANNELS = """List the channels and routes that a token may use.

\b
Examples:
  gateway channels
  gateway channels --json | jq -r '.channels[].channel'

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the gateway.
"""

_CURSOR = """Tell where a cursor stands: in each partition of its channels, and how far from the end.

\b
Examples:
  gateway cursor AUIuLFpLVav4CgABuxkavA --channel news
  gateway cursor "$CURSOR" --channel news --channel chat/42 --json

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the gateway.
"""


@click.command(help=_CHANNELS, short_help="List the channels and routes that a token may use.")
@connection_options
@click.option("--json", "as_document", is_flag=True, help="The answer as it is.")
def channels(url: str, token: str | None, token_file: Path | None, *, as_document: bool) -> None:
    """Print tables, or JSON."""
    with errors_told(), connect(url, token, token_file) as client:
        document = client.channels()
        if as_document:
            click.echo(json.dumps(document, ensure_ascii=False))
            return
        rows = [
            (each["channel"], _rights(each), each["format"], "yes" if each["keyed"] else "", *_life(each), each["description"])
            for each in document["channels"]
        ]
        _table(("channel", "may", "format", "keyed", "version", "state", ""), rows)
        if document["routes"]:
            click.echo()
            routes = [(_route(each), *_life(each)) for each in document["routes"]]
            _table(("route", "version", "state"), routes)


def _rights(channel: dict[str, Any]) -> str:
    return ", ".join(name for name in ("read", "publish") if channel[name])


def _life(each: dict[str, Any]) -> tuple[str, str]:
    life = each["lifecycle"]
    until = f", gone on {life['sunset']}" if life["sunset"] and life["state"] != "gone" else ""
    return each["version"] or "", life["state"] + until


def _route(route: dict[str, Any]) -> str:
    return " ".join(str(route[name]) for name in ("name", "path", "prefix") if route.get(name))


@click.command(help=_CURSOR, short_help="Tell where a cursor stands.")
@click.argument("cursor")
@click.option("--channel", "names", multiple=True, required=True, help="A channel of the cursor; repeatable.")
@connection_options
@click.option("--json", "as_document", is_flag=True, help="The answer as it is.")
def cursor(
    cursor: str, names: tuple[str, ...], url: str, token: str | None, token_file: Path | None, *, as_document: bool
) -> None:
    """Print a table, or JSON."""
    with errors_told(), connect(url, token, token_file) as client:
        document = client.cursor(cursor, *names)
        if as_document:
            click.echo(json.dumps(document, ensure_ascii=False))
            return
        rows = [row for channel in document["channels"] for row in _places(channel)]
        _table(("channel", "partition", "offset", "log start", "end", "lag", "lost"), rows)
        for channel in document["channels"]:
            for line in _remarks(channel):
                click.echo(line)
        if document["dropped"]:
            click.echo(f"It also names {document['dropped']} topics that these channels do not read.")


def _places(channel: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for place in channel["partitions"]:
        numbers = (place[name] for name in ("partition", "offset", "log_start", "end", "lag", "lost"))
        yield channel["channel"], *(f"{number:,}" for number in numbers)


def _remarks(channel: dict[str, Any]) -> Iterable[str]:
    name = plain(channel["channel"])
    if channel["state"] == "reset":
        yield f"{name}: the topic was created anew, or cut: a poll with this cursor gets 409 cursor_reset."
    elif channel["state"] == "absent":
        yield f"{name}: the cursor says nothing of it: a poll begins at `from`."
    elif channel["keyed"]:
        yield f"{name}: has a key of its own: lag and lost count the records of all keys."


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table as wide as it needs to be; columns that nobody fills are left out."""
    lines = [tuple(map(plain, row)) for row in rows]
    used = [(at, head) for at, head in enumerate(heads) if any(line[at] for line in lines)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, head in used:
        is_number = all(line[at].replace(",", "").isdigit() for line in lines)
        table.add_column(head, justify="right" if is_number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(line[at] for at, _ in used))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table, markup=False)
        return
    widths = [max(len(head), *(len(line[at]) for line in lines)) if lines else len(head) for at, head in used]
    for row in (tuple(head for _, head in used), *(tuple(line[at] for at, _ in used) for line in lines)):
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
