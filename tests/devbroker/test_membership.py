"""One group's members through Kafka's classic protocol."""

import math

import pytest

from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.membership import Group, State

RANGE = [("range", b"meta"), ("roundrobin", b"rr")]


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


def join(
    group: Group, member_id: str = "", *, protocols=RANGE, now: float = 0.0, kind: str = "consumer", client: str = "c"
) -> str:
    return group.join(member_id, client, kind, protocols, session=10, rebalance=30, now=now)


def stable(count: int) -> tuple[Group, list[str]]:
    """Give a group with so many members, each with its own name as assignment; the first one leads."""
    group = Group("g")
    members = [join(group)]
    group.joined(members[0], 0)
    for _ in range(count - 1):
        members.append(join(group))
        for member in members[:-1]:
            join(group, member)
        for member in members:
            group.joined(member, 0)
    group.sync(members[0], group.generation, [(member, member.encode()) for member in members], 0)
    return group, members


def test_one_member_leads_itself():
    group = Group("g")
    member = join(group)
    joined = group.joined(member, 0)
    assert (joined.generation, joined.protocol, joined.leader, joined.members) == (1, "range", member, ((member, b"meta"),))
    assert group.synced(member, 1, 0) is None
    group.sync(member, 1, [(member, b"all")], 0)
    assert group.synced(member, 1, 0) == b"all"
    assert group.state is State.STABLE
    group.heartbeat(member, 1, 5)


def test_a_second_member_makes_the_first_join_again():
    group, (first,) = stable(1)
    second = join(group)
    assert second != first
    assert group.joined(second, 0) is None
    with refused(Code.REBALANCE_IN_PROGRESS):
        group.heartbeat(first, 1, 0)
    with refused(Code.REBALANCE_IN_PROGRESS):
        group.synced(first, 1, 0)
    join(group, first)
    assert [name for name, _ in group.joined(first, 0).members] == [first, second]
    follower = group.joined(second, 0)
    assert (follower.generation, follower.leader, follower.members) == (2, first, ())
    group.sync(second, 2, [], 0)
    assert group.synced(second, 2, 0) is None
    group.sync(first, 2, [(first, b"1")], 0)
    assert (group.synced(first, 2, 0), group.synced(second, 2, 0)) == (b"1", b"")


def test_who_does_not_join_again_in_time_is_out():
    group, (first,) = stable(1)
    second = join(group, now=100)
    assert group.joined(second, 129) is None
    assert group.joined(second, 130).leader == second
    with refused(Code.UNKNOWN_MEMBER_ID):
        group.heartbeat(first, 2, 130)
    with refused(Code.UNKNOWN_MEMBER_ID):
        group.joined(first, 130)


def test_the_first_protocol_that_all_know_is_taken():
    group = Group("g")
    first = join(group)
    second = join(group, protocols=[("roundrobin", b"2")])
    assert group.joined(second, 0).protocol == "roundrobin"
    assert group.joined(first, 0).members == ((first, b"rr"), (second, b"2"))


@pytest.mark.parametrize(("protocols", "kind"), [([("other", b"")], "consumer"), (RANGE, "connect"), ([], "consumer")])
def test_who_has_nothing_in_common_is_refused(protocols, kind):
    group, _ = stable(1)
    with refused(Code.INCONSISTENT_GROUP_PROTOCOL):
        join(group, protocols=protocols, kind=kind)


def test_a_follower_that_lost_its_answer_gets_it_again_without_a_new_round():
    group, (_, second) = stable(2)
    generation = group.generation
    join(group, second)
    assert group.state is State.STABLE
    assert group.joined(second, 0).generation == generation
    assert group.synced(second, generation, 0) == second.encode()


@pytest.mark.parametrize("index", [0, 1])
def test_a_leader_or_a_changed_follower_begins_a_new_round(index):
    group, members = stable(2)
    join(group, members[index], protocols=[*RANGE, *([("new", b"")] if index else [])])
    assert group.state is State.JOINING


def test_strangers_and_old_generations_are_refused():
    group, (first,) = stable(1)
    for action in (
        lambda: join(group, "stranger"),
        lambda: group.heartbeat("stranger", 1, 0),
        lambda: group.leave("stranger", 0),
    ):
        with refused(Code.UNKNOWN_MEMBER_ID):
            action()
    with refused(Code.ILLEGAL_GENERATION):
        group.heartbeat(first, 0, 0)


def test_when_one_leaves_the_others_share():
    group, (first, second) = stable(2)
    group.leave(first, 0)
    assert group.state is State.JOINING
    join(group, second)
    assert group.joined(second, 0).leader == second
    group.leave(second, 0)
    assert group.state is State.EMPTY


def test_leaving_in_the_middle_of_a_round_does_not_begin_another():
    group, (first,) = stable(1)
    second = join(group, now=7)
    deadline = group.deadline
    group.leave(first, 20)
    assert group.deadline == deadline
    assert group.joined(second, 20).leader == second


def test_a_round_that_begins_before_all_have_their_answer_keeps_their_joins():
    group = Group("g")
    first = join(group)
    second = join(group)
    assert group.joined(first, 0) is not None
    third = join(group)
    assert group.joined(second, 0) is None
    join(group, first)
    assert len(group.joined(first, 0).members) == 3
    assert group.joined(second, 0).generation == group.joined(third, 0).generation == 2


def test_who_is_silent_for_its_session_is_out():
    group, (first, second) = stable(2)
    group.heartbeat(second, group.generation, 8)
    assert not group.expire(10)
    assert group.expire(10.5)
    assert list(group.members) == [second]
    assert first not in group.members


def test_who_waits_in_a_join_may_be_silent_for_the_rebalance_time():
    group, _ = stable(1)
    second = join(group, now=0)
    assert group.expire(11)
    assert list(group.members) == [second]
    assert not group.expire(30)
    assert group.expire(31)
    assert group.state is State.EMPTY


def test_time_that_is_over_completes_a_round():
    group, _ = stable(2)
    third = join(group)
    assert group.joined(third, math.inf).members == ((third, b"meta"),)
