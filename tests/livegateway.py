"""A gateway under test with a Kafka broker of its own, started by the function that starts it in production."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import uvloop
from multidict import CIMultiDictProxy
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually
from yarl import URL

from gateway.app import Gateway, serving
from gateway.auth.mint import mint
from gateway.config.loading import read
from gateway.config.sections import Config
from gateway.devbroker.server import Broker

T = TypeVar("T")

ISSUER, OTHER_ISSUER = "https://id.test/", "https://other.test/"
SECRET, OTHER_SECRET = "the secret of the tests, which is long enough", "another secret, and that is long enough as well"

FORCE_CLOSE = True

TOPICS = {"news": 2, "notes": 1, "blobs": 1, "chat": 3, "inbox": 2}

CONFIG = """
server: {host: 127.0.0.1, port: 0, admin: {port: 0}, head_timeout: 1}
kafka: {bootstrap_servers: "${KAFKA}", metadata_max_age: 1, request_timeout: 2}
auth:
  leeway: 0
  issuers:
    test: {issuer: "${ISSUER}", audience: gateway, keys: [{algorithm: HS256, secret: "${SECRET}"}]}
    other: {issuer: "${OTHER_ISSUER}", audience: gateway, keys: [{algorithm: HS256, secret: "${OTHER_SECRET}"}]}
channels:
  news: {topic: news, publish: {authenticated: true}, headers: [trace]}
  notes: {topic: notes, format: text, publish: {authenticated: true}}
  blobs: {topic: blobs, format: binary, publish: {authenticated: true}}
  alerts: {topic: notes, format: text, priority: 1, key: alert}
  scoped: {topic: news, allow: {scope: "news:read"}, publish: {scope: "news:write"}}
  chat/{room}:
    topic: chat
    key: "{room}"
    allow: {claim: rooms, contains: "{room}", issuers: [test]}
    publish: {claim: rooms, contains: "{room}", issuers: [test]}
  inbox: {topic: inbox, key: "{claims.sub}", partitioner: murmur2, allow: {issuers: [test]}, publish: {issuers: [test]}}
  aging:
    topic: blobs
    format: text
    publish: {authenticated: true}
    version: v1
    deprecated: "2025-01-01"
    deprecation_info: https://docs.test/aging
    sunset: "2099-01-01"
    successor: /v1/subscribe?channel=notes
  going: {topic: news, sunset: "2098-01-01", successor: /v2/going}
  retired:
    topic: blobs
    format: text
    publish: {authenticated: true}
    deprecated: "2020-01-01"
    sunset: "2021-01-01"
    successor: /v1/subscribe?channel=notes
  retired/{room}: {topic: chat, key: "{room}", sunset: "2021-01-01", allow: {claim: rooms, contains: "{room}", issuers: [test]}}
log: {level: warning, access: false}
drain: {delay: 0, window: 0}
"""


def token(subject: str = "ann", *, lifetime: float = 3600.0, other: bool = False, **claims: Any) -> str:
    """Return a token that the gateways of these tests accept; `other`: of the second issuer."""
    own = {"iss": OTHER_ISSUER if other else ISSUER, "aud": "gateway", "sub": subject, "exp": time.time() + lifetime}
    return mint(OTHER_SECRET if other else SECRET, "HS256", own | claims)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid over it, mapping by mapping."""
    both = dict(base)
    for name, value in over.items():
        mine = both.get(name)
        both[name] = merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return both


def configuration(address: str, /, **sections: Any) -> Config:
    """Read the configuration of the tests with `sections` laid over it."""
    import yaml  # noqa: PLC0415

    env = {"KAFKA": address, "ISSUER": ISSUER, "SECRET": SECRET, "OTHER_ISSUER": OTHER_ISSUER, "OTHER_SECRET": OTHER_SECRET}
    return read(json.dumps(merged(yaml.safe_load(CONFIG), sections)), env)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        return str(self.json["code"])

    @property
    def cursor(self) -> str:
        """Where to read on."""
        return self.headers["Next-Cursor"]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages, none in an empty answer."""
        return self.json["messages"] if self.body else []

    @property
    def values(self) -> list[Any]:
        """The messages' values."""
        return [message["value"] for message in self.messages]


