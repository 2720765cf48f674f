"""One request and what becomes of it: the facts that handlers leave for the middleware, the log and the metrics."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from gateway.auth.principal import Principal
from gateway.lifecycle import Fields
from gateway.server.accesslog import REQUEST_ID
from gateway.server.address import TrustedProxies, client_address, peer_address

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Exchange:
    """Facts about one request. `began` is monotonic; `outcome` is a bounded label, empty: the answer's own code decides.

    `peer` is the socket's other end, `address` the client's (behind trusted proxies).
    `announced` are fields about the life of what was asked for, once it is known that the caller may use it.
    """

    request_id: str
    address: str
    began: float
    peer: str = ""
    principal: Principal | None = None
    outcome: str = ""
    code: str | None = None
    transport: str = "http"
    headers: dict[str, str] = field(default_factory=dict)
    announced: Fields = ()


EXCHANGE = web.RequestKey("exchange", Exchange)


def begin(request: web.BaseRequest, trusted: TrustedProxies, now: float, transport: str = "http") -> Exchange:
    """Note whose request it is, for the handlers and for all lines that are logged on its way.

    Its id is the one that it came with, if that is a good one, or a new one.
    """
    request_id = given_request_id(request.headers) or secrets.token_hex(8)
    peer = peer_address(request.transport.get_extra_info("peername") if request.transport else None)
    address = client_address(peer, request.headers.getall(hdrs.X_FORWARDED_FOR, []), trusted)
    exchange = Exchange(request_id, address, now, peer, transport=transport)
    attach(request, exchange)
    return exchange


def attach(request: web.BaseRequest, exchange: Exchange) -> None:
    """Let all handlers of a request, and the log, know its facts."""
    request[EXCHANGE] = exchange
    REQUEST_ID.set(exchange.request_id)


def given_request_id(headers: Mapping[str, str]) -> str:
    """Return the id that a request came with, if it is a good one; empty without one."""
    given = headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else ""
