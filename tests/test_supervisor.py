"""The supervisor, with workers that only pretend: restarts, ends, and what operators are told."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from gateway import supervisor
from gateway.metrics import SUPERVISED, Metrics
from gateway.supervisor import LONG_LIFE, LONGEST_PAUSE, SHORTEST_PAUSE, Pauses, Supervisor

SECONDS = 30.0
"""For what takes new interpreters to start, on a machine that is busy."""

PRETENDER = """
import json, os, signal, socket, sys, time

how = sys.argv[1]
link = socket.socket(fileno=0)
order = json.loads(link.makefile().readline())
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "dies-first" and order["text"] == "1":
    raise SystemExit(3)
server = socket.socket(socket.AF_UNIX)
server.bind(order["admin_path"])
server.listen()
if how != "slow":
    link.sendall(b"ready\\n")
while True:
    connection, _ = server.accept()
    path = connection.recv(4096).split()[1].decode()
    if how == "silent":
        time.sleep(3600)
    body = "garbage {" if path == "/metrics" else json.dumps({"ready": True, "failed": {}, "parked_polls": 3})
    connection.sendall(f"HTTP/1.1 200 OK\\r\\nContent-Length: {len(body)}\\r\\nConnection: close\\r\\n\\r\\n{body}".encode())
    connection.close()
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short path: those of Unix sockets end at some hundred characters."""
    return tmp_path_factory.mktemp("w")


class Supervised:
    """A supervisor whose workers pretend, or whatever the command does."""

    def __init__(self, folder: Path, count: int, *command: str, patience: float = SECONDS) -> None:
        self.lives = 0
        self.ordered: Callable[[], None] = lambda: None
        self.metrics = Metrics(version="1")
        self.supervisor = Supervisor(
            count,
            order=self._order,
            directory=str(folder),
            metrics=self.metrics,
            patience=patience,
            command=command,
            jitter=lambda: 0.0,
        )

    def _order(self, number: int, path: str) -> bytes:
        self.lives += 1
        self.ordered()
        return msgspec.json.encode({"number": number, "admin_path": path, "text": str(self.lives)})

    async def failed(self) -> Any:
        """Return what /readyz would say is wrong."""
        return (await self.supervisor.readiness())[0]

    async def shown(self) -> str:
        """Return what /metrics would say."""
        return (await self.supervisor.exposition())[0].decode()


@contextlib.asynccontextmanager
async def supervised(folder: Path, count: int, how: str, **options: Any) -> AsyncIterator[Supervised]:
    """Run pretenders, and end them at the end of the block."""
    running = Supervised(folder, count, sys.executable, "-c", PRETENDER, how, **options)
    task = asyncio.ensure_future(running.supervisor.run())
    try:
        yield running
        running.supervisor.end()
        assert await asyncio.wait_for(task, SECONDS) == 0
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestSupervisor:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch):
        monkeypatch.setattr(supervisor, "ANSWER_SECONDS", 0.05)
        monkeypatch.setattr(supervisor, "SHORTEST_PAUSE", 0.02)

    async def test_workers_that_never_start_end_it(self, folder, caplog):
        """With their exit code, after some attempts: what is configured wrongly does not heal."""
        for code in (1, 2):
            hopeless = Supervised(folder, 2, sys.executable, "-c", f"raise SystemExit({code})")
            assert await asyncio.wait_for(hopeless.supervisor.run(), SECONDS) == code
            assert 3 <= hopeless.lives <= 6
            assert f"no worker can be started: exit code {code}, 3 times" in caplog.text

    async def test_a_command_that_cannot_be_run_ends_it_too(self, folder, caplog):
        """No process, no exit code: it could not run."""
        hopeless = Supervised(folder, 1, str(folder / "none"))
        assert await asyncio.wait_for(hopeless.supervisor.run(), SECONDS) == 1
        assert "worker 1 cannot be started: " in caplog.text

    async def test_one_that_dies_before_it_serves_is_started_again(self, folder, caplog):
        """At once the first time; another exit code than those of wrong configurations is not hopeless."""
        async with supervised(folder, 1, "dies-first") as running:
            await eventually(running.supervisor._serving, timeout=SECONDS)
            assert "worker 1 ended with exit code 3; it is started again in 0.0 s" in caplog.text
            assert (await running.supervisor.readiness())[1]["workers"][0]["restarts"] == 1
            assert repr(running.supervisor) == "<Supervisor: 1 of 1 workers>"
        assert repr(running.supervisor) == "<Supervisor: 0 of 1 workers, ending>"
        assert await running.failed() == {"process": "draining", "worker 1": "process: not running"}

    async def test_once_one_has_served_no_death_ends_it(self, folder, monkeypatch):
        """The configuration cannot be the reason."""
        async with supervised(folder, 1, "well") as running:
            for lives in range(1, 6):
                await eventually(lambda lives=lives: running.lives == lives and running.supervisor._serving(), timeout=SECONDS)
                running.supervisor._serving()[0].signal(signal.SIGKILL)
            await eventually(lambda: running.lives == 6 and running.supervisor._serving(), timeout=SECONDS)
            assert "gateway_worker_restarts_total 5.0" in await running.shown()

    async def test_one_that_starts_is_not_ready_and_not_asked(self, folder):
        """It is there, but does not serve."""
        async with supervised(folder, 2, "slow") as running:
            await eventually(lambda: running.lives == 2)

            async def starting() -> bool:
                return set((await running.failed()).values()) == {"process: starting"}

            await eventually(starting)
            text = await running.shown()
            assert 'gateway_workers{state="running"} 2.0' in text
            assert 'gateway_workers{state="serving"} 0.0' in text
            assert "gateway_ready 0.0" in text
            assert "gateway_scrape_errors_total 0.0" in text

    async def test_one_that_does_not_answer_is_left_out(self, folder, caplog):
        """After a short time; the failure is counted and logged, and it is not ready."""
        async with supervised(folder, 1, "silent") as running:
            await eventually(running.supervisor._serving, timeout=SECONDS)
            assert "gateway_scrape_errors_total 1.0" in await running.shown()
            assert "cannot be read: no answer" in caplog.text
            assert await running.failed() == {"worker 1": "process: no answer"}

    async def test_one_that_answers_nonsense_is_left_out(self, folder, caplog):
        """Its readiness is another matter; facts of the workers are added up where that makes sense."""
        async with supervised(folder, 2, "well") as running:
            await eventually(lambda: len(running.supervisor._serving()) == 2, timeout=SECONDS)
            assert "gateway_scrape_errors_total 2.0" in await running.shown()
            wrong, facts = await running.supervisor.readiness()
            assert (wrong, facts["parked_polls"]) == ({}, 6)

    async def test_one_that_does_not_end_is_killed(self, folder, caplog):
        """When its time to drain is over, with some to spare."""
        async with supervised(folder, 1, "stubborn", patience=0.2) as running:
            await eventually(running.supervisor._serving, timeout=SECONDS)
        assert "workers that do not end are killed" in caplog.text

    async def test_one_that_is_started_while_all_end_is_ended(self, folder):
        """A signal may come at any moment: before the process is there, and between that and its order."""
        running = Supervised(folder, 1, sys.executable, "-c", PRETENDER, "slow")
        running.ordered = running.supervisor.end
        assert await asyncio.wait_for(running.supervisor.run(), SECONDS) == 0
        assert running.lives == 1
        assert await asyncio.wait_for(running.supervisor.run(), SECONDS) == 0
        assert running.lives == 1

    async def test_when_it_is_cancelled_nothing_is_left(self, folder):
        """No process, no socket."""
        running = Supervised(folder, 1, sys.executable, "-c", PRETENDER, "well")
        task = asyncio.ensure_future(running.supervisor.run())
        life = (await eventually(running.supervisor._serving, timeout=SECONDS))[0]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert life.process.returncode == -signal.SIGKILL
        assert list(folder.iterdir()) == []

    async def test_what_only_the_supervisor_shows(self, folder):
        """As it is documented."""
        running = Supervised(folder, 1, "none")
        families = {family.name: family for family in text_string_to_metric_families(await running.shown())}
        for described in SUPERVISED:
            family = families[described.name.removesuffix("_total")]
            assert (family.type, family.documentation) == (described.kind, described.help)
            assert {label for sample in family.samples for label in sample.labels} == set(described.labels)
        body, content_type = await running.supervisor.exposition("application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")


def test_pauses_double_up_to_a_bound_and_a_long_life_wipes_the_slate():
    """The first restart is at once; jitter takes up to half of a pause away, so that workers do not move in step."""
    pauses = Pauses(lambda: 1.0)
    assert [pauses.next(0.1) for _ in range(4)] == [0.0, SHORTEST_PAUSE, 2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE]
    assert [pauses.next(0.1) for _ in range(100)][-1] == LONGEST_PAUSE
    assert pauses.next(LONG_LIFE) == 0.0
    low = Pauses(lambda: 0.0)
    assert [low.next(0.1) for _ in range(2)] == [0.0, SHORTEST_PAUSE / 2]
    assert [0.0 <= Pauses().next(0.1) <= LONGEST_PAUSE]


def test_what_ended_a_worker_is_said_in_words():
    """Signals without a name have a number."""
    assert supervisor._fate(1) == "ended with exit code 1"
    assert supervisor._fate(-9) == "was ended by SIGKILL"
    assert supervisor._fate(-40) == "was ended by signal 40"
