"""Publishing: what is stored, what a repeat gets, and what is told when Kafka does not answer."""

import asyncio
import json

import pytest
from livegateway import Live, live, token
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.errors import BodyTooLarge, BrokerUnavailable

NDJSON = {"Content-Type": "application/x-ndjson"}


def stored(gateway: Live, topic: str) -> list:
    """Return all records of a topic, partition by partition."""
    partitions = gateway.broker.cluster.topic(topic).partitions
    return [record for partition in range(len(partitions)) for record in gateway.broker.records(topic, partition)]


async def test_a_record_is_stored_as_it_came_with_its_publisher(gateway: Live):
    """The value byte for byte, the channel's key, and who published it, which no client can say itself."""
    reply = await gateway.publish(
        "chat/lobby", b' {"a" : 1.50}\n', token=token("ann", rooms=["lobby"]), headers={"gateway-principal": "root"}
    )
    assert reply.status == 201
    place = reply.json
    (record,) = stored(gateway, "chat")
    assert (record.key, record.value) == (b"lobby", b' {"a" : 1.50}\n')
    assert record.headers == (("gateway-principal", b"test/ann"),)
    assert gateway.broker.records("chat", place["partition"])[place["offset"]].value == record.value
    metrics = await gateway.metrics()
    assert metrics["gateway_publishes_total{chat/{room},stored}"] == 1
    assert metrics["gateway_publish_latency_seconds_count"] == 1


async def test_the_stamp_is_shown_where_the_channel_says_so():
    """A reader sees who published, if the operator lets the header through."""
    async with live(
        channels={"news": {"topic": "news", "headers": ["gateway-principal"], "publish": {"authenticated": True}}}
    ) as gateway:
        published = await gateway.publish("news", b"1", token=token("ann"))
        assert published.status == 201
        reply = await gateway.poll("news", from_="earliest", wait=10)
        assert reply.messages[0]["headers"] == [["gateway-principal", "test/ann"]]


async def test_text_that_is_none_is_refused(gateway: Live):
    """Bytes that are not UTF-8 would come back as base64."""
    reply = await gateway.publish("notes", b"\xff\xfe")
    assert (reply.status, reply.code) == (400, "body_invalid")
    assert stored(gateway, "notes") == []


async def test_a_key_is_the_publishers_where_the_channel_fixes_none(gateway: Live):
    """With `key` equal records share a partition; without, they have none."""
    places = {(await gateway.publish("news", b"1", key="k")).json["partition"] for _ in range(4)}
    assert len(places) == 1
    await gateway.publish("news", b"2")
    assert {record.key for record in stored(gateway, "news")} == {b"k", None}


async def test_a_tombstone_is_a_record_without_a_value(gateway: Live):
    """No body, no value, and the key that it deletes."""
    assert (await gateway.publish("news", None, key="k", tombstone="true")).status == 201
    (record,) = stored(gateway, "news")
    assert (record.key, record.value) == (b"k", None)


async def test_a_batch_keeps_its_order_and_tells_of_each_line(gateway: Live):
    """Good lines are stored in order, broken ones are told of in their place, and the cursor is behind the last."""
    mine = token("ann", rooms=["lobby"])
    before = await gateway.poll("chat/lobby", token=mine)
    body = b"\n".join(b"%d" % n if n % 10 else b"broken" for n in range(1, 50))
    reply = await gateway.publish("chat/lobby", body, token=mine, headers=NDJSON)
    results = reply.json["results"]
    assert [n for n, result in enumerate(results, 1) if "problem" in result] == [10, 20, 30, 40]
    assert results[9]["problem"]["code"] == "body_invalid"
    offsets = [result["offset"] for result in results if "offset" in result]
    assert offsets == sorted(offsets)
    seen = await gateway.poll("chat/lobby", token=mine, cursor=before.cursor, wait=10)
    while len(seen.messages) < 45:  # the producer may have made several batches of it
        seen = await gateway.poll("chat/lobby", token=mine, cursor=before.cursor, wait=0)
    assert seen.values == [n for n in range(1, 50) if n % 10]
    assert (await gateway.poll("chat/lobby", token=mine, cursor=reply.json["cursor"])).status == 204


