"""Checks over HTTP, TCP and TLS against servers that answer as told, and the times at which they come."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trustme
from proxy.timing import Time
from waiting import eventually

from gateway.proxy.balancing import RoundRobin
from gateway.proxy.events import Event, Healthy, Unhealthy
from gateway.proxy.health import MAX_BODY_BYTES, Checks, HttpProbe, Probe, TcpProbe, Unfit
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.target import Endpoint, Target
from gateway.proxy.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall well"


class Backend:
    """A server that answers each connection with `answer` and keeps what it was sent."""

    def __init__(self, answer: bytes = OK, *, piece: int = 0) -> None:
        self.answer = answer
        self.piece = piece or len(answer) or 1
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            for start in range(0, len(self.answer), self.piece):
                writer.write(self.answer[start : start + self.piece])
                await writer.drain()
                await asyncio.sleep(0)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def served(backend: Backend, tls: ssl.SSLContext | None = None, *, name: str | None = None) -> AsyncIterator[Target]:
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Target(Endpoint(f"127.0.0.1:{port}", name=name))


class TestHttpProbe:
    async def test_a_good_answer(self) -> None:
        """The status is enough; the request is one GET that ends its connection."""
        async with served(backend := Backend(), name="shop.internal") as target:
            assert await HttpProbe("/healthz?deep=1")(target)
        head = backend.heads[0].decode().split("\r\n")
        assert head[:2] == ["GET /healthz?deep=1 HTTP/1.1", f"Host: shop.internal:{target.port}"]
        assert "Connection: close" in head

    async def test_the_host_may_be_given(self) -> None:
        """Where the backend serves several."""
        async with served(backend := Backend()) as target:
            assert await HttpProbe("/", host="api.example.com")(target)
        assert b"\r\nHost: api.example.com\r\n" in backend.heads[0]

    @pytest.mark.parametrize("status", [301, 404, 500, 503])
    async def test_other_statuses(self, status: int) -> None:
        """Only the listed ones are good; redirects are not followed."""
        async with served(Backend(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)) as target:
            with pytest.raises(Unfit, match=f"status {status}"):
                await HttpProbe("/")(target)
            assert await HttpProbe("/", statuses=[200, status])(target)

    @pytest.mark.parametrize("piece", [0, 1, 7])
    @pytest.mark.parametrize(
        "answer",
        [
            OK,
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n5\r\n well\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nto the end: all well",
            b"HTTP/1.0 200 OK\r\n\r\nall well",
        ],
    )
    async def test_text_in_the_body(self, answer: bytes, piece: int) -> None:
        """However the body is framed, and in whatever pieces it comes."""
        async with served(Backend(answer, piece=piece)) as target:
            assert await HttpProbe("/", body=b"all well")(target)
            with pytest.raises(Unfit, match="expected text"):
                await HttpProbe("/", body=b"all ill")(target)

    async def test_a_long_body(self) -> None:
        """No more than 64 KiB are read for it."""
        size = 64 * MAX_BODY_BYTES
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + 1) + b"x" * size + b"y"
        async with served(Backend(answer, piece=65_536)) as target:
            with pytest.raises(Unfit, match="expected text"):
                await HttpProbe("/", body=b"y")(target)

    async def test_no_body(self) -> None:
        """Where no body is possible no text is found."""
        async with served(Backend(b"HTTP/1.1 204 No Content\r\n\r\n")) as target:
            with pytest.raises(Unfit, match="expected text"):
                await HttpProbe("/", statuses=[204], body=b"x")(target)

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "closed without an answer"),
            (b"HTTP/1.1 200 O", "closed without an answer"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\nall", "no HTTP"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nall", "no HTTP"),
        ],
    )
    async def test_no_answers(self, answer: bytes, reason: str) -> None:
        """What is no HTTP, or ends too soon, is no good answer."""
        async with served(Backend(answer)) as target:
            with pytest.raises(Unfit, match=reason):
                await HttpProbe("/", body=b"well")(target)

    async def test_tls(self) -> None:
        """Certificates are verified, against the target's name or the one given."""
        authority = trustme.CA()
        there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("shop.internal").configure_cert(there)
        here = ssl.create_default_context()
        authority.configure_trust(here)
        async with served(Backend(), there, name="shop.internal") as target:
            assert await HttpProbe("/", tls=here, body=b"well")(target)
            assert await TcpProbe(tls=here, server_name="shop.internal")(target)
            for probe in (HttpProbe("/", tls=here, server_name="other.internal"), TcpProbe(tls=ssl.create_default_context())):
                with pytest.raises(ssl.SSLCertVerificationError):
                    await probe(target)


async def test_tcp() -> None:
    """A connection is enough, none is not."""
    async with served(Backend()) as target:
        assert await TcpProbe()(target)
    with pytest.raises(OSError, match=r"refused|failed"):
        await TcpProbe()(target)


