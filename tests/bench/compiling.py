"""The programs in C: each is made from the sources in the directory of its name when they are newer than it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from bench.processes import Failed

SOURCES = Path(__file__).parent
BUILT = Path(__file__).parents[2] / ".bench"


@cache
def compiled(name: str) -> Path:
    """Return the program, `load` or `backend`; raises Failed where it does not compile."""
    program = BUILT / name
    sources = sorted((SOURCES / name).iterdir())
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Failed(f"bench/{name} needs a C compiler: there is no cc on the PATH (Debian: apt-get install gcc libc6-dev)")
    BUILT.mkdir(exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    files = [source for source in sources if source.suffix == ".c"]
    done = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *files, "-o", partial],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"bench/{name} does not compile:\n{done.stderr}")
    partial.rename(program)
    return program
