"""Every case of what a gateway does with messages, with its bytes at once and one by one."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import pytest
from livegateway import Background, background
from proxy.conformance.cases import Case, Play, gateways, load

CASES = list(load())


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Listen as the backend of all gateways."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def started(listener: socket.socket) -> Iterator[Callable[[str], Background]]:
    """Start each gateway once, when the first case asks for it."""
    with socket.socket() as unheard, contextlib.ExitStack() as stack:
        unheard.bind(("127.0.0.1", 0))  # and never listens
        sections = gateways(*(f"127.0.0.1:{one.getsockname()[1]}" for one in (listener, unheard)))
        running: dict[str, Background] = {}

        def start(name: str) -> Background:
            if name not in running:
                running[name] = stack.enter_context(background(topics={"news": 1}, **sections[name]))
            return running[name]

        yield start


@pytest.mark.parametrize(
    ("case", "cut"),
    [
        pytest.param(case, cut, id=f"{name}-{cut or 'whole'}")
        for name, case in CASES
        for cut in (None, 1)
        if case.get("cut", True) or not cut
    ],
)
def test_a_case(
    started: Callable[[str], Background],
    listener: socket.socket,
    case: Case,
    cut: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What goes in on one side comes out on the other as the RFCs say, whatever the pieces that it comes in."""
    Play(started(case.get("gateway", "main")), listener, cut=cut).run(case)
    # Whatever clients and backends do, nothing of it is the gateway's own mistake.
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_there_are_cases() -> None:
    """No file is passed over."""
    assert len(CASES) >= 150
