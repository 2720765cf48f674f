"""Which of several targets is next (sans-I/O).

Four rules, each a small class with one method, `choose`. They get a `Group`: the available targets of one priority with
their present weights.

*Round robin* is nginx's smooth weighted one (nginx 1.3.1, 2012): every target earns its weight at each turn, the one that is
owed most is chosen and pays the sum, so weights 5, 1, 1 give a a b a c a a and never five in a row.

*Least outstanding* takes the least load per weight. Among up to `EXACT` targets it looks at all of them, and equals are drawn
by weight. Among more it draws two and takes the better: with two choices the longest queue is exponentially shorter
than with one, and a third hardly helps (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS
12(10), 2001). It also keeps many gateways from running to the same idle target at once.

*Hash* is a ring of points (Karger et al., "Consistent Hashing and Random Trees", STOC 1997; ketama, R. Jones, last.fm, 2007).
A target's points depend on its own address only and a key belongs to the next point, so what one target loses goes to
its neighbours and nothing else moves. The ring has the unavailable targets too: their keys go on to the next available one
and come back with them. The number of points is in proportion to the weight. In slow start a second, independent part of
the key's digest decides whether a key is already among the growing share, so each key moves once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import accumulate
from operator import truediv
from struct import unpack
from typing import Final, Protocol, final

from gateway.proxy.target import HELD, Target

EXACT: Final = 8
"""Up to so many targets are all looked at: that costs what two draws cost (1.1 to 1.7 µs each); with 16 it is twice as much."""

POINTS: Final = 160
"""Points on the ring for each unit of weight, as in ketama, where it keeps shares within some 8 %."""

MAX_POINTS: Final = 16_384
"""Points of a ring in all (making it takes about 1 µs each): with more, every target's are halved until they fit."""

Rand = Callable[[], float]

_PER_DIGEST: Final = 8
_INDEX: Final = 0xFFFF  # the low bits of a point say whose it is


@final
class Ring:
    """Who is responsible for a key. At most 32,768 targets."""

    __slots__ = ("_members", "_points")

    def __init__(self, members: Sequence[Target]) -> None:
        self._members = members
        self._points = array("Q", sorted(_points(members)))

    def __len__(self) -> int:
        return len(self._points)

    def find(self, key: bytes, group: Group) -> Target:
        """Return whose a key is: the owner of the next point, or of those behind it, who is available and has grown enough."""
        points, members = self._points, self._members
        point, turn = unpack(">2Q", blake2b(key, digest_size=16).digest())
        start = bisect_left(points, point)
        if group.grown is None:
            return members[points[start - len(points)] & _INDEX]
        # Against the one that has grown most, so that there always is one.
        least = (turn >> 12) / 2.0**52 * group.most
        for index in range(start - len(points), start):
            target = members[points[index] & _INDEX]
            if least < group.grown.get(target, 0.0):
                return target
        raise AssertionError("a group has at least one target, and all of them are in the ring of their level")


