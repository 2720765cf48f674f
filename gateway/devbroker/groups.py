"""Consumer groups: committed offsets, and the members of each (sans-I/O)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.devbroker.codes import Code, Refused
from gateway.devbroker.membership import Group


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset. `until` is Unix time in seconds, None for ever."""

    offset: int
    metadata: str | None
    leader_epoch: int = -1
    until: float | None = None


class Groups:
    """The groups of a cluster, each with its committed offsets and members."""

    def __init__(self) -> None:
        self.changed: Callable[[str], None] = lambda _group: None
        self._members: dict[str, Group] = {}
        self._offsets: dict[str, dict[tuple[str, int], Committed]] = {}

    def listed(self) -> list[tuple[str, str]]:
        """Return (name, protocol type) of all groups; the type is empty for one that has only offsets."""
        names = sorted(self._offsets.keys() | self._members.keys())
        return [(name, self._members[name].protocol_type if name in self._members else "") for name in names]

    def exists(self, name: str) -> bool:
        """Tell whether a group has offsets or has had members."""
        return name in self._offsets or name in self._members

    def group(self, name: str) -> Group:
        """Return a group's membership; any name has one."""
        if not name:
            raise Refused(Code.INVALID_GROUP_ID)
        return self._members.setdefault(name, Group(name))

    def check_commit(self, name: str, generation: int, member_id: str, now: float) -> None:
        """Refuse a commit by someone who is not in the group; generation -1 is for groups without members."""
        if not name:
            raise Refused(Code.INVALID_GROUP_ID)
        found = self._members.get(name)
        if generation < 0 and (found is None or not found.members):
            return
        self.group(name).check(member_id, generation, now)

    def commit(
        self,
        group: str,
        topic: str,
        partition: int,
        offset: int,
        metadata: str | None = None,
        *,
        leader_epoch: int = -1,
        until: float | None = None,
    ) -> None:
        """Store an offset; a group comes to be by its first one."""
        committed = Committed(offset, metadata, leader_epoch, until)
        self._offsets.setdefault(group, {})[topic, partition] = committed

    def committed(self, group: str) -> dict[tuple[str, int], Committed]:
        """Return a group's offsets by topic and partition."""
        return self._offsets.get(group, {})

    def delete(self, group: str) -> None:
        """Delete a group with its offsets; Refused where there is none or it has members."""
        if not self.exists(group):
            raise Refused(Code.GROUP_ID_NOT_FOUND)
        if group in self._members and self._members[group].members:
            raise Refused(Code.NON_EMPTY_GROUP)
        self._offsets.pop(group, None)
        self._members.pop(group, None)

    def forget_topic(self, topic: str) -> None:
        """Drop the offsets of a deleted topic."""
        for offsets in self._offsets.values():
            for place in [place for place in offsets if place[0] == topic]:
                del offsets[place]

    def expire(self, now: float) -> None:
        """Drop offsets whose retention is over, and members that were not heard of."""
        for group in self._members.values():
            if group.expire(now):
                self.changed(group.name)
        for offsets in self._offsets.values():
            for place in [place for place, one in offsets.items() if one.until is not None and one.until <= now]:
                del offsets[place]
