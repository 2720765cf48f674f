"""The producer: what Kafka has stored, and what is certain where it has not."""

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError, OutOfOrderSequenceNumber, ProducerFenced
from kafka.conftest import Watch
from waiting import eventually

from gateway.devbroker.schemas import Api
from gateway.errors import BodyTooLarge, BrokerUnavailable, GatewayError
from gateway.kafka.cluster import Cluster
from gateway.kafka.connect import Connections, KafkaSettings, Unreachable
from gateway.kafka.produce import Draft, Produced, Producer


@pytest.fixture
async def producer(dev, watch):
    settings = KafkaSettings((dev.address,), request_timeout=2.0)
    connections = Connections(settings)
    one = Producer(settings, Cluster(settings, connections, watch), watch, max_bytes=10_000, request_timeout=2.0)
    yield one
    await one.close()
    await connections.close()


@pytest.fixture
def watch():
    return Watch()


async def test_a_record_is_stored_with_all_it_has(dev, producer, watch):
    stored = await producer.send("t", b"k", b"v", (("h", b"1"), ("n", None)), partition=1, timeout=5)
    assert (stored.partition, stored.offset) == (1, 0)
    (record,) = dev.records("t", 1)
    assert (record.key, record.value, record.headers) == (b"k", b"v", (("h", b"1"), ("n", None)))
    assert watch.stored == [("t", 1, 2)]


async def test_a_batch_is_answered_one_by_one_and_in_order(dev, producer):
    drafts = [Draft(b"k", b"%d" % i) for i in range(50)]
    drafts[20] = Draft(b"k", b"x" * 20_000)
    drafts[21] = Draft(b"k", b"y", partition=99)
    results = await producer.send_many("t", drafts, timeout=5)
    stored = [result for result in results if isinstance(result, Produced)]
    assert [result.offset for result in stored] == list(range(48))
    assert isinstance(results[20], BodyTooLarge)
    assert isinstance(results[21], BrokerUnavailable)
    assert results[21].outcome == "not_sent"
    assert [record.value for record in dev.records("t", stored[0].partition)][20] == b"22"


async def test_keys_go_where_kafka_s_partitioner_sends_them(producer):
    first = await producer.send("t", b"key", b"1", timeout=5)
    assert (await producer.send("t", b"key", b"2", timeout=5)).partition == first.partition


async def test_a_record_that_the_broker_finds_too_large(dev, producer):
    with dev.faults.error(10, Api.PRODUCE, times=1), pytest.raises(BodyTooLarge) as large:
        await producer.send("t", None, b"x", timeout=5)
    assert large.value.extra == {"limit": 10_000}


async def test_without_a_broker_nothing_was_sent_and_it_works_once_there_is_one(dev, producer):
    await dev.stop()
    with pytest.raises(BrokerUnavailable) as away:
        await producer.send("t", None, b"x", timeout=5)
    assert away.value.outcome == "not_sent"
    await dev.start()

    outcomes = set()

    async def sent() -> bool:
        (result,) = await producer.send_many("t", [Draft(None, b"y")], timeout=5)
        outcomes.add(getattr(result, "outcome", "stored"))
        return isinstance(result, Produced)

    await eventually(sent)
    assert outcomes <= {"not_sent", "stored"}
    assert sum(len(dev.records("t", p)) for p in range(3)) == 1


async def test_while_no_broker_is_known_to_answer_nothing_is_handed_over(dev, producer):
    """What is handed over would be stored whenever a broker comes back; what is not may safely be sent again."""
    await producer.send("t", None, b"first", partition=0, timeout=5)
    await dev.stop()
    with pytest.raises(Unreachable):
        await producer._cluster.refresh([])
    for _ in range(3):
        with pytest.raises(BrokerUnavailable) as away:
            await producer.send("t", None, b"x", partition=0, timeout=5)
        assert away.value.outcome == "not_sent"
    await dev.start()
    await producer._cluster.refresh([])
    assert (await producer.send("t", None, b"second", partition=0, timeout=5)).offset == 1


async def test_a_topic_that_is_gone_is_noticed_before_the_hand_over(dev, producer):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    dev.delete_topic("t")
    producer._cluster.told_at["t"] -= 3600
    producer._looked_up.clear()
    with pytest.raises(BrokerUnavailable) as gone:
        await producer.send("t", None, b"x", partition=0, timeout=5)
    assert gone.value.outcome == "not_sent"


async def test_an_unknown_topic_is_not_created_and_not_asked_for_all_the_time(dev, producer):
    dev.cluster.auto_create = True
    for _ in range(20):
        with pytest.raises(BrokerUnavailable) as unknown:
            await producer.send("nope", None, b"x", timeout=5)
        assert unknown.value.outcome == "not_sent"
    assert dev.requests[Api.METADATA] <= 3
    assert "nope" not in dev.cluster.topics


