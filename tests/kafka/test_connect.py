"""Connections: one for each purpose, closed when their answer is late or not wanted any more; TLS and SASL."""

import asyncio
import logging
import ssl

import pytest
import trustme
from integration.apache_kafka import PASSWORD, USERNAME
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker
from gateway.kafka.connect import Backoff, Connections, KafkaSettings, Pool, Unreachable, quiet_aiokafka
from gateway.kafka.requests import Metadata


def address_of(broker: Broker) -> tuple[str, int]:
    host, _, port = broker.address.rpartition(":")
    return host, int(port)


@pytest.fixture
async def connections(dev):
    one = Connections(KafkaSettings((dev.address,)))
    yield one
    await one.close()


async def test_each_group_has_a_connection_of_its_own(dev, connections):
    at = address_of(dev)
    for group in ("ask", "feed", "ask"):
        await connections.send(at, Metadata([]), group=group, timeout=3)
    host, port = at
    assert repr(connections) == f"<Connections {host}:{port}/ask {host}:{port}/feed>"
    connections.drop(at, "feed")
    connections.drop(at, "nothing")
    assert repr(connections) == f"<Connections {host}:{port}/ask>"


async def test_senders_of_one_group_share_one_attempt_to_connect(dev, connections):
    at = address_of(dev)
    await asyncio.gather(*(connections.send(at, Metadata([]), group="ask", timeout=3) for _ in range(10)))
    assert dev.requests[Api.API_VERSIONS] == 1


async def test_a_late_answer_closes_the_connection(dev, connections):
    at = address_of(dev)
    with dev.faults.stall(Api.METADATA), pytest.raises(Unreachable) as late:
        await connections.send(at, Metadata([]), group="ask", timeout=0.1)
    assert late.value.stalled
    assert "no answer within 0.1 s" in late.value.reason
    assert repr(connections) == "<Connections none>"
    assert (await connections.send(at, Metadata([]), group="ask", timeout=3)).brokers


async def test_cancelling_closes_an_exclusive_connection_only(dev, connections):
    at = address_of(dev)
    for exclusive, left in ((False, "/ask>"), (True, "none>")):
        with dev.faults.stall(Api.METADATA) as fault:
            hits = fault.hits
            asking = asyncio.ensure_future(connections.send(at, Metadata([]), group="ask", timeout=3, exclusive=exclusive))
            await fault.hit(hits + 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert repr(connections).endswith(left)


async def test_a_port_where_nobody_listens(unused_tcp_port, connections):
    with pytest.raises(Unreachable) as refused:
        await connections.send(("127.0.0.1", unused_tcp_port), Metadata([]), group="ask", timeout=3)
    assert not refused.value.stalled
    assert str(unused_tcp_port) in refused.value.reason


async def test_a_connection_that_the_broker_closed_is_replaced(dev, connections):
    at = address_of(dev)
    await connections.send(at, Metadata([]), group="ask", timeout=3)
    await dev.disconnect()
    await eventually(lambda: repr(connections) == "<Connections none>")
    assert (await connections.send(at, Metadata([]), group="ask", timeout=3)).brokers
    with dev.faults.drop(Api.METADATA), pytest.raises(Unreachable):
        await connections.send(at, Metadata([]), group="ask", timeout=3)


async def test_something_that_is_no_broker(connections):
    async def babble(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Unreachable):
            await connections.send(server.sockets[0].getsockname()[:2], Metadata([]), group="ask", timeout=0.5)


async def test_after_close_nothing_is_opened(dev, connections):
    await connections.send(address_of(dev), Metadata([]), group="ask", timeout=3)
    await connections.close()
    with pytest.raises(Unreachable, match="closed here"):
        await connections.send(address_of(dev), Metadata([]), group="ask", timeout=3)


async def test_a_pool_gives_out_numbers_and_takes_them_back():
    pool = Pool(2)
    async with pool.slot() as first, pool.slot() as second:
        assert {first, second} == {0, 1}
        assert pool.busy
        waiting = asyncio.ensure_future(pool.slot().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting in {0, 1}


def test_waits_grow_to_a_bound_with_jitter():
    backoff = Backoff(0.1, 1.0)
    waits = [backoff.next() for _ in range(40)]
    assert 0.05 <= waits[0] <= 0.1
    assert all(0.5 <= wait <= 1.0 for wait in waits[4:])
    assert backoff.failures == 40
    backoff.reset()
    assert backoff.next() <= 0.1


def test_settings_do_not_show_secrets():
    shown = repr(KafkaSettings(("a:1",), sasl_password="secret", ssl_password="secret"))
    assert "secret" not in shown
    assert sorted(KafkaSettings(("a", "b:1", "[::1]:2")).addresses) == [("::1", 2), ("a", 9092), ("b", 1)]


def test_aiokafka_is_silent():
    quiet_aiokafka()
    assert not logging.getLogger("aiokafka.conn").isEnabledFor(logging.ERROR)


def test_files_that_cannot_be_used_are_an_error_at_once(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Connections(KafkaSettings(("a",), security_protocol="SSL", ssl_cafile=str(tmp_path / "none")))


async def test_tls(rig, tmp_path):
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Broker(tls=server) as broker:
        broker.create_topic("t")
        one = await rig(broker.address, security_protocol="SSL", ssl_cafile=str(tmp_path / "ca.pem"))
        await one.follow("t")
        stored = await one.log.producer.send("t", None, b"x", timeout=5)
        assert stored.offset == 0
        assert await one.has("t", 1) == [b"x"]
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
        other = await rig(broker.address, security_protocol="SSL", ssl_cafile=str(tmp_path / "other.pem"), patience=0.2)
        await eventually(lambda: "certificate" in other.log.status().reason.lower())


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [
        ("SSL", None),
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
        ("SASL_SSL", "SCRAM-SHA-512"),
        ("SASL_SSL", "PLAIN"),
    ],
)
async def test_apache_kafka_s_listeners(apache, rig, listener, mechanism):
    node = apache.kafka.nodes[0]
    options = {"security_protocol": listener}
    if "SSL" in listener:
        options["ssl_cafile"] = str(apache.kafka.directory / "ca.pem")
    if listener == "SSL":
        options["ssl_certfile"] = str(apache.kafka.directory / "client.pem")
    if mechanism:
        options |= {"sasl_mechanism": mechanism, "sasl_username": USERNAME, "sasl_password": PASSWORD}
    topic = await apache.create_topic()
    one = await rig(node.address(listener), **options)
    await one.follow(topic)
    await one.log.producer.send(topic, b"k", b"v", timeout=5)
    assert await one.has(topic, 1) == [b"v"]
    if mechanism:
        wrong = await rig(node.address(listener), **options | {"sasl_password": "wrong"}, patience=0.2)
        await eventually(lambda: "uthentication" in wrong.log.status().reason)
