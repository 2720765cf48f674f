"""Trace context that goes with a request: passed on, or begun here (W3C Trace Context, level 1; sans-I/O)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 1


def trace_fields(
    parents: Sequence[str],
    states: Sequence[str],
    *,
    random: Callable[[int], bytes],
    new_parent: bool = False,
    sampled: bool = True,
) -> list[tuple[str, str]]:
    """Return `traceparent`, and `tracestate` where there is one, for the request to the backend.

    `parents` and `states` are the values received. A valid parent is passed as it is, with `new_parent` under a new parent id.
    Without one a trace begins, with the flag `sampled`, and the state is dropped, for it belongs to no trace (section 4.3).
    `random` gives so many random bytes; it is asked only for ids that are made.
    """
    found = _valid(parents) if parents else None
    if found is None:
        ids = random(24).hex()
        return [("traceparent", f"00-{ids[:32]}-{ids[32:]}-{'01' if sampled else '00'}")]
    parent = parents[0]
    if new_parent:
        # Section 4.3: what is made anew is in the version that its maker knows, and so are its flags.
        parent = f"00-{found[2]}-{random(8).hex()}-{int(found[4], 16) & _SAMPLED:02x}"
    # Section 3.3: several tracestate fields are one list.
    state = ",".join(filter(None, states))
    return [("traceparent", parent), ("tracestate", state)] if state else [("traceparent", parent)]


def _valid(parents: Sequence[str]) -> re.Match[str] | None:
    """Return the parts of the one valid parent (section 3.2.2), None if there is none; of later versions, the known parts."""
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5] is not None):
        return None
    return found if found[2].strip("0") and found[3].strip("0") else None
