"""`gateway bench` against a live gateway: small steps, limits that say no, a gateway that goes, and what people see."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands.test_clients import call, on_terminal, started
from livegateway import Background, background, token
from waiting import eventually_blocking

from gateway.commands import bench as command
from gateway.loadtest.crowd import Crowd, NotAllowed

QUICK = ("--hold", "0.3", "--ramp", "1000")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    """Run one with generous limits."""
    generous = {"rate": 100_000, "burst": 1_000_000}
    with background(limits={"publishes": generous, "polls": generous, "address": generous}) as running:
        yield running


def url(gateway: Background) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def test_all_steps_are_held(gateway: Background) -> None:
    """A line a step, a table, a plot, and a sentence; every probe reaches every client."""
    result = call(
        gateway, "bench", url(gateway), "--channel", "news", "--publish", "--steps", "5,20", "--latency", "30", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^ +5 clients: held; all parked after [\d.]+ s; delivery p50 \d+ ms, p99 \d+ ms", result.stdout, re.MULTILINE
    )
    assert re.search(r"^clients +held +parked after +polls/s +errors +p50 +p99 +own CPU$", result.stdout, re.MULTILINE)
    assert "p99 of deliveries, ms" in result.stdout
    assert "20 clients were held, which was the most asked for" in result.stdout
    assert "\x1b" not in result.stdout


def test_as_json(gateway: Background) -> None:
    """For programs: the steps and the outcome, and nothing else on standard output."""
    result = call(gateway, "bench", url(gateway), "--channel", "news", "--clients", "5", "--json", *QUICK)
    document = json.loads(result.stdout)
    assert (document["held"], [each["clients"] for each in document["steps"]]) == (5, [5])
    assert "5 clients: held" in result.stderr


def test_many_subjects(gateway: Background, tmp_path: Path) -> None:
    """Tokens are given out in turn."""
    file = tmp_path / "tokens"
    file.write_text("\n".join(token(f"client-{number}") for number in range(3)))
    words = ("bench", url(gateway), "--channel", "news", "--clients", "6", "--token-file", str(file), *QUICK)
    assert call(gateway, *words, given="nobody").exit_code == 0


def test_a_limit_that_says_no() -> None:
    """The code is named, and the greatest count that was held is found."""
    with background(limits={"concurrent_polls": 6, "polls": {"rate": 10_000, "burst": 100_000}}) as small:
        words = ("bench", url(small), "--channel", "news", "--clients", "20", "--steps", "2,4,16", "--settle", "3", *QUICK)
        result = call(small, *words)
    assert result.exit_code == 1
    assert "429 too_many_polls" in result.stdout
    held = re.search(r"^(\d+) clients were held; (\d+) were not", result.stdout, re.MULTILINE)
    assert held
    assert 4 <= int(held[1]) <= 6 < int(held[2]) <= 8


@pytest.mark.parametrize(
    ("channel", "given", "said"), [("news", "nobody", "401 token_invalid"), ("secret", None, "403 forbidden")]
)
def test_who_may_not(gateway: Background, channel: str, given: str | None, said: str) -> None:
    """There is nothing to measure."""
    result = call(gateway, "bench", url(gateway), "--channel", channel, *QUICK, given=given)
    assert (result.exit_code, result.stderr) == (3, f"gateway: {said}\n")


def test_who_may_not_publish(gateway: Background) -> None:
    """Probes need a right of their own."""
    result = call(gateway, "bench", url(gateway), "--channel", "alerts", "--publish", "--clients", "2", *QUICK)
    assert result.exit_code == 3
    assert "a probe was refused: 403 forbidden" in result.stderr


def test_nobody_there() -> None:
    """Failures are counted by kind."""
    with background() as gone:
        address = url(gone)
    words = ("bench", address, "--channel", "news", "--clients", "2", "--settle", "0.3", *QUICK)
    result = call(gone, *words)
    assert result.exit_code == 1
    assert "Not even the first step was held" in result.stdout
    assert "ClientConnector" in result.stdout


def test_a_gateway_that_goes(gateway: Background) -> None:
    """A probe that cannot be published ends it, with what is known so far."""

    async def run() -> None:
        async with Crowd(url(gateway), "news", [token("ann", scope="publish")]) as crowd:
            await crowd.grow(2, 1000)
            assert await crowd.settle(10) is not None
            crowd.fresh()
            await crowd.probe()
            await crowd.delivered(10)
            assert crowd.tally.undelivered == 0
            crowd.tally.expected += 1
            await crowd.delivered(0.02)
            assert len(crowd) == 2
            await crowd.shrink(1)
            assert crowd.settled == 1

    asyncio.run(run())
    with background() as gone:
        address = url(gone)

    async def nobody() -> None:
        async with Crowd(address, "news", []) as crowd:
            await crowd.probe()

    with pytest.raises(OSError, match="Cannot connect"):
        asyncio.run(nobody())
    assert issubclass(NotAllowed, Exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["localhost", "--channel", "x"], "expected the gateway's URL"),
        (["http://a", "--channel", "x", "--steps", "5,3"], "expected ascending numbers"),
        (["http://a", "--channel", "x", "--steps", "many"], "expected ascending numbers"),
        (["http://a", "--channel", "x", "--token-file", "/none"], "No such file"),
    ],
)
def test_usage(gateway: Background, words: list[str], said: str) -> None:
    """What cannot be meant is told before anything is sent."""
    result = call(gateway, "bench", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_empty_file_of_tokens(gateway: Background, tmp_path: Path) -> None:
    """It is told."""
    file = tmp_path / "tokens"
    file.write_text("\n")
    assert call(gateway, "bench", "http://a", "--channel", "x", "--token-file", str(file)).exit_code == 2


def test_open_files(gateway: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is raised as far as it goes; more clients than that are a mistake."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(command.resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(command.resource, "setrlimit", lambda _, limits: raised.append(limits))
    command._allow_files(500)
    command._allow_files(10)
    assert raised == [(600, 1024)]
    result = call(gateway, "bench", "http://a", "--channel", "x", "--clients", "5000")
    assert result.exit_code == 2
    assert "5,000 clients need 5,100 open files; the limit is 1,024" in result.stderr
    monkeypatch.setattr(command.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    command._allow_files(5000)
    assert len(raised) == 1


def test_interrupted(gateway: Background) -> None:
    """What is known so far is told."""
    words = ("bench", url(gateway), "--channel", "news", "--steps", "2,3", "--hold", "0.2")
    with started(gateway, *words[:-1], "30") as process:
        eventually_blocking(lambda: gateway.run(_connections(gateway)) >= 2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130


async def _connections(gateway: Background) -> float:
    metrics = await gateway.live.metrics()
    return sum(value for name, value in metrics.items() if name.startswith("gateway_parked_waiters"))


def test_on_a_terminal(gateway: Background) -> None:
    """Something turns while it runs, and the table has bold heads."""
    shown = on_terminal(gateway, "bench", url(gateway), "--channel", "news", "--clients", "3", "--hold", "1")
    assert f"gateway bench {url(gateway)}" in shown
    assert "\x1b[1m" in shown
    assert "3 clients were held" in shown
