"""Answers that give their connection away: nothing of them goes through aiohttp."""

from __future__ import annotations

from typing import Any

from aiohttp import web


class Departure(web.StreamResponse):
    """What a handler returns to have the connection taken from aiohttp; nothing may be awaited before that happens."""

    def take(self, connection: Any) -> None:
        """Take the connection."""
        raise NotImplementedError
