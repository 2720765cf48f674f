"""Gateways for the integration tests: built as in production from a configuration text, with one issuer whose secret is known here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from integration.clients import Answer, Client, Connection
from livegateway import parked
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import Gateway, serving
from gateway.auth.mint import mint
from gateway.config.loading import read

ISSUER = "https://id.test/"
SECRET = "a secret of the integration tests, long enough"
# What a single test client may do must not hang on limits that have tests of their own.
UNLIMITED = {"address": None, "polls": None, "publishes": None, "concurrent_polls": 10_000}


def token(subject: str = "ann", *, lifetime: float = 3600.0, **claims: Any) -> str:
    """Return a token that the gateways of these tests accept."""
    return mint(SECRET, "HS256", {"iss": ISSUER, "sub": subject, "exp": int(time.time() + lifetime), **claims})


def configuration(kafka: str | Mapping[str, Any], channels: Mapping[str, Any], **sections: Any) -> str:
    """Return the text of a configuration file. `kafka`: the bootstrap servers, or the whole section."""
    document = {
        "server": {"host": "127.0.0.1", "port": 0, "admin": {"port": 0}},
        "kafka": {"bootstrap_servers": kafka} if isinstance(kafka, str) else kafka,
        "auth": {"issuers": {"test": {"issuer": ISSUER, "keys": [{"algorithm": "HS256", "secret": SECRET}]}}},
        "channels": channels,
        "limits": UNLIMITED,
        "log": {"level": "warning", "access": False},
    }
    return json.dumps(document | sections)


class Instance:
    """A running gateway, and what tests ask of it. Its clients leave with it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._clients: list[Client] = []
        self._polls: list[asyncio.Task[Answer]] = []

    @property
    def port(self) -> int:
        """The public port."""
        return self.gateway.port

    def client(self, *channels: str, subject: str = "ann", claims: Mapping[str, Any] | None = None, **given: Any) -> Client:
        """Return a subscriber; see `Client`."""
        client = Client(self.port, token(subject, **(claims or {})), channels, **given)
        self._clients.append(client)
        return client

    def park(self, client: Client, *, wait: float = 50) -> asyncio.Task[Answer]:
        """Begin a poll that is held; it is ended with the gateway."""
        poll = asyncio.get_running_loop().create_task(client.poll(wait=wait))
        self._polls.append(poll)
        return poll

    async def drop_clients(self) -> None:
        """Close the connections of all clients that were made here."""
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)
        for client in self._clients:
            client.drop()

    @property
    def parked(self) -> int:
        """Polls that are parked now."""
        return parked(self.gateway)

    async def ready(self) -> Answer:
        """Ask /readyz."""
        async with Connection(self.gateway.admin_port, "none") as connection:
            return await connection.request("/readyz")

    async def metrics(self) -> defaultdict[str, float]:
        """Ask /metrics and return the sum of each sample over its labels, by name; single series as name{value,…}, in label order."""
        async with Connection(self.gateway.admin_port, "none") as connection:
            answer = await connection.request("/metrics")
        found: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(answer.body.decode()):
            for sample in family.samples:
                found[sample.name] += sample.value
                if sample.labels:
                    found[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
        return found


@contextlib.asynccontextmanager
async def running(kafka: str | Mapping[str, Any], channels: Mapping[str, Any], **sections: Any) -> AsyncIterator[Instance]:
    """Run a gateway inside a block."""
    async with serving(read(configuration(kafka, channels, **sections), {})) as gateway:
        instance = Instance(gateway)
        try:
            yield instance
        finally:
            await instance.drop_clients()
