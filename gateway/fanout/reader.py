"""Reading on from a position: the memory of the tails first, Kafka's archive behind them.

`Reader` joins the hub (what is in memory) with a `Log` (what is in Kafka). Its `peek` is synchronous, so that a caller can
look, and park if there is nothing, without an await in between; its `read` may go to the archive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from gateway.errors import BrokerUnavailable, CursorExpired, CursorReset
from gateway.fanout.cursor import Position, TopicPosition, bind, check_width, decode, encode
from gateway.fanout.hub import Hub, Topic
from gateway.fanout.reading import Place, Reading, Survey, collect, survey
from gateway.fanout.responses import Answer, encoding
from gateway.fanout.subscription import Subscription
from gateway.records import Block
from gateway.wire import From

T = TypeVar("T")

EARLIEST = -2
LATEST = -1
_COLD_AT_ONCE = 8
_NEWEST_BYTES = 8 * 2**20
_NEWEST_STEP = 16


class Standing(NamedTuple):
    """Where a cursor stands in one topic. `places`: its offset, the log start and the end by partition.

    `state`: `good`; `reset` where it is of an earlier topic of that name, or of a partition that is gone; `absent` where it
    says nothing of the topic, and a poll would begin at `from`.
    """

    state: Literal["good", "reset", "absent"]
    places: Mapping[int, tuple[int, int, int]]


class Log(Protocol):
    """Kafka, as readers need it."""

    async def follow(self, topic: str, now: float) -> Topic:
        """Keep a topic live (`now` monotonic) and return what is known of it; wait a little if it is new.

        BrokerUnavailable if nothing was ever known of it and no broker can be asked.
        """
        ...

    async def renew(self, topic: str) -> None:
        """Return once the brokers have told anew what a topic is, and the hub knows; BrokerUnavailable."""
        ...

    async def read(self, topic: str, partition: int, offset: int, until: int) -> Block:
        """Return the block that holds `offset`; BrokerUnavailable."""
        ...

    async def offsets(self, topic: str, at: int) -> dict[int, int]:
        """Return the offsets at EARLIEST, LATEST or a time in ms by partition; those that cannot be asked are missing."""
        ...

    async def end(self, topic: str, partition: int) -> int:
        """Return the last stable offset as the leader says it now; BrokerUnavailable."""
        ...


class Reader:
    """Reads on from positions.

    One reading scans at most `scan_bytes` of history, and begins no further block after `scan_seconds`: then it returns its
    progress, without messages if nothing matched.
    """

    def __init__(
        self,
        hub: Hub,
        log: Log,
        *,
        scan_bytes: int = 8 * 2**20,
        scan_seconds: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub = hub
        self._log = log
        self._scan_bytes = scan_bytes
        self._scan_seconds = scan_seconds
        self._clock = clock
        self._turnstile = asyncio.Lock()

    async def begin(self, subscription: Subscription, cursor: str | None, start: From) -> Position:
        """Return the position at which a poll begins: its cursor's, and `start` for topics that the cursor lacks.

        Raises CursorInvalid, CursorMismatch, SubscriptionTooWide, and BrokerUnavailable where a start cannot be found.
        """
        bound = bind(decode(cursor), subscription.topics) if cursor is not None else {}
        topics = await self._follow(subscription.topics)
        missing = [name for name in subscription.topics if name not in bound]
        if not missing:
            return bound
        started = await _together(self._start(subscription, topics[name], start) for name in missing)
        position = {**bound, **dict(zip(missing, started, strict=True))}
        if start.kind == "newest":
            position |= await self._newest(subscription, {name: position[name] for name in missing}, start.value)
        check_width(position)
        return position

    async def stand(self, subscription: Subscription, cursor: str) -> tuple[dict[str, Standing], int]:
        """Return where a cursor stands in each of the subscription's topics, and how many others it names.

        Raises CursorInvalid, CursorMismatch, and BrokerUnavailable where a topic's ends cannot be found.
        """
        entries = decode(cursor)
        bound = bind(entries, subscription.topics)
        topics = await self._follow(subscription.topics)
        stands = await _together(self._stand(subscription, topics[name], bound.get(name)) for name in subscription.topics)
        return dict(zip(subscription.topics, stands, strict=True)), len(entries) - len(bound)

    async def _stand(self, subscription: Subscription, topic: Topic, own: TopicPosition | None) -> Standing:
        if own is None:
            return Standing("absent", {})
        if own.id_hash and topic.id_hash and own.id_hash != topic.id_hash:
            return Standing("reset", {})
        starts, ends = await _together(self._log.offsets(topic.name, at) for at in (EARLIEST, LATEST))
        wanted = set(subscription.wanted(topic.name, topic.partition_count, own.partition_count or None)) | set(own.offsets)
        if not wanted <= starts.keys() & ends.keys():
            if not set(own.offsets) <= set(range(topic.partition_count)):
                return Standing("reset", {})
            raise BrokerUnavailable
        # A partition that it does not name is read from its log start.
        places = {p: (own.offsets.get(p, starts[p]), starts[p], ends[p]) for p in wanted}
        is_ahead = any(offset > end for offset, _, end in places.values())
        return Standing("reset" if is_ahead else "good", places)

    def peek(self, subscription: Subscription, position: Position) -> Reading | None:
        """Return what the tails hold from `position` on; None where more than the tails has to be asked, or loss told."""
        seen = survey(subscription, self._hub.topics, position)
        if seen.resets or seen.ahead or seen.cold or seen.lost:
            return None
        return collect(subscription, seen)

    async def read(self, subscription: Subscription, position: Position) -> Reading:
        """Read on from `position`, from the archive if need be.

        Returns as soon as there is a message, a loss to report, the end, or the bound of one scan. Its last look and its
        return are one synchronous stretch: a caller that awaits it directly may park at once. History that cannot be fetched
        keeps its place and does not hold up the rest (`Reading.failed`). Raises CursorReset, CursorExpired (`on_loss: fail`).
        """
        began, scanned = self._clock(), 0
        while True:
            seen, failed = await self._look(subscription, position)
            self._check_loss(seen)
            reading = collect(subscription, seen)
            scanned += reading.scanned
            position = reading.position
            spent = scanned >= self._scan_bytes or self._clock() - began >= self._scan_seconds
            if reading.messages or reading.lost or reading.up_to_date or spent or failed:
                return reading._replace(failed=failed)

    async def encode(self, subscription: Subscription, reading: Reading) -> Answer:
        """Encode a reading that has something to tell, in steps, between which others have their turn."""
        steps = encoding(subscription, reading)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            await self._turn()

    async def _look(self, subscription: Subscription, position: Position) -> tuple[Survey, bool]:
        """Survey until nothing is open: resets settled, ends confirmed by their leaders, blocks loaded (or not to be had)."""
        blocks: dict[Place, Block] = {}
        confirmed: set[Place] = set()
        skip: set[Place] = set()
        renewed: set[str] = set()
        failed = False
        while True:
            seen = survey(subscription, self._hub.topics, position, blocks, confirmed, skip)
            if not renewed.issuperset(seen.resets):
                # Another instance may have heard of a new partition, or of a new topic of this name, before this one.
                await _together(self._log.renew(name) for name in seen.resets)
                renewed.update(seen.resets)
            elif seen.resets:
                position = await self._reset(subscription, position, seen.resets)
                blocks.clear()  # they may be of the log that is no more
            elif seen.ahead:
                cut = [place[0] for place in seen.ahead if not await self._confirm(*place, position, confirmed)]
                if cut:
                    position = await self._reset(subscription, position, cut)
                    blocks.clear()
            elif seen.cold:
                failed |= await self._load(seen.cold, blocks, skip)
                await self._turn()
            else:
                return seen, failed

    async def _turn(self) -> None:
        """Let pass one reader of history for each turn of the loop.

        Going through a block and encoding what was found takes milliseconds. Twenty readers whose blocks come from the cache
        would all be ready at once, and a live record would wait behind all of them.
        """
        async with self._turnstile:
            await asyncio.sleep(0)

    async def _confirm(self, topic: str, partition: int, position: Position, confirmed: set[tuple[str, int]]) -> bool:
        """Ask the leader whether a position ahead of the tail is in the log; a broker that is away proves nothing."""
        confirmed.add((topic, partition))
        try:
            return position[topic].offsets[partition] <= await self._log.end(topic, partition)
        except BrokerUnavailable:
            return True

    async def _load(self, cold: Mapping[Place, tuple[int, int]], blocks: dict[Place, Block], skip: set[Place]) -> bool:
        """Load some blocks of `cold` into `blocks`, leave the others to the next look (`skip`); tell whether any failed."""
        # One partition of each topic first, so that no topic waits until another one's history is through.
        rank: dict[str, int] = {}
        turns: dict[Place, int] = {}
        for place in cold:
            turns[place] = rank[place[0]] = rank.get(place[0], -1) + 1
        chosen = sorted(cold, key=lambda place: turns[place])[: max(_COLD_AT_ONCE, len(rank))]
        skip.update(cold.keys() - chosen)
        loaded = await asyncio.gather(*(self._log.read(*place, *cold[place]) for place in chosen), return_exceptions=True)
        failed = False
        for place, block in zip(chosen, loaded, strict=True):
            if isinstance(block, Block) and place not in blocks and (found := _reaching(block, *cold[place])) is not None:
                blocks[place] = found
            elif isinstance(block, (Block, BrokerUnavailable)):
                # A second block for one place means that the log moved under the look: the next one will see it as it is.
                skip.add(place)
                failed = True
            else:
                raise block
        return failed

    def _check_loss(self, seen: Survey) -> None:
        if any(entry.selection.on_loss == "fail" for entry in seen.lost):
            offsets = {name: dict(own.offsets) for name, own in seen.position.items()}
            for entry in seen.lost:
                offsets[entry.selection.topic][entry.partition] = entry.end
            earliest = {name: own._replace(offsets=offsets[name]) for name, own in seen.position.items()}
            raise CursorExpired(encode(earliest), [entry.document() for entry in seen.lost])

    async def _reset(self, subscription: Subscription, position: Position, topics: Iterable[str]) -> Position:
        """Put re-created topics where `on_reset` says, or raise CursorReset with a cursor at the current end."""
        policies = {name: {s.on_reset for s in subscription.by_topic[name]} for name in topics}
        fresh = dict(position)
        for name, policy in policies.items():
            earliest = "earliest" in policy and "fail" not in policy
            topic = self._hub.create(name)
            fresh[name] = await self._start(subscription, topic, From("earliest" if earliest else "latest"))
        if any("fail" in policy for policy in policies.values()):
            raise CursorReset(encode(fresh))
        return fresh

    async def _start(self, subscription: Subscription, topic: Topic, start: From) -> TopicPosition:
        wanted = set(subscription.wanted(topic.name, topic.partition_count))
        known = {p: topic.tails[p].end for p in wanted if p in topic.tails}
        if wanted and (start.kind not in ("latest", "newest") or len(known) < len(wanted)):
            at = {"earliest": EARLIEST, "time": start.value}.get(start.kind, LATEST)
            asked = await self._log.offsets(topic.name, at)
            if not wanted <= asked.keys():
                raise BrokerUnavailable
            known = {p: asked[p] for p in wanted}
        count = topic.partition_count if subscription.follows_partitioner(topic.name) else 0
        return TopicPosition(topic.id_hash, known, count)

    async def _follow(self, names: Sequence[str]) -> dict[str, Topic]:
        now = self._clock()
        # New topics are waited for side by side; those that are live already must not cost a task.
        new = [name for name in names if (known := self._hub.topic(name)) is None or not known.tails]
        found = dict(zip(new, await _together(self._log.follow(name, now) for name in new), strict=True))
        return {name: found[name] if name in found else await self._log.follow(name, now) for name in names}

    async def _newest(self, subscription: Subscription, ends: Position, count: int) -> Position:
        """Move back from `ends` so that the `count` newest matching records over all partitions come next."""
        places = [(name, p) for name, own in ends.items() for p in own.offsets]
        budget = _NEWEST_BYTES // max(1, len(places))
        found: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for name, p in places:
            found[name, p] = await self._newest_of(subscription, name, p, ends[name].offsets[p], count, budget)
        offsets = {name: dict(own.offsets) for name, own in ends.items()}
        for _ in range(count):
            newest = max((place for place in places if found[place]), key=lambda place: found[place][-1], default=None)
            if newest is None:
                break
            offsets[newest[0]][newest[1]] = found[newest].pop()[1]
        return {name: own._replace(offsets=offsets[name]) for name, own in ends.items()}

    async def _newest_of(
        self, subscription: Subscription, name: str, partition: int, end: int, count: int, budget: int
    ) -> list[tuple[int, int]]:
        """Return (timestamp, offset) of up to `count` newest matching records of a partition, ascending in offset."""
        tail = self._hub.create(name).tails.get(partition)
        if tail is None:
            return []
        keys = {s.key for s in subscription.by_topic[name]}
        sources = [tail.newest(None if None in keys else key, count, end) for key in ({None} if None in keys else keys)]
        found = {r.offset: r.timestamp_ms or 0 for source in sources for r in source}
        step, until, seen = _NEWEST_STEP, min(tail.start, end), set[int]()
        while len(found) < count and until > tail.log_start and budget > 0:
            first = at = max(tail.log_start, until - step)
            older: dict[int, int] = {}
            while at < until and budget > 0:
                block = await self._log.read(name, partition, at, until)
                if block.start not in seen:
                    seen.add(block.start)
                    budget -= sum(record.cost for record in block.records) or 1
                for record in block.records:
                    if at <= record.offset < until and (None in keys or record.key in keys):
                        older[record.offset] = record.timestamp_ms or 0
                at = block.end if block.end > at else until
            if at < until:
                break  # what is newer than these was not looked at
            found |= older
            until, step = first, step * 2
        return [(found[offset], offset) for offset in sorted(found)[-count:]]


def _reaching(block: Block, offset: int, until: int) -> Block | None:
    """Return what was read at `offset`, a hole up to `until` as such; None if its leader's log ends before `until`."""
    if block.end > offset:
        return block
    return replace(block, end=until) if block.stable_end >= until else None


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all at once; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
