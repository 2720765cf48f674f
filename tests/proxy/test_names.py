"""DNS answers become targets, and failures take nothing away."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable

import pytest
from proxy.timing import Time
from waiting import eventually

from gateway.proxy.balancing import RoundRobin
from gateway.proxy.events import Event, Joined, Left
from gateway.proxy.names import MAX_ADDRESSES, Name, Names, resolve
from gateway.proxy.target import Endpoint
from gateway.proxy.upstream import Upstream


class Zone:
    """A resolver with the answers a test gives it."""

    def __init__(self, **answers: Iterable[str] | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Iterable[str]:
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Resolving:
    """Names of an upstream with one fixed address."""

    def __init__(self, zone: Zone, *names: Name) -> None:
        fixed = [Endpoint("10.0.0.1:80")]
        self.time = Time()
        self.told: list[list[Event]] = []
        self.upstream = Upstream("shop", fixed, RoundRobin())
        self.names = Names(
            self.upstream,
            fixed,
            names,
            refresh=30.0,
            told=self.told.append,
            clock=self.time,
            rand=lambda: 0.0,
            resolve=zone,
            pause=self.time.pause,
        )

    @property
    def addresses(self) -> list[str]:
        return [target.address for target in self.upstream.targets]


async def test_addresses_become_targets() -> None:
    """Beside the fixed ones, with the name's port, weight and priority; IPv6 in brackets."""
    resolving = Resolving(Zone(shop=["10.1.0.2", "::1", "10.1.0.1", "10.1.0.1"]), Name("shop", 8080, 3, 2))
    await resolving.names.look()
    assert resolving.addresses == ["10.0.0.1:80", "10.1.0.1:8080", "10.1.0.2:8080", "[::1]:8080"]
    last = resolving.upstream.targets[-1]
    assert (last.host, last.port, last.weight, last.priority, last.name) == ("::1", 8080, 3, 2, "shop")
    assert [type(event) for event in resolving.told[0]] == [Joined] * 3
    assert repr(resolving.names) == "<Names shop: shop 3; 0 failing>"


async def test_it_is_resolved_again() -> None:
    """After `refresh` seconds; another order of the same addresses is no change."""
    zone = Zone(shop=["10.1.0.1", "10.1.0.2"])
    resolving = Resolving(zone, Name("shop", 80))
    await resolving.names.look()
    running = asyncio.ensure_future(resolving.names.run())
    await eventually(lambda: resolving.time.pausing == 1)
    zone.answers["shop"] = ["10.1.0.2", "10.1.0.1"]
    await resolving.time.pass_time(30.0, pausing=1)
    assert (len(resolving.told), len(zone.asked)) == (1, 2)
    zone.answers["shop"] = ["10.1.0.2", "10.1.0.3"]
    await resolving.time.pass_time(30.0, pausing=1)
    assert [type(event) for event in resolving.told[1]] == [Joined, Left]
    assert resolving.addresses == ["10.0.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]
    assert resolving.time.delays == [30.0] * 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_failures_keep_the_last_addresses(caplog: pytest.LogCaptureFixture) -> None:
    """They are reported once, asked again at growing intervals, and one name's failure is none of another's."""
    zone = Zone(shop=["10.1.0.1"], store=["10.2.0.1"])
    resolving = Resolving(zone, shop := Name("shop", 80), Name("store", 80))
    await resolving.names.look()
    before = resolving.addresses
    running = asyncio.ensure_future(resolving.names.run())
    await eventually(lambda: resolving.time.pausing == 2)
    zone.answers["shop"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    with caplog.at_level(logging.INFO):
        await resolving.time.pass_time(30.0, pausing=2)
        for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0):
            await resolving.time.pass_time(seconds, pausing=2)
        assert resolving.addresses == before
        assert resolving.names.errors == {shop: "Temporary failure in name resolution"}
        zone.answers["shop"] = ["10.1.0.9"]
        await resolving.time.pass_time(30.0, pausing=2)
    assert resolving.addresses == ["10.0.0.1:80", "10.1.0.9:80", "10.2.0.1:80"]
    assert resolving.names.errors == {}
    assert [record.getMessage() for record in caplog.records] == [
        "shop of upstream shop is not resolved, 1 addresses stay: Temporary failure in name resolution",
        "shop of upstream shop is resolved again",
    ]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    ("answer", "reason"),
    [([], "no addresses"), (OSError(), "OSError"), (UnicodeError("label too long"), "UnicodeError")],
)
async def test_what_is_a_failure(answer: Iterable[str] | Exception, reason: str) -> None:
    """An answer without addresses is one as well."""
    resolving = Resolving(Zone(shop=answer), name := Name("shop", 80))
    await resolving.names.look()
    assert resolving.names.errors == {name: reason}
    assert (resolving.addresses, resolving.told) == (["10.0.0.1:80"], [])


async def test_answers_are_bounded() -> None:
    """A name with thousands of addresses does not make thousands of targets."""
    zone = Zone(shop=[f"10.1.{number // 250}.{number % 250}" for number in range(1_000)])
    resolving = Resolving(zone, Name("shop", 80))
    await resolving.names.look()
    assert len(resolving.addresses) == 1 + MAX_ADDRESSES


async def test_the_system_resolves() -> None:
    """By getaddrinfo; localhost is always there."""
    assert set(await resolve("localhost", 80)) & {"127.0.0.1", "::1"}
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
