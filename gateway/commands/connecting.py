"""What the commands that talk to a gateway share: whom to ask, with which token, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli import EXIT_FAILED
from gateway.client import Client, ClientError, Forbidden, Unauthorized

EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130
"""As shells count: 128 and the number of SIGINT."""

F = TypeVar("F", bound=Callable[..., Any])


def connection_options(command: F) -> F:
    """Add the options of whom to ask: --url, --token and --token-file."""
    for option in (
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            help="A file with the token, read again when a new one is needed.",
        ),
        click.option("--token", envvar="GATEWAY_TOKEN", show_envvar=True, help="The token."),
        click.option(
            "--url",
            default="http://127.0.0.1:8080",
            show_default=True,
            envvar="GATEWAY_URL",
            show_envvar=True,
            help="The gateway's URL.",
        ),
    ):
        command = option(command)
    return command


def connect(url: str, token: str | None, token_file: Path | None, **given: Any) -> Client:
    """Return a client. UsageError for a URL that is none, or two tokens."""
    if token_file is not None:
        # A file on the command line is meant; the variable may be there for something else.
        source = click.get_current_context().get_parameter_source("token")
        if token is not None and source is not None and source.name == "COMMANDLINE":
            raise click.UsageError("--token and --token-file: expected one of them")
        _read(token_file)
        return _client(url, lambda: _read(token_file), **given)
    return _client(url, token, **given)


def _client(url: str, token: Any, **given: Any) -> Client:
    try:
        return Client(url, token, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise click.UsageError(f"--token-file: {file}: {error.strerror}") from error


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell errors in a line on standard error, and end with the exit code that they have."""
    try:
        yield
    except (Unauthorized, Forbidden) as error:
        _end(error, EXIT_REFUSED)
    except BrokenPipeError:
        # Whoever read has seen enough; Python would complain at its end that it cannot flush.
        sys.stdout = None
        sys.exit(EXIT_FAILED)
    except (ClientError, OSError) as error:
        _end(error, EXIT_FAILED)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _end(error: Exception, code: int) -> None:
    click.echo(f"gateway: {error}", err=True)
    sys.exit(code)
