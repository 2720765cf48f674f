"""Every case of the HTTP contract, against a live gateway, and against two that must not differ."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conformance.cases import TOKENS, Conversation, load
from livegateway import TOPICS, Background, background
from rawhttp import exchange
from waiting import eventually_blocking

from gateway import wire
from gateway.server.lane import Lane


@contextlib.contextmanager
def running(**sections: Any) -> Iterator[Background]:
    """Run a gateway with one record in its topic `news`."""
    limits = {"limits": {"address": None, "polls": None, "publishes": None}}
    server = {"server": {"max_body_bytes": 4096, "max_head_bytes": 12_000}}
    with background(**limits, **server, **sections) as gateway:
        gateway.live.broker.append("news", 0, [b'{"n":1}'], timestamp_ms=1_700_000_000_000)
        eventually_blocking(lambda: gateway.run(gateway.live.ready()).status == 200)
        yield gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    with running() as one:
        yield one


CASES = list(load())


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_the_contract_holds(gateway: Background, steps: list[Mapping[str, Any]]) -> None:
    """What is sent is answered as the case says."""
    Conversation({"public": gateway.port, "admin": gateway.admin_port}).run(steps)


# --- with a lane and without ---

POLL = "GET /v1/subscribe?channel=notes&wait=0&cursor={} HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer {}\r\n\r\n"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Background, Background]]:
    """Run two gateways that differ in nothing but the lane; each has its own broker, with equal topics."""
    topics = {**TOPICS, "news": 1}  # where a record without a key goes must not be left to chance
    with running(topics=topics) as with_lane, running(topics=topics, lane={"enabled": False}) as without:
        for one in (with_lane, without):
            for name in topics:
                one.live.broker.cluster.topic(name).topic_id = name.encode().ljust(16)
        yield with_lane, without


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_a_lane_changes_no_byte(
    pair: tuple[Background, Background], steps: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a connection that a lane has, each case is answered as the contract says, and as aiohttp answers alone."""
    replayed, replay = [], Lane.replay
    monkeypatch.setattr(Lane, "replay", lambda lane, data: (replayed.append(data), replay(lane, data)))
    found = []
    for gateway in pair:
        start = POLL.format("", TOKENS["ann"]).replace("&cursor=", "").encode()
        cursor = exchange(gateway.port, start.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)).header("Next-Cursor")
        talk = Conversation(
            {"public": gateway.port, "admin": gateway.admin_port}, around=POLL.format(cursor, TOKENS["ann"]).encode()
        )
        talk.run(steps)
        found.append([_timeless(answer) for answer in talk.answers])
        eventually_blocking(lambda gateway=gateway: _caught_up(gateway))
    assert found[0] == found[1]
    assert replayed or all(step.get("port") == "admin" for step in steps)


def _timeless(answer: tuple[bytes, bytes] | None) -> tuple[bytes, bytes] | None:
    """Leave out what of a record is the moment at which it was published, and what the process measures."""
    if answer is None or b"# HELP" in answer[1]:
        return None
    return answer[0], re.sub(rb'"timestamp":\d{13}', b'"timestamp":0', answer[1])


def _caught_up(gateway: Background) -> bool:
    broker, topics = gateway.live.broker, gateway.live.gateway.hub.topics
    return all(
        tail.end == broker.end_offset(name, partition)
        for name, topic in topics.items()
        for partition, tail in topic.tails.items()
    )


# Of a later stage: named cursors.
LATER = {"superseded"}


def test_every_code_is_shown_by_a_test() -> None:
    """No error of the contract that nobody has seen."""
    here = Path(__file__).parent
    files = [*(here / "cases").glob("*.yaml"), *(here.parent / "server").glob("test_*.py")]
    files += (here.parent / "proxy" / "conformance" / "cases").glob("*.yaml")
    text = "".join(file.read_text() for file in files)
    assert {code for code in wire.STATUS if code not in text} <= LATER