async def test_a_broker_that_does_not_answer_leaves_the_outcome_unknown(dev, producer):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    with dev.faults.stall(Api.PRODUCE):
        with pytest.raises(BrokerUnavailable) as stalled:
            await producer.send("t", None, b"x", partition=0, timeout=0.2)
        assert stalled.value.outcome == "unknown"
    await eventually(lambda: len(dev.records("t", 0)) == 2)


async def test_a_lost_answer_does_not_store_twice(dev, producer):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    with dev.faults.drop(Api.PRODUCE, processed=True):
        stored = await producer.send("t", None, b"once", partition=0, timeout=10)
    assert stored.offset in {1, -1}
    assert [record.value for record in dev.records("t", 0)] == [b"first", b"once"]


async def test_a_delivery_that_fails_leaves_the_outcome_unknown(dev, producer, watch):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    with dev.faults.error(42, Api.PRODUCE), pytest.raises(BrokerUnavailable) as failed:
        await producer.send("t", None, b"x", partition=0, timeout=10)
    assert failed.value.outcome == "unknown"
    assert failed.value.__cause__ is not None
    assert watch.errors


async def test_what_may_not_be_written_was_not_sent(dev, producer):
    with dev.faults.error(29, Api.PRODUCE, times=1), pytest.raises(BrokerUnavailable) as refused:
        await producer.send("t", None, b"x", timeout=5)
    assert refused.value.outcome == "not_sent"


async def test_a_client_that_leaves_does_not_take_its_record_back(dev, producer):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    with dev.faults.stall(Api.PRODUCE) as fault:
        sending = asyncio.ensure_future(producer.send("t", None, b"x", partition=0, timeout=5))
        await fault.hit()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    await eventually(lambda: len(dev.records("t", 0)) == 2)


async def test_after_close_nothing_is_sent(producer):
    await producer.close()
    with pytest.raises(BrokerUnavailable):
        await producer.send("t", None, b"x", timeout=5)


class Scripted:
    """A producer in aiokafka's place: `outcomes` become of what is sent, `start` of starting it."""

    def __init__(self, *outcomes: object, start: BaseException | None = None) -> None:
        self.outcomes = list(outcomes)
        self.starting = start
        self.stopped = False

    async def start(self) -> None:
        if self.starting is not None:
            raise self.starting

    async def stop(self) -> None:
        self.stopped = True
        if "hang" in self.outcomes:
            await asyncio.Event().wait()

    async def send(self, topic, value=None, key=None, partition=None, timestamp_ms=None, headers=None):
        future = asyncio.get_running_loop().create_future()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        elif outcome == "cancel":
            future.cancel()
        return future


async def outcome_of(producer: Producer) -> str | None:
    (result,) = await producer.send_many("t", [Draft(None, b"x")], timeout=0.1)
    assert isinstance(result, GatewayError)
    return getattr(result, "outcome", None)


async def test_a_session_that_has_ended_is_replaced(producer, monkeypatch):
    made = [Scripted(ProducerFenced()), Scripted(OutOfOrderSequenceNumber()), Scripted("cancel")]
    left = list(made)
    monkeypatch.setattr(producer, "_build", lambda: left.pop(0))
    for one in made:
        assert await outcome_of(producer) == "unknown"
        assert one.stopped == (one is not made[2])


async def test_a_start_that_fails_is_not_repeated_at_once(producer, monkeypatch, watch):
    made = []

    def build():
        made.append(Scripted(start=KafkaConnectionError("no")))
        return made[-1]

    monkeypatch.setattr(producer, "_build", build)
    assert await outcome_of(producer) == "not_sent"
    assert await outcome_of(producer) == "not_sent"
    assert len(made) == 1
    assert made[0].stopped
    assert watch.errors["PRODUCER_START"] == 1


async def test_a_start_that_hangs_ends_with_the_time(producer, monkeypatch):
    class Hanging(Scripted):
        async def start(self) -> None:
            await asyncio.Event().wait()

    made = [Hanging()]
    monkeypatch.setattr(producer, "_build", lambda: made[0])
    assert await outcome_of(producer) == "not_sent"
    assert made[0].stopped


async def test_what_cannot_be_delivered_does_not_keep_the_producer_open(dev, producer, caplog):
    await producer.send("t", None, b"first", partition=0, timeout=5)
    producer._request_timeout = 0.3
    with dev.faults.stall(Api.PRODUCE):
        with pytest.raises(BrokerUnavailable):
            await producer.send("t", None, b"x", partition=0, timeout=0.1)
        await producer.close()
    assert "closing the producer" in caplog.text


async def test_closing_does_not_wait_for_ever(producer, monkeypatch, caplog):
    made = Scripted("wait", "hang")
    monkeypatch.setattr(producer, "_build", lambda: made)
    producer._request_timeout = 0.1
    assert await outcome_of(producer) == "unknown"
    await producer.close()
    assert "closing the producer" in caplog.text
