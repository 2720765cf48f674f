"""The transaction coordinator: ids, epochs, fencing, ends, time-outs."""

import pytest

from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.transactions import MAX_EPOCH, Transactions

PLACE = ("t", 0)


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


@pytest.fixture
def coordinator() -> Transactions:
    return Transactions()


def test_idempotent_producers_get_ids_of_their_own(coordinator):
    first = coordinator.register(None, 1)
    second = coordinator.register(None, 1)
    assert first[1:] == second[1:] == (0, None)
    assert first[0] != second[0]


def test_a_new_incarnation_has_the_same_id_and_the_next_epoch(coordinator):
    producer, epoch, _ = coordinator.register("x", 1)
    assert coordinator.register("x", 1) == (producer, epoch + 1, None)
    with refused(Code.INVALID_PRODUCER_EPOCH):
        coordinator.add("x", producer, epoch, {PLACE}, 0)


def test_a_new_incarnation_aborts_what_the_old_one_left_open(coordinator):
    producer, _, _ = coordinator.register("x", 1)
    coordinator.add("x", producer, 0, {PLACE, ("t", 1)}, 0)
    _, epoch, ending = coordinator.register("x", 1)
    assert (epoch, ending.producer_id, ending.epoch, ending.commit) == (1, producer, 1, False)
    assert ending.places == (PLACE, ("t", 1))


def test_an_epoch_is_bumped_only_for_who_has_the_current_one(coordinator):
    producer, _, _ = coordinator.register("x", 1)
    assert coordinator.register("x", 1, known=(producer, 0))[:2] == (producer, 1)
    with refused(Code.PRODUCER_FENCED):
        coordinator.register("x", 1, known=(producer, 0))


def test_epochs_end_and_go_on_with_another_id(coordinator):
    producer, _, _ = coordinator.register("x", 1)
    for _ in range(MAX_EPOCH):
        coordinator.register("x", 1)
    fresh, epoch, _ = coordinator.register("x", 1)
    assert fresh != producer
    assert epoch == 0
    coordinator.add("x", fresh, 0, {PLACE}, 0)
    coordinator.check(fresh, 0, PLACE)
    with refused(Code.INVALID_PRODUCER_ID_MAPPING):
        coordinator.check(producer, MAX_EPOCH, PLACE)


def test_batches_belong_to_a_partition_of_the_open_transaction(coordinator):
    producer, epoch, _ = coordinator.register("x", 1)
    with refused(Code.INVALID_TXN_STATE):
        coordinator.check(producer, epoch, PLACE)
    coordinator.add("x", producer, epoch, {PLACE}, 0)
    coordinator.check(producer, epoch, PLACE)
    with refused(Code.INVALID_PRODUCER_EPOCH):
        coordinator.check(producer, epoch + 1, PLACE)
    with refused(Code.INVALID_PRODUCER_ID_MAPPING):
        coordinator.check(12345, 0, PLACE)


def test_an_end_may_be_repeated_but_not_turned_round(coordinator):
    producer, epoch, _ = coordinator.register("x", 1)
    coordinator.add("x", producer, epoch, {PLACE}, 0)
    assert coordinator.end("x", producer, epoch, commit=True).places == (PLACE,)
    assert coordinator.end("x", producer, epoch, commit=True).places == ()
    with refused(Code.INVALID_TXN_STATE):
        coordinator.end("x", producer, epoch, commit=False)


def test_unknown_ids_are_refused(coordinator):
    with refused(Code.INVALID_PRODUCER_ID_MAPPING):
        coordinator.end("x", 1, 0, commit=True)
    producer, epoch, _ = coordinator.register("x", 1)
    with refused(Code.INVALID_PRODUCER_ID_MAPPING):
        coordinator.end("x", producer + 1, epoch, commit=True)


def test_group_offsets_wait_for_the_end(coordinator):
    producer, epoch, _ = coordinator.register("x", 1)
    with refused(Code.INVALID_TXN_STATE):
        coordinator.add_offsets("x", producer, epoch, "g", {PLACE: (5, None)})
    coordinator.add("x", producer, epoch, set(), 0)
    coordinator.add_offsets("x", producer, epoch, "g", {PLACE: (5, None)})
    assert coordinator.end("x", producer, epoch, commit=True).offsets == {"g": {PLACE: (5, None)}}


def test_what_is_open_for_too_long_is_aborted_and_its_producer_fenced(coordinator):
    producer, epoch, _ = coordinator.register("x", 10)
    coordinator.register("idle", 10)
    coordinator.add("x", producer, epoch, {PLACE}, now=100)
    coordinator.add("x", producer, epoch, {("t", 1)}, now=109)
    assert coordinator.expire(110) == []
    (ending,) = coordinator.expire(110.1)
    assert (ending.commit, ending.epoch, ending.places) == (False, 1, (PLACE, ("t", 1)))
    assert coordinator.expire(200) == []
    with refused(Code.INVALID_PRODUCER_EPOCH):
        coordinator.end("x", producer, epoch, commit=True)
