"""How a scenario is run: servers in turn, round after round, then the table."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from bench.broker import Kind, broker
from bench.catalog import SERVERS
from bench.processes import LOAD_CORE, Failed
from bench.results import FILE, Results, medians, table
from bench.serving import Missing, Setting

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Measurements of one scenario: `measure` gets a server of the catalog, the setting, and each of `grid` as keywords."""

    scenario: str
    title: str
    servers: Sequence[str]
    rounds: int
    grid: Sequence[Parameters]
    measure: Callable[..., Mapping[str, Any]]
    columns: Mapping[str, str]
    catalog: Mapping[str, Any] = field(default_factory=lambda: SERVERS)


@contextlib.contextmanager
def session(kind: Kind) -> Iterator[tuple[Setting, Results]]:
    """Run a broker for the block, with this process and everything that is no server on the load's core."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT otherwise
        signal.signal(ending, signal.default_int_handler)
    with contextlib.suppress(OSError):  # a machine with one core
        os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory(prefix="bench-") as name, broker(kind, Path(name)) as kafka:
        click.echo(f"broker: {kafka.title}, on the load's core", err=True)
        yield Setting(kafka, Path(name)), Results(kafka.kind)


def run(kind: Kind, series: Iterable[Series]) -> None:
    """Measure and show one series after the other, with one broker for all."""
    with session(kind) as (setting, results):
        for each in series:
            for parameters in each.grid:
                _alternate(each, parameters, setting, results)
            _show(each, results)


def _alternate(series: Series, parameters: Parameters, setting: Setting, results: Results) -> None:
    missing: set[str] = set()
    for _ in range(series.rounds):
        for server in series.servers:
            if server in missing:
                continue
            try:
                figures = series.measure(series.catalog[server], setting, **parameters)
            except Missing as lack:
                missing.add(server)
                figures = {"missing": str(lack)}
            except (Failed, OSError) as failure:  # OSError: the server, or a process that helps, is gone
                figures = {"missing": str(failure)}
            results.add(series.scenario, server, parameters, figures)


def _show(series: Series, results: Results) -> None:
    rows = medians(row for row in results.rows if row["scenario"] == series.scenario)
    used = {name: head for name, head in series.columns.items() if any(row["figures"].get(name) is not None for row in rows)}
    click.echo(f"\n{series.title} (medians of {series.rounds} rounds, all of them in {FILE})\n{table(rows, used)}\n")
