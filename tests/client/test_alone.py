"""The client stands alone: it needs none of the server's packages, and its two shells stay one."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
blocked = {"aiohttp", "aiokafka", "pydantic", "jwt", "prometheus_client", "uvloop", "orjson", "msgspec", "yaml", "click", "hishel"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import gateway.client
own = {name for name in sys.modules if name.startswith("gateway.") and not name.startswith("gateway.client")}
print(sorted(own), all(hasattr(gateway.client, name) for name in gateway.client.__all__))
"""
MOST_LINES = 40
SAME = [
    (r"\bawait settled\((.*)\)$", r"\1"), (r"\bawait ", ""), (r"\basync ", ""), (r"\bAsync(?=[A-Z])", ""), (r"__a(enter|exit|iter|next)__", r"__\1__"),
    (r"StopAsyncIteration", "StopIteration"), (r"\baclose\b", "close"), (r"\baiter_", "iter_"), (r"`anext`", "`next`"),
]  # fmt: skip


def test_nothing_of_the_server_is_needed() -> None:
    """Neither its packages nor another module of the gateway."""
    told = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told == "[] True\n"


def shell(name: str) -> list[str]:
    """Return the code of a shell without docstrings, comments and the words that asyncio takes, in one line a statement."""
    text = (ROOT / "gateway" / "client" / f"{name}.py").read_text()
    text = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)
    lines = []
    for line in text.splitlines():
        plain = line
        for pattern, word in SAME:
            plain = re.sub(pattern, word, plain)
        if plain.strip():
            lines.append(plain.rstrip())
    return lines


def test_the_shells_are_the_same() -> None:
    """They differ in fewer than 40 lines each, but for the words of asyncio."""
    changes = list(difflib.unified_diff(shell("aio"), shell("sync"), n=0, lineterm=""))[2:]
    for sign in "+-":
        only = [line for line in changes if line.startswith(sign)]
        assert len(only) < MOST_LINES, "\n".join(only)
