"""GET /v1/client.js: the JavaScript client, as a module that any page may import."""

from __future__ import annotations

import hashlib
from importlib import resources

from aiohttp import hdrs, web

from gateway.server.admission import Admission
from gateway.server.exchange import EXCHANGE

_FOLDER = "javascript"
_FILE = "longpoll.js"
MAX_AGE = 3600
"""Seconds for which it is not asked for again."""


class ClientModule:
    """Answers with the module that belongs to this gateway; public, and the same for everybody."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._body = (resources.files("gateway") / _FOLDER / _FILE).read_bytes()
        self._etag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._headers = {
            hdrs.CONTENT_TYPE: "text/javascript; charset=utf-8",
            hdrs.CACHE_CONTROL: f"public, max-age={MAX_AGE}",
            hdrs.ETAG: self._etag,
            # A module is always asked for by CORS, and there is nothing secret in this one.
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer, or say that the caller has it already (RFC 9110 §13.1.2)."""
        self._admission.charge_address(request[EXCHANGE].address)
        known = request.if_none_match or ()
        if any(each.value in (self._etag.strip('"'), "*") for each in known):
            return web.Response(status=304, headers=self._headers)
        return web.Response(body=self._body, headers=self._headers)
