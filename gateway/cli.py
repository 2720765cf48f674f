"""The `gateway` command: which commands there are. Each comes from its module in `commands` when it is called.

So `gateway --help` is quick, and who has installed only the client can use the client's commands.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from typing import Any, NamedTuple

import click

EXIT_FAILED = 1


class Place(NamedTuple):
    """Where a command is: its module below `gateway.commands`, its name there, what it needs, and what it does in a line."""

    module: str
    name: str
    extra: str
    help: str
    hidden: bool = False


COMMANDS = {
    "tail": Place("tailing", "tail", "client", "Print the messages of channels as they come."),
    "publish": Place(
        "publishing", "publish", "client", "Publish messages: one, or a line each of a file or of standard input."
    ),
    "channels": Place("asking", "channels", "client", "List the channels and routes that a token may use."),
    "cursor": Place("asking", "cursor", "client", "Tell where a cursor stands."),
    "bench": Place("bench", "bench", "loadtest", "Find out how many long-polling clients a deployment holds."),
    "serve": Place("operating", "serve", "server", "Run the gateway until SIGTERM or SIGINT."),
    "check": Place("operating", "check", "server", "Check a configuration, and say what is unwise in it."),
    "config": Place("operating", "config", "server", "About the configuration file."),
    "dev": Place(
        "operating",
        "dev",
        "server",
        "Run a gateway with demo channels, a Kafka broker in memory, and a token: to try things out.",
    ),
    "token": Place("operating", "token", "server", "Print a token that the gateway accepts, for development and tests."),
    "keys": Place("keys", "keys", "server", "Make, list and revoke API keys."),
    "worker": Place("operating", "worker", "server", "Run as one of several workers; `serve` starts it.", hidden=True),
}


class Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names, those of clients first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command; ends the process where what it needs is not installed."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        try:
            command: Any = getattr(importlib.import_module(f"gateway.commands.{place.module}"), place.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "gateway":
                raise
            click.echo(f"gateway {cmd_name} needs more: pip install 'longpoll-gateway[{place.extra}]'", err=True)
            sys.exit(EXIT_FAILED)
        found: click.Command = command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items() if not place.hidden])


def version() -> str:
    """Return the version that is installed."""
    try:
        return metadata.version("longpoll-gateway")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="gateway", message="%(prog)s %(version)s")
def main() -> None:
    """Kafka for every HTTP client: resumable long polls with identity, limits and metrics."""
