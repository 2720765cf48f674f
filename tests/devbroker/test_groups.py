"""Groups: committed offsets and who may commit."""

import pytest

from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.groups import Groups


def refused(code: Code):
    return pytest.raises(Refused, check=lambda error: error.code == code)


def test_offsets_are_kept_by_group_and_partition():
    groups = Groups()
    groups.commit("g", "t", 0, 5, "note", leader_epoch=2)
    groups.commit("g", "t", 0, 3)
    assert groups.committed("g")["t", 0].offset == 3
    assert groups.committed("other") == {}
    assert groups.listed() == [("g", "")]


def test_a_deleted_topic_is_forgotten():
    groups = Groups()
    groups.commit("g", "t", 0, 5)
    groups.commit("g", "u", 0, 6)
    groups.forget_topic("t")
    assert set(groups.committed("g")) == {("u", 0)}


def test_offsets_go_when_their_retention_is_over():
    groups = Groups()
    groups.commit("g", "t", 0, 5, until=100.0)
    groups.commit("g", "t", 1, 5)
    groups.expire(99.9)
    assert len(groups.committed("g")) == 2
    groups.expire(100.0)
    assert set(groups.committed("g")) == {("t", 1)}


def test_expired_members_are_told():
    groups = Groups()
    told = []
    groups.changed = told.append
    groups.group("g").join("", "c", "consumer", [("range", b"")], session=1, rebalance=1, now=0)
    groups.expire(0.5)
    assert told == []
    groups.expire(2)
    assert told == ["g"]
    assert groups.listed() == [("g", "consumer")]


def test_commits_from_outside_only_where_there_are_no_members():
    groups = Groups()
    groups.check_commit("g", -1, "", 0)
    member = groups.group("g").join("", "c", "consumer", [("range", b"")], session=1, rebalance=1, now=0)
    groups.group("g").joined(member, 0)
    with refused(Code.UNKNOWN_MEMBER_ID):
        groups.check_commit("g", -1, "", 0)
    groups.check_commit("g", 1, member, 0)
    with refused(Code.ILLEGAL_GENERATION):
        groups.check_commit("g", 7, member, 0)
    with refused(Code.UNKNOWN_MEMBER_ID):
        groups.check_commit("empty", 3, "x", 0)


def test_a_group_has_a_name():
    groups = Groups()
    for action in (lambda: groups.group(""), lambda: groups.check_commit("", -1, "", 0)):
        with refused(Code.INVALID_GROUP_ID):
            action()


def test_deleting_groups():
    groups = Groups()
    groups.commit("g", "t", 0, 5)
    groups.delete("g")
    with refused(Code.GROUP_ID_NOT_FOUND):
        groups.delete("g")
    member = groups.group("h").join("", "c", "consumer", [("range", b"")], session=1, rebalance=1, now=0)
    with refused(Code.NON_EMPTY_GROUP):
        groups.delete("h")
    groups.group("h").leave(member, 0)
    groups.delete("h")
    assert not groups.exists("h")
