"""What operators and load balancers ask: /metrics, /readyz, /livez."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        body, content_type = self._metrics.exposition(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Answer 200 while new clients should come here, else 503 with the reasons."""
        wrong = self._checks()
        document = {"ready": not wrong, "failed": dict(wrong), **self._facts()}
        return web.Response(
            status=503 if wrong else 200,
            body=msgspec.json.encode(document),
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )


async def livez(_: web.Request) -> web.Response:
    """Answer 200: the loop turns."""
    return web.Response(text="alive\n", headers={"Cache-Control": "no-store"})
