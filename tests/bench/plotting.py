"""The plot of the newest results: small multiples, one for each thing that a reader wants to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from bench.processes import Failed
from bench.results import Row, medians
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Colours that people with colour-blindness tell apart (Okabe and Ito); the gateway stands out.
COLOURS = {"gateway": "#0072b2", "nchan": "#d55e00", "aiohttp": "#777777", "pushpin": "#009e73"}
TITLES = {"gateway": "this gateway", "nchan": "nginx + nchan", "aiohttp": "plain aiohttp", "pushpin": "pushpin"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "svg.hashsalt": "bench",
}
CLIENTS, SIZE, PARKED, STEADY = (1_000, 5_000, 15_000), 64, 15_000, 500


def draw(results: Path, output: Path) -> None:
    """Draw the newest results of each kind; raises Failed where there are none."""
    rows = newest(json.loads(line) for line in results.read_text().splitlines())
    if not rows:
        raise Failed(f"there are no results in {results}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        cpu, memory, latency, keyed = figure.subplots(2, 2).flat
        _lines(cpu, "CPU for each delivery, in µs", rows)
        _bars(
            memory,
            f"Memory for each parked client, in KB ({PARKED:,} clients)",
            _chosen(rows, "parked", clients=PARKED, workers=1),
            "rss_kb_late",
            "rss_kb_new",
        )
        title = f"p99 from sending to receipt, in ms\n({STEADY} clients on one channel, 100 messages a second)"
        _bars(latency, title, _chosen(rows, "steady", clients=STEADY, rate=100), "p99_ms")
        _bars(
            keyed,
            "p99 from sending to receipt, in ms\n(15,000 channels, 5,000 records a second)",
            _chosen(rows, "keyed", clients=15_000, rate=5_000),
            "p99_ms",
        )
        figure.text(0.0, -0.02, _provenance(rows[-1]), fontsize=8, color="#555555", va="top")
        figure.savefig(
            output, bbox_inches="tight", pad_inches=0.2, metadata={"Date": None} if output.suffix == ".svg" else None, dpi=130
        )


def newest(rows: Any) -> list[Row]:
    """Return the medians of the newest run of each measurement."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        same = runs.setdefault(json.dumps([row["scenario"], row["server"], row["parameters"]]), [])
        if same and same[-1]["run"] != row["run"]:
            same.clear()
        same.append(row)
    # The newest last: of runs of different lengths that one counts.
    ordered = sorted(runs.values(), key=lambda same: str(same[-1]["run"]))
    return medians(row for same in ordered for row in same)


def _chosen(rows: Sequence[Row], scenario: str, **parameters: Any) -> dict[str, Mapping[str, Any]]:
    """Return the figures by server, of the servers that have a colour, in their order."""
    found = {
        row["server"]: row["figures"]
        for row in rows
        if row["scenario"] == scenario and parameters.items() <= row["parameters"].items() and "missing" not in row["figures"]
    }
    return {name: found[name] for name in COLOURS if name in found}


def _lines(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    """Draw a line for each server over the numbers of clients, with its name at the end."""
    axes.set_title(title)
    ends: dict[str, tuple[int, float]] = {}
    for server, colour in COLOURS.items():
        points = [
            (clients, figures[server]["us_per_delivery"])
            for clients in CLIENTS
            if server in (figures := _chosen(rows, "broadcast", clients=clients, size=SIZE))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", linewidth=2 + (server == "gateway"), gid=server)
            ends[server] = points[-1]
    for server, end in ends.items():
        axes.annotate(
            f" {TITLES[server]}, {end[1]:,.0f}",
            end,
            color=COLOURS[server],
            va="center",
            textcoords="offset points",
            xytext=(6, _lift(end[1], [other[1] for name, other in ends.items() if name != server])),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xlim(CLIENTS[0] * 0.9, CLIENTS[-1] * 4)
    axes.set_xticks(CLIENTS, [f"{count:,}" for count in CLIENTS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_xlabel("clients on one channel")
    _tell_missing(axes, [line.get_gid() for line in axes.lines])


def _lift(value: float, others: Sequence[float]) -> float:
    """Return how far, in points, a label is moved out of the way of those beside it."""
    near = [other for other in others if max(value, other) < min(value, other) * 1.15]
    if not near:
        return 0
    return 7 if value >= max(near) else -7


def _bars(axes: Axes, title: str, figures: Mapping[str, Mapping[str, Any]], *names: str) -> None:
    """Draw a bar for each server, with its value beside it; of `names` the first that the server has."""
    axes.set_title(title)
    values = {server: next((own[name] for name in names if own.get(name) is not None), None) for server, own in figures.items()}
    shown = {server: value for server, value in values.items() if value is not None}
    bars = axes.barh(
        [TITLES[server] for server in shown], list(shown.values()), color=[COLOURS[server] for server in shown], height=0.6
    )
    axes.bar_label(bars, [f" {value:,.1f}" if value < 100 else f" {value:,.0f}" for value in shown.values()])
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.margins(x=0.15)
    _tell_missing(axes, list(shown))


def _tell_missing(axes: Axes, drawn: Sequence[Any]) -> None:
    """Name the servers that have no figures here; the table says why."""
    missing = [title for server, title in TITLES.items() if server not in drawn]
    if missing:
        axes.text(
            1, -0.1, f"no figures: {', '.join(missing)}", transform=axes.transAxes, ha="right", fontsize=8, color="#555555"
        )


def _provenance(row: Row) -> str:
    machine = row["machine"]
    return (
        "One core for the server, one for clients, broker and producer. nchan and pushpin get messages by POST, the others from Kafka.\n"
        f"{machine['cpu']}, Linux {machine['kernel']}; {row['date'][:10]}, "
        f"commit {machine['commit']}; nginx {machine['nginx']} with nchan {machine['nchan']}, aiohttp {machine['versions']['aiohttp']}, pushpin {machine['pushpin']}."
    )
