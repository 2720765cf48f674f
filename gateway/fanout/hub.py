"""The hub: all tails and all parked waiters of the process (sans-I/O).

Theory of operation. One owner, no locks: the verbs are synchronous and run on the loop's thread, so between a reader's last
look and its registration nothing can happen (the lost wake-up cannot occur), provided that the caller does not await in
between.

- `append` adds records to a tail and collects the waiters that can read one of them. It computes no cursor and no body: with a
  hundred thousand waiters that would stop the loop for a second. The shell takes the woken ones in slices (`take`), and each
  of them reads for itself.
- A wake-up carries no data. It carries a *moment*: where all tails ended just before. A parked waiter is at the tail by
  definition, since everything that matched it since would have woken it, so the moment is its position, however long it slept
  and whatever its own last position was: a sleeping waiter does not fall behind. What a waiter knows better than the tails
  (it is ahead of this instance, or names a partition that nobody could open yet) it keeps in `apart`. Only one that is parked
  *behind* a tail, since its history could not be fetched, is given an empty moment: it stays where it was.
- Waiters are indexed by topic and by (topic, key), so that an append costs what it wakes. Deadlines are a wheel of coarse
  ticks: one dictionary operation per poll instead of one timer.
- All tails share one memory budget. Over it, the largest tail gives up its oldest records: topics that few read stay whole
  while one busy topic cannot push out the others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from gateway.fanout.cursor import Position, TopicPosition, id_hash
from gateway.fanout.moves import Move, Moves
from gateway.fanout.tail import Tail
from gateway.records import Record

# Why a waiter was woken: there is something to read; the topic changed (read again, and see); its time is over; or the
# reason that the caller of `end` gave.
Why = str
RECORDS: Why = "records"
CHANGED: Why = "changed"
TIMEOUT: Why = "timeout"

TICK = 0.1
_EVICT_SHARE = 32


class Interest(NamedTuple):
    """What a waiter waits for: records of a topic, of one key or (None) of all."""

    topic: str
    key: bytes | None


class Waiter:
    """A parked reader. The hub writes `moment` and `why` when it wakes it; `wake` is the shell's and must not block.

    `labels` are what it is counted by while parked (channel patterns). `apart` is its own position in full, or None where
    that is exactly the end of all tails. `after`: the number of the topic's last move before the one that woke it, None where
    no move did (see `moves`).
    """

    __slots__ = ("_behind", "_deadline_tick", "after", "apart", "interests", "labels", "moment", "parked", "why")

    def __init__(self, interests: tuple[Interest, ...], labels: tuple[str, ...] = ()) -> None:
        self.interests = interests
        self.labels = labels
        self.apart: Position | None = None
        self.moment: Mapping[str, TopicPosition] = {}
        self.after: int | None = None
        self.parked = False
        self.why: Why = RECORDS
        self._behind = False
        self._deadline_tick = 0

    def wake(self) -> None:
        """Read again: `moment` and `why` are set. Called by the shell for each waiter that `Hub.take` returned."""

    def may_read(self, topic: str, partition: int, last: int) -> bool:
        """Tell whether a matching record at offset `last` is news to a waiter.

        It is not to one that is ahead of the tail, nor to one that follows a partitioner elsewhere: when a partition opens, all
        waiters of the topic read again, so from then on a position names what its reader wants.
        """
        return self.apart is None or self.apart[topic].offsets.get(partition, last + 1) <= last


class Topic:
    """What the hub knows of one topic.

    `position` is where all its tails end, replaced and never changed, so that moments can keep it. `partition_count` is 0
    until the topic is known to exist. `version` counts changes of any kind. `last_polled` belongs to the feed (monotonic).
    `was_keyed`: somebody has waited for a single key.
    """

    __slots__ = (
        "keyed",
        "last_polled",
        "moves",
        "name",
        "partition_count",
        "position",
        "tails",
        "topic_id",
        "version",
        "was_keyed",
        "whole",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id: bytes | None = None
        self.partition_count = 0
        self.tails: dict[int, Tail] = {}
        self.position = TopicPosition(0, {})
        self.version = 0
        self.last_polled = 0.0
        self.whole: dict[Waiter, None] = {}
        self.keyed: dict[bytes, dict[Waiter, None]] = {}
        self.was_keyed = False
        self.moves = Moves()

    def __repr__(self) -> str:
        return f"<Topic {self.name} {self.tails} parked={self.parked}>"

    @property
    def id_hash(self) -> int:
        """The 32-bit hash of the topic id that cursors hold; 0 where it is unknown."""
        return self.position.id_hash

    @property
    def parked(self) -> int:
        """Number of interests that waiters have in this topic."""
        return len(self.whole) + sum(map(len, self.keyed.values()))

    def waiters(self) -> Iterator[Waiter]:
        """Iterate over all waiters of the topic; one that waits for several keys comes several times."""
        yield from self.whole
        for waiters in self.keyed.values():
            yield from waiters

    def moved(self, offsets: Mapping[int, int]) -> None:
        """Note new ends of the tails."""
        self.position = TopicPosition(self.position.id_hash, offsets)
        self.version += 1


class Hub:
    """All tails, all parked waiters.

    `budget` bounds the bytes of all tails together, `tail_budget` those of one. `on_woken` is called when the queue of woken
    waiters ceases to be empty: the shell then calls `take` until it is empty again.
    """

    def __init__(self, *, budget: int, tail_budget: int, on_woken: Callable[[], None] = lambda: None) -> None:
        self.topics: dict[str, Topic] = {}
        self.cost = 0
        self.parked = 0
        self.parked_by: Counter[str] = Counter()
        self._budget = budget
        self._tail_budget = tail_budget
        self._on_woken = on_woken
        self._woken: deque[Waiter] = deque()
        self._wheel: dict[int, dict[Waiter, None]] = {}
        self._wheel_at = 0
        # Moves of a topic that is followed again get other numbers: somebody may still be on the way with one of the old ones.
        self._forgotten = 0

    def __repr__(self) -> str:
        return f"<Hub {len(self.topics)} topics, {self.cost} bytes, {self.parked} parked, {len(self._woken)} woken>"

    # --- what the feed calls ---

    def topic(self, name: str) -> Topic | None:
        """Return what is known of a topic, None where nobody follows it."""
        return self.topics.get(name)

    def create(self, name: str) -> Topic:
        """Begin to follow a topic; the one that is there already, if any."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name)
            topic.moves.number = self._forgotten
        return topic

    def describe(self, name: str, *, topic_id: bytes | None, partitions: int) -> None:
        """Note a topic's id (16 bytes, or None) and number of partitions (0: there is no such topic now).

        Another id than before, or fewer partitions, means that the topic was deleted and perhaps created again: its tails are
        dropped and its waiters read again, to find out.
        """
        topic = self.create(name)
        known = id_hash(topic_id)
        recreated = known not in (topic.id_hash, 0) and topic.id_hash != 0
        if not recreated and partitions == topic.partition_count and known in (topic.id_hash, 0):
            return
        before = topic.position
        if recreated or partitions < topic.partition_count:
            self._drop(topic, tuple(topic.tails))
        topic.topic_id = topic_id if known else topic.topic_id
        topic.partition_count = partitions
        topic.position = TopicPosition(known or before.id_hash, topic.position.offsets)
        topic.version += 1
        topic.moves.clear()
        self._wake_topic(topic, {**self.moment(), name: before}, CHANGED)

    def open(self, name: str, partition: int, *, start: int, log_start: int) -> None:
        """Make a partition readable: its tail is empty and begins at `start`.

        Opening it again drops what it held (the log was cut, or the tail lost touch). The topic's waiters read again.
        """
        topic = self.create(name)
        before = topic.position
        self._drop(topic, (partition,))
        topic.tails[partition] = Tail(start=start, log_start=log_start)
        topic.partition_count = max(topic.partition_count, partition + 1)
        topic.moved({**topic.position.offsets, partition: start})
        topic.moves.clear()
        self._wake_topic(topic, {**self.moment(), name: before}, CHANGED)

    def append(self, name: str, partition: int, records: Sequence[Record], *, end: int, log_start: int) -> int:
        """Add what one fetch brought to a tail, and return the number of waiters that this woke.

        `records` ascend in offset; `end` is the next offset to fetch, at most the last stable offset. Without records it only
        moves `end` and `log_start`. A partition that is not open is left alone.
        """
        topic = self.topics.get(name)
        tail = topic.tails.get(partition) if topic else None
        if topic is None or tail is None:
            return 0
        before, cost, holes = topic.position, tail.cost, tail.holes
        fresh = tail.append(records, end=end, log_start=log_start)
        self.cost += tail.cost - cost
        woken = 0
        if tail.end != before.offsets[partition]:
            topic.moved({**before.offsets, partition: tail.end})
            holed = tail.holes != holes
            if holed:
                topic.moves.clear()
                move = Move(0, before, partition, fresh)
            else:
                move = topic.moves.add(before, partition, fresh, keyed=topic.was_keyed)
            woken = self._wake_readers(topic, move, holed=holed) if fresh else 0
        self._shrink(topic, partition, tail)
        return woken

    def close(self, name: str, partition: int) -> None:
        """Drop one partition's tail: it can no longer be followed. The topic's waiters read again, and keep their place."""
        topic = self.topics.get(name)
        if topic is not None and partition in topic.tails:
            moment = self.moment()
            self._drop(topic, (partition,))
            self._wake_topic(topic, moment, CHANGED)

    def forget(self, name: str) -> None:
        """Drop a topic that nobody polls any more. Waiters that are there all the same read again."""
        topic = self.topics.get(name)
        if topic is not None:
            moment = self.moment()
            self._drop(topic, tuple(topic.tails))
            self._wake_topic(topic, moment, CHANGED)
            del self.topics[name]
            self._forgotten = max(self._forgotten, topic.moves.number)

    # --- what readers call ---

    def park(self, waiter: Waiter, position: Position, *, at_tail: bool, deadline: float | None) -> None:
        """Register a reader that found nothing at `position`, without an await since it looked.

        `position` covers all topics of the waiter's interests. `at_tail`: it is exactly the end of all tails that the
        subscription reads. `deadline` is monotonic, reached at the next tick (0.1 s); None for a waiter that stands for many
        readers and watches their deadlines itself.
        """
        waiter.apart = None if at_tail else position
        waiter._behind = not at_tail and self._is_behind(position)  # noqa: SLF001  # the hub owns the slot
        waiter.parked = True
        for interest in waiter.interests:
            topic = self.create(interest.topic)
            if interest.key is None:
                topic.whole[waiter] = None
            else:
                topic.was_keyed = True
                topic.keyed.setdefault(interest.key, {})[waiter] = None
        tick = 0 if deadline is None else max(int(deadline / TICK) + 1, self._wheel_at)
        waiter._deadline_tick = tick  # noqa: SLF001  # the hub owns the slot
        if tick:
            self._wheel.setdefault(tick, {})[waiter] = None
        self.parked += 1
        for label in waiter.labels:
            self.parked_by[label] += 1

    def unpark(self, waiter: Waiter) -> None:
        """Forget a waiter whose client has left; nothing happens if it is not parked."""
        if waiter.parked:
            self._unlink(waiter)

    def waiters(self) -> list[Waiter]:
        """Return the parked waiters that have a deadline, those with the nearest first."""
        return [waiter for tick in sorted(self._wheel) for waiter in self._wheel[tick]]

    # --- what the shell calls ---

    def expire(self, now: float) -> int:
        """Wake the waiters whose deadline has passed; return their number. To be called at least once a tick."""
        tick = int(now / TICK)
        expired = [waiter for at in sorted(self._wheel) if at <= tick for waiter in self._wheel[at]]
        self._wheel_at = tick + 1
        return self.end(expired, TIMEOUT)

    def end(self, waiters: Sequence[Waiter], why: Why) -> int:
        """Wake parked waiters for a reason other than records; return how many were parked."""
        parked = [waiter for waiter in dict.fromkeys(waiters) if waiter.parked]
        if parked:
            self._wake(parked, self.moment(), why)
        return len(parked)

    def take(self, most: int) -> list[Waiter]:
        """Remove and return up to `most` woken waiters, those that were woken first."""
        return [self._woken.popleft() for _ in range(min(most, len(self._woken)))]

    def moment(self) -> dict[str, TopicPosition]:
        """Return where all tails end now."""
        return {name: topic.position for name, topic in self.topics.items()}

    # --- inside ---

    def _wake_readers(self, topic: Topic, move: Move, *, holed: bool) -> int:
        woken: dict[Waiter, None] = {}
        partition, fresh, before = move.partition, move.records, move.before
        last = fresh[-1].offset
        if topic.keyed and holed:
            woken.update(dict.fromkeys(waiter for waiter in topic.waiters() if waiter.may_read(topic.name, partition, last)))
        for waiter in topic.whole:
            if waiter.apart is None or waiter.may_read(topic.name, partition, last):
                woken[waiter] = None
        if topic.keyed:
            for key, records in move.by_key.items():
                for waiter in topic.keyed.get(key, ()):
                    if waiter.apart is None or waiter.may_read(topic.name, partition, records[-1].offset):
                        woken[waiter] = None
        if woken:
            self._wake(list(woken), {**self.moment(), topic.name: before}, RECORDS, move.number - 1)
        return len(woken)

    def _wake_topic(self, topic: Topic, moment: Mapping[str, TopicPosition], why: Why) -> None:
        waiters = list(dict.fromkeys(topic.waiters()))
        if waiters:
            self._wake(waiters, moment, why)

    def _wake(self, waiters: Sequence[Waiter], moment: Mapping[str, TopicPosition], why: Why, after: int | None = None) -> None:
        idle = not self._woken
        for waiter in waiters:
            self._unlink(waiter)
            waiter.moment = {} if waiter._behind else moment  # noqa: SLF001
            waiter.why = why
            waiter.after = after
        self._woken.extend(waiters)
        if idle:
            self._on_woken()

    def _unlink(self, waiter: Waiter) -> None:
        waiter.parked = False
        for name, key in waiter.interests:
            topic = self.topics[name]
            if key is None:
                del topic.whole[waiter]
            else:
                index = topic.keyed[key]
                del index[waiter]
                if not index:
                    del topic.keyed[key]
        if waiter._deadline_tick:  # noqa: SLF001
            tick = self._wheel[waiter._deadline_tick]  # noqa: SLF001
            del tick[waiter]
            if not tick:
                del self._wheel[waiter._deadline_tick]  # noqa: SLF001
        self.parked -= 1
        for label in waiter.labels:
            self.parked_by[label] -= 1

    def _is_behind(self, position: Position) -> bool:
        for name, own in position.items():
            ends = self.topics[name].position.offsets if name in self.topics else own.offsets
            if any(offset < ends.get(partition, offset) for partition, offset in own.offsets.items()):
                return True
        return False

    def _drop(self, topic: Topic, partitions: Sequence[int]) -> None:
        for partition in partitions:
            tail = topic.tails.pop(partition, None)
            if tail is not None:
                self.cost -= tail.cost
                topic.moved({p: end for p, end in topic.position.offsets.items() if p != partition})
                topic.moves.clear()

    def _shrink(self, topic: Topic, partition: int, tail: Tail) -> None:
        if tail.cost > self._tail_budget:
            self._evict(topic, partition, tail.cost - self._tail_budget + self._tail_budget // _EVICT_SHARE)
        while self.cost > self._budget:
            tails = ((t.cost, p, other) for other in self.topics.values() for p, t in other.tails.items())
            cost, at, largest = max(tails, key=itemgetter(0))
            self._evict(largest, at, max(self.cost - self._budget, cost // _EVICT_SHARE))

    def _evict(self, topic: Topic, partition: int, cost: int) -> None:
        tail = topic.tails[partition]
        self.cost -= tail.evict(cost)
        topic.moves.drop_evicted(partition, tail.start)


def advance(position: Position, moment: Mapping[str, TopicPosition]) -> dict[str, TopicPosition]:
    """Move a parked position on to the moment of its waiter: nothing that matched lies between (see `Hub`).

    Partitions that the tails do not know, or in which the position is ahead of them, keep their offset; a topic that was
    re-created since keeps the old position whole, for the reader to find out.
    """
    moved: dict[str, TopicPosition] = {}
    for name, own in position.items():
        ends = moment.get(name)
        if ends is None or (ends.id_hash != own.id_hash and own.id_hash and ends.id_hash):
            moved[name] = own
            continue
        offsets = {p: max(offset, ends.offsets.get(p, offset)) for p, offset in own.offsets.items()}
        moved[name] = TopicPosition(own.id_hash or ends.id_hash, offsets, own.partition_count)
    return moved
