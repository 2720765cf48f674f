"""What a subscription, or a client, has done (sans-I/O)."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Numbers since the beginning.

    `polls` sent, of which `empty` came back without a message; `messages` delivered; `duplicates` left out; `lost` offsets that
    retention took; `resets`; `failures` of requests and `retries` after them; `redirects`; `renewals` of the token; `received`
    bytes of bodies; `published` messages.
    """

    polls: int = 0
    empty: int = 0
    messages: int = 0
    duplicates: int = 0
    lost: int = 0
    resets: int = 0
    failures: int = 0
    retries: int = 0
    redirects: int = 0
    renewals: int = 0
    received: int = 0
    published: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))
