"""The whole process: start, clients that leave, drain, stop."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from integration.ports import free_ports
from livegateway import CONFIG, ISSUER, OTHER_ISSUER, OTHER_SECRET, SECRET, Live, configuration, live, token
from waiting import eventually

from gateway import app
from gateway.app import Gateway, KafkaFacts, run, serving
from gateway.devbroker.server import Broker
from gateway.metrics import Metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def gateway():
    """Run a gateway with the configuration of the tests."""
    async with live() as running:
        yield running


# --- start and stop ---


async def test_a_gateway_starts_without_kafka():
    """It answers, and says that it is not ready."""
    async with live() as gateway:
        await gateway.broker.stop()
        config = configuration(gateway.broker.address)
        async with serving(config) as alone:
            assert (await gateway.ask("GET", "/livez", port=alone.port)).status == 200
            assert (await gateway.ask("GET", "/readyz", port=alone.admin_port)).status == 503


async def test_a_port_that_is_taken_leaves_nothing_behind(gateway: Live):
    """OSError, and every task and socket of the half-started process is gone."""
    config = configuration(gateway.broker.address, server={"port": gateway.gateway.port})
    with pytest.raises(OSError, match="address already in use"):
        async with serving(config):
            raise AssertionError("it cannot serve")


async def test_keys_that_cannot_be_read_stop_the_start(gateway: Live, tmp_path):
    """A gateway that would refuse everybody does not begin."""
    file = tmp_path / "keys.json"
    file.write_text("a secret which is long enough for a test")
    issuers = {"test": {"keys": [{"algorithm": "HS256", "file": str(file)}]}}
    config = configuration(gateway.broker.address, auth={"issuers": issuers})
    file.unlink()
    with pytest.raises(ValueError, match=r"keys\.json"):
        async with serving(config):
            raise AssertionError("it cannot serve")


async def test_stopping_ends_parked_polls_with_an_answer(gateway: Live):
    """Without a drain they hear the same: nothing, and to go elsewhere."""
    async with live() as other:
        polling = other.parking("news")
        await other.parked()
        await asyncio.wait_for(other.gateway.stop(), 2)
        reply = await polling
        assert (reply.status, reply.headers["Connection"]) == (204, "close")
        assert other.gateway.hub.parked == 0


async def test_a_task_that_fails_is_logged(gateway: Live, caplog):
    """Nobody awaits the tasks of the process, so nobody else would tell."""

    async def fail() -> None:
        raise ZeroDivisionError("of the test")

    task = gateway.gateway._spawn(fail())
    await asyncio.wait([task])
    await eventually(lambda: "of the test" in caplog.text)
    assert task not in gateway.gateway._tasks


def test_the_version_is_that_of_the_distribution(monkeypatch):
    """Or unknown, in a checkout that is not installed."""

    def missing(name: str) -> str:
        raise app.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(app.metadata, "version", lambda name: f"1.2 of {name}")
    assert app.version() == "1.2 of longpoll-gateway"
    monkeypatch.setattr(app.metadata, "version", missing)
    assert app.version() == "unknown"


# --- facts of Kafka ---


def test_kafka_facts_become_metrics(caplog):
    """Counted, pulled, and logged where somebody should look."""
    metrics = Metrics(version="1")
    topics = {"news"}
    facts = KafkaFacts(metrics, topics)
    with caplog.at_level("INFO"):
        facts.connected(up=False)
        facts.connected(up=True)
        facts.skipped("news", 0, 5, 8)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "ERROR"]
    assert "offsets 5 to 7" in caplog.text
    facts.kafka_error("NOT_LEADER")
    facts.cold_read("news", records=2, size=100)
    facts.cold_hit("news")
    facts.produced("news", records=1, size=10)
    facts.fetched("news", 0, records=3, size=50, lag=7, unstable=2)

    def shown() -> str:
        return metrics.exposition()[0].decode()

    text = shown()
    for line in (
        'gateway_kafka_errors_total{error="NOT_LEADER"} 1.0',
        'gateway_kafka_errors_total{error="UNDECODABLE"} 1.0',
        "gateway_cold_reads_total 1.0",
        "gateway_cold_read_bytes_total 100.0",
        'gateway_fetched_records_total{topic="news"} 3.0',
        'gateway_consumer_lag_records{partition="0",topic="news"} 7.0',
        'gateway_unstable_records{partition="0",topic="news"} 2.0',
    ):
        assert line in text
    facts.fetched("news", 0, records=1, size=5, lag=0, unstable=0)
    text = shown()
    assert 'gateway_consumer_lag_records{partition="0",topic="news"} 0.0' in text
    assert 'gateway_unstable_age_seconds{partition="0",topic="news"} 0.0' in text


def test_the_lag_of_a_topic_that_is_no_longer_followed_is_gone():
    """It would stand still for ever, and look like a problem."""
    metrics = Metrics(version="1")
    topics = {"news", "notes"}
    facts = KafkaFacts(metrics, topics)
    for name in ("news", "notes"):
        facts.fetched(name, 0, records=1, size=1, lag=1, unstable=1)
    topics.remove("news")
    text = metrics.exposition()[0].decode()
    assert 'topic="news"} 1.0' not in text.split("gateway_consumer_lag_records", 1)[1]
    assert 'gateway_consumer_lag_records{partition="0",topic="notes"} 1.0' in text
    assert facts._lag.keys() == facts._unstable.keys() == {("notes", "0")}


async def test_an_unstable_offset_ages(gateway: Live):
    """From when it was first seen to stand behind."""
    await gateway.poll("news")
    transaction = gateway.broker.transaction()
    transaction.append("news", 0, [b"1"])

    async def aged():
        return (await gateway.metrics()).get("gateway_unstable_age_seconds{0,news}", 0) > 0.05

    await eventually(aged)
    transaction.commit()

    async def over():
        return (await gateway.metrics())["gateway_unstable_age_seconds{0,news}"] == 0

    await eventually(over)


# --- clients that leave ---


async def idle(gateway: Live) -> None:
    """Wait, a second at most, until the metrics and the limits say that nobody is waiting."""

    async def nobody():
        shown = await gateway.metrics()
        return not any(value for name, value in shown.items() if name.startswith("gateway_parked_waiters"))

    await eventually(nobody, timeout=1.0)
    await eventually(lambda: gateway.gateway.slots.held == 0, timeout=1.0)


async def test_a_client_with_less_patience_than_the_hold(gateway: Live):
    """Its own time-out closes the connection: no waiter is left, and its cursor gets all that came meanwhile."""
    first = await gateway.poll("news")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await gateway.poll("news", cursor=first.cursor, wait=20)
    await idle(gateway)
    gateway.broker.append("news", 0, [b"1", b"2"])
    assert (await gateway.poll("news", cursor=first.cursor, wait=10)).values == [1, 2]


def opened(gateway: Live, query: str, window: int = 0) -> socket.socket:
    """Send a poll on a socket of its own, with a small receive window if asked."""
    connection = socket.socket()
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", gateway.gateway.port))
    connection.sendall(f"GET /v1/subscribe?{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
    return connection


async def test_a_client_that_closes_in_the_middle_of_an_answer(gateway: Live):
    """It has read some bytes of the body; with its old cursor it gets all of it again."""
    first = await gateway.poll("notes")
    with opened(gateway, f"channel=notes&wait=20&max_bytes=8388608&cursor={first.cursor}", window=4096) as connection:
        await gateway.parked()
        for _ in range(3):
            gateway.broker.append("notes", 0, [b"x" * 900_000])
        assert (await asyncio.to_thread(connection.recv, 100)).startswith(b"HTTP/1.1 200")
    await idle(gateway)
    await eventually(lambda: not gateway.gateway._listeners[0].connections)
    reply = await gateway.poll("notes", cursor=first.cursor, wait=10, max_bytes=8388608)
    while len(reply.messages) < 3:
        reply = await gateway.poll("notes", cursor=first.cursor, max_bytes=8388608)
    assert [len(value) for value in reply.values] == [900_000] * 3


async def test_a_client_that_never_reads(gateway: Live):
    """It holds a connection, but no waiter and no slot; others are served, and it loses nothing."""
    first = await gateway.poll("notes")
    query = f"channel=notes&wait=20&max_bytes=8388608&cursor={first.cursor}"
    with opened(gateway, query, window=4096):
        await gateway.parked()
        other = gateway.parking("notes", cursor=first.cursor)
        await gateway.parked(2)
        for _ in range(6):
            gateway.broker.append("notes", 0, [b"x" * 900_000])
        assert (await other).status == 200
        await idle(gateway)
        again = await gateway.poll("notes", cursor=first.cursor, wait=10)
        assert again.status == 200
    await eventually(lambda: not gateway.gateway._listeners[0].connections)


async def test_clients_that_come_and_go_lose_nothing():
    """Some hang up at any moment; along its chain of cursors each gets every record once, in order."""
    async with live(limits={"polls": None, "address": None}) as gateway:
        await _come_and_go(gateway, total=300, clients=12)
        await idle(gateway)


async def _come_and_go(gateway: Live, total: int, clients: int) -> None:

    start = (await gateway.poll("notes")).cursor

    async def follow(number: int) -> list[int]:
        seen: list[int] = []
        cursor = start
        while len(seen) < total:
            try:
                async with asyncio.timeout(0.02 + 0.01 * number):
                    reply = await gateway.poll("notes", cursor=cursor, wait=20, limit=7 + number)
            except TimeoutError:
                continue
            seen += [int(value) for value in reply.values]
            cursor = reply.cursor
        return seen

    following = [asyncio.ensure_future(follow(number)) for number in range(clients)]
    for n in range(total):
        gateway.broker.append("notes", 0, [b"%d" % n])
        if n % 10 == 0:
            await asyncio.sleep(0.002)
    for seen in await asyncio.gather(*following):
        assert seen == list(range(total))


async def test_a_cursor_goes_on_at_another_instance(gateway: Live):
    """Nothing lost, nothing doubled, no stickiness."""
    async with serving(configuration(gateway.broker.address)) as second:
        gateway.broker.append("notes", 0, [b"%d" % n for n in range(20)])
        cursor, seen = "", []
        reply = await gateway.poll("notes", from_="earliest", limit=3)
        while len(seen) < 20:
            seen += reply.values
            cursor = reply.cursor
            port = [gateway.gateway.port, second.port][len(seen) % 2]
            target = f"/v1/subscribe?channel=notes&limit=3&wait=2&cursor={cursor}"
            reply = await gateway.ask("GET", target, headers=gateway.bearer(), port=port) if len(seen) < 20 else reply
        assert seen == [str(n) for n in range(20)]


# --- the end ---


async def test_run_drains_and_a_second_signal_cuts_that_short():
    """Signals are the operator's words: the first asks, the second insists."""
    async with Broker() as broker:
        broker.create_topic("news", 1)
        config = configuration(broker.address, drain={"delay": 60, "window": 60})
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        running = asyncio.ensure_future(run(config, ready=ready.set_result))
        assert (await ready).startswith("http://127.0.0.1:")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert not running.done()
        os.kill(os.getpid(), signal.SIGINT)
        assert await asyncio.wait_for(running, 10) == 0