async def test_the_cursor_of_a_keyed_partition(gateway: Live):
    """With a partitioner the cursor has the key's partition only, and reads on behind the record."""
    reply = await gateway.publish("inbox", b"1", token=token("ann"))
    assert reply.status == 201
    parked = gateway.parking("inbox", cursor=reply.json["cursor"])
    await gateway.parked()
    await gateway.publish("inbox", b"2", token=token("ann"))
    assert (await parked).values == [2]


# --- Idempotency-Key ---


async def test_a_repeat_gets_the_first_answer(gateway: Live):
    """One record for one key, principal and channel; others of these are other publishes."""
    key = {"Idempotency-Key": "order-1"}
    first = await gateway.publish("news", b"1", headers=key)
    again = await gateway.publish("news", b"1", headers=key)
    assert (again.status, again.body) == (201, first.body)
    assert len(stored(gateway, "news")) == 1
    assert (await gateway.publish("news", b"1", headers=key, token=token("bob"))).json != first.json
    assert (await gateway.publish("notes", b"1", headers=key)).status == 201
    assert len(stored(gateway, "news")) == 2


async def test_a_repeated_batch_gets_the_first_answer(gateway: Live):
    """Also with a line that was refused."""
    key = NDJSON | {"Idempotency-Key": "batch-1"}
    first = await gateway.publish("news", b"1\nbroken\n2", headers=key)
    again = await gateway.publish("news", b"1\nbroken\n2", headers=key)
    assert again.body == first.body
    assert len(stored(gateway, "news")) == 2


async def test_a_repeat_while_the_first_is_in_flight_waits_for_it(gateway: Live):
    """Concurrent repeats are one publish; with another body they are refused at once."""
    key = {"Idempotency-Key": "order-1"}
    with gateway.broker.faults.stall(Api.PRODUCE) as fault:
        sent = [asyncio.ensure_future(gateway.publish("news", b"1", headers=key)) for _ in range(5)]
        await fault.hit()
        other = await gateway.publish("news", b"2", headers=key)
        assert other.code == "idempotency_mismatch"
    replies = await asyncio.gather(*sent)
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body for reply in replies}) == 1
    assert len(stored(gateway, "news")) == 1


async def test_an_unknown_outcome_keeps_its_key():
    """Whether the record was stored nobody knows: a repeat hears the same, instead of storing it twice."""
    async with live(publish={"timeout": 1}) as gateway:
        assert (await gateway.publish("news", b"0")).status == 201
        with gateway.broker.faults.stall(Api.PRODUCE):
            reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
            assert (reply.status, reply.code) == (503, "broker_unavailable")
            assert reply.json["outcome"] == "unknown"
            assert int(reply.headers["Retry-After"]) >= 1
        again = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
        assert again.json["outcome"] == "unknown"
        await eventually(lambda: len(stored(gateway, "news")) == 2)
        metrics = await gateway.metrics()
        assert metrics["gateway_publishes_total{news,broker_unavailable}"] == 1


async def test_what_was_not_sent_frees_its_key():
    """It is certain that nothing was stored, so a repeat is a first attempt."""
    async with live(publish={"timeout": 1}) as gateway:
        await gateway.broker.stop()
        reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
        assert (reply.code, reply.json["outcome"]) == ("broker_unavailable", "not_sent")
        await gateway.broker.start()

        async def sent():
            return (await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})).status == 201

        await eventually(sent)
        assert len(stored(gateway, "news")) == 1


