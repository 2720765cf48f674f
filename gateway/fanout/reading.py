"""One reading: which records a subscription gets from a position, and where it stands afterwards (sans-I/O).

Theory of operation. `survey` walks the partitions and finds for each one where its next records are: in the tail, in a block
of the archive that the caller has loaded, or nowhere yet; it names what the caller has to find out first. `collect` then
chooses and orders.

A cursor holds one offset per partition, so what is delivered of a partition must be a prefix of what matches in it: each
partition is a queue, and only its head can be taken. Within that, the order of an answer is priority, timestamp, topic,
partition, offset, and every channel that has something gets a place, as long as it and the records before it in its
partition fit the limit; of the bound on bytes, only the records before it have to.

Most readers read one channel, and those of history read thousands of records at a time. Then every record matches in the same
way and there are no places to give: queues are slices of what the tail or the block holds, and a record costs no more than its
place in a list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import accumulate
from typing import NamedTuple, final, overload

from gateway.fanout.cursor import Position, TopicPosition, check_width, partition_for
from gateway.fanout.hub import Topic
from gateway.fanout.subscription import Selection, Subscription
from gateway.fanout.tail import Tail
from gateway.records import Block, Record

Place = tuple[str, int]


class Message(NamedTuple):
    """One record as one channel shows it."""

    record: Record
    selection: Selection
    partition: int


class Run(NamedTuple):
    """Records of one partition that follow one another in an answer, as one channel shows them."""

    records: Sequence[Record]
    selection: Selection
    partition: int


@final
class Messages(Sequence[Message]):
    """Messages in runs: made one by one for those who look at them, not for those who encode a thousand of them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._length = sum(len(run.records) for run in runs)

    def __repr__(self) -> str:
        return repr(list(self))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Message]:
        return (Message(record, run.selection, run.partition) for run in self.runs for record in run.records)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, Messages)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list's


class Lost(NamedTuple):
    """Offsets [start, end) of a partition that retention took before they were read, or that nobody can read."""

    selection: Selection
    partition: int
    start: int
    end: int

    def document(self) -> dict[str, object]:
        """Return the entry as answers show it."""
        return {"channel": self.selection.channel, "partition": self.partition, "from": self.start, "to": self.end}


class Reading(NamedTuple):
    """What one reading found.

    `up_to_date`: nothing more can be read now. `at_tail`: moreover, `position` is exactly the end of the tails, so that
    the reader may sleep without a position of its own. `scanned` is in bytes. `failed`: some history could not be fetched;
    its place is kept, and looking again later may find it.
    """

    messages: Sequence[Message]
    position: Position
    lost: list[Lost]
    up_to_date: bool
    at_tail: bool
    scanned: int
    failed: bool = False


@dataclass(slots=True)
class Queue:
    """What is next in one partition: matching records, and beside each what it matches; `end` is what lies behind."""

    topic: str
    partition: int
    end: int
    at_end: bool
    records: Sequence[Record] = ()
    matches: Sequence[Sequence[Selection]] = ()
    taken: int = 0

    def order(self) -> tuple[int, int, str, int]:
        """Return the sort key of the head: priority, timestamp, topic, partition."""
        priority = self.matches[self.taken][0].priority
        return priority, self.records[self.taken].timestamp_ms or 0, self.topic, self.partition

    @property
    def next(self) -> int:
        """The next offset to read, after what was taken."""
        return self.records[self.taken].offset if self.taken < len(self.records) else self.end

    def weigh(self, start: int, end: int) -> tuple[int, int]:
        """Return how many messages, and how many bytes of values in them, some of the records come to."""
        messages = size = 0
        for record, selections in zip(self.records[start:end], self.matches[start:end], strict=True):
            messages += len(selections)
            size += len(selections) * _size(record)
        return messages, size


class _Known(NamedTuple):
    blocks: Mapping[Place, Block]
    confirmed: Collection[Place]
    skip: Collection[Place]


@dataclass(slots=True)
class Survey:
    """What a position finds: `queues` to read from, and what is to be done first.

    `resets`: topics that are not the ones of the position. `ahead`: places beyond the tail's end, not yet confirmed by their
    leader. `cold`: (offset, until) of places whose next records are in the archive. `grown`: partitions were found that the
    position does not name yet.
    """

    queues: list[Queue] = field(default_factory=list)
    position: dict[str, TopicPosition] = field(default_factory=dict)
    grown: bool = False
    lost: list[Lost] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    ahead: list[Place] = field(default_factory=list)
    cold: dict[Place, tuple[int, int]] = field(default_factory=dict)
    at_tail: bool = True
    scanned: int = 0