async def test_run_without_anybody_to_tell():
    """`ready` may be left out."""
    async with Broker() as broker:
        running = asyncio.ensure_future(run(configuration(broker.address)))
        await eventually(lambda: asyncio.get_running_loop()._signal_handlers)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(running, 10) == 0


@pytest.fixture(autouse=True)
def _logging():
    """`run` sends all logs through its own handler; give pytest's back."""
    import logging  # noqa: PLC0415

    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


async def test_draining_says_so_at_once_and_takes_its_time():
    """/readyz first; polls go on until the delay is over, then nobody new is accepted."""
    async with live(drain={"delay": 0.5, "window": 0.3}) as gateway:
        await eventually(lambda: _ready(gateway))
        held = [gateway.parking("news") for _ in range(20)]
        await gateway.parked(20)
        draining = asyncio.ensure_future(gateway.gateway.drain())
        await asyncio.sleep(0)
        reply = await gateway.ready()
        assert (reply.status, reply.json["failed"]) == (503, {"process": "draining"})
        assert (await gateway.poll("news")).status == 204
        assert not any(task.done() for task in held)
        await draining
        for reply in await asyncio.gather(*held):
            assert reply.status == 204
            assert reply.headers["Connection"] == "close"
            assert reply.cursor
        with pytest.raises(OSError):
            await gateway.poll("news")
        assert (await gateway.metrics())["gateway_answers_total{drained,poll}"] == 20
        assert (await gateway.ready()).headers["Connection"] == "close"


