"""The life of a channel or a route: deprecation, sunset and what comes after it, as fields and as an end (sans-I/O)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final, Literal, NamedTuple, final

from gateway.errors import Gone

State = Literal["active", "deprecated", "gone"]
Fields = tuple[tuple[str, str], ...]

_REFERENCE: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)  # RFC 3986, section 2

_RETIRED: Final = "This has been retired."


def _dates(deprecated: float | None, sunset: float | None) -> Fields:
    fields: Fields = () if deprecated is None else (("Deprecation", f"@{int(deprecated)}"),)
    return fields if sunset is None else (*fields, ("Sunset", formatdate(sunset, usegmt=True)))


def _shown(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


@final
@dataclass(frozen=True, slots=True)
class Lifecycle:
    """When something is deprecated and when it ends (Unix seconds, None: never), and where to read on.

    `fields` announce it, also ahead of time, as RFC 9745 (section 2.1) and RFC 8594 (section 3) have it; they are made once.
    Raises ValueError for a sunset before the deprecation (RFC 9745, section 4) and for links that are no URI references.
    """

    version: str | None = None
    deprecated: float | None = None
    deprecation_info: str | None = None
    sunset: float | None = None
    successor: str | None = None
    fields: Fields = field(init=False)

    def __post_init__(self) -> None:
        if self.deprecated is not None and self.sunset is not None and self.sunset < self.deprecated:
            raise ValueError("expected a sunset that is not before the deprecation")
        for link in (self.deprecation_info, self.successor):
            if link is not None and not _REFERENCE.fullmatch(link):
                raise ValueError("expected a path or a URL, percent-encoded where needed")
        links = ((self.deprecation_info, "deprecation"), (self.successor, "successor-version"))
        shown = tuple(("Link", f'<{link}>; rel="{relation}"') for link, relation in links if link is not None)
        object.__setattr__(self, "fields", (*_dates(self.deprecated, self.sunset), *shown))

    def state(self, now: float) -> State:
        """Tell where in its life it is; `now` is Unix time."""
        if self.sunset is not None and now >= self.sunset:
            return "gone"
        return "deprecated" if self.deprecated is not None and now >= self.deprecated else "active"

    def check(self, now: float, channel: str | None = None) -> None:
        """Raise Gone from the sunset on, with the successor and the channel's pattern; `now` is Unix time."""
        if self.state(now) == "gone":
            facts = {"channel": channel, "successor": self.successor}
            raise Gone(_RETIRED, retry_after=None, **{name: fact for name, fact in facts.items() if fact is not None})

    def listed(self, now: float) -> dict[str, str | None]:
        """Return all of it but the version, as lists show it; `now` is Unix time, times are as RFC 3339 has them."""
        return {
            "state": self.state(now),
            "deprecated": _shown(self.deprecated),
            "deprecation_info": self.deprecation_info,
            "sunset": _shown(self.sunset),
            "successor": self.successor,
        }


ENDLESS: Final = Lifecycle()
"""Of what has no end in sight."""


class Announcement(NamedTuple):
    """What one answer says about all that it is made of; `sunset`: the first one (Unix seconds), None: never."""

    fields: Fields = ()
    sunset: float | None = None


def announce(lifecycles: Iterable[Lifecycle]) -> Announcement:
    """Put several lives together: the first deprecation and the first sunset of all, and every link once.

    A deprecation after that sunset is left out: RFC 9745, section 4, has them in one answer only in their order.
    """
    given = [each for each in dict.fromkeys(lifecycles) if each.fields]
    if not given:
        return Announcement()
    deprecated = min((each.deprecated for each in given if each.deprecated is not None), default=None)
    sunset = min((each.sunset for each in given if each.sunset is not None), default=None)
    if deprecated is not None and sunset is not None and sunset < deprecated:
        deprecated = None
    links = dict.fromkeys(pair for each in given for pair in each.fields if pair[0] == "Link")
    return Announcement((*_dates(deprecated, sunset), *links), sunset)