def _points(members: Sequence[Target]) -> list[int]:
    shift = 0
    while sum(_count(target, shift) for target in members) > max(MAX_POINTS, len(members)):
        shift += 1
    found: list[int] = []
    for index, target in enumerate(members):
        count = _count(target, shift)
        seed = target.address.encode()
        for number in range(-(-count // _PER_DIGEST)):
            drawn = unpack(">8Q", blake2b(seed, salt=number.to_bytes(16, "big"), person=b"ring").digest())
            found += [point & ~_INDEX | index for point in drawn[: count - number * _PER_DIGEST]]
    return found


def _count(target: Target, shift: int) -> int:
    return max(1, target.weight * POINTS >> shift)


@final
class Level:
    """All targets of one priority, available or not. The ring is made when it is first asked for."""

    __slots__ = ("_ring", "members", "priority")

    def __init__(self, priority: int, members: Sequence[Target]) -> None:
        self.priority = priority
        self.members = members
        self._ring: Ring | None = None

    @property
    def ring(self) -> Ring:
        """The ring of its members."""
        if self._ring is None:
            self._ring = Ring(self.members)
        return self._ring


@final
class Group:
    """The available targets of a level (at least one) and their present weights, None where all are equal.

    `grown`: the share of its weight that each has, None where all members are there with all of theirs; `most`: the largest.
    """

    __slots__ = ("_cumulated", "grown", "level", "most", "targets", "weights")

    def __init__(self, level: Level, targets: Sequence[Target], weights: Sequence[float]) -> None:
        grown = {target: weight / target.weight for target, weight in zip(targets, weights, strict=True)}
        self.level = level
        self.targets = targets
        self.weights = None if len(set(weights)) == 1 else weights
        self.most = max(grown.values())
        self.grown = None if len(targets) == len(level.members) and min(grown.values()) == 1.0 else grown
        self._cumulated: list[float] | None = None

    def draw(self, rand: Rand) -> int:
        """Return the index of one of them at random, in proportion to the weights."""
        if self.weights is None:
            return int(rand() * len(self.targets))
        if self._cumulated is None:
            self._cumulated = list(accumulate(self.weights))
        return bisect_right(self._cumulated, rand() * self._cumulated[-1])


class Balancer(Protocol):
    """A rule of choice."""

    def choose(self, group: Group, key: bytes | None, rand: Rand) -> Target:
        """Return one of the group. `rand` gives numbers in [0, 1)."""
        ...


@final
class RoundRobin:
    """In turn, by weight."""

    def choose(self, group: Group, key: bytes | None, rand: Rand) -> Target:  # noqa: ARG002  # the protocol's
        """Return the one that is owed most."""
        targets = group.targets
        weights = group.weights
        chosen = targets[0]
        if weights is None:
            total = float(len(targets))
            for target in targets:
                target.turn += 1.0
                if target.turn > chosen.turn:
                    chosen = target
        else:
            total = sum(weights)
            for target, weight in zip(targets, weights, strict=True):
                target.turn += weight
                if target.turn > chosen.turn:
                    chosen = target
        chosen.turn -= total
        return chosen


@final
class LeastOutstanding:
    """The least load for its weight."""

    def choose(self, group: Group, key: bytes | None, rand: Rand) -> Target:  # noqa: ARG002  # the protocol's
        """Return the least loaded, of two at random where there are many."""
        targets = group.targets
        if len(targets) == 1:
            return targets[0]
        if len(targets) > EXACT:
            return _better_of_two(group, rand)
        loads = [target.working + target.held * HELD for target in targets]
        if group.weights is not None:
            loads = list(map(truediv, loads, group.weights))
        least = min(loads)
        if loads.count(least) == 1:
            return targets[loads.index(least)]
        return _drawn_of_equals(group, loads, least, rand)


def _better_of_two(group: Group, rand: Rand) -> Target:
    one, other = group.draw(rand), group.draw(rand)
    if one == other:
        other = (one + 1) % len(group.targets)
    first, second = group.targets[one], group.targets[other]
    if group.weights is None:
        return first if first.load <= second.load else second
    return first if first.load / group.weights[one] <= second.load / group.weights[other] else second


def _drawn_of_equals(group: Group, loads: Sequence[float], least: float, rand: Rand) -> Target:
    equals = [index for index, load in enumerate(loads) if load == least]
    if group.weights is None:
        return group.targets[equals[int(rand() * len(equals))]]
    cumulated = list(accumulate(group.weights[index] for index in equals))
    return group.targets[equals[bisect_right(cumulated, rand() * cumulated[-1])]]


@final
class Random:
    """At random, by weight."""

    def choose(self, group: Group, key: bytes | None, rand: Rand) -> Target:  # noqa: ARG002  # the protocol's
        """Return any."""
        return group.targets[group.draw(rand)]


@final
class Hash:
    """Equal keys to equal targets; without a key at random."""

    def choose(self, group: Group, key: bytes | None, rand: Rand) -> Target:
        """Return the key's target, or who stands in for it."""
        if key is None:
            return group.targets[group.draw(rand)]
        return group.level.ring.find(key, group)
