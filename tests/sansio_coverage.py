"""Fails when lines or branches are covered below 95 % in all, or below 100 % in a module that calls itself sans-I/O.

`coverage report --fail-under` knows only one number for both and for all modules. Run after `coverage combine`.
"""

# ruff: noqa: T201 - a command line tool

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LEAST = 95.0
MARK = "(sans-I/O)"


def is_sansio(source: str) -> bool:
    """Tell whether the first line of a module's docstring carries the mark."""
    return MARK in (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def shortcomings(report: dict[str, Any], sansio: set[str]) -> list[str]:
    """Say what in coverage's JSON report is below its threshold; `sansio` has the files that must be whole."""
    totals = report["totals"]
    found = []
    for kind, covered, count in (
        ("lines", "covered_lines", "num_statements"),
        ("branches", "covered_branches", "num_branches"),
    ):
        percent = 100.0 * totals[covered] / (totals[count] or 1) if totals[count] else 100.0
        if percent < LEAST:
            found.append(f"{kind} in all: {percent:.2f} % covered, at least {LEAST:.0f} % expected")
    for name in sorted(sansio):
        measured = report["files"].get(name)
        if measured is None:
            found.append(f"{name}: sans-I/O, but not measured")
        elif measured["missing_lines"] or measured["missing_branches"]:
            lines, branches = len(measured["missing_lines"]), len(measured["missing_branches"])
            found.append(f"{name}: sans-I/O, so 100 % expected; {lines} lines and {branches} branches are missing")
    return found


def main() -> int:
    """Judge what the last run measured."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "coverage", "json", "--quiet", "--fail-under=0", "-o", file.name]
        subprocess.run(command, check=True)
        report = json.loads(Path(file.name).read_text())
    sansio = {str(path) for path in Path("gateway").rglob("*.py") if is_sansio(path.read_text())}
    found = shortcomings(report, sansio)
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        totals = report["totals"]
        lines = 100.0 * totals["covered_lines"] / totals["num_statements"]
        branches = 100.0 * totals["covered_branches"] / (totals["num_branches"] or 1)
        print(f"coverage: {lines:.1f} % of lines, {branches:.1f} % of branches, {len(sansio)} sans-I/O modules whole")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
