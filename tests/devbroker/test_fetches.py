"""What a fetch finds, and whether that ends its long poll."""

import pytest

from gateway.devbroker.batches import build, parse
from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import Api
from gateway.records import Record

PLAIN = {"max_wait_time": 500, "min_bytes": 1, "max_bytes": 2**20, "replica_id": -1}


def batch(size: int = 10, **kwargs):
    return build([Record(0, 1000, None, b"v" * size)], **kwargs)


def fetch(ask, *wanted, version=11, committed=True, last=False, topic="t", **changes):
    partitions = [
        {
            "partition": index,
            "fetch_offset": offset,
            "offset": offset,
            "max_bytes": size,
            "current_leader_epoch": epoch,
            "log_start_offset": -1,
        }
        for index, offset, size, epoch in (tuple(one) + (2**20, -1)[len(one) - 2 :] for one in wanted)
    ]
    body = PLAIN | {
        "isolation_level": int(committed),
        "session_id": 0,
        "session_epoch": -1,
        "topics": [{"topic": topic, "partitions": partitions}],
        "forgotten_topics_data": [],
        "rack_id": "",
    }
    return ask(Api.FETCH, version, last=last, **(body | changes))


def partitions(answer):
    return answer["topics"][0]["partitions"]


@pytest.fixture
def topic(cluster):
    del cluster.nodes[2]
    created = cluster.create("t", 3)
    for index in range(3):
        cluster.append("t", index, [batch(), batch()], 1.0)
    return created


@pytest.mark.parametrize("version", range(4, 12))
def test_every_version_gives_the_batches_and_bounds(ask, topic, version):
    (found,) = partitions(fetch(ask, (0, 1), version=version))
    assert [one.base for one in parse(found["message_set"])] == [1]
    assert (found["highwater_offset"], found["last_stable_offset"], found["error_code"]) == (2, 2, 0)
    assert found["aborted_transactions"] == []
    if version >= 5:
        assert found["log_start_offset"] == 0


def test_nothing_yet_waits_and_the_end_of_time_answers(ask, topic):
    assert fetch(ask, (0, 2)) is None
    (found,) = partitions(fetch(ask, (0, 2), last=True))
    assert (found["message_set"], found["highwater_offset"]) == (b"", 2)


def test_it_waits_at_its_partitions_for_its_time(ask, topic):
    waiting = fetch(ask, (0, 2), (2, 2), last=None)
    assert waiting.places == (("t", 0), ("t", 2))
    assert waiting.seconds == 0.5
    assert waiting.look(False) is None


def test_min_bytes_count_over_all_partitions(ask, topic):
    size = len(topic.partitions[0].log.read(1, 2**20, committed=True, at_least_one=True))
    assert fetch(ask, (0, 1), (1, 1), min_bytes=2 * size + 1) is None
    assert len(partitions(fetch(ask, (0, 1), (1, 1), min_bytes=2 * size))) == 2


def test_no_min_bytes_does_not_wait(ask, topic):
    assert fetch(ask, (0, 2), min_bytes=0) is not None


def test_the_bound_is_shared_in_the_order_of_the_request(ask, topic):
    sizes = [len(one["message_set"]) for one in partitions(fetch(ask, (1, 0), (0, 0), (2, 0), max_bytes=1))]
    assert sizes[0] > 1
    assert sizes[1:] == [0, 0]


def test_the_first_batch_comes_from_the_first_partition_that_has_one(ask, topic):
    sizes = [len(one["message_set"]) for one in partitions(fetch(ask, (1, 2), (0, 1, 1), (2, 0, 1)))]
    assert sizes[0] == 0
    assert sizes[1] > 1
    assert sizes[2] == 1


def test_any_error_answers_at_once_and_leaves_the_others_alone(ask, topic):
    good, out_of_range, unknown = partitions(fetch(ask, (0, 0), (1, 9), (7, 0)))
    assert (good["error_code"], bool(good["message_set"])) == (0, True)
    assert out_of_range["error_code"] == Code.OFFSET_OUT_OF_RANGE
    assert (out_of_range["highwater_offset"], out_of_range["log_start_offset"]) == (-1, -1)
    assert unknown["error_code"] == Code.UNKNOWN_TOPIC_OR_PARTITION


def test_leaders_and_their_epochs_are_checked(ask, topic):
    (found,) = partitions(fetch(ask, (0, 0, 100, 5)))
    assert found["error_code"] == Code.UNKNOWN_LEADER_EPOCH
    topic.partitions[0].leader = 2
    (found,) = partitions(fetch(ask, (0, 0)))
    assert found["error_code"] == Code.NOT_LEADER_OR_FOLLOWER


def test_sessions_are_not_given_out(ask, topic):
    answer = fetch(ask, (0, 0), session_id=5)
    assert (answer["error_code"], answer["topics"]) == (Code.FETCH_SESSION_ID_NOT_FOUND, [])


def test_aborted_transactions_are_told_only_at_read_committed(ask, topic, cluster):
    producer, epoch, _ = cluster.transactions.register("x", 60)
    cluster.transactions.add("x", producer, epoch, {("t", 0)}, 0)
    cluster.append("t", 0, [batch(producer=(producer, epoch, 0), transactional=True)], 1.0)
    assert fetch(ask, (0, 2)) is None
    (found,) = partitions(fetch(ask, (0, 2), committed=False))
    assert (found["highwater_offset"], found["last_stable_offset"], bool(found["message_set"])) == (3, 2, True)
    cluster.finish(cluster.transactions.end("x", producer, epoch, commit=False), 2.0)
    (found,) = partitions(fetch(ask, (0, 0)))
    assert found["aborted_transactions"] == [{"producer_id": producer, "first_offset": 2}]
    (found,) = partitions(fetch(ask, (0, 0), committed=False))
    assert found["aborted_transactions"] is None


def test_a_faults_code_is_on_its_partition(ask, topic):
    first, second = partitions(fetch(ask, (0, 0), (1, 0), fault=lambda _topic, index: 56 if index == 1 else 0))
    assert (first["error_code"], second["error_code"], second["message_set"]) == (0, 56, b"")