class Checked:
    """Checks of two targets with a probe that a test tells what to say."""

    def __init__(self, probe: Probe | None = None, *, jitter: float = 0.0, rand: Callable[[], float] = lambda: 0.5) -> None:
        self.time = Time()
        self.told: list[Event] = []
        self.asked: list[Target] = []
        self.answers: dict[str, bool | Exception] = {}
        self.upstream = Upstream(
            "shop",
            [Endpoint("10.0.0.1:80"), Endpoint("10.0.0.2:80")],
            RoundRobin(),
            healthiness=partial(Healthiness, rise=1, fall=2),
        )
        self.checks = Checks(
            self.upstream,
            probe or self.probe,
            interval=5.0,
            jitter=jitter,
            timeout=60.0,
            told=self.told.extend,
            clock=self.time,
            rand=rand,
            pause=self.time.pause,
        )

    async def probe(self, target: Target) -> bool:
        self.asked.append(target)
        answer = self.answers.get(target.address, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.ensure_future(self.checks.run())
        await eventually(lambda: self.time.pausing == 2)
        yield
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert repr(self.checks).startswith("<Checks shop: 0 targets")


class TestChecks:
    async def test_each_target_every_interval(self) -> None:
        """What they say goes to the upstream, what changes to the callback."""
        checked = Checked()
        one, other = checked.upstream.targets
        async with checked.running():
            await checked.time.pass_time(0.0, pausing=2)
            assert checked.asked == [one, other]
            checked.answers[one.address] = False
            await checked.time.pass_time(5.0, pausing=2)
            assert (one.healthy, checked.told) == (True, [])
            await checked.time.pass_time(5.0, pausing=2)
            assert (one.healthy, checked.told) == (False, [Unhealthy(one)])
            assert checked.checks.reasons == {one: "not as expected"}
            assert repr(checked.checks) == "<Checks shop: 2 targets, 1 failing>"
            checked.answers[one.address] = True
            await checked.time.pass_time(5.0, pausing=2)
            assert checked.told == [Unhealthy(one), Healthy(one)]
            assert (other.healthy, checked.checks.reasons) == (True, {})

    async def test_jitter(self) -> None:
        """The first check comes within the jittered part, each further one a little sooner or later than the interval."""
        randoms = iter([0.25, 0.75, 0.0, 1.0, 0.5, 0.5])
        checked = Checked(jitter=0.2, rand=lambda: next(randoms))
        async with checked.running():
            assert checked.time.delays == [0.25, 0.75]
            await checked.time.pass_time(1.0, pausing=2)
            assert checked.time.delays[2:] == [4.0, 6.0]

    async def test_the_interval_is_from_beginning_to_beginning(self) -> None:
        """The time that a check takes is not added; one that takes longer than the interval is followed at once."""
        took = iter([2.0, 7.0])

        async def slow(target: Target) -> bool:
            checked.time.now += next(took)
            return True

        checked = Checked(slow)
        async with checked.running():
            await checked.time.pass_time(0.0, pausing=2)
            assert sorted(checked.time.delays[2:]) == [0.0, 3.0]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (Unfit("status 500"), "status 500"),
            (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
            (OSError(), "OSError"),
            (TimeoutError(), "no answer within 60 s"),
            (RuntimeError("a bug"), "unexpected failure"),
        ],
    )
    async def test_why_it_failed_is_logged_once(self, error: Exception, reason: str, caplog: pytest.LogCaptureFixture) -> None:
        """Not at every check of a long outage; and the checks go on whatever happens."""
        checked = Checked()
        one = checked.upstream.targets[0]
        checked.answers[one.address] = error
        async with checked.running():
            for seconds in (0.0, 5.0, 5.0):
                await checked.time.pass_time(seconds, pausing=2)
        assert checked.checks.reasons == {one: reason}
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == [f"check of 10.0.0.1:80 of upstream shop failed: {reason}"]
        assert not one.healthy

    async def test_a_check_has_an_end(self) -> None:
        """A target that does not answer in time has failed, and the check is over."""
        ended: list[str] = []

        async def stuck(target: Target) -> bool:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(target.address)
            return True

        checked = Checked(stuck)
        checked.checks._timeout = 0.01
        async with checked.running():
            await checked.time.pass_time(0.0, pausing=2)
        assert sorted(ended) == ["10.0.0.1:80", "10.0.0.2:80"]
        assert set(checked.checks.reasons.values()) == {"no answer within 0.01 s"}

    async def test_targets_come_and_go(self) -> None:
        """New ones are checked soon, those that have left no longer."""
        checked = Checked()
        one = checked.upstream.targets[0]
        checked.answers[one.address] = False
        async with checked.running():
            await checked.time.pass_time(0.0, pausing=2)
            checked.asked.clear()
            checked.upstream.update([Endpoint("10.0.0.2:80"), Endpoint("10.0.0.3:80")], checked.time())
            checked.checks.targets_changed()
            await eventually(lambda: len(checked.time.delays) == 5 and checked.time.pausing == 2)
            await checked.time.pass_time(5.0, pausing=2)
            assert {target.address for target in checked.asked} == {"10.0.0.2:80", "10.0.0.3:80"}
            assert checked.checks.reasons == {}
