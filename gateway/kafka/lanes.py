"""Lanes: the long polls to one leader, and the partitions that they serve.

Theory of operation. A leader has one *main* lane: one fetch for all its healthy partitions, held by the broker until there is a
byte to send. A partition that is added meanwhile cannot join a request that is under way, and must not wait for its end;
so a second lane, *joining*, fetches for the late ones, but never beyond the moment at which the main request returns: then
the main lane takes all. Its requests are short, for those who come later still. In the steady state there is one request per
leader.

Which request serves a partition is said by its `flight`. An answer counts only while the partition still belongs to it, so a
partition that moved to another leader, was re-opened or dropped cannot be fed by what comes late. Positions move only by
answers that count: nothing is lost and nothing read twice.

A partition that answers with an error leaves its lane at once (the broker answers a request that holds one immediately, so all
would spin) and is nursed elsewhere (see `feed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.fanout.hub import Hub
from gateway.kafka.cluster import Cluster, TopicPartition
from gateway.kafka.connect import Backoff, Pool, Unreachable
from gateway.kafka.fetch import Corrupt, Fetch, Pacer, Part, Position, decode
from gateway.kafka.observer import Observer
from gateway.kafka.requests import error_name
from gateway.records import Record

log = logging.getLogger(__name__)

STALLED: Final = "STALLED"
CORRUPT: Final = "CORRUPT_BATCH"
AHEAD: Final = "AHEAD_OF_STABLE_OFFSET"

# The joining lane ends its request this long before the main one is due, and waits as long for a busy main lane to come round.
_JOIN_MARGIN: Final = 0.025
# A partition that comes while the joining lane is out as well waits no longer than this (and the margin).
_JOIN_SECONDS: Final = 0.05
_SOLO_CONNECTIONS: Final = 4
# Two fetches that both bring something begin this far apart where the loop has nothing else to do, and where it never rests.
_LEAST_GATHER: Final = 0.001
_MOST_GATHER: Final = 0.013
_GATHERING_SHARE: Final = 1 / 8
_PROBE_SECONDS: Final = 2.0


class Live:
    """One followed partition.

    `position` is the next offset to fetch, always its tail's end, or None until the tail is open. `error` is empty while it is
    well. `late` tells a partition that appeared when its topic was followed already.
    """

    __slots__ = (
        "corrupt", "error", "flight", "gone", "high_watermark", "late", "log_start", "node", "nudge", "partition", "position",
        "stable_end", "strikes", "topic",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, *, late: bool) -> None:
        self.topic = topic
        self.partition = partition
        self.late = late
        self.node: int | None = None
        self.position: int | None = None
        self.log_start = 0
        self.stable_end = 0
        self.high_watermark = 0
        self.flight: Flight | None = None
        self.gone = False
        self.error = ""
        self.corrupt: Corrupt | None = None
        self.strikes = 0
        self.nudge = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Live {self.topic}-{self.partition} at {self.position} on {self.node} {self.error or 'well'}>"

    @property
    def place(self) -> TopicPartition:
        """Topic and partition."""
        return self.topic, self.partition


class Flight:
    """A fetch under way for some partitions of one lane."""

    __slots__ = ("lane",)

    def __init__(self, lane: Lane) -> None:
        self.lane = lane


class Ward(Protocol):
    """Who takes the partitions that are not well, and hears that leaders may have changed."""

    def admit(self, live: Live, error: str) -> None:
        """Take a partition out of its lane and nurse it."""

    def urge(self) -> None:
        """Ask for metadata soon."""


class Feeding:
    """Turns parts of responses into appends to the hub. One for all lanes."""

    def __init__(self, hub: Hub, observer: Observer) -> None:
        self._hub = hub
        self._observer = observer

    async def take(self, live: Live, part: Part, flight: Flight, pacer: Pacer) -> bool:
        """Append what a part without error brought; return whether anything moved.

        Sets `live.corrupt` to the batch that stopped it, or to None.
        """
        if live.flight is not flight or live.position is None:
            return False
        before = live.position, live.log_start
        unstable = max(0, part.high_watermark - part.stable_end)
        grown = unstable != max(0, live.high_watermark - live.stable_end)
        live.stable_end, live.high_watermark = part.stable_end, part.high_watermark
        if not part.data and part.log_start <= live.log_start and not grown:
            # The common case among a thousand quiet partitions.
            live.corrupt = None
            return False
        count = 0

        def take(records: list[Record], end: int) -> bool:
            nonlocal count
            if live.flight is not flight:
                return False
            count += len(records)
            self._append(live, records, end)
            return True

        live.log_start = max(live.log_start, part.log_start)
        decoder = await decode(part, live.position, take, pacer)
        if live.flight is not flight:
            return True
        live.corrupt = decoder.corrupt
        if (decoder.next, live.log_start) != (live.position, before[1]):
            self._append(live, [], decoder.next)
        moved = (live.position, live.log_start) != before
        if moved or grown:
            self._observer.fetched(
                *live.place,
                records=count,
                size=len(part.data),
                lag=max(0, part.stable_end - live.position),
                unstable=unstable,
            )
        return moved

    def skip(self, live: Live, corrupt: Corrupt) -> None:
        """Give up a batch that cannot be read: go on behind it, and say so, to readers as well."""
        log.error(
            "%s-%d: offsets %d to %d cannot be read and are skipped: %s",
            *live.place, corrupt.start, corrupt.end - 1, corrupt.reason,
        )  # fmt: skip
        self._observer.skipped(*live.place, corrupt.start, corrupt.end)
        live.corrupt = None
        start = corrupt.start if live.position is None else max(corrupt.start, live.position)
        self._append(live, [Record.hole(start, corrupt.end)], corrupt.end)

    def _append(self, live: Live, records: Sequence[Record], end: int) -> None:
        live.position = end
        self._hub.append(*live.place, records, end=end, log_start=live.log_start)


class Gathering:
    """How long records gather until they are fetched: `seconds` between the beginnings of two fetches that bring something.

    Each fetch has a cost of its own, whatever it brings, and answers that go out together cost less than those that go out
    one by one. A loop that is idle for most of the time can afford that, and a record's delay is all that counts. A busy one
    cannot: what it saves comes back as a shorter queue. So the time grows with the square of the loop's load.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._at = clock()
        self._spent = cpu_clock()
        self._load = 0.0

    def __repr__(self) -> str:
        return f"<Gathering {self.seconds * 1_000:.1f} ms at load {self._load:.2f}>"

    @property
    def seconds(self) -> float:
        """The time between two fetches."""
        return _LEAST_GATHER + (_MOST_GATHER - _LEAST_GATHER) * self._load**2

    def look(self) -> None:
        """See what share of the time since the last look the thread has spent, and lean towards it."""
        at, spent = self._clock(), self._cpu_clock()
        if at > self._at:
            share = min(1.0, (spent - self._spent) / (at - self._at))
            self._load += (share - self._load) * _GATHERING_SHARE
            self._at, self._spent = at, spent


