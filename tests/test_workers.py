"""Several workers behind one port, as real processes; the port itself; a worker by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml
from livegateway import CONFIG, ISSUER, OTHER_ISSUER, OTHER_SECRET, SECRET, client, configuration, merged, token
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from gateway.app import Gateway, Place
from gateway.devbroker.server import Broker
from gateway.workers import receive, reserved, worker_command

ROOT = Path(__file__).parents[1]
SECONDS = 30.0
"""For what takes a new interpreter to start, on a machine that is busy."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


# --- real processes ---


class Site:
    """A supervisor with its workers in front of a broker, as `gateway serve` starts them."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, admin: int, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.admin = admin
        self.session = session
        self._folder = folder

    @property
    def log(self) -> list[dict[str, Any]]:
        """The process log so far."""
        return [json.loads(line) for line in (self._folder / "err").read_text().splitlines()]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The access log so far."""
        return [json.loads(line) for line in (self._folder / "out").read_text().splitlines()]

    @property
    def port(self) -> int:
        """The port that the supervisor has found."""
        [found] = [said for entry in self.log if (said := re.fullmatch(r"\d workers share port (\d+)", entry["message"]))]
        return int(found[1])

    async def ready(self) -> tuple[int, dict[str, Any]]:
        """Ask /readyz; status 0 while nobody listens."""
        try:
            async with self.session.get(f"http://127.0.0.1:{self.admin}/readyz") as answer:
                return answer.status, await answer.json()
        except aiohttp.ClientConnectionError:
            return 0, {}

    async def is_ready(self) -> bool:
        return (await self.ready())[0] == 200

    async def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [told["pid"] for told in (await self.ready())[1]["workers"]]

    async def parked(self) -> list[int]:
        """Return how many polls each worker holds."""
        return [told["parked_polls"] for told in (await self.ready())[1]["workers"]]

    async def metrics(self) -> dict[str, float]:
        """Ask /metrics."""
        async with self.session.get(f"http://127.0.0.1:{self.admin}/metrics") as answer:
            text = await answer.text()
        return {
            f"{sample.name}{{{','.join(value for _, value in sorted(sample.labels.items()))}}}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def poll(self, wait: float = 0, cursor: str = "") -> tuple[int, str, str]:
        """Poll on a connection of its own; return the status, the cursor and what becomes of the connection.

        IncompleteReadError if it breaks: aiohttp's client would ask again then, and meet another worker.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        target = f"/v1/subscribe?channel=news&wait={wait}" + (f"&cursor={cursor}" if cursor else "")
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
            first, _, fields = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
        finally:
            writer.close()
        headers = Parser().parsestr(fields)
        return int(first.split()[1]), headers.get("Next-Cursor", ""), headers.get("Connection", "")

    async def held_by_both(self, least: int = 1) -> list[asyncio.Task[tuple[int, str, str]]]:
        """Hold polls until each worker has some, by turns on lanes (with a cursor) and not."""
        held: list[asyncio.Task[tuple[int, str, str]]] = []
        _, cursor, _ = await self.poll()

        async def spread() -> bool:
            if sum(await self.parked()) == len(held):
                held.append(asyncio.ensure_future(self.poll(wait=50, cursor=cursor if len(held) % 2 else "")))
            return min(await self.parked()) >= least

        await eventually(spread)
        await eventually(lambda: self._all_parked(len(held)))
        return held

    async def _all_parked(self, count: int) -> bool:
        return sum(await self.parked()) == count


@contextlib.asynccontextmanager
async def site(broker: Broker, folder: Path, **sections: Any) -> AsyncIterator[Site]:
    """Run two workers, which are ready when the block begins."""
    admin = free_port()
    own = {"server": {"admin": {"port": admin}}, "log": {"level": "info", "access": True}}
    (folder / "gateway.yaml").write_text(json.dumps(merged(merged(yaml.safe_load(CONFIG), own), sections)))
    env = os.environ | {
        "KAFKA": broker.address, "ISSUER": ISSUER, "SECRET": SECRET, "OTHER_ISSUER": OTHER_ISSUER, "OTHER_SECRET": OTHER_SECRET,
        "TMPDIR": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(folder / "gateway.yaml"), "--workers", "2"]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stdout=out, stderr=err)
    pids: list[int] = []
    try:
        async with client() as session:
            running = Site(process, folder, admin, session)
            await eventually(running.is_ready, timeout=SECONDS, interval=0.05)
            pids += await running.pids()
            yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as running:
        running.create_topic("news", 2)
        yield running


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short path: those of Unix sockets end at some hundred characters."""
    return tmp_path_factory.mktemp("w")


async def test_two_workers_serve_as_one(broker: Broker, folder: Path):
    """Both take connections, their numbers add up, the death of one is a short one, and the end is as with one process."""
    async with site(broker, folder) as site_:
        [sockets] = [path for path in folder.iterdir() if path.is_dir()]
        assert sockets.stat().st_mode & 0o777 == 0o700
        await _both_serve(broker, site_)
        await _one_dies(site_)
        await _both_drain(site_)
    assert [path for path in folder.iterdir() if path.is_dir()] == []


async def _both_serve(broker: Broker, site: Site) -> None:
    status, told = await site.ready()
    assert (status, told["ready"], told["failed"]) == (200, True, {})
    assert [worker["worker"] for worker in told["workers"]] == [1, 2]
    assert len({*(await site.pids()), site.process.pid}) == 3
    held = await site.held_by_both()
    assert (await site.ready())[1]["parked_polls"] == len(held)
    for _ in range(20):
        assert (await site.poll())[0] == 204
    before = await site.metrics()
    assert before["gateway_answers_total{empty,poll}"] == 21
    assert before["gateway_responses_total{/v1/subscribe,204}"] == 21
    assert before["gateway_parked_waiters{news}"] == len(held)
    assert before["gateway_open_connections{http}"] == len(held) + 1
    assert before["gateway_up{}"] == before["gateway_ready{}"] == 1
    assert [before[f"gateway_workers{{{state}}}"] for state in ("expected", "running", "serving")] == [2, 2, 2]
    assert before["gateway_worker_restarts_total{}"] == before["gateway_scrape_errors_total{}"] == 0
    # What operators ask is counted once, by the supervisor, and not again where it asks.
    asked = [entry["path"] for entry in site.requests if entry["status"] == 200]
    assert before["gateway_responses_total{/readyz,200}"] == asked.count("/readyz")
    broker.append("news", 0, [b"1"])
    assert [(await task)[0] for task in held] == [200] * len(held)
    assert (await site.metrics())["gateway_answers_total{messages,poll}"] == len(held)
    assert {entry["worker"] for entry in site.log if "Kafka" in entry["message"]} == {1, 2}


async def _one_dies(site: Site) -> None:
    held = await site.held_by_both()
    first, second = await site.parked()
    before, (victim, other) = await site.metrics(), await site.pids()
    os.kill(victim, signal.SIGKILL)
    broken = [
        result for result in await _settled(held, first) if isinstance(result, asyncio.IncompleteReadError | ConnectionError)
    ]
    assert len(broken) == first
    assert (await site.poll())[0] == 204, "the other one has the port"
    await eventually(site.is_ready, timeout=SECONDS, interval=0.05)
    assert (await site.pids())[1] == other != (await site.pids())[0] != victim
    assert [worker["restarts"] for worker in (await site.ready())[1]["workers"]] == [1, 0]
    assert (await site.parked())[1] == second
    after = await site.metrics()
    assert after["gateway_worker_restarts_total{}"] == 1
    assert [name for name in before if "_total" in name and after[name] < before[name]] == []
    assert after["gateway_answers_total{empty,poll}"] == before["gateway_answers_total{empty,poll}"] + 1
    assert any(entry["message"].startswith("worker 1 was ended by SIGKILL") for entry in site.log)
    rest = [task for task in held if not task.done()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def _settled(tasks: list[asyncio.Task[Any]], count: int) -> list[Any]:
    await eventually(lambda: sum(task.done() for task in tasks) >= count)
    return await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)


async def _both_drain(site: Site) -> None:
    held = await site.held_by_both()
    site.process.send_signal(signal.SIGTERM)
    for task in held:
        status, cursor, connection = await task
        assert (status, connection) == (204, "close")
        assert cursor
    async with asyncio.timeout(SECONDS):
        assert await site.process.wait() == 0


async def test_ctrl_c_asks_once_and_again(broker: Broker, folder: Path):
    """/readyz says at once that all drain; a second signal does not wait for them."""
    async with site(broker, folder, drain={"delay": 60, "window": 60}) as site_:
        held = await site_.held_by_both()
        site_.process.send_signal(signal.SIGINT)

        async def draining() -> bool:
            status, told = await site_.ready()
            return status == 503 and set(told["failed"].values()) == {"draining", "process: draining"}

        await eventually(draining)
        assert set((await site_.ready())[1]["failed"]) == {"process", "worker 1", "worker 2"}
        assert (await site_.poll())[0] == 204
        assert not any(task.done() for task in held)
        site_.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SECONDS):
            assert await site_.process.wait() == 0
        assert {(await task)[0] for task in held} == {204}