def survey(
    subscription: Subscription,
    topics: Mapping[str, Topic],
    position: Position,
    blocks: Mapping[Place, Block] | None = None,
    confirmed: Collection[Place] = (),
    skip: Collection[Place] = (),
) -> Survey:
    """Find out where the next records of `position` are. `skip` names cold places to leave alone: nothing is taken of them."""
    seen = Survey()
    for name in subscription.topics:
        own, topic = position[name], topics.get(name)
        if topic is None or not topic.partition_count:
            seen.position[name] = own
            seen.at_tail = False
        elif _is_reset(own, topic):
            seen.resets.append(name)
        else:
            _survey_topic(subscription, topic, own, seen, _Known(blocks or {}, confirmed, skip))
    return seen


def collect(subscription: Subscription, seen: Survey) -> Reading:
    """Choose messages from a survey, order them, and move the position past what they and the filters took.

    Raises SubscriptionTooWide where partitions were added to a topic until no cursor can hold them all.
    """
    queues = [queue for queue in seen.queues if queue.records]
    if len(subscription.selections) == 1:
        runs = _run(subscription, queues[0]) if len(queues) == 1 else _merge(subscription, queues)
    else:
        chosen = [len(queue.records) for queue in queues] if _fits(subscription, queues) else _choose(subscription, queues)
        runs = _in_order(queues, chosen)
    messages, holes = _without_holes(runs)
    offsets = {name: dict(own.offsets) for name, own in seen.position.items()}
    for queue in seen.queues:
        offsets[queue.topic][queue.partition] = queue.next
    position = {name: own._replace(offsets=offsets[name]) for name, own in seen.position.items()}
    if seen.grown:
        check_width(position)
    up_to_date = all(queue.at_end and queue.next == queue.end for queue in seen.queues)
    return Reading(messages, position, seen.lost + holes, up_to_date, up_to_date and seen.at_tail, seen.scanned)


def _is_reset(own: TopicPosition, topic: Topic) -> bool:
    recreated = own.id_hash and topic.id_hash and own.id_hash != topic.id_hash
    return bool(recreated) or any(partition >= topic.partition_count for partition in own.offsets)


def _survey_topic(
    subscription: Subscription,
    topic: Topic,
    own: TopicPosition,
    seen: Survey,
    known: _Known,
) -> None:
    wanted = subscription.wanted(topic.name, topic.partition_count, own.partition_count)
    follows = subscription.follows_partitioner(topic.name)
    count = topic.partition_count if follows else 0
    # The number is noted once all partitions that it brought are named: those that nobody could open yet would be forgotten.
    named = all(partition in own.offsets or partition in topic.tails for partition in wanted)
    noted = max(own.partition_count, count) if named else own.partition_count
    seen.position[topic.name] = TopicPosition(topic.id_hash or own.id_hash, own.offsets, noted if follows else 0)
    if follows or (own.id_hash and not topic.id_hash):
        seen.at_tail = False
    match = _Match(subscription.by_topic[topic.name], subscription.limit + 1, count)
    for partition in sorted({*wanted, *own.offsets}):
        tail, place = topic.tails.get(partition), (topic.name, partition)
        if tail is None:
            seen.at_tail = seen.at_tail and partition not in own.offsets
            continue
        offset = own.offsets.get(partition)
        if offset is not None and offset > tail.end:
            seen.at_tail = False
            if place not in known.confirmed:
                seen.ahead.append(place)
            continue
        seen.grown = seen.grown or offset is None
        _survey_partition(place, tail, offset, match, known, seen)


def _survey_partition(
    place: Place,
    tail: Tail,
    offset: int | None,
    match: _Match,
    known: _Known,
    seen: Survey,
) -> None:
    """Survey one partition from `offset`, or (None, for one that the position does not name) from its log start."""
    topic, partition = place
    block = known.blocks.get(place)
    log_start = min(max(tail.log_start, block.log_start if block else 0), tail.start)
    start = log_start if offset is None else offset if offset >= tail.start else max(offset, log_start)
    if offset is not None and start > offset:
        seen.lost += [Lost(selection, partition, offset, start) for selection in match.losing(partition)]
    records: list[Record] = []
    end = start
    if start < tail.start:
        if place in known.skip:
            seen.queues.append(Queue(topic, partition, start, at_end=False))
            return
        if block is None or block.start > start:
            seen.cold[place] = (start, tail.start)
            return
        records, seen_bytes = match.block(block, start, tail.start)
        seen.scanned += seen_bytes
        # What a block holds of the tail's range is the tail's to give; retention may have passed all of the block meanwhile.
        end = max(start, min(block.end, tail.start))
    if end >= tail.start and len(records) < match.most:
        records += match.tail(tail, end)
        end = tail.end
    at_end = end >= tail.end
    matches = match.of(records)
    for n, record in enumerate(records) if match.may_fail else ():
        if record.until is not None and any(selection.on_loss == "fail" for selection in matches[n]):
            # What lies before the hole is delivered first; the next reading finds it at the head, and fails.
            if not n:
                seen.lost += [Lost(selection, partition, record.offset, record.until) for selection in matches[n]]
            records, matches, end, at_end = records[:n], matches[:n], record.offset, False
            break
    seen.queues.append(Queue(topic, partition, end, at_end, records, matches))


