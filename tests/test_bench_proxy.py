"""The benchmark of proxies: its backends do what they are told, its load keeps its rate, and nothing is taken for an error."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import ejected, held, killed, paced, proxy, ratio, restarts
from bench.backends import Backend, backends, share_percent, spread_percent
from bench.broker import broker
from bench.listening import listens
from bench.proxies import PROXIES
from bench.proxying import HOLD, ITEM, check_files, requests
from bench.serving import Missing, Setting
from waiting import eventually_blocking

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler")


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with broker("dev", tmp_path) as kafka:
        yield Setting(kafka, tmp_path)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with backends(1, tmp_path) as (one,):
        yield one


@contextlib.contextmanager
def asked(backend: Backend, target: str) -> Iterator[socket.socket]:
    """Send a request over a connection of its own."""
    with socket.create_connection(("127.0.0.1", backend.port), timeout=10) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        yield client


def test_a_backend_holds_polls_until_it_is_told_to_answer(backend: Backend):
    """A held poll is counted while it is held, and no longer once its client has left."""
    with asked(backend, HOLD) as client, asked(backend, HOLD) as leaving:
        eventually_blocking(lambda: backend.report()["held"] == 2)
        leaving.close()
        eventually_blocking(lambda: backend.report()["held"] == 1)
        assert backend.answer()["held"] == 0
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_slow_backend_still_answers_its_checks(backend: Backend):
    """The delay is for requests alone."""
    backend.delay(600_000)
    with asked(backend, ITEM), asked(backend, "/healthz") as check:
        assert check.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        eventually_blocking(lambda: backend.report()["delayed"] == 1)
        assert backend.report()["checks"] == 1


def test_a_backend_ends_gracefully_and_starts_again_on_its_port(backend: Backend):
    """What is held is answered with the announcement that the connection ends; idle connections are closed."""
    with asked(backend, HOLD) as client, socket.create_connection(("127.0.0.1", backend.port), timeout=10) as idle:
        eventually_blocking(lambda: backend.report()["held"] == 1)
        backend.terminate()
        assert b"\r\nConnection: close\r\n" in client.recv(200)
        assert idle.recv(1) == b""
    assert not listens(backend.port)
    backend.start()
    with asked(backend, ITEM) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_killed_backend_answers_nobody(backend: Backend):
    """Its connections are cut."""
    with asked(backend, HOLD) as client:
        eventually_blocking(lambda: backend.report()["held"] == 1)
        backend.kill()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_paced_load_keeps_its_rate(tmp_path: Path, backend: Backend):
    """Requests go out when they are due, nothing goes out before, and none is left unanswered."""
    with paced.ready(requests(backend.port, ITEM, 4), Setting(None, tmp_path)) as crowd:
        assert backend.report()["requests"] == 0
        paced.pace(crowd, 400, 0.5)
        assert paced.unanswered(crowd) == 0
        seen = crowd.report()
    assert 100 <= seen.answers <= 210
    assert (seen.errors, seen.statuses) == (0, {"200": seen.answers})
    assert seen.counts["requests"] == seen.answers == backend.report()["requests"]


def test_waiting_for_a_turn_counts(tmp_path: Path, backend: Backend):
    """With too few clients for the rate a request begins when it was due, so a slow server cannot hide."""
    backend.delay(100)
    with paced.ready(requests(backend.port, ITEM, 1), Setting(None, tmp_path)) as crowd:
        paced.pace(crowd, 100, 0.6)
        assert paced.unanswered(crowd) == 0
        assert crowd.report().max_ms > 300


def test_a_request_without_an_answer_is_told(tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """A request that hangs is no answer and no error, so it is counted by itself."""
    monkeypatch.setattr(paced, "OVERDUE_SECONDS", 0.0)
    backend.delay(600_000)
    with paced.ready(requests(backend.port, ITEM, 2), Setting(None, tmp_path)) as crowd:
        crowd.tell("pace 100")
        eventually_blocking(lambda: backend.report()["delayed"] == 2)
        assert paced.unanswered(crowd) == 2


def test_shares():
    """Spread is the largest distance from the mean; a share is that of the first backend between two moments."""
    assert spread_percent([100, 100, 100]) == 0
    assert spread_percent([90, 105, 105]) == pytest.approx(10)
    assert spread_percent([0, 0, 0]) == 0
    steps = [(1.0, [0, 5]), (2.0, [1, 3]), (3.0, [2, 2])]
    assert share_percent(steps, 1, 2) == 25
    assert share_percent(steps, 0, 3) == pytest.approx(100 * 3 / 13)
    assert share_percent(steps, 3, 4) is None


def test_more_polls_than_files_are_left_out():
    """Each takes two connections."""
    check_files(10)
    with pytest.raises(Missing, match="two connections"):
        check_files(10**9)


def installed(name: str) -> object:
    """Mark a proxy that may be absent."""
    absent = shutil.which(name) is None and shutil.which(name, path="/usr/sbin") is None
    return pytest.param(name, marks=pytest.mark.skipif(absent, reason=f"{name} is not installed"))


PEERS = installed("nginx"), installed("haproxy")


@pytest.mark.parametrize("name", ["gateway", "gateway-jwt", "aiohttp", *PEERS])
def test_requests_go_through_every_proxy(setting: Setting, name: str):
    """All are answered, at full speed and at a steady rate, and the proxy's CPU time is counted."""
    figures = proxy.measure(PROXIES[name], setting, clients=8, rate=200, seconds=0.5)
    assert figures["errors"] == 0
    assert figures["requests_per_s"] > 100
    assert 0 < figures["us_per_request"] < 1e5
    assert figures["paced_p50_ms"] > 0


