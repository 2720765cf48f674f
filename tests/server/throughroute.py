"""A live gateway with one route to one backend, and what is said to it byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from livegateway import Live
from proxy.backend import Backend


def behind(here: Backend, /, upstream: Mapping[str, Any] | None = None, **route: Any) -> dict[str, Any]:
    """Return the sections for one route to one backend; by default it is public and takes everything."""
    return {
        "upstreams": {"shop": {"targets": [here.address], "retries": None} | dict(upstream or {})},
        "routes": {"shop": {"prefix": "/", "upstream": "shop", "public": True} | route},
    }


async def raw(gateway: Live, *parts: bytes, until: bytes = b"") -> bytes:
    """Send bytes and return what comes back, up to `until` or the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


async def held_at_shop(gateway: Live, count: int) -> bool:
    """Tell whether so many requests to the upstream `shop` are held."""
    return (await gateway.metrics())["gateway_upstream_outstanding{held,shop}"] == count
