"""How old a stored answer is, and whether it may be used (sans-I/O).

hishel computes explicit lifetimes. Its age ignores the Age field and the time that an answer took, its heuristic and its age
read the system's clock, and its states know nothing of a request's max-age, max-stale and min-fresh or of RFC 5861: that is
here, by its parsed directives. All times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from hishel import Headers, Response
from hishel._core._headers import CacheControl
from hishel._core._spec import HEURISTICALLY_CACHEABLE_STATUS_CODES, get_freshness_lifetime
from multidict import CIMultiDict

from gateway.proxy.directives import FOREVER, directives, http_date, mended, wants_validation

# RFC 5861, section 4: what counts as an error there.
ERRORS: Final = frozenset({500, 502, 503, 504})
# Section 4.2.2 leaves the number to us; a day keeps a mistake short.
MAX_HEURISTIC: Final = 86_400


class Use(Enum):
    """What may be done with a stored answer for one request."""

    FRESH = "fresh"
    STALE = "stale"
    BEHIND = "stale, and validated behind the client's back"
    VALIDATE = "validate"


@dataclass(frozen=True, slots=True)
class Freshness:
    """Lifetime and age of one answer, and what it says of the time after.

    `validate`: never used without validation (no-cache). `strict`: never used stale (must-revalidate, proxy-revalidate).
    `shared`: the lifetime is s-maxage, which forbids stale use as well, unless the answer itself allows it by RFC 5861.
    """

    lifetime: int
    initial_age: float
    received: float
    validate: bool
    strict: bool
    shared: bool
    while_revalidate: int
    if_error: int

    def age(self, now: float) -> int:
        """Return current_age in whole seconds (section 4.2.3)."""
        return min(FOREVER, max(0, int(self.initial_age + now - self.received)))

    def left(self, now: float) -> int:
        """Return the seconds until it is stale; at most 0: it is."""
        return self.lifetime - self.age(now)

    def use(self, headers: CIMultiDict[str], now: float) -> Use:
        """Decide what may be done with the answer for a request with this head (sections 4.2.4 and 5.2.1; RFC 5861)."""
        wanted = directives(headers)
        if self.validate or wants_validation(headers) or not self._suits(wanted, now):
            return Use.VALIDATE
        left = self.left(now)
        if left > 0:
            return Use.FRESH
        if self.strict:
            return Use.VALIDATE
        if -left <= (wanted.max_stale or -1) and not self.shared:
            return Use.STALE
        return Use.BEHIND if -left < self.while_revalidate else Use.VALIDATE

    def on_error(self, headers: CIMultiDict[str], now: float) -> bool:
        """Tell whether the answer may be used because the backend failed (RFC 5861, section 4)."""
        if self.validate or self.strict or wants_validation(headers):
            return False
        asked = 0 if self.shared else directives(headers).stale_if_error or 0
        window = max(self.if_error, asked)
        return window > 0 and -self.left(now) < window

    def _suits(self, wanted: CacheControl, now: float) -> bool:
        if wanted.max_age is not None and self.age(now) > wanted.max_age + (wanted.max_stale or 0):
            return False
        return wanted.min_fresh is None or self.left(now) >= wanted.min_fresh


def freshness(status: int, headers: CIMultiDict[str], *, asked: float, received: float, held: bool) -> Freshness:
    """Measure an answer whose head has a valid Date.

    `asked`: when the request for it was sent. A held request waits on purpose, so the wait is not age; its Date tells.
    """
    said = directives(headers)
    date = http_date(headers.get("Date"))
    if date is None:
        raise AssertionError("Date is set where the answer is received")
    apparent = max(0.0, received - date)
    delay = 0.0 if held else max(0.0, received - asked)
    return Freshness(
        lifetime=_lifetime(status, headers, said, date),
        initial_age=max(apparent, _age_value(headers) + delay),
        received=received,
        validate=said.no_cache is True,
        strict=said.must_revalidate or said.proxy_revalidate,
        shared=said.s_maxage is not None,
        while_revalidate=said.stale_while_revalidate or 0,
        if_error=said.stale_if_error or 0,
    )


def _age_value(headers: CIMultiDict[str]) -> int:
    """Return the first member of Age, 0 if it is no number (section 5.1)."""
    first = headers.get("Age", "").partition(",")[0].strip()
    if not first.isascii() or not first.isdigit():
        return 0
    return FOREVER if len(first) > 10 else min(int(first), FOREVER)  # noqa: PLR2004


def _lifetime(status: int, headers: CIMultiDict[str], said: CacheControl, date: int) -> int:
    expires = headers.getall("Expires", ())
    if said.s_maxage is not None or said.max_age is not None or expires:
        valid = len(expires) == 1 and http_date(expires[0]) is not None
        fields = {
            "cache-control": mended(headers),
            # Section 5.3: a date that is none, or two of them, lies in the past. hishel takes any text with a date in it.
            **({"expires": expires[0] if valid else "0"} if expires else {}),
            "date": headers["Date"],
        }
        return max(0, get_freshness_lifetime(Response(status, Headers(fields)), is_cache_shared=True) or 0)
    if status not in HEURISTICALLY_CACHEABLE_STATUS_CODES and not said.public:
        return 0
    modified = http_date(headers.get("Last-Modified"))
    return 0 if modified is None else min(MAX_HEURISTIC, max(0, date - modified) // 10)