async def test_the_memory_of_keys_is_bounded():
    """When it is full of keys that must not be forgotten, a new one is refused, and says when to come back."""
    async with live(publish={"idempotency_size": 1, "idempotency_window": 60}) as gateway:
        assert (await gateway.publish("news", b"1", headers={"Idempotency-Key": "a"})).status == 201
        reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "b"})
        assert (reply.status, reply.code) == (503, "overloaded")
        assert (await gateway.metrics())["gateway_limit_refusals_total{overloaded,idempotency}"] == 1
        assert 55 <= int(reply.headers["Retry-After"]) <= 60
        assert (await gateway.publish("news", b"1", headers={"Idempotency-Key": "a"})).status == 201
        assert (await gateway.publish("news", b"1")).status == 201


# --- clients that leave, brokers that are away ---


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_a_client_that_leaves_does_not_take_its_publish_back(gateway: Live, headers: dict[str, str]):
    """Once handed over it goes on; a repeat with the key gets its answer."""
    with gateway.broker.faults.stall(Api.PRODUCE) as fault:
        sent = asyncio.ensure_future(gateway.publish("news", b"1", headers=headers))
        await fault.hit()
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
    await eventually(lambda: len(stored(gateway, "news")) == 1)
    if headers:
        assert (await gateway.publish("news", b"1", headers=headers)).json["offset"] == 0
        assert len(stored(gateway, "news")) == 1


async def test_a_record_larger_than_kafka_takes(gateway: Live):
    """MESSAGE_TOO_LARGE of the broker is 413, and frees its key."""
    with gateway.broker.faults.error(10, Api.PRODUCE, topic="news", times=1):
        reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
        assert (reply.status, reply.code) == (413, "body_too_large")
    assert (await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})).status == 201


async def test_one_record_of_a_batch_may_be_too_large(gateway: Live):
    """Each line has its own answer."""

    async def send(topic, key, values, headers):
        return [BodyTooLarge(100) if len(value) > 100 else _At(n) for n, value in enumerate(values)]

    publish = _handler(gateway)
    publish._send = send
    reply = await gateway.publish("news", b'1\n"' + b"x" * 200 + b'"\n2', headers=NDJSON)
    first, second, third = reply.json["results"]
    assert first == {"partition": 0, "offset": 0}
    assert second["problem"] == {
        "title": "Body too large",
        "status": 413,
        "detail": "The bound is 100 bytes.",
        "code": "body_too_large",
        "limit": 100,
    }
    assert third == {"partition": 0, "offset": 2}


async def test_a_publish_while_nothing_is_known_of_the_topic_has_no_cursor(gateway: Live):
    """Where the topic's ends cannot be told, the record is stored all the same."""

    async def follow(topic, now):
        raise BrokerUnavailable

    _handler(gateway)._log = _Log(follow)
    reply = await gateway.publish("news", b"1")
    assert reply.status == 201
    assert reply.json["cursor"] is None


async def test_a_publish_to_a_topic_without_partitions_has_no_cursor():
    """The topic does not exist: the publish fails in time, and says that nothing was stored."""
    channels = {"nowhere": {"topic": "nowhere", "publish": {"authenticated": True}}}
    async with live(channels=channels, publish={"timeout": 1}) as gateway:
        reply = await gateway.publish("nowhere", b"1")
        assert (reply.code, reply.json["outcome"]) == ("broker_unavailable", "not_sent")


async def test_an_unforeseen_error_keeps_the_key_and_tells_nothing(gateway: Live, caplog):
    """500 without a word of what happened; the record may be stored, so a repeat gets no second chance."""
    tries = []

    async def send(topic, key, values, headers):
        tries.append(topic)
        raise ZeroDivisionError("secret detail")

    _handler(gateway)._send = send
    for _ in range(2):
        reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
        assert (reply.status, reply.code) == (500, "internal_error")
        assert b"secret" not in reply.body
    assert len(tries) == 1
    assert "secret detail" in caplog.text


async def test_a_publish_that_the_end_of_the_process_cuts_short_is_unknown(gateway: Live):
    """Whoever waits for it hears so."""
    started = asyncio.Event()

    async def send(topic, key, values, headers):
        started.set()
        await asyncio.Event().wait()

    _handler(gateway)._send = send
    waiting = [asyncio.ensure_future(gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})) for _ in range(2)]
    await started.wait()
    for task in list(gateway.gateway._tasks):
        if "_settle" in repr(task):
            task.cancel()
    for reply in await asyncio.gather(*waiting):
        assert reply.json["outcome"] == "unknown"


