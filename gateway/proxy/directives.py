"""Cache-Control and HTTP dates, read as strictly as RFC 9111 wants them (sans-I/O).

hishel parses Cache-Control. `_mend` comes before it, because hishel lets the last of two equal directives win, takes what has
no number for absent (section 4.2.1 wants such an answer to be stale), overlooks `no-store=x` and `private=""`, loses
`private` at a quote that is never closed, and reads an unquoted list of fields up to the next space. What is doubtful becomes
the stricter reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from hishel._core._headers import CacheControl, parse_cache_control
from hishel._utils import parse_date
from multidict import CIMultiDict

# Section 1.2.2: an overflowing number is this one.
FOREVER: Final = 2_147_483_647

_PIECE = re.compile(r'(?:[^,"]|"[^"]*"|")+')
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FLAGS = frozenset({"no-store", "must-revalidate", "proxy-revalidate", "must-understand", "only-if-cached"})
_LISTS = frozenset({"no-cache", "private"})
_LIFETIMES = frozenset({"max-age", "s-maxage"})
_SECONDS = _LIFETIMES | {"max-stale", "min-fresh", "stale-while-revalidate", "stale-if-error"}
_DATE = re.compile(
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]+day, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    re.ASCII,
)


def directives(headers: CIMultiDict[str]) -> CacheControl:
    """Return the Cache-Control of a head, read as strictly as can be; nobody may change what is returned."""
    return _parse(mended(headers))


def mended(headers: CIMultiDict[str]) -> str:
    """Return the Cache-Control of a head as a value in which nothing is doubtful, "" if there is none."""
    return _mend(",".join(headers.getall("Cache-Control", ())))


def wants_validation(headers: CIMultiDict[str]) -> bool:
    """Tell whether a request refuses what is stored: no-cache, or Pragma as clients of HTTP/1.0 send it (section 5.4)."""
    if "Cache-Control" in headers:
        return directives(headers).no_cache is not False
    return "no-cache" in headers.get("Pragma", "").lower()


def http_date(value: str | None) -> int | None:
    """Return Unix seconds of an HTTP-date in one of its three formats (RFC 9110, section 5.6.7), else None."""
    if value is None or not _DATE.fullmatch(value):
        return None
    return parse_date(value)


@lru_cache(maxsize=512)
def _parse(value: str) -> CacheControl:
    return parse_cache_control(value)


@lru_cache(maxsize=512)
def _mend(value: str) -> str:
    kept: dict[str, str] = {}
    for name, argument in _pieces(value):
        if name in _LISTS:
            kept[name] = _both(kept.get(name), _fields(name, argument))
        elif name in _FLAGS or (name == "public" and argument is None):
            kept[name] = name
        elif name in _SECONDS:
            kept.setdefault(name, _seconds(name, argument))
    return ", ".join(filter(None, kept.values()))


def _pieces(value: str) -> Iterable[tuple[str, str | None]]:
    for piece in _PIECE.findall(value):
        name, equals, argument = piece.partition("=")
        name = name.strip().lower()
        if _TOKEN.fullmatch(name):
            yield name, argument.strip() if equals else None


def _seconds(name: str, argument: str | None) -> str:
    """Return the directive with a number, `max-age=0` for one that has none, "" where it then means nothing."""
    if argument is None and name == "max-stale":
        return name
    digits = (argument or "").strip('"')
    if digits.isascii() and digits.isdigit():
        # No more digits than a number needs: int() refuses thousands of them.
        return f"{name}={FOREVER if len(digits.lstrip('0')) > 10 else min(int(digits), FOREVER)}"  # noqa: PLR2004
    return f"{name}=0" if name in _LIFETIMES else ""


def _fields(name: str, argument: str | None) -> str:
    """Return the directive with its fields, or bare if it names none or cannot be understood."""
    names = [field.strip() for field in (argument or "").strip('"').split(",")]
    fields = [field for field in names if field]
    if not fields or not all(_TOKEN.fullmatch(field) for field in fields):
        return name
    if argument is not None and argument.count('"') not in {0, 2}:
        return name
    return f'{name}="{", ".join(fields)}"'


def _both(one: str | None, other: str) -> str:
    """Return a directive that forbids what each of two forbids."""
    if one is None or "=" not in other:
        return other
    return one if "=" not in one else one[:-1] + ", " + other.partition('"')[2]
