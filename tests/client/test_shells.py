"""The shells over real sockets: ended, cancelled, left and used from everywhere, they leave nothing behind and a right store."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from client.conformance.scripted import Script, ScriptedServer
from livegateway import Background, background, token
from waiting import eventually, eventually_blocking

from gateway.client import AsyncClient, Client, GaveUp, MemoryStore, Position, Refused, Retry, Token
from gateway.client.waking import Interrupt

ROOT = Path(__file__).parents[2]
QUICK = Retry(base=0.001, cap=0.005)
PATIENT = Retry(base=30.0, cap=30.0)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    with background() as running:
        yield running


def script(server: ScriptedServer, *exchanges: Any) -> tuple[Script, str]:
    """Begin a script with a name of its own."""
    return server.play(f"s{time.monotonic_ns()}", list(exchanges))


def sockets() -> set[str]:
    """Return the sockets that this process has open."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        try:
            target = str(each.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


MESSAGES = {"messages": [[0, 1, "a"], [0, 2, "b"]], "cursor": "c2"}
COURSE = (
    {"status": 204, "cursor": "c1"},
    {"status": 503, "code": "overloaded"},
    MESSAGES,
    {"messages": [[0, 3, "c"]], "cursor": "c3"},
)


class AsyncStore:
    """A store that takes its time."""

    def __init__(self) -> None:
        self.position: Position | None = None

    async def load(self) -> Position | None:
        await asyncio.sleep(0)
        return self.position

    async def save(self, position: Position) -> None:
        await asyncio.sleep(0)
        self.position = position
        await asyncio.sleep(0)


class Steps:
    """Drives a coroutine by hand and cancels it at one of the points where it waits."""

    def __init__(self, cancel_at: int) -> None:
        self.count = 0
        self._cancel_at = cancel_at

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run it; return whether it was cancelled."""
        task = asyncio.ensure_future(self._counted(work()))
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        await _Counting(work, self)

    def reached(self) -> bool:
        """Count a point; return whether it is the one."""
        self.count += 1
        return self.count == self._cancel_at


class _Counting:
    """Awaits a coroutine and cancels the task at a point where that waits."""

    def __init__(self, work: Coroutine[Any, Any, None], steps: Steps) -> None:
        self._work = work
        self._steps = steps

    def __await__(self) -> Any:
        iterator = self._work.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = iterator.send(value) if error is None else iterator.throw(error)
            except StopIteration as end:
                return end.value
            value = error = None
            if self._steps.reached():
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                value = yield waits_for
            except BaseException as caught:  # noqa: BLE001  # handed on to where it belongs
                error = caught


class TestCancelling:
    async def course(self, url: str, seen: list[int], store: AsyncStore) -> None:
        async with (
            AsyncClient(url, lambda: "t", retry=QUICK) as client,
            client.subscribe("news", store=store) as subscription,
        ):
            async for message in subscription:
                seen.append(message.offset)
                if message.offset == 3:
                    subscription.stop()

    async def test_a_subscription_at_every_await(self, server: ScriptedServer) -> None:
        """No socket and no task is left, and what is stored leads to exactly what was not processed yet."""
        before, point, cancelled = sockets(), 0, True
        while cancelled:
            point += 1
            store, seen = AsyncStore(), list[int]()
            _, url = script(server, *COURSE)
            cancelled = await Steps(point).run(lambda url=url, seen=seen, store=store: self.course(url, seen, store))
            await eventually(lambda: len(asyncio.all_tasks()) == 1)
            await eventually(lambda: sockets() <= before)
            # What the program had in hand when it was cancelled comes again; nothing before does, nothing is left out.
            done = -1 if store.position is None else store.position.beyond.get("news", {}).get(0, -1)
            assert done in ((-1, *seen)[-1], (-1, *seen)[-2] if seen else -1)
            again = list[int]()
            answer = {"messages": [[0, offset, "x"] for offset in (1, 2, 3)], "cursor": "c3"}
            first = [] if store.position is not None and store.position.cursor else [{"status": 204, "cursor": "c1"}]
            _, url = script(server, *first, answer)
            if done < 3:
                await self.course(url, again, store)
                assert again == [offset for offset in (1, 2, 3) if offset > done]
        assert point > 20

    async def test_a_publish_at_every_await(self, server: ScriptedServer) -> None:
        """No socket and no task is left."""
        before, point, cancelled = sockets(), 0, True
        stored = {"status": 201, "json": {"partition": 0, "offset": 1, "cursor": "c"}}

        async def publish(url: str) -> None:
            async with AsyncClient(url, lambda: "t", retry=QUICK) as client:
                await client.publish("news", 1)

        while cancelled:
            point += 1
            _, url = script(server, {"status": 503, "code": "overloaded"}, stored)
            cancelled = await Steps(point).run(lambda url=url: publish(url))
            await eventually(lambda: len(asyncio.all_tasks()) == 1)
            await eventually(lambda: sockets() <= before)
        assert point > 8

    async def test_what_was_cancelled_goes_on(self, server: ScriptedServer) -> None:
        """A time-out around `anext` is only a time-out: the next one gets what comes."""
        _, url = script(server, {"status": 204, "cursor": "c1"}, {**MESSAGES, "delay": 0.3})
        async with AsyncClient(url, retry=QUICK) as client, client.subscribe("news") as subscription:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(subscription)
            script_again, _ = script(server)
            assert not script_again.asked
            assert "AsyncSubscription" in repr(subscription)


@asynccontextmanager
async def reading(url: str, **given: Any) -> AsyncIterator[tuple[Any, asyncio.Task[list[int]]]]:
    """Read in a task."""
    async with AsyncClient(url, retry=given.pop("retry", QUICK)) as client:
        subscription = client.subscribe("news", **given)

        async def read() -> list[int]:
            return [message.offset async for message in subscription]

        task = asyncio.ensure_future(read())
        yield subscription, task
        task.cancel()


class TestStoppingAsync:
    async def test_in_a_read(self, server: ScriptedServer) -> None:
        """From another thread, while a poll is held."""
        played, url = script(server, {"status": 204, "cursor": "c1"})
        async with reading(url) as (subscription, task):
            await eventually(lambda: len(played.asked) == 2)
            threading.Thread(target=subscription.stop).start()
            async with asyncio.timeout(5):
                assert await task == []
            assert subscription.cursor == "c1"

    async def test_in_a_back_off(self, server: ScriptedServer) -> None:
        """A long sleep ends at once."""
        played, url = script(server, {"status": 503, "code": "overloaded"})
        async with reading(url, retry=PATIENT) as (subscription, task):
            await eventually(lambda: subscription.counters.retries == 1)
            subscription.stop()
            async with asyncio.timeout(5):
                assert await task == []
        assert len(played.asked) == 1

    async def test_before_it_begins(self, server: ScriptedServer) -> None:
        """Then nothing is asked."""
        played, url = script(server, {"status": 204, "cursor": "c1"})
        async with AsyncClient(url) as client:
            subscription = client.subscribe("news")
            subscription.stop()
            assert [message async for message in subscription] == []
            subscription.stop()
        assert played.asked == []

    async def test_after_the_loop_is_over(self, server: ScriptedServer) -> None:
        """It has nothing to do then."""
        subscriptions = []

        async def once() -> None:
            _, url = script(server, {"status": 204, "cursor": "c1"})
            async with AsyncClient(url) as client:
                subscriptions.append(client.subscribe("news", follow=False))
                assert [message async for message in subscriptions[0]] == []

        await asyncio.to_thread(asyncio.run, once())
        subscriptions[0].stop()

    async def test_a_time_out_of_the_programs_own(self, server: ScriptedServer) -> None:
        """Is not taken for a stop."""

        async def late() -> str:
            raise TimeoutError

        _, url = script(server)
        async with AsyncClient(url, late, retry=Retry(base=0, cap=0, attempts=2)) as client:
            with pytest.raises(GaveUp, match="TimeoutError"):
                await client.channels()


class TestStoppingSync:
    @contextmanager
    def reader(self, url: str, **given: Any) -> Iterator[tuple[Any, threading.Thread, list[int]]]:
        seen: list[int] = []
        with Client(url, retry=given.pop("retry", QUICK)) as client, client.subscribe("news", **given) as subscription:
            thread = threading.Thread(target=lambda: seen.extend(message.offset for message in subscription))
            thread.start()
            yield subscription, thread, seen
            thread.join(5)
            assert not thread.is_alive()

    def test_in_a_read(self, server: ScriptedServer) -> None:
        """From another thread, while a poll is held."""
        before = sockets()
        played, url = script(server, {"status": 204, "cursor": "c1"})
        store = MemoryStore()
        with self.reader(url, store=store) as (subscription, thread, _):
            eventually_blocking(lambda: len(played.asked) == 2)
            subscription.stop()
            thread.join(5)
        assert store.position == Position("c1", {}, ("news",))
        eventually_blocking(lambda: sockets() <= before)

    def test_in_a_body(self, server: ScriptedServer) -> None:
        """In the midst of an answer, of which nothing counts then."""
        played, url = script(server, {"status": 204, "cursor": "c1"}, {**MESSAGES, "stall": 120})
        with self.reader(url) as (subscription, thread, seen):
            eventually_blocking(lambda: len(played.asked) == 2)
            subscription.stop()
            thread.join(5)
        assert seen == []
        assert subscription.cursor == "c1"

    def test_in_a_back_off(self, server: ScriptedServer) -> None:
        """A long sleep ends at once."""
        _, url = script(server, {"status": 503, "code": "overloaded"})
        with self.reader(url, retry=PATIENT) as (subscription, _, _):
            eventually_blocking(lambda: subscription.counters.retries == 1)
            subscription.stop()

    def test_in_a_connect(self) -> None:
        """Also where nobody answers."""
        with Client("http://127.0.0.1:9", retry=PATIENT) as client:
            subscription = client.subscribe("news")
            threading.Timer(0.05, subscription.stop).start()
            assert list(subscription) == []

    def test_in_a_callback(self, server: ScriptedServer) -> None:
        """What the program does itself it ends itself; then it is over."""
        _, url = script(server, {"messages": [], "lost": [["news", 0, 0, 5]], "cursor": "c1", "up_to_date": False})
        with Client(url) as client:
            subscription = client.subscribe("news", cursor="c0", on_lost=lambda _: subscription.stop())
            assert list(subscription) == []

    def test_from_a_signal_handler(self, gateway: Background) -> None:
        """A program that is told to end ends in order, in the midst of a poll."""
        program = """
import os, signal
from gateway.client import Client
with Client(os.environ["URL"], os.environ["TOKEN"]) as client, client.subscribe("news") as subscription:
    signal.signal(signal.SIGTERM, lambda *_: subscription.stop())
    print("ready", flush=True)
    for message in subscription:
        pass
    print("ended", subscription.cursor is not None, flush=True)
"""
        variables = {**os.environ, "URL": f"http://127.0.0.1:{gateway.port}", "TOKEN": token("ann")}
        with subprocess.Popen(
            [sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, cwd=ROOT, env=variables
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            eventually_blocking(lambda: gateway.run(_parked(gateway)) == 1)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "ended True\n"
            assert process.wait(5) == 0


async def _parked(gateway: Background) -> float:
    metrics = await gateway.live.metrics()
    return sum(value for name, value in metrics.items() if name.startswith("gateway_parked_waiters"))


class TestLeaving:
    def test_by_an_error_of_the_program(self, server: ScriptedServer) -> None:
        """The message in hand is not processed, what came before it is."""
        store = MemoryStore()
        _, url = script(server, {"status": 204, "cursor": "c1"}, MESSAGES)

        def fail(client: Client) -> None:
            with client.subscribe("news", store=store) as subscription:
                for message in subscription:
                    if message.offset == 2:
                        raise ZeroDivisionError

        with Client(url) as client, pytest.raises(ZeroDivisionError):
            fail(client)
        assert store.position == Position("c1", {"news": {0: 1}}, ("news",))

    def test_without_closing_it(self, server: ScriptedServer) -> None:
        """The client closes what is open."""
        before = sockets()
        store = MemoryStore()
        _, url = script(server, {"status": 204, "cursor": "c1"}, MESSAGES)
        with Client(url) as client:
            for _ in client.subscribe("news", store=store):
                break
            assert "1 subscriptions" in repr(client)
        assert store.position is not None
        assert sockets() <= before
        assert "0 subscriptions" in repr(client)

    def test_closing_twice(self, server: ScriptedServer) -> None:
        """Is closing once."""
        _, url = script(server, {"status": 204, "cursor": "c1"})
        client = Client(url)
        subscription = client.subscribe("news", follow=False)
        assert list(subscription) == list(subscription) == []
        subscription.close()
        client.close()
        client.close()
        assert "ended" in repr(subscription)

    def test_a_store_that_fails(self, server: ScriptedServer) -> None:
        """The program gets what it raises; going on tries again."""

        class Failing(MemoryStore):
            times = 2

            def save(self, position: Position) -> None:
                self.times -= 1
                if self.times >= 0:
                    raise OSError("full")
                super().save(position)

        store = Failing()
        _, url = script(server, {"status": 204, "cursor": "c1"}, MESSAGES)
        with Client(url) as client, client.subscribe("news", store=store) as subscription:
            for _ in range(2):
                with pytest.raises(OSError, match="full"):
                    next(subscription)
            assert next(subscription).offset == 1
        assert store.position == Position("c1", {}, ("news",))

    def test_lost_records_without_a_say(self, server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
        """The log is told, without cursor and token."""
        _, url = script(server, {"messages": [[0, 5, "x"]], "lost": [["news", 0, 0, 5]], "cursor": "secret-cursor"})
        with Client(url, "secret-token") as client, caplog.at_level("DEBUG", "gateway.client"):
            assert next(client.subscribe("news", cursor="c0")).offset == 5
        assert "5 records of news are lost to retention" in caplog.text
        assert "secret" not in caplog.text

    async def test_the_same_for_asyncio(self, server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
        """Left by break, closed with its client."""
        _, url = script(server, {"messages": [[0, 5, "x"]], "lost": [["news", 0, 0, 5]], "cursor": "c1"})
        async with AsyncClient(url) as client:
            async for message in client.subscribe("news", cursor="c0"):
                assert message.offset == 5
                break
            assert client.counters.messages == 1
            assert "1 subscriptions" in repr(client)
        assert "5 records" in caplog.text

    async def test_callbacks_of_both_kinds(self, server: ScriptedServer) -> None:
        """An async client takes functions and coroutine functions."""
        told: list[Any] = []

        async def lost(what: Any) -> None:
            await asyncio.sleep(0)
            told.append(what)

        async def reset(_: Any) -> str:
            await asyncio.sleep(0)
            return "mine"

        reset_answer = {"status": 409, "code": "cursor_reset", "problem": {"cursor": "c9"}}
        played, url = script(server, {"messages": [], "lost": [["news", 0, 0, 5]], "cursor": "c1"}, reset_answer, MESSAGES)
        async with (
            AsyncClient(url) as client,
            client.subscribe("news", cursor="c0", on_lost=lost, on_reset=reset) as subscription,
        ):
            assert (await anext(subscription)).offset == 1
        assert len(told) == 1
        assert played.asked[2]["headers"]["cursor"] == "mine"


class TestUsing:
    def test_many_threads_with_one_client(self, gateway: Background) -> None:
        """Each has its own subscription, and all of them publish."""
        results: list[int] = []
        with Client(f"http://127.0.0.1:{gateway.port}", token("ann", scope="publish")) as client:
            ready = threading.Barrier(9)

            def read() -> None:
                with client.subscribe("news") as subscription:
                    next_message = iter(subscription)
                    threading.Thread(target=ready.wait).start()
                    results.append(next(next_message).value)

            threads = [threading.Thread(target=read) for _ in range(8)]
            for thread in threads:
                thread.start()
            ready.wait()
            eventually_blocking(lambda: gateway.run(_parked(gateway)) == 8)
            client.publish("news", 7)
            for thread in threads:
                thread.join(10)
            assert results == [7] * 8
            assert client.counters.messages == 8

    def test_one_at_a_time(self, server: ScriptedServer) -> None:
        """Two that iterate over one subscription would take each other's messages."""
        played, url = script(server, {"status": 204, "cursor": "c1"})
        with Client(url) as client:
            subscription = client.subscribe("news")
            thread = threading.Thread(target=lambda: list(subscription))
            thread.start()
            eventually_blocking(lambda: len(played.asked) == 2)
            with pytest.raises(RuntimeError, match="one at a time"):
                next(subscription)
            subscription.stop()
            thread.join(5)

    def test_many_open_files(self, server: ScriptedServer) -> None:
        """Descriptors beyond 1,023 are as good as others."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        _, url = script(server, {"status": 204, "cursor": "c1"})
        open_files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        try:
            with Client(url) as client:
                assert list(client.subscribe("news", follow=False)) == []
        finally:
            for each in open_files:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_a_token_that_is_renewed(self, gateway: Background) -> None:
        """Before its end, without a gap."""
        given: list[float] = []

        def provide() -> Token:
            given.append(time.time())
            return Token(token("ann"), time.time() + 30.2)

        with Client(f"http://127.0.0.1:{gateway.port}", provide) as client:
            subscription = client.subscribe("news", poll_every=0.05)
            threading.Thread(target=lambda: (eventually_blocking(lambda: len(given) >= 3), subscription.stop())).start()
            assert list(subscription) == []
        assert client.counters.renewals >= 3
        assert client.counters.failures == 0

    def test_a_transport_of_the_programs_own(self) -> None:
        """It is used, and not closed."""
        asked: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(204, headers={"Next-Cursor": "c1"})

        transport = httpx.MockTransport(answer)
        with Client("http://gw.test", "t", transport=transport) as client:
            assert list(client.subscribe("news", follow=False)) == []
        with Client("http://gw.test", transport=transport, retry=Retry(base=0, cap=0)) as client, pytest.raises(GaveUp):
            client.channels()
        assert asked[0].headers["user-agent"] == "longpoll-gateway-client"

    async def test_the_same_for_asyncio(self) -> None:
        """It is used, and not closed."""
        transport = httpx.MockTransport(lambda _: httpx.Response(204, headers={"Next-Cursor": "c1"}))
        async with AsyncClient("http://gw.test", "t", transport=transport) as client:
            assert [message async for message in client.subscribe("news", follow=False)] == []

    async def test_questions(self, gateway: Background) -> None:
        """What the token may use, and where a cursor stands, with both clients."""
        url = f"http://127.0.0.1:{gateway.port}"
        async with AsyncClient(url, token("ann", scope="publish")) as client:
            stored = await client.publish_batch("news", [1, 2])
            assert stored.cursor is not None
            told = await client.cursor(stored.cursor, "news")
            assert told["channels"][0]["state"] == "good"
            assert (await client.channels())["channels"]
            with pytest.raises(Refused):
                await client.cursor("abc", "news")
            assert client.counters.published == 2

    def test_an_answer_without_an_end(self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Is broken off at a bound."""
        monkeypatch.setattr("gateway.client.transport.MOST_BODY_BYTES", 100)
        _, url = script(server, {"status": 200, "body": "x" * 1000})
        with Client(url, retry=Retry(base=0, cap=0, attempts=1)) as client, pytest.raises(GaveUp, match="more than 100 bytes"):
            client.channels()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("tls")
    own = authority.issue_cert("127.0.0.1", "localhost")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    with background(server={"tls": {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}}) as running:
        yield running


class TestTls:
    def context(self, authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    def test_it_reads_and_is_stopped(self, secured: Background, authority: trustme.CA) -> None:
        """The sync client waits for TLS as for anything else."""
        url = f"https://localhost:{secured.port}"
        with Client(url, token("ann", scope="publish"), verify=self.context(authority)) as client:
            for size in (1, 100_000):
                client.publish("news", "x" * size)
            subscription = client.subscribe("news", start="earliest")
            assert [len(next(subscription).value) for _ in range(2)] in ([1, 100_000], [100_000, 1])
            threading.Timer(0.1, subscription.stop).start()
            assert list(subscription) == []

    async def test_the_same_for_asyncio(self, secured: Background, authority: trustme.CA) -> None:
        """With the same context."""
        url = f"https://localhost:{secured.port}"
        async with AsyncClient(url, token("ann"), verify=self.context(authority)) as client:
            assert (await client.channels())["channels"]

    def test_who_is_not_known_is_not_told(self, secured: Background) -> None:
        """A certificate that nobody vouches for ends it before the token goes out."""
        retry = Retry(base=0, cap=0, attempts=1)
        with (
            Client(f"https://localhost:{secured.port}", token("ann"), retry=retry) as client,
            pytest.raises(GaveUp, match="certificate"),
        ):
            client.channels()

    def test_who_speaks_no_tls(self, gateway: Background) -> None:
        """Is a failure like others."""
        retry = Retry(base=0, cap=0, attempts=1)
        with Client(f"https://127.0.0.1:{gateway.port}", retry=retry) as client, pytest.raises(GaveUp):
            client.channels()

    def test_nobody_has_to_vouch(self, secured: Background) -> None:
        """`verify=False` is for tests."""
        with Client(f"https://localhost:{secured.port}", token("ann"), verify=False) as client:
            assert client.channels()["channels"]


def test_an_interrupt_is_closed_once() -> None:
    """Also by two threads, and a stop after that does nothing."""
    interrupt = Interrupt()
    interrupt.close()
    interrupt.close()
    interrupt.set()
    interrupt.sleep(60)
    gc.collect()