class _Match:
    """The selections of one topic, ready to filter; `most` bounds what is taken of one source.

    `count` is the number of partitions where only those of the keys are read, else 0.
    """

    def __init__(self, selections: tuple[Selection, ...], most: int, count: int) -> None:
        self.most = most
        self.may_fail = any(selection.on_loss == "fail" for selection in selections)
        self._selections = selections
        self._count = count
        self._whole = tuple(s for s in selections if s.key is None)
        self._keyed: dict[bytes, tuple[Selection, ...]] = {}
        for selection in selections:
            if selection.key is not None:
                same = (s for s in selections if s.key is None or s.key == selection.key)
                self._keyed[selection.key] = tuple(same)

    def _of(self, record: Record) -> Sequence[Selection]:
        if record.key is None:
            return self._whole if record.until is None else self._selections
        return self._keyed.get(record.key, self._whole)

    def of(self, records: Sequence[Record]) -> list[Sequence[Selection]]:
        """Return the selections that each of the records matches."""
        if not self._keyed:
            return [self._whole] * len(records)
        return [self._of(record) for record in records]

    def losing(self, partition: int) -> Sequence[Selection]:
        """Return the selections that may have lost records of a partition."""
        if not self._count:
            return self._selections
        own = [s for s in self._selections if partition_for(s.key or b"", self._count) == partition]
        # A key's partition of before the count changed: whose it was is not known any more.
        return own or self._selections

    def tail(self, tail: Tail, offset: int) -> Sequence[Record]:
        """Return what matches in a tail from `offset` on."""
        if self._whole:
            return tail.since(offset, None, self.most)
        records = [record for key in self._keyed for record in tail.since(offset, key, self.most)]
        if len(self._keyed) > 1:
            # By offset, and once: a hole comes with every key.
            records = [record for _, record in sorted({record.offset: record for record in records}.items())]
        return records[: self.most]

    def block(self, block: Block, offset: int, until: int) -> tuple[list[Record], int]:
        """Return what matches in a block from `offset` on and below `until`, and the bytes scanned for it."""
        records = block.records
        first = bisect_left(records, offset, key=lambda record: record.offset)
        last = bisect_left(records, until, lo=first, key=lambda record: record.offset)
        if self._whole:
            found = records[first : min(last, first + self.most)]
            return found, sum([len(record.value or b"") for record in found])
        found = []
        scanned = 0
        for record in records[first:last]:
            scanned += len(record.value or b"") + len(record.key or b"")
            if self._of(record):
                found.append(record)
                if len(found) == self.most:
                    break
        return found, scanned


def _size(record: Record) -> int:
    return len(record.value) if record.value is not None else 0


def _without_holes(runs: list[Run]) -> tuple[Messages, list[Lost]]:
    holes = [
        Lost(run.selection, run.partition, record.offset, record.until)
        for run in runs
        for record in run.records
        if record.until is not None
    ]
    if holes:
        kept = (run._replace(records=[record for record in run.records if record.until is None]) for run in runs)
        runs = [run for run in kept if run.records]
    return Messages(runs), holes


def _run(subscription: Subscription, queue: Queue) -> list[Run]:
    """Take what comes first of the one queue of the one channel that is read."""
    records = queue.records[: subscription.limit]
    sizes = [_size(record) for record in records]
    if sum(sizes) > subscription.max_bytes:
        records = records[: max(1, bisect_right(list(accumulate(sizes)), subscription.max_bytes))]
    queue.taken = len(records)
    return [Run(records, subscription.selections[0], queue.partition)]


