"""The client library: subscriptions to a gateway's channels, and publishing; `Client` for threads, `AsyncClient` for asyncio.

One session, without sockets, decides everything: `session`, on `asking` (one request until it has an outcome), `policy` (what
answers lead to), `positions` (what was processed), `backoff`, `breaker`, `tokens`. It yields `effects`, which the shells `aio`
and `sync` carry out over httpx. Nothing else of the gateway is imported here, and none of its dependencies.
"""

from gateway.client.aio import AsyncClient, AsyncSubscription
from gateway.client.backoff import Retry
from gateway.client.breaker import BreakerSettings
from gateway.client.counters import Counters
from gateway.client.errors import (
    CircuitOpen,
    ClientError,
    CursorExpired,
    CursorReset,
    Forbidden,
    GaveUp,
    Gone,
    Problem,
    RedirectRefused,
    Refused,
    StoreInvalid,
    Unauthorized,
)
from gateway.client.messages import Lost, Message, Reset
from gateway.client.positions import Position
from gateway.client.publishing import BatchResult, Published, RefusedLine
from gateway.client.stores import AsyncCursorStore, CursorStore, FileStore, MemoryStore
from gateway.client.sync import Client, Subscription
from gateway.client.tokens import Token

__all__ = [
    "AsyncClient",
    "AsyncCursorStore",
    "AsyncSubscription",
    "BatchResult",
    "BreakerSettings",
    "CircuitOpen",
    "Client",
    "ClientError",
    "Counters",
    "CursorExpired",
    "CursorReset",
    "CursorStore",
    "FileStore",
    "Forbidden",
    "GaveUp",
    "Gone",
    "Lost",
    "MemoryStore",
    "Message",
    "Position",
    "Problem",
    "Published",
    "RedirectRefused",
    "Refused",
    "RefusedLine",
    "Reset",
    "Retry",
    "StoreInvalid",
    "Subscription",
    "Token",
    "Unauthorized",
]
