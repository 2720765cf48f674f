"""What operators and load balancers ask: /metrics, /readyz, /livez."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import hdrs, web

from gateway.metrics import Metrics


class Admin:
    """The handlers of the admin listener. `checks` returns what is wrong, by name; nothing wrong is an empty mapping.

    `facts` are shown by /readyz whatever the state.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        checks: Callable[[], Mapping[str, str]],
        facts: Callable[[], Mapping[str, object]],
    ) -> None:
        self._metrics = metrics
        self._checks = checks
        self._facts = facts

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/metrics", self.metrics), web.get("/readyz", self.readyz)]

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the exposition, in the format that is asked for."""
        return _exposed(*self._metrics.exposition(request.headers.get(hdrs.ACCEPT, "")))

    async def readyz(self, _: web.Request) -> web.Response:
        """Answer 200 while new clients should come here, else 503 with the reasons."""
        wrong = self._checks()
        return _readiness(wrong, self._facts())


class Overview:
    """The same for several processes together, which have to be asked first.

    `exposition` gets what Accept says and gives the body and Content-Type of /metrics; `readiness` gives what is wrong, by
    name, and the facts.
    """

    def __init__(
        self,
        *,
        exposition: Callable[[str], Awaitable[tuple[bytes, str]]],
        readiness: Callable[[], Awaitable[tuple[Mapping[str, str], Mapping[str, object]]]],
    ) -> None:
        self._exposition = exposition
        self._readiness = readiness

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/metrics", self.metrics), web.get("/readyz", self.readyz)]

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the exposition, in the format that is asked for."""
        return _exposed(*await self._exposition(request.headers.get(hdrs.ACCEPT, "")))

    async def readyz(self, _: web.Request) -> web.Response:
        """Answer 200 while all processes are ready, else 503 with the reasons."""
        return _readiness(*await self._readiness())


def _exposed(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _readiness(wrong: Mapping[str, str], facts: Mapping[str, object]) -> web.Response:
    return web.Response(
        status=503 if wrong else 200,
        body=msgspec.json.encode({"ready": not wrong, "failed": dict(wrong), **facts}),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )


async def livez(_: web.Request) -> web.Response:
    """Answer 200: the loop turns."""
    return web.Response(text="alive\n", headers={"Cache-Control": "no-store"})
