"""Polls on lanes over real sockets; what aiohttp does as well is asked of it too, with the lane switched off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trustme
import uvloop
from integration.clients import Answer, Client, Connection
from livegateway import ISSUER, Live, live, parked, token
from waiting import eventually

from gateway.auth.mint import mint
from gateway.server.lane import Lane
from gateway.server.protocol import Connection as FrameworkConnection
from gateway.server.proxyprotocol import SIGNATURE


@pytest.fixture(scope="session")
def _asyncio_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Have the loop of production. The plugin's hook for it would give all other tests another name."""
    return uvloop.new_event_loop


@pytest.fixture(params=["lane", "aiohttp"])
def laned(request) -> bool:
    return request.param == "lane"


@pytest.fixture
async def gateway(laned: bool) -> AsyncIterator[Live]:
    async with live(lane={"enabled": laned}) as running:
        yield running


@pytest.fixture
def replays(monkeypatch) -> list[bytes]:
    """Note what lanes give back."""
    seen: list[bytes] = []
    replay = Lane.replay

    def noted(lane: Lane, data: bytes) -> None:
        seen.append(data)
        replay(lane, data)

    monkeypatch.setattr(Lane, "replay", noted)
    return seen


@contextlib.asynccontextmanager
async def clients(gateway: Live, count: int, *channels: str, **given: Any) -> AsyncIterator[list[Client]]:
    """Give clients that have their first cursor; their connections leave with the block."""
    bearer = given.pop("token", None) or token()
    each = [Client(gateway.gateway.port, bearer, channels, **given) for _ in range(count)]
    try:
        for client in each:
            await client.begin()
        yield each
    finally:
        for client in each:
            client.drop()


def holding(*held: Client, wait: float = 20.0) -> list[asyncio.Task[Answer]]:
    async def hold(client: Client) -> Answer:
        answer = await client.request(client.target(wait=wait))
        client.cursor = answer.headers.get("next-cursor", client.cursor)
        return answer

    return [asyncio.get_running_loop().create_task(hold(client)) for client in held]


def lanes(gateway: Live) -> list[Lane]:
    return list(gateway.gateway.lanes._lanes)


# --- how a poll ends ---


async def test_a_record_ends_the_hold(gateway: Live, laned: bool, replays: list[bytes]):
    """And the next poll parks again, without a detour."""
    async with clients(gateway, 3, "news") as three:
        for n in range(3):
            polls = holding(*three)
            await gateway.parked(3)
            assert len(lanes(gateway)) == (3 if laned else 0)
            gateway.broker.append("news", n % 2, [b"%d" % n])
            assert [[m["value"] for m in (await poll).messages] for poll in polls] == [[n]] * 3
    assert replays == []


async def test_the_wait_runs_out(gateway: Live, laned: bool):
    """An empty answer, and the connection stays."""
    async with clients(gateway, 2, "news") as two:
        for _ in range(2):
            began = time.monotonic()
            for answer in await asyncio.gather(*holding(*two, wait=0.3)):
                assert (answer.status, answer.body) == (204, b"")
                assert "connection" not in answer.headers
            assert 0.25 < time.monotonic() - began < 2
        assert len(lanes(gateway)) == (2 if laned else 0)


async def test_the_hold_ends_with_the_token(gateway: Live, laned: bool):
    """At its expiry the poll is an empty answer like others, and the next one is refused, over the same connection."""
    async with clients(gateway, 1, "news", token=token(lifetime=1.5)) as [client]:
        assert (await client.poll(wait=20)).status == 204
        assert len(lanes(gateway)) == (1 if laned else 0)
        refused = await client.poll(wait=20)
        assert (refused.status, refused.document["code"]) == (401, "token_expired")
        client._token = token()
        assert (await client.poll(wait=0)).status == 204
    metrics = await gateway.metrics()
    assert metrics["gateway_answers_total{expired,poll}"] == 1
    assert metrics["gateway_auth_refusals_total{token_expired}"] == 1


