"""Encrypted and authenticated connections to Kafka, by configuration, for reading, catching up and publishing."""

import asyncio

import pytest
from integration.apache_kafka import PASSWORD, USERNAME
from integration.brokers import ApacheHandle
from integration.gateways import running, token
from waiting import eventually

pytestmark = pytest.mark.kafka

WAYS = [
    ("SASL_SSL", "SCRAM-SHA-512"),
    ("SASL_SSL", "SCRAM-SHA-256"),
    ("SASL_SSL", "PLAIN"),
    ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
    ("SASL_PLAINTEXT", "PLAIN"),
    ("SSL", None),
]


def section(apache: ApacheHandle, protocol: str, mechanism: str | None, password: str = PASSWORD) -> dict[str, object]:
    security: dict[str, object] = {"protocol": protocol}
    if "SSL" in protocol:
        security["cafile"] = str(apache.kafka.cafile)
    if protocol == "SSL":
        security |= {"certfile": str(apache.kafka.client_certificate), "keyfile": str(apache.kafka.client_certificate)}
    if mechanism is not None:
        security |= {"mechanism": mechanism, "username": USERNAME, "password": password}
    return {"bootstrap_servers": apache.kafka.bootstrap(protocol), "security": security}


@pytest.mark.parametrize(("protocol", "mechanism"), WAYS)
async def test_the_whole_way(apache: ApacheHandle, protocol: str, mechanism: str | None):
    """History, live records and a publish, over each kind of listener."""
    topic = await apache.create_topic(partitions=2)
    await apache.produce(topic, b"1", b"2")
    everything = {"authenticated": True}
    async with running(section(apache, protocol, mechanism), {"all": {"topic": topic, "publish": everything}}) as instance:
        client = instance.client("all", start="earliest")
        await client.read(2)
        poll = instance.park(client)
        await eventually(lambda: instance.parked == 1)
        publisher = instance.client("all")
        answer = await publisher.request(
            "/v1/publish?channel=all", method="POST", headers={"Content-Type": "application/json"}, body=b"3"
        )
        assert (answer.status, (await asyncio.wait_for(poll, 10)).messages[0]["value"]) == (201, 3)
        assert sorted(client.chain.values) == [1, 2, 3]
        assert (await instance.ready()).status == 200


@pytest.mark.parametrize(("protocol", "mechanism"), [("SASL_SSL", "SCRAM-SHA-512"), ("SASL_PLAINTEXT", "PLAIN")])
async def test_a_wrong_password_is_told_and_tried_slowly(apache: ApacheHandle, protocol: str, mechanism: str):
    """/readyz says what is wrong, clients get 503, and the brokers are not stormed."""
    topic = await apache.create_topic()
    kafka = section(apache, protocol, mechanism, "not the password")
    async with running(kafka, {"all": {"topic": topic}}) as instance:
        answer = await instance.client("all").poll(wait=0)
        assert (answer.status, answer.document["code"]) == (503, "broker_unavailable")
        ready = await instance.ready()
        assert (ready.status, "not the password" in ready.body.decode()) == (503, False)
        assert ready.document["failed"]["kafka"]
        before = (await instance.metrics())["gateway_kafka_errors_total"]
        await asyncio.sleep(1)
        assert (await instance.metrics())["gateway_kafka_errors_total"] - before <= 10


async def test_a_certificate_of_nobody_is_refused(apache: ApacheHandle):
    """Without the broker's authority the gateway does not talk to it."""
    topic = await apache.create_topic()
    kafka = {"bootstrap_servers": apache.kafka.bootstrap("SSL"), "security": {"protocol": "SSL"}}
    async with running(kafka, {"all": {"topic": topic}}) as instance:
        assert (await instance.client("all").poll(wait=0)).status == 503
        assert "certificate" in (await instance.ready()).document["failed"]["kafka"].lower()
        assert token()
