"""Results: one JSON object a line in `.bench/results.jsonl`, and tables of their medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from bench import machine
from bench.compiling import BUILT

FILE = BUILT / "results.jsonl"
Row = Mapping[str, Any]


class Results:
    """The measurements of one run; each is kept as soon as it is there."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._run = machine.date()
        self.rows: list[Row] = []

    def add(self, scenario: str, server: str, parameters: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Keep a measurement, or with the figure `missing` why there is none."""
        row = {
            "scenario": scenario,
            "server": server,
            "parameters": dict(parameters),
            "figures": dict(figures),
            "broker": self._broker,
            "run": self._run,
            "date": machine.date(),
            "machine": machine.facts(),
        }
        self.rows.append(row)
        BUILT.mkdir(exist_ok=True)
        with FILE.open("a") as file:
            file.write(json.dumps(row) + "\n")
        click.echo(f"  {server:17} {said(parameters)}: {brief(figures)}", err=True)


def said(parameters: Mapping[str, Any]) -> str:
    """Return parameters in one line."""
    return " ".join(f"{name}={value:,}" if isinstance(value, int) else f"{name}={value}" for name, value in parameters.items())


def brief(figures: Mapping[str, Any]) -> str:
    """Return the scalar figures in one line."""
    return " ".join(f"{name}={shown(value)}" for name, value in figures.items() if not isinstance(value, dict | list))


def shown(value: object) -> str:
    """Return a figure as people read it: three digits are more than these measurements are good for."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def medians(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each scenario, server and parameters, with the medians of the figures of all rounds.

    Losses, doubles and errors are added up, so that none hides behind a median.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["scenario"], row["server"], row["parameters"]]), []).append(row)
    return [
        {**group[0], "figures": _combined([row["figures"] for row in group]), "rounds": len(group)} for group in groups.values()
    ]


def _combined(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    missing = next((each["missing"] for each in figures if "missing" in each), None)
    if missing is not None and all("missing" in each for each in figures):
        return {"missing": missing}
    whole = [each for each in figures if "missing" not in each]
    combined: dict[str, Any] = {}
    for name in whole[0]:
        values = [each[name] for each in whole if isinstance(each.get(name), int | float)]
        if not values:
            combined[name] = whole[0][name]
        elif name in ("lost", "doubled", "errors"):
            combined[name] = sum(values)
        else:
            combined[name] = statistics.median(values)
    if missing is not None:
        combined["failed"] = missing
    return combined


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Return rows as a table: the server, the parameters, and these figures by their headings."""
    parameters = list(dict.fromkeys(name for row in rows for name in row["parameters"]))
    lines = [["server", *parameters, *columns.values()]]
    notes = []
    for row in rows:
        figures = row["figures"]
        head = [row["server"], *(shown(row["parameters"].get(name)) for name in parameters)]
        if "missing" in figures:
            lines.append([*head, "left out"])
            notes.append(f"{row['server']} is left out: {figures['missing']}")
        else:
            lines.append([*head, *(shown(figures.get(name)) for name in columns)])
        if "failed" in figures:
            notes.append(f"{row['server']}: not all rounds worked: {figures['failed']}")
    widths = [max(len(line[at]) for line in lines if at < len(line)) for at in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in lines
    ]
    return "\n".join([*text, *dict.fromkeys(notes)])