async def test_the_hold_ends_with_the_channel(laned: bool):
    """At its sunset the poll is an empty answer, and the next one, over the same connection, learns what comes after it."""
    sunset = datetime.fromtimestamp(time.time() + 1.5, UTC).isoformat()
    ending = {"topic": "notes", "format": "text", "sunset": sunset, "successor": "/v1/subscribe?channel=notes"}
    async with live(lane={"enabled": laned}, channels={"ending": ending}) as gateway:
        async with clients(gateway, 1, "ending") as [client]:
            [hold] = holding(client)
            await gateway.parked(1)
            assert len(lanes(gateway)) == (1 if laned else 0)
            ended = await hold
            assert (ended.status, "sunset" in ended.headers, "connection" in ended.headers) == (204, True, False)
            gone = await client.poll(wait=20)
            assert (gone.status, gone.document["code"]) == (410, "gone")
            assert gone.document["successor"] == "/v1/subscribe?channel=notes"
        stored = await gateway.publish("ending", b"x")
        assert stored.code == "forbidden"
        assert (await gateway.metrics())["gateway_answers_total{expired,poll}"] == 1


async def test_a_withdrawn_key_ends_what_it_has_signed(tmp_path, laned: bool):
    """Who is parked gets his last answer, who is between two polls is refused, others are left alone."""
    file = tmp_path / "secret"
    file.write_text("the first secret of the issuer with a file")
    issuers = {"test": {"keys": [{"algorithm": "HS256", "file": str(file)}]}}
    claims = {"iss": ISSUER, "aud": "gateway", "sub": "ann", "exp": time.time() + 600}
    async with live(auth={"issuers": issuers}, lane={"enabled": laned}) as gateway:
        old = mint(file.read_text(), "HS256", claims)
        async with (
            clients(gateway, 2, "news", token=old) as [held, idle],
            clients(gateway, 1, "news", token=token(other=True)) as others,
        ):
            await idle.poll(wait=0)
            [poll], [other] = holding(held), holding(*others)
            await gateway.parked(2)
            file.write_text("the second secret, which is another one")
            await gateway.gateway._authenticator.load_files()
            answer = await poll
            assert (answer.status, answer.headers["connection"]) == (204, "close")
            for client in (held, idle):
                assert (await client.poll(wait=0)).document["code"] == "token_invalid"
            assert not other.done()
            gateway.broker.append("news", 0, [b"1"])
            assert (await other).status == 200
        assert (await gateway.metrics())["gateway_answers_total{revoked,poll}"] == 1


async def test_a_drain_ends_all_one_after_the_other(laned: bool):
    """Each answer of it says that the connection closes, also one that has a record."""
    async with live(lane={"enabled": laned}, drain={"window": 2}) as gateway, clients(gateway, 4, "news") as four:
        polls = holding(*four[:3])
        await four[3].poll(wait=0)
        await gateway.parked(3)
        draining = asyncio.get_running_loop().create_task(gateway.gateway.drain())
        done, rest = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        assert {(poll.result().status, poll.result().headers["connection"]) for poll in done} == {(204, "close")}
        assert rest
        gateway.broker.append("news", 0, [b"1"])
        for poll in rest:
            answer = await poll
            assert answer.headers["connection"] == "close"
        assert [m["value"] for m in answer.messages] == [1]
        late = await four[3].poll(wait=20)
        assert (late.status, late.headers["connection"]) == (200, "close")
        await draining
        await eventually(lambda: not lanes(gateway))


async def test_a_stop_without_a_drain_answers_too(laned: bool):
    """Who is parked gets his answer; all connections are closed."""
    async with live(lane={"enabled": laned}) as gateway, clients(gateway, 2, "news") as [held, idle]:
        [poll] = holding(held)
        await idle.poll(wait=0)
        await gateway.parked(1)
        await gateway.gateway.stop()
        answer = await poll
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        reader, _ = await idle._open()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert lanes(gateway) == []


# --- limits ---


