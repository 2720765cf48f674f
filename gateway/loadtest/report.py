"""What people see of a run: a line a step, and at the end a table, a plot and a sentence."""

from __future__ import annotations

from typing import Any

import plotext
from rich.console import Console
from rich.table import Table

from gateway.loadtest.ladder import Ladder, Step

_PLOT_SIZE = 72, 14


def line(step: Step) -> str:
    """Return a step in a line."""
    parts = [f"{step.clients:>8,} clients: {'held' if step.held else f'not held: {step.why}'}"]
    if step.settled_in is not None:
        parts.append(f"all parked after {step.settled_in:.2f} s")
    if step.p99 is not None and step.p50 is not None:
        parts.append(f"delivery p50 {step.p50 * 1e3:.0f} ms, p99 {step.p99 * 1e3:.0f} ms")
    parts.append(f"own CPU {step.own:.0%}")
    return "; ".join(parts)


def show(console: Console, ladder: Ladder) -> None:
    """Print table, plot and verdict."""
    steps = sorted(ladder.steps, key=lambda step: step.clients)
    with_probes = any(step.p99 is not None for step in steps)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("clients", "held", "parked after", "polls/s", "errors", "p50", "p99", "own CPU"):
        if with_probes or head not in ("p50", "p99"):
            table.add_column(head, justify="right")
    for step in steps:
        latencies = [_milliseconds(step.p50), _milliseconds(step.p99)] if with_probes else []
        table.add_row(
            f"{step.clients:,}",
            "yes" if step.held else "no",
            "-" if step.settled_in is None else f"{step.settled_in:.2f} s",
            f"{step.polls_per_second:,.0f}",
            f"{step.errors:,}",
            *latencies,
            f"{step.own:.0%}",
        )
    console.print(table, markup=False)
    if len(steps) > 1:
        console.print(_plot(steps, with_probes=with_probes), markup=False, highlight=False)
    console.print(ladder.verdict(), markup=False, soft_wrap=True)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.0f} ms"


def _plot(steps: list[Step], *, with_probes: bool) -> str:
    """Return a plot over the clients: of what deliveries took, or of what parking took."""
    shown = [(step, step.p99 if with_probes else step.settled_in) for step in steps]
    points = [(step.clients, value * 1e3, step.held) for step, value in shown if value is not None]
    figure: Any = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(*_PLOT_SIZE)
    figure.title("p99 of deliveries, ms (x: not held)" if with_probes else "until all are parked, ms (x: not held)")
    figure.label("clients")
    for chosen, marker in ((points, "braille"), ([p for p in points if p[2]], "o"), ([p for p in points if not p[2]], "x")):
        if chosen:
            signal = figure.signal([x for x, _, _ in chosen], [y for _, y, _ in chosen], marker=marker)
            figure.draw(signal.lines() if marker == "braille" else signal)
    plain: Any = plotext.uncolorize
    text: str = plain(str(figure.build()))
    return text
