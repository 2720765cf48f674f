"""The feed: which topics are followed, where their partitions are led, and what becomes of those that are not well.

Theory of operation. One task, the metadata loop, owns the followed topics; it asks for metadata at a pace that no error can
raise above a bound. It sorts partitions by leader into lanes (see `lanes`). A partition is in exactly one of three states:
opening (its bounds are being asked for), served by a lane, or sick: then one nurse task tries it again and again with growing
waits, on a connection of its own, until it is well and returns to its leader's lane. A topic is live from its first poll
until `retire_after` seconds after its last, and while a waiter is parked on it.

A batch that cannot be decoded is read again three times over about two seconds (the bytes may have been hurt on the way or in
one replica's cache) and then skipped: the partition goes on, and the loss is logged, counted, listed in the status, and told
to readers as a hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from gateway.errors import BrokerUnavailable
from gateway.fanout.hub import Hub, Topic
from gateway.kafka.cluster import Cluster, Listed, TopicMetadata, TopicPartition
from gateway.kafka.connect import Backoff, Unreachable
from gateway.kafka.lanes import CORRUPT, Feeding, Lane, Live
from gateway.kafka.observer import Observer
from gateway.kafka.requests import (
    EARLIEST,
    INVALID_TOPIC,
    LATEST,
    LEADER_NOT_AVAILABLE,
    OFFSET_OUT_OF_RANGE,
    UNKNOWN_TOPIC,
    error_name,
)

log = logging.getLogger(__name__)

_OUT_OF_RANGE: Final = error_name(OFFSET_OUT_OF_RANGE)
_NO_LEADER: Final = error_name(LEADER_NOT_AVAILABLE)
# A broker that has just started may not know a topic yet: it counts as deleted when this long after it is still unknown.
_MISSING_SECONDS: Final = 1.0
_ABSENT_AGE: Final = 2.0
_TROUBLED_AGE: Final = 0.5
_LEAST_SPACING: Final = 0.02
_OPENING_SECONDS: Final = 1.0
_RENEW_SPACING: Final = 0.25
_STRIKES: Final = 3
_SKIPS_KEPT: Final = 100
# A partition that appears in a followed topic is read from its log start if it is not longer than this.
_SMALL: Final = 10_000


class Followed:
    """A topic that is live.

    `known` is set once its partitions were open, or found wanting, for the first time; `opening` counts the leaders that are
    still being asked for bounds, and `heard` is the number of the last question whose answer told what the topic is.
    """

    __slots__ = ("heard", "known", "lives", "missing_since", "opening", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.lives: dict[int, Live] = {}
        self.known = asyncio.Event()
        self.missing_since: float | None = None
        self.opening = 0
        self.heard = 0


class Feed:
    """Keeps the hub's tails at the ends of their partitions.

    `retire_after`, `max_wait` (of one long poll), `stall` (how late an answer may be) and `patience` (how long `follow` waits
    for a new topic) are in seconds. `on_gone` is told of topics whose log is no longer the one that was read.
    """

    def __init__(
        self,
        hub: Hub,
        cluster: Cluster,
        observer: Observer,
        *,
        metadata_max_age: float,
        retire_after: float = 300.0,
        max_wait: float = 1.0,
        stall: float = 5.0,
        patience: float = 2.0,
        max_bytes: int = 8 * 2**20,
        partition_max_bytes: int = 2**20,
        on_gone: Callable[[str], None] = lambda _topic: None,
    ) -> None:
        self.skipped: deque[tuple[str, int, int, int]] = deque(maxlen=_SKIPS_KEPT)
        self._hub = hub
        self._cluster = cluster
        self._observer = observer
        self._max_age = metadata_max_age
        self._retire_after = retire_after
        self._max_wait = max_wait
        self._stall = stall
        self._patience = patience
        self._max_bytes = max_bytes
        self._partition_max_bytes = partition_max_bytes
        self._on_gone = on_gone
        self._feeding = Feeding(hub, observer)
        self._topics: dict[str, Followed] = {}
        self._lanes: dict[int, Lane] = {}
        self._sick: dict[TopicPartition, Live] = {}
        self._group: asyncio.TaskGroup | None = None
        self._ended = False
        self._poke = asyncio.Event()
        self._due = 0.0
        self._not_before = 0.0
        self._spacing = Backoff(0.1, 2.0)
        self._asked = 0
        self._hearing = asyncio.Event()
        self._renewed_at = -math.inf

    def __repr__(self) -> str:
        return f"<Feed {len(self._topics)} topics, {len(self._lanes)} leaders, sick: {sorted(self._sick) or 'none'}>"

    # --- what readers call ---

    async def follow(self, name: str, now: float) -> Topic:
        """Keep a topic live; see `KafkaLog.follow`."""
        followed = self._topics.get(name)
        if followed is None:
            if self._ended:
                raise BrokerUnavailable
            followed = self._topics[name] = Followed(self._hub.create(name))
            self._ask_at(time.monotonic() + _LEAST_SPACING / 2)
        followed.topic.last_polled = now
        if not followed.known.is_set():
            await self._settle(followed)
        return followed.topic

    async def renew(self, name: str) -> None:
        """Return once the topic's metadata that was asked for after this call has been taken in; see `KafkaLog.renew`.

        All who ask share one question, and there are only so many in a second, whatever cursors are presented.
        """
        followed, wanted = self._topics.get(name), self._asked + 1
        try:
            async with asyncio.timeout(self._patience):
                while followed is not None and followed.topic.partition_count and followed.heard < wanted:
                    self._ask_spaced(time.monotonic())
                    await self._hearing.wait()
        except TimeoutError as error:
            raise BrokerUnavailable from error

    def _ask_spaced(self, now: float) -> None:
        if self._renewed_at <= now:
            self._renewed_at = max(now, self._renewed_at + _RENEW_SPACING)
        self._ask_at(self._renewed_at)

    def sick(self) -> list[tuple[str, int, str]]:
        """Return what is not followed as it should be: topic, partition (-1: the whole topic), error."""
        found = [(*place, live.error) for place, live in self._sick.items()]
        for lane in self._lanes.values():
            if lane.error:
                found += [(*place, lane.error) for place in lane.members]
        for name, followed in self._topics.items():
            told = self._cluster.topics.get(name)
            if told is not None and told.error not in {0, UNKNOWN_TOPIC}:
                found.append((name, -1, error_name(told.error)))
            elif followed.missing_since is not None:
                found.append((name, -1, error_name(UNKNOWN_TOPIC)))
        return sorted(found)

    # --- what lanes call ---

    def admit(self, live: Live, error: str) -> None:
        """Take a partition out of its lane and nurse it."""
        if self._group is None or live.gone:
            return
        self._observer.kafka_error(error)
        self._leave(live)
        live.error = error
        live.strikes = 0
        live.nudge.clear()
        if live.place not in self._sick:
            self._sick[live.place] = live
            self._spawn(lambda: self._nurse(live))
        self.urge()

    def urge(self) -> None:
        """Ask for metadata soon: the more often nothing new came of it, the later."""
        self._ask_at(time.monotonic() + self._spacing.next())

    # --- tasks ---

    async def run(self) -> None:
        """Follow topics until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._spawn(self._keep_metadata)
        finally:
            self._group = None
            self._ended = True

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._group is None:
            raise AssertionError("tasks are only started from tasks of the running group")
        self._group.create_task(_guarded(work, self._observer))

    async def _keep_metadata(self) -> None:
        backoff = Backoff(0.1, 3.0)
        while True:
            await self._until_due()
            self._due = math.inf
            self._retire(time.monotonic())
            self._asked += 1
            try:
                told = await self._cluster.refresh(self._topics)
            except Unreachable as error:
                if not backoff.failures:
                    log.warning("no broker answers: %s", error.reason)
                self._not_before = time.monotonic() + backoff.next()
                self._ask_at(self._not_before)
                continue
            if backoff.failures:
                log.info("brokers answer again")
                backoff.reset()
            now = time.monotonic()
            if self._apply(told, now):
                self._spacing.reset()
            self._hearing.set()
            self._hearing = asyncio.Event()
            self._not_before = now + _LEAST_SPACING
            self._ask_at(now + self._age())

    def _age(self) -> float:
        """Return how soon metadata is asked for again if nobody urges."""
        if self._sick or any(lane.error and lane.members for lane in self._lanes.values()):
            # Their leaders are about to change, and nobody else will say when they have.
            return min(self._max_age, _TROUBLED_AGE)
        absent = any(f.missing_since is not None or not f.topic.partition_count for f in self._topics.values())
        return min(self._max_age, _ABSENT_AGE) if absent else self._max_age

    def _ask_at(self, when: float) -> None:
        when = max(when, self._not_before)
        if when < self._due:
            self._due = when
            self._poke.set()

    async def _until_due(self) -> None:
        while (left := self._due - time.monotonic()) > 0:
            self._poke.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if left < math.inf else None):
                    await self._poke.wait()

    async def _settle(self, followed: Followed) -> None:
        """Wait until a new topic is known; BrokerUnavailable where nothing is known of it and nobody can be asked."""
        try:
            async with asyncio.timeout(self._patience):
                await followed.known.wait()
        except TimeoutError as error:
            if not followed.topic.partition_count and not self._cluster.connected:
                raise BrokerUnavailable from error

    # --- what metadata tells ---

    def _apply(self, told: dict[str, TopicMetadata], now: float) -> bool:
        """Take in what was told of the topics; return whether anything was new."""
        news = False
        for name, metadata in told.items():
            followed = self._topics.get(name)
            if followed is None:
                continue
            if not metadata.error:
                followed.heard = self._asked
                news |= self._present(followed, metadata)
            elif metadata.error in {UNKNOWN_TOPIC, INVALID_TOPIC}:
                news |= self._absent(followed, now)
            else:
                followed.known.set()
        return news

    def _present(self, followed: Followed, metadata: TopicMetadata) -> bool:
        topic = followed.topic
        followed.missing_since = None
        recreated = None not in (topic.topic_id, metadata.topic_id) and topic.topic_id != metadata.topic_id
        count = len(metadata.leaders)
        if recreated or (count < topic.partition_count and metadata.topic_id is None):
            log.warning("topic %s was created again", topic.name)
            self._drop(followed)
        elif count < topic.partition_count:
            return False  # the same topic never shrinks: this broker lags behind
        late = topic.partition_count > 0 and not recreated
        self._hub.describe(topic.name, topic_id=metadata.topic_id, partitions=count)
        fresh = [Live(topic.name, p, late=late) for p in metadata.leaders if p not in followed.lives]
        moved = [live for live in followed.lives.values() if live.node != self._cluster.leader(*live.place)]
        for live in fresh:
            followed.lives[live.partition] = live
            live.node = self._cluster.leader(*live.place)
        for live in moved:
            self._move(live)
        self._open_all(followed, fresh)
        return bool(fresh or moved)

    def _absent(self, followed: Followed, now: float) -> bool:
        topic = followed.topic
        if not topic.partition_count:
            self._hub.describe(topic.name, topic_id=None, partitions=0)
            followed.known.set()
            return False
        if followed.missing_since is None:
            followed.missing_since = now
            self._ask_at(now + _MISSING_SECONDS)
        elif now - followed.missing_since >= _MISSING_SECONDS:
            log.warning("topic %s is gone", topic.name)
            followed.missing_since = None
            self._drop(followed)
            self._hub.describe(topic.name, topic_id=None, partitions=0)
            return True
        return False

    def _drop(self, followed: Followed) -> None:
        """Follow none of a topic's partitions any more: their log is gone."""
        for live in followed.lives.values():
            live.gone = True
            self._leave(live)
            self._sick.pop(live.place, None)
            live.nudge.set()
        followed.lives.clear()
        self._on_gone(followed.topic.name)

    def _retire(self, now: float) -> None:
        for name, followed in list(self._topics.items()):
            if now - followed.topic.last_polled > self._retire_after and not followed.topic.parked:
                log.info("topic %s is not polled any more", name)
                del self._topics[name]
                self._drop(followed)
                self._hub.forget(name)
                self._cluster.topics.pop(name, None)

    # --- partitions ---

    def _lane(self, node: int) -> Lane:
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = Lane(
                node,
                self._cluster,
                self._feeding,
                self,
                self._observer,
                max_wait=self._max_wait,
                stall=self._stall,
                max_bytes=self._max_bytes,
                partition_max_bytes=self._partition_max_bytes,
            )
            self._spawn(lane.main)
            self._spawn(lane.joining)
        return lane

    def _leave(self, live: Live) -> None:
        live.flight = None
        lane = self._lanes.get(live.node) if live.node is not None else None
        if lane is not None:
            lane.remove(live)

    def _move(self, live: Live) -> None:
        """Follow a partition to its new leader, or nurse it while there is none."""
        self._leave(live)
        live.node = self._cluster.leader(*live.place)
        live.nudge.set()
        if live.place in self._sick or live.position is None:
            return
        if live.node is None:
            self.admit(live, _NO_LEADER)
        else:
            self._lane(live.node).add(live)

    def _open_all(self, followed: Followed, lives: Iterable[Live]) -> None:
        """Open tails, each leader's apart: one that does not answer must not hold up the others."""
        by_node: dict[int | None, list[Live]] = {}
        for live in lives:
            by_node.setdefault(live.node, []).append(live)
        for group in by_node.values():
            followed.opening += 1
            self._spawn(lambda group=group: self._open(followed, group))  # type: ignore[misc]

    async def _open(self, followed: Followed, lives: Iterable[Live]) -> None:
        """Open the tails of partitions that were just learnt of; those that cannot be opened are nursed."""
        waiting = {live.place: live for live in lives}
        backoff = Backoff(0.03, 0.3)
        # The leader of a topic that was just created may not know yet that it is: that is no reason to miss its first records.
        until = time.monotonic() + _OPENING_SECONDS
        while waiting:
            latest, earliest = await asyncio.gather(
                self._cluster.list_offsets(waiting, LATEST), self._cluster.list_offsets(waiting, EARLIEST)
            )
            for place, live in list(waiting.items()):
                error = "" if live.gone else self._start(live, latest.get(place), earliest.get(place))
                if not error or live.node is None or time.monotonic() > until:
                    del waiting[place]
                    self._opened(live, error)
            if waiting:
                self.urge()
                await asyncio.sleep(backoff.next())
        followed.opening -= 1
        if not followed.opening:
            followed.known.set()

    def _opened(self, live: Live, error: str) -> None:
        if live.gone:
            return
        if error or live.node is None:
            self.admit(live, error or _NO_LEADER)
        else:
            self._lane(live.node).add(live)

    def _start(self, live: Live, latest: Listed | None, earliest: Listed | None) -> str:
        """Open, or open again, a tail between the bounds that the leader told; return what is wrong with them."""
        if latest is None or earliest is None or latest.error or earliest.error:
            return (latest and latest.error) or (earliest and earliest.error) or "UNKNOWN"
        low, high = earliest.offset, latest.offset
        if live.position is not None and low <= live.position <= high:
            return ""
        if live.position is not None:
            log.warning("%s-%d: position %d is outside of the log (%d to %d)", *live.place, live.position, low, high)
            self._on_gone(live.topic)
        live.position = low if live.late and high - low <= _SMALL else high
        live.late = False
        live.log_start, live.stable_end, live.high_watermark = low, high, high
        self._hub.open(*live.place, start=live.position, log_start=low)
        return ""

    async def _nurse(self, live: Live) -> None:
        """Try a sick partition until it is well, then give it back to its leader's lane."""
        backoff = Backoff(0.05, 5.0)
        while not live.gone:
            with contextlib.suppress(TimeoutError):
                # A new leader is a reason to look at once.
                async with asyncio.timeout(backoff.next()):
                    await live.nudge.wait()
            live.nudge.clear()
            if live.gone:
                return
            node = live.node
            if node is None:
                self.urge()
                continue
            try:
                well = await self._treat(live, self._lane(node))
            except Unreachable as error:
                live.error = error.reason
                well = False
            if well and not live.gone and live.node == node:
                live.error = ""
                self._sick.pop(live.place, None)
                self._lane(node).add(live)
                return
            self.urge()

    async def _treat(self, live: Live, lane: Lane) -> bool:
        if live.position is None or live.error == _OUT_OF_RANGE:
            latest = await self._cluster.list_offsets([live.place], LATEST)
            earliest = await self._cluster.list_offsets([live.place], EARLIEST)
            if live.gone:
                return False
            live.error = self._start(live, latest.get(live.place), earliest.get(live.place))
            if live.error:
                return False
        well = await lane.solo(live)
        if live.error == CORRUPT and live.corrupt is not None and not live.gone:
            live.strikes += 1
            if live.strikes >= _STRIKES:
                self.skipped.append((*live.place, live.corrupt.start, live.corrupt.end))
                self._feeding.skip(live, live.corrupt)
                return True
        return well


async def _guarded(work: Callable[[], Awaitable[None]], observer: Observer) -> None:
    """Do a task's work; begin again should it fail by a fault of ours, which must not end everybody's feed."""
    backoff = Backoff(0.5, 30.0)
    while True:
        try:
            return await work()
        except Exception:
            log.exception("a task of the feed failed; it begins again")
            observer.kafka_error("INTERNAL")
            await asyncio.sleep(backoff.next())
