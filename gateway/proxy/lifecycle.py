"""The life of a route: deprecation, sunset and what comes after it, as header fields and as an end (sans-I/O)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final, final

from gateway.errors import Gone

_REFERENCE: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)  # RFC 3986, section 2

_RETIRED: Final = "This has been retired."


@final
@dataclass(frozen=True, slots=True)
class Lifecycle:
    """When a route is deprecated and when it ends (Unix seconds, None: never), and where to read on.

    `fields` announce it, also ahead of time, as RFC 9745 (section 2.1) and RFC 8594 (section 3) have it; they are made once.
    Raises ValueError for a sunset before the deprecation (RFC 9745, section 4) and for links that are no URI references.
    """

    version: str | None = None
    deprecated: float | None = None
    deprecation_info: str | None = None
    sunset: float | None = None
    successor: str | None = None
    fields: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.deprecated is not None and self.sunset is not None and self.sunset < self.deprecated:
            raise ValueError("expected a sunset that is not before the deprecation")
        for link in (self.deprecation_info, self.successor):
            if link is not None and not _REFERENCE.fullmatch(link):
                raise ValueError("expected a path or a URL, percent-encoded where needed")
        object.__setattr__(self, "fields", tuple(self._fields()))

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        if self.deprecated is not None:
            fields.append(("Deprecation", f"@{int(self.deprecated)}"))
        if self.sunset is not None:
            fields.append(("Sunset", formatdate(self.sunset, usegmt=True)))
        for link, relation in ((self.deprecation_info, "deprecation"), (self.successor, "successor-version")):
            if link is not None:
                fields.append(("Link", f'<{link}>; rel="{relation}"'))
        return fields

    def check(self, now: float) -> None:
        """Raise Gone from the sunset on, with the successor; `now` is Unix time."""
        if self.sunset is None or now < self.sunset:
            return
        if self.successor is None:
            raise Gone(_RETIRED)
        raise Gone(_RETIRED, successor=self.successor)
