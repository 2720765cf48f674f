"""`gateway keys`: makes, lists and revokes API keys in a file that the gateway reads again when it changes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gateway.auth import apikeys, keyfile

EXIT_FAILED = 1
_DAY = 86_400.0
_DAYS = re.compile(r"([1-9][0-9]{0,4})d", re.ASCII)
_ID_CHARACTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that is read for another

_file_option = click.option(
    "--file", "-f", "file", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file of API keys."
)


class Claim(click.ParamType[tuple[str, Any]]):
    """NAME=JSON on the command line."""

    name = "claim"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Read one."""
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail("expected NAME=JSON", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            self.fail(f"expected JSON after {name}= (text in quotes: '{name}=\"…\"')", param, ctx)


class _Expiry(click.ParamType[float]):
    """A date, a time, or a number of days from now."""

    name = "expiry"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        days = _DAYS.fullmatch(value)
        try:
            at = time.time() + int(days[1]) * _DAY if days else apikeys.moment(value)
        except ValueError as error:
            self.fail(f"{error}, or days such as 90d", param, ctx)
        if at <= time.time():
            self.fail("expected a time to come", param, ctx)
        return at


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    \b
    The configuration names their file, and the gateway reads it again when it changes:
      api_keys: {file: keys.yaml}
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"


@keys.command()
@_file_option
@click.option("--subject", required=True, help="Whom the key stands for, as `sub` of a token would.")
@click.option("--scope", "scopes", multiple=True, help="A scope; repeatable, or several with spaces.")
@click.option("--claim", "claims", multiple=True, type=Claim(), metavar="NAME=JSON", help="A claim; repeatable.")
@click.option("--expires", type=_Expiry(), metavar="WHEN", help="A date, an RFC 3339 time, or days such as 90d.")
@click.option("--id", "name", help="Name in the file, in logs and in the key itself; random if it is not given.")
def create(
    file: Path,
    subject: str,
    scopes: tuple[str, ...],
    claims: tuple[tuple[str, Any], ...],
    expires: float | None,
    name: str | None,
) -> None:
    """Make a key and print it, this once: the file gets its hash.

    \b
    Examples:
      gateway keys create --file keys.yaml --subject ci --scope orders:write
      gateway keys create --file keys.yaml --subject ci --id ci-2027 --expires 90d --claim 'team="x"'

    Exit codes: 0 done, 1 the file cannot be read or written, 2 usage, or there is no such key.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    id_ = name or "".join(secrets.choice(_ID_CHARACTERS) for _ in range(8))
    try:
        key = apikeys.make(id_, secrets.token_bytes(apikeys.SECRET_BYTES))
        members: dict[str, Any] = {"hash": apikeys.hashed(key), "subject": subject}
        if scopes:
            members["scopes"] = " ".join(scopes).split()
        if claims:
            members["claims"] = dict(claims)
        if expires is not None:
            members["expires"] = _shown(expires)
        apikeys.entry(id_, members)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def add(entries: dict[str, Any]) -> None:
        if id_ in entries:
            raise click.UsageError(f"--id: {id_} is in the file already")
        entries[id_] = members

    _change(file, add)
    click.echo(f"id {id_}; the key is shown this once:", err=True)
    click.echo(key)


@keys.command("list")
@_file_option
def list_(file: Path) -> None:
    """List the keys: id, subject, state, expiry, scopes.

    \b
    Examples:
      gateway keys list --file keys.yaml

    Exit codes: 0 done, 1 the file cannot be read or written, 2 usage, or there is no such key.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"
    with _told():
        entries = keyfile.read_entries(file.read_bytes())
    now = time.time()
    rows = [("ID", "SUBJECT", "STATE", "EXPIRES", "SCOPES"), *(_row(id_, members, now) for id_, members in entries.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]).rstrip())


def _row(id_: str, members: object, now: float) -> tuple[str, str, str, str, str]:
    try:
        key = apikeys.entry(id_, members)
    except ValueError as error:
        return id_, "-", "unusable", "-", str(error)
    expired = key.expires_at is not None and now >= key.expires_at
    state = "revoked" if key.revoked_at is not None else "expired" if expired else "good"
    expires = "never" if key.expires_at is None else _shown(key.expires_at)
    return id_, key.subject, state, expires, " ".join(sorted(key.scopes))


@keys.command()
@_file_option
@click.argument("name", metavar="ID")
def revoke(file: Path, name: str) -> None:
    """Revoke a key: within seconds it opens nothing, and its polls end.

    \b
    Examples:
      gateway keys revoke --file keys.yaml ci-2027

    Exit codes: 0 done, 1 the file cannot be read or written, 2 usage, or there is no such key.
    """  # noqa: D301  # it is the backspace that click takes for "as it stands"

    def mark(entries: dict[str, Any]) -> None:
        if not isinstance(entries.get(name), dict):
            raise click.UsageError(f"{name}: there is no such key in the file")
        entries[name].setdefault("revoked", _shown(time.time()))

    _change(file, mark)
    click.echo(f"{name} is revoked", err=True)


def _shown(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _told() -> Iterator[None]:
    """Tell in a line what keeps a file from being read or written."""
    try:
        yield
    except OSError as error:
        click.echo(f"gateway: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except ValueError as error:
        click.echo(f"gateway: the file of API keys: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the file as one step: a reader sees it before or after, and of two writers none loses what he wrote."""
    with _told():
        path = file.resolve()  # a link stays one
        with _alone(path.parent):
            entries = keyfile.read_entries(path.read_bytes()) if path.exists() else {}
            edit(entries)
            _replace(path, keyfile.write_entries(entries))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder: the file itself is another one after each change."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, data: bytes) -> None:
    """Write the whole file or nothing; a new one is for its owner alone, an old one keeps its mode."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
