"""Every case of the HTTP contract, against a live gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conformance.cases import Conversation, load
from livegateway import Background, background
from waiting import eventually_blocking

from gateway import wire


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    """Run a gateway with one record in its topic `news`."""
    limits = {"limits": {"address": None, "polls": None, "publishes": None}}
    server = {"server": {"max_body_bytes": 4096, "max_head_bytes": 12_000}}
    with background(**limits, **server) as running:
        running.live.broker.append("news", 0, [b'{"n":1}'], timestamp_ms=1_700_000_000_000)
        eventually_blocking(lambda: running.run(running.live.ready()).status == 200)
        yield running


CASES = list(load())


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_the_contract_holds(gateway: Background, steps: list[Mapping[str, Any]]) -> None:
    """What is sent is answered as the case says."""
    Conversation({"public": gateway.port, "admin": gateway.admin_port}).run(steps)


# Of later stages: transports, named cursors, proxied backends, lifecycle of channels, revocation lists.
LATER = {"token_revoked", "superseded", "gone", "upstream_timeout", "circuit_open"}


def test_every_code_is_shown_by_a_test() -> None:
    """No error of the contract that nobody has seen."""
    here = Path(__file__).parent
    files = [*(here / "cases").glob("*.yaml"), *(here.parent / "server").glob("test_*.py")]
    text = "".join(file.read_text() for file in files)
    assert {code for code in wire.STATUS if code not in text} <= LATER
