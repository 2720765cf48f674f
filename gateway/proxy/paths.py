"""Paths of requests and the patterns they are held against, segment by segment (sans-I/O).

A path stays as it was sent: nothing is normalised (RFC 3986, section 6, leaves that to who owns the resource). Only to
compare it, each segment is percent-decoded once. What two readers could take for different resources is refused instead:
where the rules of `/public` let `/public/..%2Fadmin` pass and the backend takes that for `/admin`, there are no rules. So a
path opens nothing if it has a dot segment, also one that is encoded, stands behind an encoded slash or backslash, or carries
parameters (`..;x`); an empty segment that is not its last; a bare backslash; an encoding that is broken, not UTF-8, or of a
control character.

Encoded slashes and parameters (`;x`) are part of a segment, and many an API has them. But there are backends that decode a
path before they split it, or cut parameters off: to those `/admin%2Fkeys` and `/admin;/keys` are `/admin/keys`. How they read
a path is told by `otherwise`, so that nobody gets to a route's paths by another route.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.channels import PatternInvalid, Segment, parse_segments

MAX_SEGMENTS: Final = 32  # of a pattern

_EXPECTED: Final = "a path such as /orders/{id}, of segments as RFC 3986 has them or one {parameter} each"
_RAW: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", re.ASCII)
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENCODED: Final = re.compile(r"%(?:2f|5c)", re.ASCII | re.IGNORECASE)
_PARAMETERS: Final = re.compile(r";[^/]*")
_SLASHES: Final = re.compile(r"/{2,}")
_DOTS: Final = re.compile(r"(?:\A|[/\\])\.{1,2}(?:[;/\\]|\Z)")


def split(path: str) -> list[str] | None:
    """Return the decoded segments of a raw path, without its query; None where no route may take it.

    The segments of `/` are one that is empty, and so is the last one of `/orders/`.
    """
    if path[:1] != "/" or not path.isascii() or not path.isprintable():
        return None
    if "%" not in path and "/." not in path and "//" not in path and "\\" not in path:
        return path[1:].split("/")
    return None if "\\" in path or "//" in path else _decoded(path[1:].split("/"))


def _decoded(raw: list[str]) -> list[str] | None:
    segments = [segment for text in raw if (segment := decode(text)) is not None]
    return segments if len(segments) == len(raw) else None


def decode(text: str) -> str | None:
    """Percent-decode one segment once; None if it is broken or could be taken for more or less than one segment."""
    if "%" in text:
        if _BROKEN.search(text):
            return None
        try:
            text = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            return None
    return None if _CONTROL.search(text) or _DOTS.search(text) else text


def otherwise(path: str) -> str:
    """Return a raw path as those read it who decode it before they split it, and cut parameters off."""
    return _SLASHES.sub("/", _PARAMETERS.sub("", _ENCODED.sub("/", path)))


def rest(path: str, depth: int) -> str:
    """Return what follows the first segments of a raw path, byte for byte: empty, or from a slash on."""
    if not depth:
        return path
    pieces = path.split("/", depth + 1)
    return "/" + pieces[-1] if len(pieces) > depth + 1 else ""


def parse_path(text: str) -> tuple[Segment, ...]:
    """Read the pattern of a whole path, its literals decoded; a slash at its end counts. Raises PatternInvalid."""
    if text[:1] != "/":
        raise PatternInvalid(_EXPECTED)
    segments = parse_segments(text[1:].split("/"), _literal, most=MAX_SEGMENTS)
    if any(not segment.text for segment in segments[:-1]):
        raise PatternInvalid(_EXPECTED)
    return segments


def parse_prefix(text: str) -> tuple[Segment, ...]:
    """Read a prefix, `/` being the one without segments; no parameters, no slash at its end. Raises PatternInvalid."""
    segments = () if text == "/" else parse_path(text)
    if any(segment.parameter or not segment.text for segment in segments):
        raise PatternInvalid("a prefix such as /orders, without {parameter} and without a slash at its end")
    return segments


def is_raw(text: str) -> bool:
    """Tell whether a text may stand in a path as it is (RFC 3986, section 3.3)."""
    return _RAW.fullmatch(text) is not None


def _literal(text: str) -> str:
    if not is_raw(text) or (decoded := decode(text)) is None:
        raise PatternInvalid(_EXPECTED)
    return decoded
