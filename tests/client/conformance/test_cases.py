"""Every client plays the same cases against a server that follows scripts; see `scripted` and `players` for what a case says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from client.conformance.players import AsyncPlayer, Case, Player, SyncPlayer, node
from client.conformance.scripted import ScriptedServer, whole

CASES: list[tuple[str, Case]] = [
    (f"{file.stem}: {case['name']}", case)
    for file in sorted((Path(__file__).parent / "cases").glob("*.yaml"))
    for case in yaml.safe_load(file.read_text())
]
CLIENTS = ["sync", "async", "node"]


def cuts(case: Case) -> list[int | None]:
    """Return after how many bytes the answer is cut, play by play."""
    answers = [each for each in case["script"] if each.get("cut") == "every byte"]
    return list(range(len(whole(answers[0], {"name": "x"})))) if answers else [None]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """Run one server for all cases."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope="module")
def players() -> Iterator[Mapping[str, Player]]:
    """Give all clients that can run here."""
    known: dict[str, Player] = {"sync": SyncPlayer(), "async": AsyncPlayer()}
    if shutil.which("node") is None:
        yield known
        return
    with node() as javascript:
        yield known | {"node": javascript}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("name", "case"), [pytest.param(name, case, id=name) for name, case in CASES])
def test_a_case(name: str, case: Case, client: str, server: ScriptedServer, players: Mapping[str, Player]) -> None:
    """The program sees what the case says, and the server no request that it does not."""
    if client not in players:
        if os.environ.get("CI"):
            pytest.fail("the JavaScript client must be tested in CI: there is no node")
        pytest.skip("there is no node")
    if client in case.get("but", {}):
        case = {**case, **case["but"][client]}
    plays = cuts(case)
    with ThreadPoolExecutor(min(len(plays), 16)) as pool:
        outcomes = list(pool.map(lambda cut: _played(name, case, client, cut, server, players[client]), plays))
    wrong = [text for text in outcomes if text]
    assert not wrong, f"{len(wrong)} of {len(plays)} plays: {wrong[0]}"


def _played(name: str, case: Case, client: str, cut: int | None, server: ScriptedServer, player: Player) -> str:
    """Play a case; return what is wrong with it, empty where nothing is."""
    place = f"{client}-{abs(hash((name, client, cut)))}"
    script, url = server.play(place, case["script"], cut=cut)
    take = case.get("take", sum(isinstance(event, list) or "message" in event for event in case["events"]))
    given = {**{key: value for key, value in case.items() if key != "script"}, "take": take}
    outcome = player.play(json.loads(json.dumps(given).replace("${name}", place)), url)
    wrong = list(script.faults)
    if not script.is_over and not case.get("unfinished"):
        wrong.append(f"only {len(script.asked)} of {len(case['script'])} requests came")
    if not _like(outcome["events"], case["events"]):
        wrong.append(f"events: {outcome['events']}")
    parts = [part for part in ("stored", "saved", "counters") if part in case and not _like(outcome[part], case[part])]
    wrong += [f"{part}: {outcome[part]}" for part in parts]
    cursors = [request["headers"].get("cursor") for request in script.asked]
    if "cursors" in case and cursors != case["cursors"]:
        wrong.append(f"cursors: {cursors}")
    return "" if not wrong else f"cut at {cut}: {'; '.join(wrong)}; asked: {[request['path'] for request in script.asked]}"


def _like(actual: Any, wanted: Any) -> bool:
    """Compare; of mappings only what is wanted is looked at, and a list of a message's parts stands for it."""
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(key in actual and _like(actual[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(actual, Mapping) and "message" in actual:
        parts = (
            ("channel", "partition", "offset", "value")[-len(wanted) :] if len(wanted) > 3 else ("partition", "offset", "value")
        )
        return _like([actual["message"][part] for part in parts], wanted)
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(_like, actual, wanted))
    return bool(actual == wanted)
