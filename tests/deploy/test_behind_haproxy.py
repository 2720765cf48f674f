"""The deployment on one machine: HAProxy with deploy's configuration in front of two gateways with theirs, no sticky sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import aiohttp
import jwt
import pytest
from integration.ports import free_ports
from waiting import eventually

from gateway.devbroker.server import Broker

DEPLOY = Path(__file__).parents[2] / "deploy"
ANSWERS = r"gateway_answers_total\{[^}]*\}"
PARKED = r"gateway_parked_waiters\{[^}]*\}"
SECRET = "0123456789abcdef0123456789abcdef"


@dataclass
class Site:
    """HAProxy's URL, and the gateways with the URLs of their admin listeners."""

    url: str
    gateways: list[Popen[bytes]]
    admins: list[str]
    session: aiohttp.ClientSession

    async def get(self, cursor: str | None = None, wait: int = 0) -> tuple[int, str | None, list[int]]:
        """Poll once; return the status, the next cursor and the values."""
        query = {"channel": "orders", "wait": str(wait)} | ({"cursor": cursor} if cursor else {})
        async with self.session.get(f"{self.url}/v1/subscribe", params=query) as response:
            messages = (await response.json())["messages"] if response.status == 200 else []
            assert len({(m["partition"], m["offset"]) for m in messages}) == len(messages)
            values = [m["value"]["n"] for m in messages]
            return response.status, response.headers.get("Next-Cursor"), values

    async def publish(self, n: int) -> int:
        async with self.session.post(f"{self.url}/v1/publish", params={"channel": "orders"}, json={"n": n}) as response:
            return response.status

    async def metric(self, admin: str, pattern: str) -> float:
        async with self.session.get(f"{admin}/metrics") as response:
            return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", await response.text(), re.MULTILINE))

    async def up(self) -> bool:
        """Tell whether HAProxy has found every gateway ready: each has had a poll."""
        try:
            await asyncio.gather(*(self.get() for _ in range(4)))
            return all([await self.metric(admin, ANSWERS) > 0 for admin in self.admins])
        except aiohttp.ClientConnectionError:
            return False


@pytest.fixture
async def site(tmp_path: Path, tool: Callable[[str], str]) -> AsyncIterator[Site]:
    haproxy = tool("haproxy")
    front, *ports = free_ports(5)
    publics, admins = ports[:2], ports[2:]
    text = (DEPLOY / "gateway.yaml").read_text()
    # Both are on one machine, so they differ in their ports; and nobody waits for ten seconds here.
    text = text.replace("port: 8081", "port: ${ADMIN_PORT}").replace("delay: 5", "delay: 3").replace("window: 10", "window: 1")
    (tmp_path / "gateway.yaml").write_text(text)
    cfg = (DEPLOY / "haproxy" / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{front}")
    cfg = cfg.replace("maxconn 150000", "maxconn 500")  # what compose.yaml allows it, this machine may not
    for n, (public, admin) in enumerate(zip(publics, admins, strict=True), 1):
        cfg = cfg.replace(f"gateway-{n}:8080", f"127.0.0.1:{public} port {admin}")
    (tmp_path / "haproxy.cfg").write_text(cfg)
    claims = {"iss": "https://id.example.com/", "aud": "gateway", "sub": "alice", "exp": time.time() + 600}
    token = jwt.encode({**claims, "scope": "orders:read orders:write"}, SECRET)
    connector = aiohttp.TCPConnector(force_close=True)  # each request may come to another gateway
    headers = {"Authorization": f"Bearer {token}"}
    async with Broker() as broker, aiohttp.ClientSession(connector=connector, headers=headers) as session:
        broker.create_topic("orders", 2)
        env = os.environ | {
            "JWT_SECRET": SECRET,
            "KAFKA_BOOTSTRAP_SERVERS": broker.address,
            "GATEWAY_TRUSTED_PROXIES": "127.0.0.1",
        }
        with contextlib.ExitStack() as stack:
            gateways = [
                start(stack, [sys.executable, "-m", "gateway", "serve", "-c", str(tmp_path / "gateway.yaml")],
                      env | {"GATEWAY_PORT": str(public), "ADMIN_PORT": str(admin)})
                for public, admin in zip(publics, admins, strict=True)
            ]  # fmt: skip
            start(stack, [haproxy, "-db", "-q", "-f", str(tmp_path / "haproxy.cfg")], env)
            site = Site(f"http://127.0.0.1:{front}", gateways, [f"http://127.0.0.1:{port}" for port in admins], session)
            await eventually(site.up, timeout=30, interval=0.2)
            yield site


def start(stack: contextlib.ExitStack, command: list[str], env: dict[str, str]) -> Popen[bytes]:
    process = stack.enter_context(Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    stack.callback(process.kill)
    return process


async def test_cursors_go_on_at_either_gateway(site: Site):
    """Chains of polls, each poll on a connection of its own, see every message once, though both gateways serve them."""
    _, start, _ = await site.get()
    before = [await site.metric(admin, ANSWERS) for admin in site.admins]

    async def chain() -> list[int]:
        cursor, seen = start, list[int]()
        while len(seen) < 20:
            status, cursor, values = await site.get(cursor, wait=20)
            assert status == 200
            seen += values
        return seen

    async with asyncio.TaskGroup() as group:
        chains = [group.create_task(chain()) for _ in range(6)]
        for n in range(20):
            assert await site.publish(n) == 201
    assert [sorted(each.result()) for each in chains] == [list(range(20))] * 6
    for admin, answers in zip(site.admins, before, strict=True):
        assert await site.metric(admin, ANSWERS) > answers


async def test_the_client_behind_the_proxy_is_the_one_that_counts(site: Site):
    """X-Forwarded-For is read from the right: what the client wrote itself into it is of no effect."""
    async with site.session.get(
        f"{site.url}/v1/subscribe", headers={"Authorization": "x", "X-Forwarded-For": "192.0.2.1"}
    ) as response:
        assert response.status == 401


async def test_one_gateway_goes_and_no_client_notices(site: Site):
    """SIGTERM at one of them: new polls go to the other, parked ones end as an empty answer, nothing is refused."""
    _, cursor, _ = await site.get()
    parked = asyncio.gather(*(site.get(cursor, wait=30) for _ in range(10)))
    going = site.admins[0]
    await eventually(lambda: _all_parked(site))
    assert await site.metric(going, PARKED) > 0
    site.gateways[0].send_signal(signal.SIGTERM)
    statuses = set()
    while site.gateways[0].poll() is None:
        statuses.add((await site.get())[0])
        await asyncio.sleep(0.02)
    assert site.gateways[0].returncode == 0
    assert statuses == {204}
    assert await site.publish(1) == 201
    for status, next_cursor, values in await parked:
        if status == 204:
            assert (await site.get(next_cursor, wait=5))[2] == [1]
        else:
            assert values == [1]


async def _all_parked(site: Site) -> bool:
    return sum([await site.metric(admin, PARKED) for admin in site.admins]) == 10
