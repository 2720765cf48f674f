"""What lanes' answers are counted and logged as."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from server.laneworld import ADDRESS, World

from gateway.auth.principal import KeyRef
from gateway.fanout.cursor import TopicPosition
from gateway.fanout.responses import Answer
from gateway.metrics import OUTCOMES, Metrics
from gateway.server.accounts import Accounts
from gateway.server.outcome import Outcome

OLD = KeyRef("test", "old", "HS256", "fingerprint of old")


@pytest.fixture
async def world() -> World:
    return World()


async def test_answers_are_counted_as_the_framework_counts_them(world: World):
    """Responses, outcomes, messages by pattern, bytes of bodies, and the age of records when they go out."""
    clients = [world.client() for _ in range(3)]
    world.say("a", None, None, at=int(world.unix.now * 1_000) - 1_500)
    await world.turn()
    size = len(clients[0].transport.written.partition(b"\r\n\r\n")[2])
    metrics = world.metrics
    assert world.counted(metrics.answers) == {"messages": 3}
    assert {labels: series.value for labels, series in metrics.responses._series.items()} == {("/v1/subscribe", "200"): 3}
    assert world.counted(metrics.messages) == {"a": 6}
    assert world.counted(metrics.sent_bytes) == {"poll": 3 * size}
    latency = metrics.record_latency.bind("poll")
    assert (sum(latency.counts), latency.total) == (6, pytest.approx(9.0))
    world.client(wait=0)
    assert world.counted(metrics.answers) == {"messages": 3, "empty": 1}
    assert world.counted(metrics.responses) == {"200": 3, "204": 1}
    assert world.counted(metrics.sent_bytes) == {"poll": 3 * size}


async def test_each_outcome_has_its_name(world: World):
    """Those that the documentation lists."""
    world.client(expires=2.0)
    world.client(wait=3)
    world.client(signed_by=OLD)
    left = world.client()
    left.lose()
    left.lose()
    world.lanes.withdraw(OLD)
    await world.after(4)
    world.client()
    await world.lanes.drain(0.0)
    await world.turn()
    assert world.counted(world.metrics.answers) == {
        "expired": 1,
        "empty": 1,
        "revoked": 1,
        "closed_by_client": 1,
        "drained": 1,
    }
    assert world.counted(world.metrics.responses) == {"204": 4, "499": 1}


async def test_access_lines_are_those_of_the_framework():
    """With the target's parameters, but no cursor; how long the poll was held; who asked."""
    world = World(sample=1.0)
    world.client(subject="ann", wait=5)
    left = world.client(subject="bob", wait=5)
    await world.after(2)
    left.lose()
    world.say()
    await world.turn()
    first, second = world.log.lines
    assert first["time"] == "2026-11-22T08:00:02.000Z"
    assert {name: first[name] for name in ("client", "method", "path", "status", "bytes", "code", "transport")} == {
        "client": ADDRESS,
        "method": "GET",
        "path": "/v1/subscribe",
        "status": 499,
        "bytes": 0,
        "code": "closed_by_client",
        "transport": "poll",
    }
    assert (first["subject"], second["subject"], second["issuer"]) == ("bob", "ann", "test")
    assert first["duration"] == second["duration"] == pytest.approx(2.0)
    assert (second["status"], second["code"], second["bytes"] > 100) == (200, "messages", True)
    assert ["wait", "5"] in second["query"]
    assert "cursor" not in str(second["query"])
    assert len({line["request_id"] for line in (first, second)}) == 2


async def test_of_answers_a_share_is_written():
    """Of clients that left all are, as of all that is no success."""
    world = World(sample=0.25)
    clients = [world.client() for _ in range(100)]
    for client in clients[:4]:
        client.lose()
    world.say()
    await world.turn()
    codes = [line["code"] for line in world.log.lines]
    assert (codes.count("closed_by_client"), codes.count("messages")) == (4, 24)


async def test_a_client_that_takes_nothing_had_its_answer_when_it_was_written():
    """How long the socket then takes is no time of the poll."""
    world = World(sample=1.0)
    client = world.client()
    client.transport.full = True
    await world.after(7)
    world.say()
    await world.turn()
    [line] = world.log.lines
    assert line["duration"] == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("why", "delivered", "outcome"),
    [
        ("records", {"a": 1}, "messages"),
        ("changed", {"a": 1}, "messages"),
        ("records", {}, "progress"),
        ("timeout", {}, "empty"),
        ("expired", {}, "expired"),
        ("revoked", {}, "revoked"),
        ("drained", {}, "drained"),
    ],
)
def test_why_a_poll_ended_is_told_in_the_words_of_the_metrics(why: str, delivered: dict[str, int], outcome: str):
    """Scanning without finding is progress."""
    metrics = Metrics(version="1")
    answer = Answer("c", b"{}", Counter(delivered), Counter(), (0,) * len(delivered))
    lane = SimpleNamespace()
    accounts = Accounts(metrics, None, route="/", unix_clock=lambda: 2.0)
    for _ in range(2):
        accounts.answered([lane, lane], Outcome(answer, b"c", {"a": TopicPosition(0, {})}, at_tail=False), why, 0.0)
    assert {labels: series.value for labels, series in metrics.answers._series.items()} == {("poll", outcome): 4}
    assert outcome in OUTCOMES
    assert metrics.record_latency.bind("poll").total == 8.0 * len(delivered)


async def test_lines_of_a_mass_exit_are_put_off():
    """Each client that leaves is counted at once and logged in time: the loop has better things to do in that turn."""
    world = World(sample=1.0)
    clients = [world.client() for _ in range(300)]
    for client in clients:
        client.lose()
    assert world.counted(world.metrics.responses) == {"499": 300}
    assert world.lanes._accounts.late == 300 - 64
    world.lanes.tick()
    assert world.lanes._accounts.late == 36
    await world.lanes.close()
    assert world.lanes._accounts.late == 0
    assert len(world.log.lines) == 300