class Lane:
    """One leader's long polls.

    `max_wait` is how long the broker may hold a fetch, `stall` how much longer an answer may take before the connection counts
    as dead; both in seconds. `error` is empty while the leader answers.
    """

    def __init__(
        self,
        node: int,
        cluster: Cluster,
        feeding: Feeding,
        ward: Ward,
        observer: Observer,
        *,
        max_wait: float,
        stall: float,
        max_bytes: int,
        partition_max_bytes: int,
    ) -> None:
        self.node = node
        self.members: dict[TopicPartition, Live] = {}
        self.error = ""
        self._cluster = cluster
        self._feeding = feeding
        self._ward = ward
        self._observer = observer
        self._max_wait = max_wait
        self._stall = stall
        self._max_bytes = max_bytes
        self._partition_max_bytes = partition_max_bytes
        self._added = asyncio.Event()
        self._late = asyncio.Event()
        self._turned = asyncio.Event()
        self._due_back = 0.0
        self._flying = False
        self._turns = 0
        self._idle = 0
        self._gathering = Gathering()
        self._solo = Pool(_SOLO_CONNECTIONS)

    def __repr__(self) -> str:
        return f"<Lane to {self.node}: {len(self.members)} partitions{self.error and ', ' + self.error}>"

    def add(self, live: Live) -> None:
        """Serve a partition from now on."""
        if not self.members:
            self.error = ""  # of a time when the leader was needed last
        self.members[live.place] = live
        self._added.set()
        if self._flying:
            self._late.set()

    def remove(self, live: Live) -> None:
        """Serve a partition no longer; a request under way no longer counts for it."""
        if self.members.get(live.place) is live:
            del self.members[live.place]
        live.flight = None

    async def main(self) -> None:
        """Serve all members, for ever."""
        backoff = Backoff()
        while True:
            batch = self._batch()
            if not batch:
                self._added.clear()
                await self._added.wait()
                continue
            began = time.monotonic()
            self._due_back = began + self._max_wait
            self._flying = True
            try:
                moved = await self._turn(batch, self._max_wait, "feed")
            except Unreachable as error:
                self._flying = False
                await self._recover(batch, error, backoff)
                continue
            finally:
                self._flying = False
                self._turned.set()
            self.error = ""
            backoff.reset()
            await self._calm(moved, time.monotonic() - began)

    async def joining(self) -> None:
        """Serve members that came while the main request was under way, until it comes back; for ever."""
        while True:
            await self._late.wait()
            left = self._due_back - time.monotonic() - _JOIN_MARGIN
            batch = self._batch() if self._flying and left > 0 else []
            if not batch:
                self._late.clear()
                continue
            try:
                await self._turn(batch, min(left, _JOIN_SECONDS), "join")
            except Unreachable:
                self._late.clear()  # the main lane finds out and deals with it
                continue
            self._turned.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_JOIN_MARGIN):
                    await self._turned.wait()

    async def solo(self, live: Live) -> bool:
        """Fetch for one partition on a connection of its own, without holding; return whether it is well.

        What comes is appended. Raises Unreachable. `live.error` is set to what is wrong.
        """
        async with self._solo.slot() as number:
            flight = live.flight = Flight(self)
            try:
                parts = await self._fetch([live], 0.0, ("solo", number), self._stall)
                for part in parts:
                    live.error = self._verdict(live, part)
                    if not part.error:
                        await self._feeding.take(live, part, flight, Pacer())
                        live.error = live.error or (CORRUPT if live.corrupt else "")
                return bool(parts) and not live.error
            finally:
                if live.flight is flight:
                    live.flight = None

    # --- inside ---

    def _batch(self) -> list[Live]:
        free = [live for live in self.members.values() if live.flight is None or live.flight.lane is not self]
        # Brokers fill an answer in the order of the request: each gets its turn to be first.
        self._turns += 1
        first = self._turns % len(free) if free else 0
        return free[first:] + free[:first]

    async def _fetch(self, batch: Sequence[Live], max_wait: float, group: object, patience: float) -> list[Part]:
        request = Fetch(
            [Position(*live.place, live.position) for live in batch if live.position is not None],
            max_wait=max_wait,
            max_bytes=self._max_bytes,
            partition_max_bytes=self._partition_max_bytes,
        )
        parts: list[Part] = await self._cluster.send(
            self.node, request, group=group, timeout=max_wait + patience, exclusive=True
        )
        return parts

    async def _turn(self, batch: Sequence[Live], max_wait: float, group: str) -> bool:
        flight = Flight(self)
        for live in batch:
            live.flight = flight
        by_place = {live.place: live for live in batch}
        moved, pacer = False, Pacer()
        try:
            for part in await self._fetch(batch, max_wait, group, self._stall):
                served = by_place.get((part.topic, part.partition))
                if served is None or served.flight is not flight:
                    continue
                error = self._verdict(served, part)
                if not part.error:
                    moved |= await self._feeding.take(served, part, flight, pacer)
                    error = error or (CORRUPT if served.corrupt else "")
                if error and served.flight is flight:
                    self._ward.admit(served, error)
                await pacer.pause()
        finally:
            for live in batch:
                if live.flight is flight:
                    live.flight = None
        return moved

    def _verdict(self, live: Live, part: Part) -> str:
        if part.error:
            return error_name(part.error)
        if live.position is not None and 0 <= part.stable_end < live.position:
            # A new leader may not know yet how far the old one had come. The broker answers such a fetch at once.
            return AHEAD
        return ""

    async def _recover(self, batch: Sequence[Live], error: Unreachable, backoff: Backoff) -> None:
        self._observer.kafka_error(STALLED if error.stalled else "UNREACHABLE")
        self._ward.urge()
        if error.stalled and await self._answers():
            # The broker lives, so one of the partitions holds the others up. Each is looked at by itself.
            for live in batch:
                if live.place in self.members:
                    self._ward.admit(live, STALLED)
            return
        if not self.error:
            log.warning("broker %d: %s", self.node, error.reason)
        self.error = error.reason
        # A broker may close a connection that is in order (idle, session over): the first attempt waits for nothing.
        wait = backoff.next()
        await asyncio.sleep(wait if backoff.failures > 1 else 0)

    async def _answers(self) -> bool:
        try:
            await self._cluster.ping(self.node, timeout=min(_PROBE_SECONDS, self._stall))
        except Unreachable:
            return False
        return True

    async def _calm(self, moved: bool, took: float) -> None:
        """Gather where much comes, and slow down when the broker answers at once with nothing, whatever the reason.

        A busy topic would be fetched record by record, and the work for each fetch would be done for each record. Who comes
        after a pause is not delayed.
        """
        self._gathering.look()
        if moved and took < self._gathering.seconds:
            await asyncio.sleep(self._gathering.seconds - took)
        self._idle = 0 if moved or took > self._max_wait / 2 else self._idle + 1
        if self._idle > 1:
            await asyncio.sleep(min(self._max_wait, 0.01 * 2 ** min(self._idle, 10)))
