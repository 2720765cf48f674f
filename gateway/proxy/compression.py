"""Compressing answers on their way to the client, where it pays and nobody forbids it (sans-I/O).

Only what the client takes (RFC 9110 §12.5.3), what is text, of some length, not coded already, and not marked `no-transform`
(RFC 9111 §5.2.2.6). A coded answer is another representation: its strong validator becomes a weak one, its ranges are not
those of the backend's, and `Vary` tells caches (RFC 9110 §8.8.1, §12.5.5).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final, Literal, final

from multidict import CIMultiDict

Coding = Literal["gzip", "deflate"]

LEAST_BYTES: Final = 1024
_LEVEL: Final = 5
_CODINGS: Final[tuple[Coding, ...]] = ("gzip", "deflate")
_TEXTS: Final = frozenset((
    "application/javascript", "application/json", "application/wasm", "application/x-ndjson", "application/xml",
))  # fmt: skip
_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def coding_for(accepted: str | None) -> Coding | None:
    """Return the coding that Accept-Encoding prefers of those that we have; None for none, or where the field is absent."""
    if not accepted:
        return None
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameters = part.partition(";")
        weights[name.strip()] = _weight(parameters)
    others = weights.get("*", 0.0)
    found = max(_CODINGS, key=lambda coding: weights.get(coding, others))  # of equals the first
    weight = weights.get(found, others)
    return found if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if not name:
        return 1.0
    try:
        weight = float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def pays(status: int, headers: Mapping[str, str], size: int | None) -> bool:
    """Tell whether an answer may be compressed and is worth it. `size` of its body in bytes, None: not known."""
    if status in (204, 206, 304) or status < 200 or (size is not None and size < LEAST_BYTES):  # noqa: PLR2004  # informational
        return False
    if "Content-Encoding" in headers or "Content-Range" in headers:
        return False
    if "no-transform" in headers.get("Cache-Control", "").lower():
        return False
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return (kind.startswith("text/") and kind != "text/event-stream") or kind in _TEXTS or kind.endswith(("+json", "+xml"))


def mark(headers: CIMultiDict[str], coding: Coding | None) -> None:
    """Change the head of an answer that could be compressed, and is with `coding`."""
    if not any("accept-encoding" in value.lower() or value.strip() == "*" for value in headers.getall("Vary", [])):
        headers.add("Vary", "Accept-Encoding")
    if coding is None:
        return
    headers["Content-Encoding"] = coding
    for name in ("Content-Length", "Accept-Ranges", "Content-MD5", "Content-Digest"):
        headers.popall(name, None)
    tag = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        headers["ETag"] = f"W/{tag}"


@final
class Compressor:
    """Compresses one body as it comes."""

    def __init__(self, coding: Coding) -> None:
        self._stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])

    def feed(self, data: bytes) -> bytes:
        """Return what the client can unpack all of `data` from: nothing is kept back, for more may be long in coming."""
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self, data: bytes = b"") -> bytes:
        """Return the last of it."""
        return self._stream.compress(data) + self._stream.flush()
