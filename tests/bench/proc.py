"""What /proc tells about processes: their children, CPU time and memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
GONE = (FileNotFoundError, ProcessLookupError)


class Memory(NamedTuple):
    """Resident and proportional set size in KiB, and the highest resident size so far."""

    rss: int
    pss: int
    peak: int


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    found, open_ends = [], [root]
    while open_ends:
        pid = open_ends.pop()
        found.append(pid)
        for task in _tasks(pid):
            with contextlib.suppress(*GONE):
                open_ends += map(int, (task / "children").read_text().split())
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except GONE:
        return []


def cpu(pids: Iterable[int]) -> float:
    """Return the seconds of CPU, user and system, that these processes have used.

    They are what /proc/PID/stat shows in ticks of 10 ms, asked from the process's own clock, which counts nanoseconds.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(_cpu_clock(pid))
    return total


def _cpu_clock(pid: int) -> int:
    # As clock_getcpuclockid(3) makes it; 2 stands for the scheduler's exact time.
    return (~pid << 3) | 2


def core_busy(core: int) -> float:
    """Return the seconds that a core has not been idle, whoever used it."""
    for line in (PROC / "stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / TICKS
    return 0.0


def memory(pids: Iterable[int]) -> Memory:
    """Return the memory of these processes together."""
    rss = pss = peak = 0
    for pid in pids:
        with contextlib.suppress(*GONE):
            rollup = parse_sizes((PROC / str(pid) / "smaps_rollup").read_text())
            rss += rollup["Rss"]
            pss += rollup["Pss"]
            peak += parse_sizes((PROC / str(pid) / "status").read_text())["VmHWM"]
    return Memory(rss, pss, peak)


def forget_peak(pids: Iterable[int]) -> None:
    """Let the highest resident size of these processes begin anew."""
    for pid in pids:
        with contextlib.suppress(OSError):
            (PROC / str(pid) / "clear_refs").write_text("5")


def parse_sizes(text: str) -> dict[str, int]:
    """Return the sizes in KiB by name of a file with lines such as `Rss:   12 kB`."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = int(value.removesuffix(" kB"))
    return sizes