@pytest.mark.parametrize("policy", ["polls", "address"])
async def test_a_rate_limit_is_one_wherever_it_is_counted(policy: str, laned: bool):
    """As many polls as the bucket holds, then 429 with all its fields; what was refused costs nothing."""
    limits = {"address": None, "polls": None, policy: {"rate": 2, "burst": 6}}
    async with live(limits=limits, lane={"enabled": laned}) as gateway, clients(gateway, 1, "news") as [client]:
        began = time.monotonic()
        statuses = [(await client.poll(wait=0)).status for _ in range(5)]
        refused = await client.poll(wait=0)
        assert time.monotonic() - began < 0.5, "too slow to tell"
        assert statuses == [204] * 5
        assert (refused.status, refused.document["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit-policy"] == f'"{policy}";q=6;w=3'
        assert refused.headers["ratelimit"].startswith(f'"{policy}";r=0;t=')
        for _ in range(10):
            assert (await client.poll(wait=0)).status == 429

        async def again() -> bool:
            return (await client.poll(wait=0)).status == 204

        await eventually(again)
        assert time.monotonic() - began < 1.5
        assert (await gateway.metrics())[f"gateway_limit_refusals_total{{rate_limited,{policy}}}"] >= 11


async def test_polls_held_at_once_are_bounded(laned: bool):
    """By principal and in all; the connection of who was refused goes on, and a slot that is free again is taken."""
    limits = {"concurrent_polls": 2, "parked_polls": 3}
    async with (
        live(limits=limits, lane={"enabled": laned}) as gateway,
        clients(gateway, 3, "news") as [*two, third],
        clients(gateway, 2, "news", token=token("bob")) as [bob, other],
    ):
        polls = holding(*two)
        await third.poll(wait=0)
        await gateway.parked(2)
        refused = await third.poll(wait=20)
        assert (refused.status, refused.document["code"]) == (429, "too_many_polls")
        assert refused.headers["ratelimit-policy"] == '"parked";q=2;qu="concurrent-requests"'
        await other.poll(wait=0)
        polls += holding(bob)
        await gateway.parked(3)
        refused = await other.poll(wait=20)
        assert (refused.status, refused.document["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        two[0].drop()
        await gateway.parked(2)
        polls += holding(third)
        await gateway.parked(3)
        gateway.broker.append("news", 0, [b"1"])
        assert [(await poll).status for poll in polls[1:]] == [200] * 3
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await polls[0]
        assert gateway.gateway.slots.held == 0


# --- connections ---


async def test_one_connection_carries_the_polls_of_many(gateway: Live, laned: bool, replays: list[bytes]):
    """A proxy sends any client's next poll over any of its connections: each gets his own, and none is parsed twice."""
    people = {name: token(name) for name in ("ann", "bob", "eve")}
    cursors = {}
    async with Connection(gateway.gateway.port, "") as one, Connection(gateway.gateway.port, "") as other:
        for name, bearer in people.items():
            for connection in (one, other):
                connection._token = bearer
                cursors[name] = (await connection.request("/v1/subscribe?channel=inbox&wait=0")).cursor
                await connection.request(f"/v1/subscribe?channel=inbox&wait=0&cursor={cursors[name]}")
        before = len(replays)
        for _ in range(3):
            for name, bearer in people.items():
                await gateway.publish("inbox", json.dumps(f"for {name}").encode(), token=bearer)
            for connection in (one, other):
                for name, bearer in people.items():
                    connection._token = bearer

                    async def told(connection=connection, name=name) -> Answer | None:
                        answer = await connection.request(f"/v1/subscribe?channel=inbox&wait=0&cursor={cursors[name]}")
                        return answer if answer.status == 200 else None

                    answer = await eventually(told)
                    assert {m["value"] for m in answer.messages} == {f"for {name}"}
                    if connection is other:
                        cursors[name] = answer.cursor
        assert len(replays) == before
        assert len(lanes(gateway)) == (2 if laned else 0)


async def test_a_client_that_leaves_frees_its_slot_at_once(gateway: Live):
    """It is counted as gone; the others of its crowd sleep on."""
    async with clients(gateway, 3, "news") as three:
        polls = holding(*three)
        await gateway.parked(3)
        three[0].drop()
        await gateway.parked(2)
        assert gateway.gateway.slots.held == 2
        gateway.broker.append("news", 0, [b"1"])
        assert [(await poll).status for poll in polls[1:]] == [200, 200]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await polls[0]
    metrics = await gateway.metrics()
    assert metrics["gateway_answers_total{closed_by_client,poll}"] == 1
    assert metrics["gateway_responses_total{/v1/subscribe,499}"] == 1


async def test_who_does_not_read_is_fed_no_more_and_harms_nobody(replays: list[bytes]):
    """His next poll waits until his answer is out; memory holds one answer of his, whatever is published meanwhile."""
    big = {"tails_bytes": "64MiB", "tail_bytes": "32MiB"}
    async with live(kafka=big) as gateway, clients(gateway, 2, "news", max_bytes=8 << 20) as [quick, slow]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", gateway.gateway.port))
        slow.drop()
        slow._streams = await asyncio.open_connection(sock=sock, limit=1 << 16)
        for _ in range(2):
            await slow.poll(wait=0)
        [lane] = [lane for lane in lanes(gateway) if lane.transport.get_extra_info("peername") == sock.getsockname()]
        for n in range(8):
            [fed] = holding(quick)
            await gateway.parked()
            gateway.broker.append("news", 0, [b'"' + b"%d" % n * 900_000 + b'"'])
            assert len((await fed).messages) == 1
        slow._streams[1].transport.pause_reading()
        await slow.send(slow.target(wait=0))
        await eventually(lambda: lane.stuck)
        size = lane.transport.get_write_buffer_size()
        await slow.send(slow.target(wait=0))
        await eventually(lambda: lane.holds)
        for n in range(3):
            [fed] = holding(quick)
            await gateway.parked()
            gateway.broker.append("news", 0, [b"%d" % n])
            assert len((await fed).messages) == 1
        assert 0 < lane.transport.get_write_buffer_size() <= size
        slow._streams[1].transport.resume_reading()
        assert [len((await slow.receive()).messages) for _ in range(2)] == [8, 11]
        assert replays == []


class Tls(Client):
    """A client over TLS."""

    context: ssl.SSLContext

    async def _open(self):
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self.context, server_hostname="127.0.0.1"
            )
        return self._streams


async def test_lanes_under_tls(tmp_path, laned: bool, replays: list[bytes]):
    """Hand-over, answers, replays of what comes in pieces, and back again."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = {"certfile": str(chain), "keyfile": str(key)}
    async with live(server={"tls": tls}, lane={"enabled": laned}) as gateway:
        client = Tls(gateway.gateway.port, token(), ["news"])
        client.context = context
        await client.begin()
        for n in range(3):
            [poll] = holding(client)
            await gateway.parked()
            assert len(lanes(gateway)) == laned
            gateway.broker.append("news", 0, [b'"' + b"%d" % n * 300_000 + b'"'])
            assert [len(m["value"]) for m in (await poll).messages] == [300_000]
            body = b"[" + b"1," * 10_000 + b"1]"
            refused = await client.request("/v1/publish?channel=chat/a", method="POST", body=body)
            assert refused.document["code"] == "forbidden"
            assert (await client.poll(wait=0)).status == 204
        assert len(replays) == (3 if laned else 0)
        _, writer = client._streams
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        await eventually(lambda: not lanes(gateway))


class Proxied(Connection):
    """A connection that a proxy makes for a client at `source`."""

    source = "192.0.2.1"

    async def _open(self):
        if self._streams is None:
            streams = await super()._open()
            addresses = socket.inet_aton(self.source) + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 443)
            streams[1].write(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(addresses)) + addresses)
        return self._streams


@pytest.fixture
def written(capfd) -> Callable[[], list[dict[str, Any]]]:
    """Return all lines that were written to standard output."""
    seen: list[str] = []

    def lines() -> list[dict[str, Any]]:
        seen.append(capfd.readouterr().out)
        return [json.loads(line) for line in "".join(seen).splitlines()]

    return lines


async def test_behind_the_proxy_protocol_the_client_stays_who_he_is(laned: bool, written: Callable[[], list[dict[str, Any]]]):
    """On a lane, and after a replay: for the limits of addresses, and in the log."""
    server = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    limits = {"address": {"rate": 0.1, "burst": 4}}
    async with live(server=server, limits=limits, log={"access": True, "sample": 1}, lane={"enabled": laned}) as gateway:
        async with Proxied(gateway.gateway.port, token()) as one, Proxied(gateway.gateway.port, token()) as other:
            other.source = "192.0.2.2"
            target = "/v1/subscribe?channel=news&wait=0"
            cursor = (await one.request(target)).cursor
            statuses = [(await one.request(f"{target}&cursor={cursor}")).status for _ in range(4)]
            assert statuses == [204, 204, 204, 429]
            # The same head, but another peer: his own count, and his own lane.
            assert [(await other.request(f"{target}&cursor={cursor}")).status for _ in range(2)] == [204, 204]
            assert (await other.request("/v1/nothing")).status == 404
        await eventually(lambda: len(written()) == 8)
    assert [(line["client"], line["status"]) for line in written()] == [
        *[("192.0.2.1", 204)] * 4, ("192.0.2.1", 429), *[("192.0.2.2", 204)] * 2, ("192.0.2.2", 404),
    ]  # fmt: skip


async def test_half_a_head_on_a_lane_has_its_time(gateway: Live):
    """The head's, here a second, also where it is given to the framework in the middle."""
    async with clients(gateway, 2, "news") as two:
        for client, piece in zip(two, (b"GET /v1/subs", b"POST /v1/pub"), strict=True):
            await client.poll(wait=0)
            began = time.monotonic()
            reader, writer = await client._open()
            writer.write(piece)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            assert 0.7 < time.monotonic() - began < 4


# --- heads ---


async def test_origins_do_not_share_heads(laned: bool):
    """Each gets his own fields, over one connection, and who is not allowed none."""
    cors = {"origins": ["https://a.test", "https://b.test"]}
    async with live(cors=cors, lane={"enabled": laned}) as gateway, Connection(gateway.gateway.port, token()) as connection:
        target = "/v1/subscribe?channel=news&wait=0"
        target += f"&cursor={(await connection.request(target)).cursor}"
        for _ in range(3):
            for origin in ("https://a.test", "https://b.test", "https://c.test"):
                answer = await connection.request(target, headers={"Origin": origin})
                assert answer.status == 204
                assert answer.headers.get("access-control-allow-origin") == (None if "c." in origin else origin)
                assert answer.headers["vary"] == "Origin"


async def test_ids_that_proxies_add_are_told_as_they_came(gateway: Live, laned: bool, replays: list[bytes]):
    """They make no other head; where the framework has to answer after all, it sees this request's and not an earlier one's."""
    async with Connection(gateway.gateway.port, token()) as connection:
        target = "/v1/subscribe?channel=news&wait=0"
        cursor = (await connection.request(target)).cursor
        for n in range(3):
            answer = await connection.request(f"{target}&cursor={cursor}", headers={"X-Request-Id": f"good-{n}"})
            assert answer.status == 204
            assert len(replays) == 0
        refused = await connection.request(f"{target}&cursor=AAAA", headers={"X-Request-Id": "bad"})
        assert (refused.document["code"], refused.document["request_id"]) == ("cursor_invalid", "bad")
        assert refused.headers["x-request-id"] == "bad"
        assert len(replays) == laned


async def test_a_long_cursor_is_in_no_link():
    """Over 1,024 characters it is in its own field alone, on a lane as well."""
    async with live(topics={"wide": 256}, channels={"wide": {"topic": "wide"}}) as gateway:
        for partition in range(256):
            log = gateway.broker.cluster.partition("wide", partition).log
            log.start = log.end = 2**30
        async with clients(gateway, 1, "wide") as [client]:
            assert 1_024 < len(client.cursor) <= 2_048
            for _ in range(2):
                answer = await client.poll(wait=0)
                assert answer.status == 204
                assert "link" not in answer.headers
                assert answer.cursor == client.cursor
            assert len(lanes(gateway)) == 1


# --- what is read ---


@pytest.mark.parametrize(
    ("channels", "parameters"),
    [
        (["news"], {"view": "value"}),
        (["news", "notes", "blobs"], {}),
        (["inbox"], {}),
        (["chat/lobby", "chat/yard"], {"limit": 1}),
        (["news", "inbox", "alerts"], {}),
    ],
    ids="+".join,
)
async def test_whatever_is_read_comes_once_and_in_order(
    gateway: Live, laned: bool, channels: list[str], parameters: dict[str, Any]
):
    """Some channels, views and keys, on a lane and beside it."""
    records = {
        "news": [(None, b'{"n":%d}' % n) for n in range(6)],
        "notes": [(b"alert" if n % 2 else None, b"note %d" % n) for n in range(6)],
        "blobs": [(None, b"\xff%d" % n) for n in range(6)],
        "chat": [((b"lobby", b"yard", b"hall")[n % 3], b"%d" % n) for n in range(6)],
    }
    bearer = token("ann", rooms=["lobby", "yard"])
    async with clients(gateway, 1, *channels, token=bearer, **parameters) as [client]:
        seen: list[Any] = []
        for n in range(6):
            [poll] = holding(client)
            await gateway.parked()
            assert len(lanes(gateway)) == laned
            for topic, own in records.items():
                gateway.broker.append(topic, 0, [own[n]])
            if "inbox" in channels:
                await gateway.publish("inbox", b"%d" % n, token=bearer)
            if channels == ["chat/lobby", "chat/yard"] and n % 3 == 2:
                gateway.broker.append("chat", 0, [(b"lobby", b"6")])
            while (answer := await poll).status == 200:
                seen += answer.messages
                [poll] = holding(client, wait=0)
        values = [message if "view" in parameters else message["value"] for message in seen]
        if len(channels) == 1:
            assert values == ([{"n": n} for n in range(6)] if channels == ["news"] else [*range(6)])
        places = [(m["channel"], m["partition"], m["offset"]) for m in seen if "view" not in parameters]
        assert len(places) == len(set(places))
        counts = {channel: sum(message["channel"] == channel for message in seen) for channel in channels} if places else {}
        assert set(counts.values()) <= {6, 3, 2, 4}, counts
        assert counts.get("inbox", 6) == counts.get("news", 6) == counts.get("blobs", 6) == 6


async def test_history_comes_by_way_of_the_framework(laned: bool, replays: list[bytes]):
    """A cursor from before the tails is replayed; at their end the connection is a lane again."""
    async with live(lane={"enabled": laned}) as gateway:
        gateway.broker.append("news", 0, [b"%d" % n for n in range(5)])
        async with clients(gateway, 1, "news", start="earliest", limit=1) as [client]:
            old = client.cursor
            await client.catch_up()
            assert client.chain.values == [0, 1, 2, 3, 4]
            assert len(lanes(gateway)) == laned
            before = len(replays)
            client.cursor, client.chain.values = old, []
            await client.catch_up()
            assert client.chain.values == [1, 2, 3, 4]
            assert len(replays) - before == laned
            assert len(lanes(gateway)) == laned


@pytest.mark.parametrize("on_loss", ["report", "fail"])
async def test_loss_is_told_on_a_lane_too(laned: bool, on_loss: str):
    """Retention passed the cursor while its client was away, its connection at a lane."""
    strict = {"topic": "notes", "format": "text", "on_loss": on_loss}
    async with live(channels={"strict": strict}, lane={"enabled": laned}) as gateway:
        gateway.broker.append("notes", 0, [b"0", b"1", b"2"])
        async with clients(gateway, 1, "strict", start="earliest", limit=1) as [client]:
            old = client.cursor
            await client.catch_up()
            assert len(lanes(gateway)) == laned
            gateway.broker.delete_records("notes", 0, 2)

            async def told() -> Answer | None:
                client.cursor = old
                answer = await client.poll(wait=0)
                return answer if answer.status == 410 or answer.lost else None

            answer = await eventually(told)
            assert answer.document["lost"] == [{"channel": "strict", "partition": 0, "from": 1, "to": 2}]
            assert answer.status == (410 if on_loss == "fail" else 200)


async def test_who_is_parked_learns_that_the_topic_was_created_again(gateway: Live, laned: bool):
    """409 with a cursor that goes on, over the same connection; what was sent behind the poll is answered too."""
    gateway.broker.append("notes", 0, [b"0"])
    async with clients(gateway, 1, "notes", start="earliest") as [client]:
        [poll] = holding(client)
        await gateway.parked()
        assert len(lanes(gateway)) == laned
        await client.send("/livez")
        gateway.broker.delete_topic("notes")
        gateway.broker.create_topic("notes", 1)
        refused = await poll
        assert (refused.status, refused.document["code"]) == (409, "cursor_reset")
        assert (await client.receive()).body == b"alive\n"
        client.cursor = refused.document["cursor"]
        assert (await client.poll(wait=0)).status == 204


async def test_a_topic_that_only_short_polls_read_stays_live():
    """A poll that does not wait keeps its topic as one that does."""
    limits = {"address": None, "polls": None}
    async with live(kafka={"live_after": 1}, limits=limits) as gateway, clients(gateway, 1, "news") as [client]:
        topic = gateway.gateway.hub.topics["news"]
        began = time.monotonic()

        async def a_while() -> bool:
            assert (await client.poll(wait=0)).status == 204
            return time.monotonic() - began > 2.5

        await eventually(a_while)
        assert gateway.gateway.hub.topics.get("news") is topic


# --- accounts ---

COUNTED = (
    "gateway_answers_total", "gateway_messages_total", "gateway_sent_bytes_total", "gateway_responses_total",
    "gateway_record_latency_seconds_count", "gateway_parked_waiters", "gateway_open_connections", "gateway_limit_refusals_total",
    "gateway_auth_refusals_total",
)  # fmt: skip


async def test_the_books_are_the_same(written: Callable[[], list[dict[str, Any]]]):
    """What operators see does not depend on where a poll was answered: lines of the log, and metrics at each moment."""
    told = []
    log, limits = {"access": True, "sample": 1}, {"concurrent_polls": 3}
    for enabled in (True, False):
        async with live(log=log, limits=limits, lane={"enabled": enabled}) as gateway:
            seen = len(written())
            books = [books async for books in _story(gateway)]
        lines = [
            {name: value for name, value in line.items() if name not in ("time", "request_id", "duration")}
            for line in written()[seen:]
            if line["path"] != "/metrics"
        ]
        told.append((books, sorted(map(str, lines))))
    for with_lanes, without in zip(told[0][0], told[1][0], strict=True):
        assert with_lanes == without
    assert told[0][1] == told[1][1]


async def _story(gateway: Live) -> AsyncIterator[dict[str, float]]:
    async def books() -> dict[str, float]:
        return {name: value for name, value in (await gateway.metrics()).items() if name.startswith(COUNTED)}

    async with clients(gateway, 4, "news", "notes") as four:
        yield await books()
        polls = holding(*four[:3])
        await gateway.parked(3)
        yield await books()
        assert (await four[3].poll(wait=20)).status == 429
        gateway.broker.append("news", 0, [b"1", b"2"])
        await asyncio.gather(*polls)
        yield await books()
        await asyncio.gather(*holding(*four[:2], wait=0.1))
        polls = holding(*four[:3])
        await gateway.parked(3)
        four[0].drop()
        await gateway.parked(2)
        gateway.broker.append("notes", 0, [b"1"])
        await asyncio.gather(*polls, return_exceptions=True)
        assert (await four[1].poll(wait=0, limit=0)).status == 400
        four[1]._token = "xyzzy"
        assert (await four[1].poll(wait=0)).status == 401
        yield await books()
    await eventually(lambda: not lanes(gateway) and not gateway.gateway._listeners[0].connections)
    yield await books()


async def test_a_storm_of_clients_that_leave(gateway: Live, laned: bool):
    """Half of them in the middle of their poll, the rest after a record: nothing of them is left, and no count is off."""
    async with clients(gateway, 1, "news") as [first]:
        storm = [Client(gateway.gateway.port, token(f"n{n % 10}"), ["news"], cursor=first.cursor) for n in range(200)]
    try:
        polls = holding(*storm)
        await gateway.parked(200)
        assert len(lanes(gateway)) == (200 if laned else 0)
        for client in storm[::2]:
            client.drop()
        gateway.broker.append("news", 0, [b"1"])  # while the ends of their connections are still being noticed
        answers = await asyncio.gather(*polls, return_exceptions=True)
        assert [answer.status for answer in answers[1::2]] == [200] * 100
        assert all(isinstance(answer, ConnectionError | asyncio.IncompleteReadError) for answer in answers[::2])
        # And half of those who stay, with an answer on the way to them, or half a head, or a poll.
        rest = storm[1::2]
        polls = holding(*rest[:50])
        for client in rest[50:75]:
            await client.send(client.target(wait=0))
        for client in rest[75:]:
            (await client._open())[1].write(b"GET /v1/sub")
        await gateway.parked(50)
        for client in rest:
            client.drop()
        await asyncio.gather(*polls, return_exceptions=True)
    finally:
        for client in storm:
            client.drop()
    await eventually(lambda: not lanes(gateway) and not gateway.gateway._listeners[0].connections)
    assert (parked(gateway.gateway), gateway.gateway.slots.held) == (0, 0)
    assert gateway.gateway.hub.parked == 0
    metrics = await gateway.metrics()
    assert metrics.get("gateway_parked_waiters{news}", 0) == 0
    assert metrics["gateway_open_connections{http}"] == 1, "the operator's"
    ends = ("messages", "closed_by_client", "empty")
    assert sum(metrics.get(f"gateway_answers_total{{{end},poll}}", 0) for end in ends) == 1 + 200 + 50 + 25


# --- coming back ---


async def test_a_new_connection_with_an_armed_head_is_a_lane_at_once(gateway: Live, laned: bool, monkeypatch):
    """After a storm of reconnects the framework sees none of those who were here before; the system looks after them too."""
    async with clients(gateway, 2, "news") as two:
        polls = holding(*two)
        await gateway.parked(2)
        for client in two:
            client.drop()
        await asyncio.gather(*polls, return_exceptions=True)
        await gateway.parked(0)
        seen: list[bytes] = []
        receive = FrameworkConnection.data_received
        monkeypatch.setattr(FrameworkConnection, "data_received", lambda self, data: seen.append(data) or receive(self, data))
        polls = holding(*two)
        await gateway.parked(2)
        assert len(seen) == (0 if laned else 2)
        for lane in lanes(gateway):
            peer = lane.transport.get_extra_info("socket")
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        gateway.broker.append("news", 0, [b"7"])
        assert [[m["value"] for m in (await poll).messages] for poll in polls] == [[7]] * 2


async def test_a_new_connection_with_more_than_an_armed_head_is_the_frameworks(gateway: Live):
    """Two heads at once are answered in turn."""
    async with clients(gateway, 1, "news") as [client]:
        assert (await client.poll(wait=0.1)).status == 204
        client.drop()
        target = client.target(wait=0.1)
        await client.send(target)
        await client.send(target)
        assert [(await client.receive()).status for _ in range(2)] == [204, 204]
