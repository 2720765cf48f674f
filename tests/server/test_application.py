"""The listeners and the list of channels."""

import socket
import ssl
from typing import Any

import aiohttp
import pytest
import trustme
from livegateway import Live, live, token

from gateway.server.application import Listener, application
from gateway.server.protocol import Runner


def listener(port: int = 0, **options: Any) -> Listener:
    runner = Runner(
        application([], []),
        max_target_bytes=8192,
        max_field_bytes=16384,
        head_timeout=10,
        keepalive_timeout=75,
        shutdown_timeout=1,
    )
    return Listener(runner, host="127.0.0.1", port=port, **options)


async def test_a_listener_takes_a_free_port_and_gives_it_back():
    """It knows the port while it listens."""
    one = listener()
    with pytest.raises(AssertionError):
        _ = one.port
    assert one.connections == 0
    await one.start()
    port = one.port
    assert port > 0
    await one.stop()
    again = listener(port)
    await again.start()
    assert again.port == port
    await again.stop()


async def test_an_address_in_use_is_an_error():
    """And leaves nothing behind."""
    first = listener()
    await first.start()
    second = listener(first.port)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    await second.stop()
    await first.stop()


async def test_it_stops_accepting_and_serves_on():
    """Connections that are open go on; new ones are refused."""
    one = listener()
    await one.start()
    port = one.port
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/livez") as reply:
            assert reply.status == 200
        one.stop_accepting()
        async with session.get("/livez") as reply:
            assert await reply.text() == "alive\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    await one.stop()


async def test_two_may_share_a_port():
    """If both say so."""
    first = listener(reuse_port=True)
    await first.start()
    second = listener(first.port, reuse_port=True)
    await second.start()
    assert second.port == first.port
    alone = listener(first.port)
    with pytest.raises(OSError, match="address already in use"):
        await alone.start()
    for each in (first, second, alone):
        await each.stop()


async def test_a_unix_socket(tmp_path_factory):
    """For whoever may enter its folder; it has no port."""
    path = str(tmp_path_factory.mktemp("u") / "s")
    one = listener(path=path)
    await one.start()
    assert one.port == 0
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session, session.get("http://x/livez") as reply:
        assert reply.status == 200
        assert one.connections == 1
    await one.stop()


async def test_stopping_before_the_start_is_nothing():
    """A start that failed elsewhere may come to that."""
    one = listener()
    one.stop_accepting()
    await one.stop()


async def test_https(tmp_path):
    """A certificate of one's own; plain HTTP on that port gets nothing."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with live(server={"tls": {"certfile": str(chain), "keyfile": str(key)}}) as gateway:
        assert gateway.gateway.url == f"https://127.0.0.1:{gateway.gateway.port}"
        target = f"{gateway.gateway.url}/v1/subscribe?channel=news&wait=0"
        async with gateway.session.get(target, ssl=context, headers=gateway.bearer()) as reply:
            assert reply.status == 204
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await gateway.poll("news")


async def test_the_url_is_one_that_can_be_called():
    """Where it listens on every address, the loopback one; IPv6 in brackets."""
    async with live(server={"host": "0.0.0.0"}) as gateway:  # noqa: S104
        assert gateway.gateway.url == f"http://127.0.0.1:{gateway.gateway.port}"
    if socket.has_ipv6:
        try:
            async with live(server={"host": "::1"}) as gateway:
                assert gateway.gateway.url == f"http://[::1]:{gateway.gateway.port}"
        except OSError:
            pytest.skip("no IPv6 here")


async def test_the_prefix_is_the_operators():
    """Links follow it."""
    async with live(server={"prefix": "/push/v1"}) as gateway:
        reply = await gateway.ask("GET", "/push/v1/subscribe?channel=news&wait=0", headers=gateway.bearer())
        assert reply.status == 204
        assert reply.headers["Link"].startswith("</push/v1/subscribe?channel=news")
        assert (await gateway.ask("GET", "/v1/subscribe?channel=news&wait=0", headers=gateway.bearer())).status == 404


LIVES = {"aging": "deprecated", "going": "active", "retired": "gone"}


async def test_the_list_of_channels(gateway: Live):
    """What the caller may read and publish, by pattern, and nothing of the rest."""
    reply = await gateway.ask("GET", "/v1/channels", headers=gateway.bearer(token("ann", rooms=["lobby"])))
    listed = {entry["channel"]: entry for entry in reply.json["channels"]}
    assert set(listed) == {"news", "notes", "blobs", "alerts", "chat/{room}", "inbox", *LIVES, "retired/{room}"}
    assert listed["news"] == {
        "channel": "news", "read": True, "publish": True, "format": "json", "headers": ["trace"],
        "keyed": False, "priority": 100, "description": "", "version": None,
        "lifecycle": {"state": "active", "deprecated": None, "deprecation_info": None, "sunset": None, "successor": None},
    }  # fmt: skip
    assert {name: listed[name]["lifecycle"]["state"] for name in LIVES} == LIVES
    assert listed["aging"]["version"] == "v1"
    assert reply.json["routes"] == []
    assert (listed["alerts"]["publish"], listed["alerts"]["priority"], listed["alerts"]["keyed"]) == (False, 1, True)
    of_bob = await gateway.ask("GET", "/v1/channels", headers=gateway.bearer(token("bob", other=True)))
    assert {entry["channel"] for entry in of_bob.json["channels"]} == {"news", "notes", "blobs", "alerts", *LIVES}
