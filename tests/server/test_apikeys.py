"""API keys against a whole gateway: every path takes them, and a revocation reaches polls that are parked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from livegateway import live, token
from waiting import eventually

from gateway.auth.apikeys import hashed, make
from gateway.auth.keyfile import write_entries

KEY, OTHER = make("ci", b"1" * 32), make("cd", b"2" * 32)
ENTRIES = {
    "ci": {"hash": hashed(KEY), "subject": "ci", "scopes": ["news:read", "news:write"], "claims": {"rooms": ["1"]}},
    "cd": {"hash": hashed(OTHER), "subject": "cd"},
}
WAYS = [{"X-API-Key": KEY}, {"x-api-key": KEY}, {"Authorization": f"Bearer {KEY}"}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_bytes(write_entries(ENTRIES))
    return path


@pytest.mark.parametrize("headers", WAYS)
async def test_a_key_reads_publishes_and_lists(file: Path, headers: dict[str, str]):
    """With the rules of channels: its scopes open what they open, and it is of no issuer that a rule names."""
    async with live(api_keys={"file": str(file)}) as gateway:
        assert (await gateway.ask("POST", "/v1/publish?channel=scoped", headers=headers, data=b"1")).status == 201
        reply = await gateway.ask("GET", "/v1/subscribe?channel=scoped&from=earliest", headers=headers)
        assert reply.values == [1]
        assert (await gateway.ask("GET", "/v1/channels", headers=headers)).status == 200
        schemes = (await gateway.ask("GET", "/openapi.json", headers=headers)).json["components"]["securitySchemes"]
        assert schemes["api_key"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        refused = await gateway.ask("GET", "/v1/subscribe?channel=inbox", headers=headers)
        assert (refused.status, refused.code) == (403, "forbidden")
        both = await gateway.ask("GET", "/v1/subscribe?channel=news", headers={"X-API-Key": KEY, **gateway.bearer()})
        assert (both.status, both.code) == (401, "token_invalid")


@pytest.mark.parametrize("laned", [False, True])
@pytest.mark.parametrize("headers", WAYS)
async def test_a_revoked_key_ends_its_polls(monkeypatch: pytest.MonkeyPatch, file: Path, headers: dict[str, str], laned: bool):
    """204 at once for what is parked, on a lane or not, 401 from then on; other keys and tokens stay."""
    monkeypatch.setattr("livegateway.FORCE_CLOSE", False)  # a lane is for connections that stay
    async with live(api_keys={"file": str(file)}, lane={"enabled": laned}) as gateway:
        first = await gateway.ask("GET", "/v1/subscribe?channel=news&wait=0", headers=headers)
        target = f"/v1/subscribe?channel=news&wait=20&cursor={first.cursor}"
        loop = asyncio.get_running_loop()
        held = loop.create_task(gateway.ask("GET", target, headers=headers))
        others = [
            loop.create_task(gateway.ask("GET", target, headers={"X-API-Key": OTHER})),
            gateway.parking("news", token=token()),
        ]
        await gateway.parked(3)
        assert len(gateway.gateway.lanes) == (2 if laned else 0)
        file.write_bytes(write_entries({**ENTRIES, "ci": ENTRIES["ci"] | {"revoked": "2026-01-01"}}))
        await gateway.gateway._authenticator.load_files()
        assert ((await held).status, (await held).headers["Connection"]) == (204, "close")
        assert (await gateway.ask("GET", target, headers=headers)).code == "token_revoked"
        assert not any(other.done() for other in others)
        gateway.broker.append("news", 0, [b"1"])
        assert [(await other).values for other in others] == [[1], [1]]
        assert (await gateway.metrics())["gateway_answers_total{revoked,poll}"] == 1


async def test_the_file_is_read_again_by_itself(file: Path):
    """A new key works at once: who brings it makes the gateway look, though not more often than once a second."""
    file.write_bytes(b"")
    async with live(api_keys={"file": str(file)}) as gateway:
        file.write_bytes(write_entries(ENTRIES))

        async def reads() -> bool:
            return (await gateway.ask("GET", "/v1/subscribe?channel=news&wait=0", headers=WAYS[0])).status == 204

        began = time.monotonic()
        await eventually(reads)
        assert time.monotonic() - began < 4.9
        keys = (await gateway.ready()).json["keys"]
        assert {"issuer": "apikeys", "source": str(file), "keys": 2, "error": None} in keys


async def test_keys_of_the_configuration_expire():
    """As tokens do: refused, and a poll that is held ends as an empty answer."""
    entry = {"hash": hashed(KEY), "subject": "ci", "expires": "2020-01-01"}
    async with live(api_keys={"keys": {"ci": entry}}) as gateway:
        reply = await gateway.ask("GET", "/v1/subscribe?channel=news", headers=WAYS[0])
        assert (reply.status, reply.code) == (401, "token_expired")
