"""What backends hold for a client ends with the client's token: long polls, streams of events, tunnels."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from livegateway import Live, live, token
from proxy.backend import Visit, backend, ok
from waiting import eventually

from gateway.auth.apikeys import hashed, make
from gateway.auth.keyfile import write_entries

KEY, OTHER = make("ci", b"1" * 32), make("cd", b"2" * 32)
ENTRIES = {"ci": {"hash": hashed(KEY), "subject": "ci"}, "cd": {"hash": hashed(OTHER), "subject": "cd"}}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
KINDS = {"poll": b"", "stream": STREAM, "stored": STREAM, "tunnel": SWITCHED}


def sections(address: str, kind: str, **more: Any) -> dict[str, Any]:
    """Return the sections for one kind."""
    route = {"prefix": "/", "upstream": "shop", "allow": {"issuers": ["apikeys" if "api_keys" in more else "test"]}}
    route |= {"poll": {"hold": {}}, "stored": {"cache": {}}}.get(kind, {})
    return {"upstreams": {"shop": {"targets": [address], "retries": None}}, "routes": {"shop": route}} | more


async def holding(visit: Visit) -> None:
    """Hold every request, after what the kind in its head has to begin with."""
    head = await visit.head()
    await visit.say(next(wire for kind, wire in KINDS.items() if f"GET /{kind} ".encode() in head))
    await visit.reader.read()


async def held(gateway: Live, kind: str, credential: str) -> bytes:
    """Send a request and return all that comes back until the connection ends, or the problem."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if kind == "tunnel" else b""
    writer.write(b"GET /%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n%b\r\n" % (
        kind.encode(), credential.encode(), upgrade
    ))  # fmt: skip
    try:
        return await (reader.readuntil(b"}") if kind == "poll" else reader.read())
    except (ConnectionError, asyncio.IncompleteReadError):
        return b"cut"
    finally:
        writer.close()


async def outstanding(gateway: Live, count: int) -> bool:
    """Tell whether so many are held."""
    return (await gateway.metrics())["gateway_upstream_outstanding{held,shop}"] == count


@pytest.mark.parametrize("kind", KINDS)
async def test_expiry_ends_what_is_held(kind: str) -> None:
    """401 where nothing of an answer has begun, else the end of the connection; the backend's ends too."""
    async with backend(holding) as here, live(**sections(here.address, kind)) as gateway:
        other = asyncio.ensure_future(held(gateway, kind, token()))
        await eventually(lambda: here.heads)
        async with asyncio.timeout(8):
            answer = await held(gateway, kind, token(lifetime=0.5))
        assert (b'"code":"token_expired"' in answer) == (kind == "poll")
        assert answer.endswith(b"\r\n0\r\n\r\n") == (kind in {"stream", "stored"})
        await eventually(lambda: outstanding(gateway, 1))
        outcome = "ok" if kind == "tunnel" else "client"
        assert (await gateway.metrics())[f"gateway_upstream_attempts_total{{{outcome},shop}}"] == 1
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        await eventually(lambda: outstanding(gateway, 0))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_revocation_ends_what_is_held(kind: str, tmp_path: Path) -> None:
    """At once, and nothing of others."""
    file = tmp_path / "keys.yaml"
    file.write_bytes(write_entries(ENTRIES))
    async with backend(holding) as here, live(**sections(here.address, kind, api_keys={"file": str(file)})) as gateway:
        mine, other = (asyncio.ensure_future(held(gateway, kind, key)) for key in (KEY, OTHER))
        await eventually(lambda: outstanding(gateway, 2))
        file.write_bytes(write_entries({"cd": ENTRIES["cd"]}))
        await gateway.gateway._authenticator.load_files()
        async with asyncio.timeout(8):
            answer = await mine
        assert (b'"code":"token_revoked"' in answer) == (kind == "poll")
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        await eventually(lambda: outstanding(gateway, 0))


@pytest.mark.parametrize("kind", ["stream", "stored", "tunnel"])
async def test_a_process_that_goes_ends_what_would_not_end(kind: str) -> None:
    """Streams in order and tunnels at once, before it stops; else all of them would come back elsewhere in one moment."""
    async with backend(holding) as here, live(**sections(here.address, kind)) as gateway:
        mine = asyncio.ensure_future(held(gateway, kind, token()))
        await eventually(lambda: outstanding(gateway, 1))
        await gateway.gateway.drain()
        async with asyncio.timeout(8):
            answer = await mine
        assert answer.endswith(b"\r\n0\r\n\r\n") == (kind != "tunnel")
        await eventually(lambda: outstanding(gateway, 0))


async def test_a_key_that_has_come_back_is_good(tmp_path: Path) -> None:
    """What was withdrawn before a request says nothing of it, with a task from the beginning or not."""

    async def script(visit: Visit) -> None:
        while head := await visit.head():
            if b"GET /stream " in head:
                await visit.say(STREAM)
                await visit.reader.read()
                return
            await visit.say(ok(b"warm"))

    file = tmp_path / "keys.yaml"
    async with backend(script) as here:
        file.write_bytes(write_entries(ENTRIES))
        async with live(**sections(here.address, "stream", api_keys={"file": str(file)})) as gateway:
            for entries in ({}, ENTRIES):
                file.write_bytes(write_entries(entries))
                await gateway.gateway._authenticator.load_files()
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
            head = b"GET /%b HTTP/1.1\r\nHost: a\r\nX-API-Key: " + KEY.encode() + b"\r\n\r\n"
            for _ in range(2):
                writer.write(head.replace(b"%b", b"warm"))
                assert (await reader.readuntil(b"warm")).startswith(b"HTTP/1.1 200")
            writer.write(head.replace(b"%b", b"stream"))
            assert (await reader.readuntil(b"data: 1\n\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            await eventually(lambda: outstanding(gateway, 0))