@pytest.mark.parametrize("name", ["gateway", *PEERS])
def test_polls_are_held_behind_every_proxy(setting: Setting, name: str):
    """Each is held by one of the backends, evenly, and answered as often as it is asked."""
    figures = held.measure(PROXIES[name], setting, clients=30)
    assert (figures["errors"], figures["spread"], figures["spread_percent_late"]) == (0, [10, 10, 10], 0)
    assert figures["answers"] == 30 * held.CYCLES


@pytest.mark.parametrize("name", ["gateway", *PEERS])
def test_restarts_go_unnoticed(setting: Setting, name: str):
    """A proxy that tries another backend shows no error."""
    figures = restarts.measure(PROXIES[name], setting, clients=8, rate=100, pause=0.2)
    assert figures["errors"] == 0
    assert figures["requests"] > 30


@pytest.mark.parametrize("name", ["gateway", *PEERS])
def test_the_polls_of_a_backend_that_died_do_not_hang(setting: Setting, name: str, monkeypatch: pytest.MonkeyPatch):
    """They are held by the others soon, and the backend gets requests again when it is back."""
    monkeypatch.setattr(killed, "REST", 1.5)
    figures = killed.measure(PROXIES[name], setting, clients=30, rate=100, slow_start=0.5)
    assert (figures["on_it"], figures["hanging"]) == (10, 0)
    assert figures["ended_s"] < 10
    assert figures["back_s"] is not None


@pytest.mark.parametrize("name", ["gateway", PEERS[0]])
def test_a_slow_backend_is_left_out_and_comes_back(setting: Setting, name: str):
    """The shares of the requests tell when."""
    figures = ejected.measure(PROXIES[name], setting, clients=200, rate=150, seconds=2.5)
    assert figures["ejected_s"] is not None
    assert figures["slow_percent"] < 30
    assert figures["errors"] == 0


def test_the_gateway_beside_another_proxy(setting: Setting):
    """Both are asked in turn, and the figures are those of the other one and of their ratio."""
    figures = ratio.measure(PROXIES["aiohttp"], setting, clients=4, pairs=2, seconds=0.2)
    assert figures["errors"] == 0
    assert 0 < figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
    assert figures["us_gateway"] > 0
    assert set(ratio.COLUMNS) == set(figures)