async def _ready(gateway: Live) -> bool:
    return (await gateway.ready()).status == 200


async def test_a_connection_that_is_kept_is_told_to_go():
    """A poll that comes on an open connection while the process drains does not park: 204, and `Connection: close`."""
    async with live(drain={"delay": 0, "window": 1}) as gateway:
        held = gateway.parking("news")
        await gateway.parked()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        head = f"GET /v1/subscribe?channel=news&wait=WAIT HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n"
        writer.write(head.replace("WAIT", "0").encode())
        assert b"Connection" not in await reader.readuntil(b"\r\n\r\n")
        draining = asyncio.ensure_future(gateway.gateway.drain())
        await eventually(lambda: gateway.gateway.parking.draining)
        writer.write(head.replace("WAIT", "20").encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 204")
        assert b"Connection: close" in answer
        writer.close()
        await writer.wait_closed()
        assert (await held).status == 204
        await draining


async def test_a_thousand_parked_polls_and_sigterm(tmp_path):
    """The real process: unready at once, accepting for a while, then every poll ends with 204, spread out; exit code 0."""
    delay, window, count = 0.5, 1.5, 1_000
    async with Broker() as broker:
        broker.create_topic("news", 2)
        file = tmp_path / "gateway.yaml"
        limits = "limits: {address: null, polls: null, concurrent_polls: 2000}"
        drain = f"drain: {{delay: {delay}, window: {window}}}"
        ports = free_ports(2)
        text = CONFIG.replace("drain: {delay: 0, window: 0}", f"{drain}\n{limits}")
        file.write_text(text.replace("port: 0, admin: {port: 0}", f"port: {ports[0]}, admin: {{port: {ports[1]}}}"))
        env = os.environ | {
            "KAFKA": broker.address, "ISSUER": ISSUER, "SECRET": SECRET, "OTHER_ISSUER": OTHER_ISSUER, "OTHER_SECRET": OTHER_SECRET,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "-c", str(file), cwd=ROOT, env=env, stderr=asyncio.subprocess.PIPE
        )
        try:
            await eventually(lambda: _get(ports[1], "/readyz", 200))
            shared = token()
            polls = [asyncio.ensure_future(_held_poll(ports[0], shared)) for _ in range(count)]
            await eventually(lambda: _parked(ports[1], count))
            process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            await eventually(lambda: _get(ports[1], "/readyz", 503), timeout=delay)
            assert await _get(ports[0], "/livez", 200)
            assert not any(poll.done() for poll in polls)
            ended = sorted([await poll for poll in polls])
            assert await asyncio.wait_for(process.wait(), 15) == 0
            assert await process.stderr.read() == b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    # The first after the delay, the last at the end of the window, and no storm in between.
    assert delay - 0.1 < ended[0] - asked
    assert ended[-1] - asked < delay + window + 1.5
    steps = [sum(n * 0.25 <= at - asked - delay < (n + 1) * 0.25 for at in ended) for n in range(int((window + 2) / 0.25))]
    assert max(steps) <= count / 2, steps
    assert sum(step > count / 20 for step in steps) >= 4, steps


async def _held_poll(port: int, bearer: str) -> float:
    """Hold a poll; return when it ended, having checked how."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /v1/subscribe?channel=news&wait=50 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    at = time.monotonic()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 204"), answer
    assert b"\r\nConnection: close" in answer
    assert b"\r\nNext-Cursor: " in answer
    return at


async def _get(port: int, path: str, status: int) -> bool:
    return (await _fetched(port, path))[0] == status


async def _parked(port: int, count: int) -> bool:
    return json.loads((await _fetched(port, "/readyz"))[1])["parked_polls"] == count


async def _fetched(port: int, path: str) -> tuple[int, bytes]:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, b"{}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


async def test_a_gateway_can_be_built_and_never_started():
    """Stopping it is nothing."""
    async with Broker() as broker:
        gateway = Gateway(configuration(broker.address, log={"access": True}))
        await gateway.stop()
