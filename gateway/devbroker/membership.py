"""Group membership: join, sync, heartbeat, leave, by Kafka's classic protocol (sans-I/O).

States of a group, and what leads from one to the next:

    empty ──join──▶ joining ──all have joined, or time is over──▶ syncing ──the leader's assignment──▶ stable
                       ▲                                             │                                │
                       └──────── a member joins, leaves or expires ──┴────────────────────────────────┘

Joining and syncing wait for other members: `join` and `sync` take a request once, `joined` and `synced` say what its answer
is, or None while it is not known; the caller looks again when the group has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from gateway.devbroker.codes import Code, Refused


class State(Enum):
    """What a group is doing, by the names that DescribeGroups gives."""

    EMPTY = "Empty"
    JOINING = "PreparingRebalance"
    SYNCING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(slots=True)
class Member:
    """One consumer. Times in seconds; `protocols` in its order of preference; `waiting`: a join of it is not answered yet."""

    member_id: str
    client_id: str
    session: float
    rebalance: float
    protocols: dict[str, bytes]
    seen: float
    waiting: bool = True
    assignment: bytes = b""


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to a join: the leader also gets all members with their metadata."""

    generation: int
    protocol: str
    leader: str
    members: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class Group:
    """One group and its members, in the order in which they came."""

    name: str
    protocol_type: str = ""
    state: State = State.EMPTY
    generation: int = 0
    protocol: str = ""
    leader: str = ""
    deadline: float = 0.0
    members: dict[str, Member] = field(default_factory=dict)
    _next_member: int = 1

    def join(
        self,
        member_id: str,
        client_id: str,
        protocol_type: str,
        protocols: Sequence[tuple[str, bytes]],
        *,
        session: float,
        rebalance: float,
        now: float,
    ) -> str:
        """Let a member in (an empty id: a new one) and return its id; begins a rebalance where it changes something."""
        offered = dict(protocols)
        self._check_protocols(member_id, protocol_type, offered)
        if not member_id:
            member_id = f"{client_id}-{self._next_member}"
            self._next_member += 1
        elif member_id not in self.members:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        old = self.members.get(member_id)
        unchanged = old is not None and old.protocols == offered
        self.protocol_type = protocol_type
        self.members[member_id] = Member(member_id, client_id, session, rebalance, offered, now)
        if self.state is State.STABLE and unchanged and old is not None and member_id != self.leader:
            # A follower that lost its answer; only the leader's re-join asks for a new round.
            self.members[member_id].assignment = old.assignment
        elif self.state is not State.JOINING:
            self._rebalance(now)
        return member_id

    def _check_protocols(self, member_id: str, protocol_type: str, offered: dict[str, bytes]) -> None:
        others = [member for member in self.members.values() if member.member_id != member_id]
        common = set(offered)
        for member in others:
            common &= set(member.protocols)
        if not common or (others and protocol_type != self.protocol_type):
            raise Refused(Code.INCONSISTENT_GROUP_PROTOCOL)

    def _rebalance(self, now: float) -> None:
        self.state = State.JOINING
        self.deadline = now + max(member.rebalance for member in self.members.values())

    def joined(self, member_id: str, now: float) -> Joined | None:
        """Return the answer to a member's join; None while others are still to come."""
        if self.state is State.JOINING:
            if not (now >= self.deadline or all(member.waiting for member in self.members.values())):
                return None
            self._complete()
        if member_id not in self.members:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        self.members[member_id].waiting = False
        everyone = tuple((one.member_id, one.protocols[self.protocol]) for one in self.members.values())
        return Joined(self.generation, self.protocol, self.leader, everyone if member_id == self.leader else ())

    def _complete(self) -> None:
        self.members = {name: member for name, member in self.members.items() if member.waiting}
        first = next(iter(self.members.values()))
        self.leader = self.leader if self.leader in self.members else first.member_id
        self.protocol = next(
            name for name in first.protocols if all(name in member.protocols for member in self.members.values())
        )
        self.generation += 1
        self.state = State.SYNCING

    def sync(self, member_id: str, generation: int, assignments: Sequence[tuple[str, bytes]], now: float) -> None:
        """Take a member's sync; the leader's brings everyone's assignment."""
        self.check(member_id, generation, now)
        if self.state is State.SYNCING and member_id == self.leader:
            given = dict(assignments)
            for member in self.members.values():
                member.assignment = given.get(member.member_id, b"")
            self.state = State.STABLE

    def synced(self, member_id: str, generation: int, now: float) -> bytes | None:
        """Return a member's assignment; None while the leader's is still to come. Refused when a new round began."""
        self.check(member_id, generation, now)
        if self.state is State.JOINING:
            raise Refused(Code.REBALANCE_IN_PROGRESS)
        return self.members[member_id].assignment if self.state is State.STABLE else None

    def heartbeat(self, member_id: str, generation: int, now: float) -> None:
        """Note that a member is alive; Refused with REBALANCE_IN_PROGRESS asks it to join again."""
        self.check(member_id, generation, now)
        if self.state is State.JOINING:
            raise Refused(Code.REBALANCE_IN_PROGRESS)

    def check(self, member_id: str, generation: int, now: float) -> None:
        """Refuse who is not a member of this generation; otherwise note that it is alive."""
        if member_id not in self.members:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        if generation != self.generation:
            raise Refused(Code.ILLEGAL_GENERATION)
        self.members[member_id].seen = now

    def leave(self, member_id: str, now: float) -> None:
        """Let a member go; the others share what it had."""
        if member_id not in self.members:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        del self.members[member_id]
        if not self.members:
            self.state = State.EMPTY
        elif self.state is not State.JOINING:
            self._rebalance(now)

    def expire(self, now: float) -> bool:
        """Let go of members that were not heard of for their session time; tell whether there were any."""
        late = [
            name
            for name, member in self.members.items()
            if now - member.seen > (max(member.session, member.rebalance) if member.waiting else member.session)
        ]
        for name in late:
            self.leave(name, now)
        return bool(late)
