"""What was measured on, and with which versions: without it no figure means anything."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


@functools.cache
def facts() -> dict[str, Any]:
    """Return the facts that go with every result."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "kernel": platform.release(),
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("aiohttp", "aiokafka", "uvloop", "longpoll-gateway")},
        "nginx": _said(["nginx", "-v"], r"nginx/(\S+)"),
        "nchan": _said(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"], r"(?:\d+:)?([^-+]+)"),
        "pushpin": _said(["pushpin", "--version"], r"pushpin (\S+)"),
        "haproxy": _said(["haproxy", "-v"], r"version (\S+)"),
        "commit": _said(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], r"(\S+)"),
    }


def date() -> str:
    """Return the time now, as results have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _said(command: list[str], pattern: str) -> str | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else None