async def test_a_batch_costs_as_many_tokens_as_it_has_lines():
    """Else a batch would be a way around the limit."""
    async with live(limits={"publishes": {"rate": 0.1, "burst": 10}}) as gateway:
        reply = await gateway.publish("news", b"1\n" * 8, headers=NDJSON)
        assert reply.headers["RateLimit"].startswith('"publishes";r=2;')
        assert (await gateway.publish("news", b"1")).headers["RateLimit"].startswith('"publishes";r=1;')
        refused = await gateway.publish("news", b"1\n" * 2, headers=NDJSON)
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert json.loads(refused.body)["request_id"]


async def test_a_batch_of_which_nothing_was_stored_frees_its_key(gateway: Live):
    """Else the repeat, for which clients have the key, could not mend it for ten minutes."""
    answers = [[BrokerUnavailable(outcome="not_sent")] * 2, [_At(0), _At(1)]]

    async def send(topic, key, values, headers):
        return answers.pop(0)

    _handler(gateway)._send = send
    first, second = [await gateway.publish("news", b"1\n2", headers={**NDJSON, "Idempotency-Key": "k"}) for _ in range(2)]
    assert [result["problem"]["code"] for result in first.json["results"]] == ["broker_unavailable"] * 2
    assert [result["offset"] for result in second.json["results"]] == [0, 1]


@pytest.mark.parametrize("key", ["%ff", "%ed%a0%80"])
async def test_a_key_that_is_no_utf8_is_refused(gateway: Live, key: str):
    """The decoder of the query would make one and the same key of all such."""
    reply = await gateway.ask("POST", f"/v1/publish?channel=news&key={key}", headers=gateway.bearer(), data=b"1")
    assert (reply.status, reply.code) == (400, "parameter_invalid")


async def test_a_tombstone_without_a_key_is_refused(gateway: Live):
    """There is nothing that it could delete, and a broker's refusal would look like an outage."""
    reply = await gateway.publish("news", None, tombstone="true", headers={"Content-Length": "0"})
    assert (reply.status, reply.code) == (400, "parameter_invalid")


async def test_a_coding_that_nobody_unpacks_is_refused(gateway: Live):
    """A binary channel would store the packed bytes as the value."""
    reply = await gateway.publish("blobs", b"\x1f\x9d", headers={"Content-Encoding": "compress"})
    assert (reply.status, reply.code) == (415, "media_type")


async def test_a_body_that_does_not_arrive_in_time(gateway: Live):
    """Who sends a byte now and then does not keep a request for ever."""
    _handler(gateway)._body_timeout = 0.2

    async def stalled():
        yield b"{"
        await asyncio.Event().wait()

    reply = await gateway.ask("POST", "/v1/publish?channel=news", headers=gateway.bearer(), data=stalled())
    assert (reply.status, reply.code) == (400, "request_malformed")


class _At:
    def __init__(self, offset: int) -> None:
        self.partition, self.offset = 0, offset


class _Log:
    def __init__(self, follow) -> None:
        self.follow = follow


def _handler(gateway: Live):
    """Return the handler behind POST /v1/publish."""
    routes = gateway.gateway._listeners[0]._runner._app.router.routes()
    return next(route.handler.__self__ for route in routes if route.method == "POST")


async def test_a_publish_while_the_process_drains_is_refused_before_anything_is_stored():
    """On a connection that is still open: 503 `draining`, come back elsewhere; the connection ends."""
    async with live() as gateway:
        gateway.gateway.parking.draining = True
        reply = await gateway.publish("news", b"1", headers={"Idempotency-Key": "k"})
        assert (reply.status, reply.code) == (503, "draining")
        assert reply.headers["Retry-After"] == "1"
        assert reply.headers["Connection"] == "close"
        assert stored(gateway, "news") == []