class Live:
    """A broker, a gateway in front of it, and a client of the gateway."""

    def __init__(self, broker: Broker, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.broker = broker
        self.gateway = gateway
        self.session = session

    async def ask(self, method: str, target: str, *, headers: Any = (), data: bytes | None = None, port: int = 0) -> Reply:
        """Send a request with the target as it stands."""
        url = URL(f"http://127.0.0.1:{port or self.gateway.port}{target}", encoded=True)
        async with self.session.request(method, url, headers=headers, data=data, skip_auto_headers=("Content-Type",)) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    def bearer(self, given: str | None = None, headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return header fields with a token."""
        return {"Authorization": f"Bearer {given or token()}", **(headers or {})}

    async def poll(
        self,
        *channels: str,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        wait: float | None = 0,
        **query: Any,
    ) -> Reply:
        """Poll."""
        pairs = [("channel", name) for name in channels] + [(name.rstrip("_"), str(value)) for name, value in query.items()]
        if wait is not None:
            pairs.append(("wait", f"{wait:g}"))
        target = str(URL.build(path="/v1/subscribe").with_query(pairs))
        return await self.ask(method, target, headers=self.bearer(token, headers))

    def parking(self, *channels: str, **given: Any) -> asyncio.Task[Reply]:
        """Begin a poll of 20 seconds that is to park."""
        return asyncio.get_running_loop().create_task(self.poll(*channels, **({"wait": 20} | given)))

    async def parked(self, count: int = 1) -> None:
        """Wait until so many polls are parked."""
        await eventually(lambda: parked(self.gateway) == count)

    async def publish(
        self,
        channel: str,
        body: bytes | None = b'{"n":1}',
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **query: str,
    ) -> Reply:
        """Publish."""
        target = str(URL.build(path="/v1/publish").with_query({"channel": channel, **query}))
        return await self.ask("POST", target, headers=self.bearer(token, headers), data=body)

    async def metrics(self) -> dict[str, float]:
        """Ask /metrics; samples by name{label values in the order of the labels' names}."""
        text = (await self.ask("GET", "/metrics", port=self.gateway.admin_port)).body.decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {_shown(sample): sample.value for sample in samples}

    async def ready(self) -> Reply:
        """Ask /readyz."""
        return await self.ask("GET", "/readyz", port=self.gateway.admin_port)


def parked(gateway: Gateway) -> int:
    """Return how many polls are parked, on lanes and elsewhere."""
    return len(gateway.hub.waiters()) + sum(lane.cohort is not None for lane in gateway.lanes._lanes)


def _shown(sample: Any) -> str:
    labels = ",".join(value for _, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client session that never waits longer than a test may, with a connection for each request (`FORCE_CLOSE`)."""
    connector = aiohttp.TCPConnector(limit=0, force_close=FORCE_CLOSE)
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        yield session


@contextlib.asynccontextmanager
async def live(*, topics: Mapping[str, int] = TOPICS, **sections: Any) -> AsyncIterator[Live]:
    """Run a broker with these topics and a gateway in front of it."""
    async with Broker() as broker:
        for name, partitions in topics.items():
            broker.create_topic(name, partitions)
        async with serving(configuration(broker.address, **sections)) as gateway, client() as session:
            yield Live(broker, gateway, session)


class Background:
    """A live gateway on a thread and a loop of its own (uvloop, as in production), for tests that block."""

    def __init__(self, live: Live, loop: asyncio.AbstractEventLoop) -> None:
        self.live = live
        self._loop = loop

    @property
    def port(self) -> int:
        """The public port."""
        return self.live.gateway.port

    @property
    def admin_port(self) -> int:
        """The admin port."""
        return self.live.gateway.admin_port

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


@contextlib.contextmanager
def background(**given: Any) -> Iterator[Background]:
    """Run `live` in the background."""
    started: list[Background] = []
    ready, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        try:
            async with live(**given) as running:
                started.append(Background(running, asyncio.get_running_loop()))
                ready.set()
                await ended.wait()
        finally:
            ready.set()

    def main() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=main, name="gateway")
    thread.start()
    ready.wait(20)
    try:
        yield started[0]
    finally:
        if started:
            started[0]._loop.call_soon_threadsafe(ended.set)
        thread.join(20)
