"""One request and what becomes of it: the facts that handlers leave for the middleware, the log and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from gateway.auth.principal import Principal
from gateway.lifecycle import Fields


@dataclass(slots=True)
class Exchange:
    """Facts about one request. `began` is monotonic; `outcome` is a bounded label, empty: the answer's own code decides.

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