def _merge(subscription: Subscription, queues: Sequence[Queue]) -> list[Run]:
    """Take what comes first of the one channel that is read: its partitions in their order, merged by timestamps."""
    runs: list[Run] = []
    into, last = list[Record](), -1
    heads = [(queue.records[0].timestamp_ms or 0, n) for n, queue in enumerate(queues)]
    heapify(heads)
    taken = size = 0
    while heads and taken < subscription.limit:
        n = heads[0][1]
        queue = queues[n]
        record = queue.records[queue.taken]
        size += _size(record)
        if size > subscription.max_bytes and taken:
            break
        if n != last:
            into, last = [], n
            runs.append(Run(into, subscription.selections[0], queue.partition))
        into.append(record)
        taken += 1
        queue.taken += 1
        if queue.taken < len(queue.records):
            heapreplace(heads, (queue.records[queue.taken].timestamp_ms or 0, n))
        else:
            heappop(heads)
    return runs


def _fits(subscription: Subscription, queues: Sequence[Queue]) -> bool:
    if sum(len(queue.records) for queue in queues) > subscription.limit:
        return False
    weights = [queue.weigh(0, len(queue.records)) for queue in queues]
    return sum(own[0] for own in weights) <= subscription.limit and sum(own[1] for own in weights) <= subscription.max_bytes


def _choose(subscription: Subscription, queues: list[Queue]) -> list[int]:
    """Return how many items of each queue go into the answer: a place for each channel first, then in order."""
    chosen = _places(subscription, queues)
    messages = size = 0
    for queue, count in zip(queues, chosen, strict=True):
        own = queue.weigh(0, count)
        messages, size = messages + own[0], size + own[1]
    at = {id(queue): n for n, queue in enumerate(queues)}
    for queue, record, selections in _merged(queues, chosen, [len(queue.records) for queue in queues]):
        messages += len(selections)
        size += _size(record) * len(selections)
        if messages > subscription.limit or size > subscription.max_bytes:
            return chosen if any(chosen) else [int(q is queue) for q in queues]
        chosen[at[id(queue)]] += 1
    return chosen


def _places(subscription: Subscription, queues: list[Queue]) -> list[int]:
    chosen = [0] * len(queues)
    depths = _depths(queues)
    for selection in sorted(subscription.selections, key=lambda s: (s.priority, s.channel)):
        depth, n = depths.get(selection, (0, 0))
        if depth <= chosen[n]:
            continue
        taken = [queue.weigh(0, count) for queue, count in zip(queues, chosen, strict=True)]
        before = queues[n].weigh(chosen[n], depth - 1)
        messages = sum(own[0] for own in (*taken, before)) + len(queues[n].matches[depth - 1])
        size = sum(own[1] for own in (*taken, before))
        # The place itself is not weighed, or a channel of large records would never have one beside another such.
        if messages <= subscription.limit and (not before[0] or size <= subscription.max_bytes):
            chosen[n] = depth
    return chosen


def _depths(queues: list[Queue]) -> dict[Selection, tuple[int, int]]:
    """Return for each selection how many items lead up to and including its first one, and the queue where these are fewest.

    Each item is looked at once: of 32 channels in 256 partitions, a walk for each would hold up the loop for a second.
    """
    depths: dict[Selection, tuple[int, int]] = {}
    for n, queue in enumerate(queues):
        seen = set[int]()
        for depth, selections in enumerate(queue.matches, 1):
            if id(selections) not in seen:  # records of one key have one and the same tuple
                seen.add(id(selections))
                for selection in selections:
                    depths[selection] = min(depths.get(selection, (depth, n)), (depth, n))
    return depths


def _in_order(queues: list[Queue], chosen: list[int]) -> list[Run]:
    runs: list[Run] = []
    into, last, at = list[Record](), None, -1
    for queue, record, selections in _merged(queues, [0] * len(queues), chosen):
        for selection in selections:
            if selection is not last or queue.partition != at:
                into, last, at = [], selection, queue.partition
                runs.append(Run(into, selection, at))
            into.append(record)
    for queue, count in zip(queues, chosen, strict=True):
        queue.taken = count
    return runs


def _merged(queues: list[Queue], starts: list[int], ends: list[int]) -> Iterator[tuple[Queue, Record, Sequence[Selection]]]:
    """Merge queues by the order of their heads, from `starts` to `ends`; offsets of a partition always ascend."""
    for queue, start in zip(queues, starts, strict=True):
        queue.taken = start
    heap = [(queue.order(), n) for n, queue in enumerate(queues) if starts[n] < ends[n]]
    heapify(heap)
    while heap:
        n = heap[0][1]
        queue = queues[n]
        yield queue, queue.records[queue.taken], queue.matches[queue.taken]
        queue.taken += 1
        if queue.taken < ends[n]:
            heapreplace(heap, (queue.order(), n))
        else:
            heappop(heap)