async def test_workers_end_with_a_supervisor_that_is_killed(broker: Broker, folder: Path):
    """Nobody tells them, they find out: parked polls get their answer, and neither port nor folder is left."""
    async with site(broker, folder) as site_:
        held = await site_.held_by_both()
        pids = await site_.pids()
        site_.process.kill()
        assert {(await task)[0] for task in held} == {204}
        await eventually(lambda: not any(_runs(pid) for pid in pids), timeout=SECONDS)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", site_.port), timeout=5)
        assert [path for path in folder.iterdir() if path.is_dir()] == []


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that has ended may be there as a zombie until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_taken_port_is_one_line(folder: Path):
    """Before a worker is started; exit code 1."""
    import subprocess  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (folder / "gateway.yaml").write_text(
            f"server: {{host: 127.0.0.1, port: {port}, workers: 2, admin: {{port: 0}}}}\nkafka: {{bootstrap_servers: 'a:1'}}"
        )
        command = [sys.executable, "-m", "gateway", "serve", "-c", str(folder / "gateway.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    assert f"address ('127.0.0.1', {port}): address already in use" in line


# --- the port ---


class TestReserved:
    def test_a_free_port_is_kept(self):
        """Nobody answers there, workers can listen there, and others cannot."""
        with reserved("127.0.0.1", 0) as port:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            with pytest.raises(OSError, match="in use"), socket.socket() as other:
                other.bind(("127.0.0.1", port))
            with (
                socket.create_server(("127.0.0.1", port), reuse_port=True),
                socket.create_server(("127.0.0.1", port), reuse_port=True),
            ):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()

    def test_a_port_that_others_share_is_taken_all_the_same(self):
        """The workers of another supervisor: the kernel would let both have it, and clients would meet either."""
        with (
            socket.create_server(("127.0.0.1", 0), reuse_port=True) as other,
            pytest.raises(OSError, match=r"bind on address \('127\.0\.0\.1', \d+\): address already in use"),
            reserved("127.0.0.1", other.getsockname()[1]),
        ):
            raise AssertionError("it cannot be had")

    def test_a_name_with_two_addresses_has_one_port(self, monkeypatch):
        """As for `localhost`, on both families."""
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        found = [
            *socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM),
            *socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        try:
            with (
                reserved("localhost", 0) as port,
                socket.socket(socket.AF_INET6) as other,
                pytest.raises(OSError, match="in use"),
            ):
                other.bind(("::1", port))
        except OSError:
            pytest.skip("no IPv6 here")

    def test_a_system_that_cannot(self, monkeypatch):
        """It is told, with the way out."""
        monkeypatch.delattr(socket, "SO_REUSEPORT")
        with pytest.raises(OSError, match=r"set server\.workers to 1"), reserved("127.0.0.1", 0):
            raise AssertionError("there is no such option")


async def never() -> None:
    """Be abandoned by nobody."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def pair(broker: Broker, folder: Path, **sections: Any) -> AsyncIterator[tuple[int, list[Gateway]]]:
    """Run two gateways as workers of one port, both in this process."""
    config = configuration(broker.address, **sections)
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(reserved("127.0.0.1", 0))
        both = [Gateway(config, Place(number, port, str(folder / str(number)), never)) for number in (1, 2)]
        for gateway in both:
            stack.push_async_callback(gateway.stop)
            await gateway.start()
        yield port, both


async def test_workers_serve_https(broker: Broker, folder: Path):
    """Each with the certificate of the configuration."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = {"certfile": str(folder / "chain.pem"), "keyfile": str(folder / "key.pem")}
    async with pair(broker, folder, server={"tls": tls}) as (port, both), client() as session:
        headers = {"Authorization": f"Bearer {token()}"}
        url = f"https://127.0.0.1:{port}/v1/subscribe?channel=news&wait=0"

        async def both_asked() -> bool:
            async with session.get(url, headers=headers, ssl=context) as answer:
                assert answer.status == 204
            return all("gateway_responses_total{" in gateway.metrics.exposition()[0].decode() for gateway in both)

        await eventually(both_asked)


async def test_workers_expect_the_proxy_protocol(broker: Broker, folder: Path):
    """Each of them reads the header, and refuses who sends none."""
    server = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1/32"]}
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 7, 127, 0, 0, 1, 0x30, 0x39, 0, 80))
    async with pair(broker, folder, server=server) as (port, both):

        async def answer(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data + b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

        def count(name: str) -> list[bool]:
            return [name in gateway.metrics.exposition()[0].decode() for gateway in both]

        async def both_asked() -> bool:
            assert b"200 OK" in await answer(header)
            assert await answer(b"") == b""
            return all(count('gateway_responses_total{route="/livez"') + count('header_refusals_total{reason="malformed"} '))

        await eventually(both_asked)


# --- a worker ---


def test_a_worker_is_started_as_its_supervisor_was(monkeypatch):
    """Only who looked into the working directory for the gateway lets the workers look there."""
    monkeypatch.setattr(sys, "path", ["/usr/bin", "/usr/lib/python3"])
    assert worker_command() == [sys.executable, "-P", "-m", "gateway", "worker"]
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3"])
    assert worker_command() == [sys.executable, "-m", "gateway", "worker"]


def test_a_worker_without_a_supervisor_does_not_begin():
    """Whatever its standard input is: no socket, or one on which no order comes."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(ValueError, match="no supervisor"):
            receive(reading)
    finally:
        os.close(reading)
        os.close(writing)
    for said in (b"", b"hello\n"):
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(said)
            ours.shutdown(socket.SHUT_WR)
            with pytest.raises(ValueError, match="no order"):
                receive(theirs.detach())
