"""All lanes of the process: what their polls come to, their answers in slices, their clocks, their end.

Theory of operation. A poll is *looked at* by its crowd (`crowd`): there is something to tell, and the lane is answered at once;
or there is nothing, and it joins the crowd's cohort. When the hub wakes a cohort, it is delivered in slices of a few
milliseconds, between which the loop turns, so that a broadcast to many thousands delays nobody else. Each slice reads for
itself: records that came meanwhile go out with it.

Nothing here costs a timer for each poll. The members of a cohort came in order and wait equally long, so only the first one's
deadline is watched, by a wheel of coarse ticks. A token or a channel that ends before the wait does is noted by itself. Lanes
without a poll, or with half a head, or whose client does not read, are found by a sweep over all lanes once a second.

What aiohttp's side would count and log for each answer is counted here for each slice: equal answers are one addition.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

from multidict import CIMultiDict

from gateway.auth.principal import KeyRef, Principal
from gateway.fanout.cursor import Position
from gateway.fanout.hub import CHANGED, RECORDS, TICK, TIMEOUT, Hub, Why
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Subscription
from gateway.limits import UNLIMITED, Slots, TokenBuckets
from gateway.metrics import Metrics, Reading
from gateway.server.accesslog import AccessLog
from gateway.server.accounts import Accounts
from gateway.server.address import bucket_key, peer_address
from gateway.server.admission import LEAST_HOLD
from gateway.server.arming import HEAD_END, Armed, Arming, Cut
from gateway.server.crowd import Cohort, Crowd, Kept, Shape
from gateway.server.lane import Handover, Lane
from gateway.server.outcome import Dates, Outcome
from gateway.server.parking import DRAINED, EXPIRED, REVOKED
from gateway.server.places import Places
from gateway.server.protocol import Connection

_log = logging.getLogger(__name__)

SLICE_SECONDS = 0.002
"""Time after which a slice of answers lets the loop turn."""

_CHECK_EVERY = 16
STUCK_SECONDS = 30.0
"""Time without progress after which a client that does not read its answer is cut off."""

_CLOCK_STEP = 1.0
_SWEEPS = round(1.0 / TICK)
_PER_CLIENT = frozenset({"x-request-id", "ratelimit", "ratelimit-policy"})


class Facts(NamedTuple):
    """What a handler found out about a poll that a lane is to take over.

    `wait` in seconds; `peer` is the socket's other end, `address` the client's.
    """

    subscription: Subscription
    wait: float
    principal: Principal
    address: str
    peer: str


@dataclass(slots=True)
class Delivery:
    """Lanes on their way to one answer, and `why`. `position` is where they stand, None: where the hub woke them."""

    lanes: Iterator[Lane]
    cohort: Cohort
    position: Position | None
    why: Why
    outcome: Outcome | None = None

    def place(self) -> Position:
        """Return where they stand."""
        if self.position is None:
            self.position = self.cohort.position()
        return self.position


class Lanes:
    """Keeps all lanes; build it on the loop that runs it. `keepalive` and `head_timeout` in seconds, as aiohttp has them.

    `route` is the label by which responses are counted. `run` is the clock and has to run while there are lanes.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        reader: Reader,
        arming: Arming,
        polls: TokenBuckets | None,
        addresses: TokenBuckets | None,
        slots: Slots,
        metrics: Metrics,
        access_log: AccessLog | None,
        route: str,
        keepalive: float,
        head_timeout: float,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._arming = arming
        # A table that is still empty is false.
        self._polls = UNLIMITED if polls is None else polls
        self._addresses = UNLIMITED if addresses is None else addresses
        self._interval, self._reach = self._polls.interval, self._polls.reach
        self._address_interval, self._address_reach = self._addresses.interval, self._addresses.reach
        self._slots = slots
        self._accounts = Accounts(metrics, access_log, route=route, unix_clock=unix_clock)
        self._keepalive = keepalive
        self._head_timeout = head_timeout
        self._least_idle = min(keepalive, head_timeout, STUCK_SECONDS)
        self._clock = clock
        self._unix_clock = unix_clock
        self._offset = unix_clock() - clock()
        self._places = Places()
        self._kept = Kept()
        self._dates = Dates(unix_clock)
        self._crowds: WeakValueDictionary[Shape, Crowd] = WeakValueDictionary()
        self._labels: set[str] = set()
        self._lanes: dict[Lane, None] = {}
        self._queue: deque[Delivery] = deque()
        self._scheduled = False
        self._alarms: dict[int, list[Cohort]] = {}
        self._early: dict[int, list[tuple[Lane, Cohort]]] = {}
        self._tick = int(clock() / TICK)
        self._sweep: list[Lane] = []
        self._make_connection: Callable[[], asyncio.Protocol] | None = None
        self._draining = False

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)}, {len(self._arming)} armed, {len(self._crowds)} crowds, {self._slots!r}>"

    def __len__(self) -> int:
        return len(self._lanes)

    # --- from aiohttp to a lane ---

    def offer(self, parts: Cut, facts: Facts, headers: CIMultiDict[str]) -> Handover | None:
        """Return what a handler answers to have a lane take its poll over, or None if none can.

        It can if the tails alone can tell what the poll comes to. `headers` of the answer have CURSOR in them.
        """
        position = self._places.position(parts.cursor, facts.subscription.topics)
        if self._draining or position is None:
            return None
        topics = [self._hub.topic(name) for name in facts.subscription.topics]
        if not all(topic is not None and topic.tails for topic in topics):
            return None
        if self._reader.peek(facts.subscription, position) is None:
            return None
        return Handover(parts, headers, partial(self._take, facts))

    def _take(self, facts: Facts, given: Handover, connection: Connection) -> None:
        """Take a connection out of aiohttp's hands, and answer or park its poll."""
        now = self._clock()
        self._make_connection = connection.maker()
        fields = tuple((name, value) for name, value in given.headers.items() if name.lower() not in _PER_CLIENT)
        crowd = self._crowd(Shape(facts.subscription, facts.wait, fields))
        armed = self._armed(given, facts, crowd, now)
        transport = connection.leave()
        lane = self._begin(transport, armed)
        outcome = crowd.look(given.parts.cursor, now)
        if outcome is None or not self._has_slot(armed):
            raise AssertionError("the handler has just looked, and nothing can have changed since")
        self._settle(lane, given.parts.cursor, outcome, now)

    def _crowd(self, shape: Shape) -> Crowd:
        crowd = self._crowds.get(shape)
        if crowd is None:
            crowd = Crowd(shape, hub=self._hub, reader=self._reader, places=self._places, kept=self._kept, dates=self._dates)
            self._crowds[shape] = crowd
            self._labels.update(shape.subscription.labels)
        return crowd

    def _armed(self, given: Handover, facts: Facts, crowd: Crowd, now: float) -> Armed:
        principal = facts.principal
        address_key = bucket_key(facts.address)
        known = self._arming.get(facts.peer, given.parts)
        if known is not None and known.crowd is crowd and known.principal is principal and now <= known.over:
            return known  # one client's many connections share it
        armed = Armed(
            given.parts,
            crowd,
            principal=principal,
            peer=facts.peer,
            address=facts.address,
            bucket=self._polls.bucket(principal.id, now),
            address_bucket=self._addresses.bucket(address_key, now),
            holder=self._slots.holder(principal.id),
        )
        if principal.expires_at is not None:
            armed.expire(principal.expires_at - self._offset, LEAST_HOLD)
        sunset = facts.subscription.announcement.sunset
        if sunset is not None:
            armed.expire(sunset - self._offset, 0.0)
        self._arming.add(given.parts, armed)
        return armed

    def welcome(self, transport: asyncio.Transport, head: bytes, make: Callable[[], asyncio.Protocol]) -> bool:
        """Make a lane of a new connection, if what it sent is a head that is armed; tell whether it is.

        `make` makes aiohttp's protocols of new connections.
        """
        if head.find(HEAD_END) != len(head) - len(HEAD_END):
            return False
        found = self._arming.find(peer_address(transport.get_extra_info("peername")), head)
        if found is None:
            return False
        self._make_connection = make
        self.poll(self._begin(transport, found[0]), *found, head)
        return True

    def _begin(self, transport: asyncio.Transport, armed: Armed) -> Lane:
        lane = Lane(self, transport, armed)
        self._lanes[lane] = None
        transport.set_write_buffer_limits(0)
        transport.set_protocol(lane)
        return lane

    # --- what lanes call ---

    def now(self) -> float:
        """Return the monotonic time."""
        return self._clock()

    def connection(self) -> asyncio.Protocol:
        """Return aiohttp's protocol of a new connection."""
        if self._make_connection is None:
            raise AssertionError("no lane without a connection that it came from")
        return self._make_connection()

    def find(self, lane: Lane, head: bytes) -> tuple[Armed, bytes] | None:
        """Look for a head among all armed ones."""
        return self._arming.find(lane.armed.peer, head)

    def poll(self, lane: Lane, armed: Armed, cursor: bytes, head: bytes) -> None:
        """Answer or park a poll, or have the lane replay it: nothing is taken from any limit then.

        Most polls come back to the end of the tails with nothing in the way. For them this is all: what `_charge` and `_join`
        do in general is done here in place, in half the time.
        """
        now = self._clock()
        holder, slots = armed.holder, self._slots
        address_bucket, bucket = armed.address_bucket, armed.bucket
        address_level, level = address_bucket.full_at, bucket.full_at
        address_level = (address_level if address_level > now else now) + self._address_interval  # noqa: FURB136  # a call
        level = (level if level > now else now) + self._interval  # noqa: FURB136
        if (
            now > armed.over
            or holder.held >= slots.quota
            or slots.held >= slots.total
            or address_level > now + self._address_reach
            or level > now + self._reach
        ):
            self._reconsider(lane, armed, cursor, head, now)
            return
        crowd = armed.crowd
        cohort = crowd.cohort
        if cohort is None or cohort.tip != cursor or not cohort.parked or now > armed.near:
            outcome = crowd.look(cursor, now)
            if outcome is None:
                lane.replay(head)
                return
            address_bucket.full_at, bucket.full_at = address_level, level
            self._settle(lane, cursor, outcome, now)
            return
        address_bucket.full_at, bucket.full_at = address_level, level
        lane.since = now
        lane.cohort = cohort
        cohort.members.append(lane)
        holder.held += 1
        slots.held += 1

    def _reconsider(self, lane: Lane, armed: Armed, cursor: bytes, head: bytes, now: float) -> None:
        """Look again at a poll that is in the way of a limit: tables may have dropped what the armed head keeps of them."""
        outcome = armed.crowd.look(cursor, now)
        if outcome is None or now > armed.over or not self._has_slot(armed) or not self._charge(armed, now):
            lane.replay(head)
        else:
            self._settle(lane, cursor, outcome, now)

    def left(self, lane: Lane) -> None:
        """Forget a lane that was replayed or whose connection is lost."""
        if self._lanes.pop(lane, self) is self:
            return
        cohort = lane.cohort
        if cohort is not None:
            self._part(lane, cohort)
            self._accounts.left(lane, self._clock())

    # --- a poll's fate ---

    def _has_slot(self, armed: Armed) -> bool:
        holder, slots = armed.holder, self._slots
        if holder.held >= slots.quota and holder.dropped:
            holder = armed.holder = slots.holder(armed.principal.id)
        return holder.held < slots.quota and slots.held < slots.total

    def _charge(self, armed: Armed, now: float) -> bool:
        """Take one token from the address and one from the principal, or none from either."""
        addresses, polls = self._addresses, self._polls
        if armed.address_bucket.dropped:
            armed.address_bucket = addresses.bucket(bucket_key(armed.address), now)
        if armed.bucket.dropped:
            armed.bucket = polls.bucket(armed.principal.id, now)
        if not addresses.take_one(armed.address_bucket, now):
            return False
        if not polls.take_one(armed.bucket, now):
            addresses.give_back(armed.address_bucket)
            return False
        return True

    def _settle(self, lane: Lane, cursor: bytes, outcome: Outcome, now: float) -> None:
        """Answer a poll that has been let in, or park it."""
        crowd = lane.armed.crowd
        crowd.touch(now)
        if outcome.answer.body or not crowd.wait:
            self._send(lane, outcome.data(crowd), now)
            why = RECORDS if outcome.answer.body else TIMEOUT
            self._accounts.answered((lane,), outcome, why, now)
            return
        cohort = crowd.cohort
        if not outcome.at_tail or cohort is None or not cohort.parked:
            cohort = self._open(crowd, outcome.position, at_tail=outcome.at_tail)
        if outcome.at_tail:
            cohort.tip = cursor
        self._join(lane, cohort, now)

    def _open(self, crowd: Crowd, position: Position, *, at_tail: bool) -> Cohort:
        cohort = crowd.cohort
        if cohort is None or not at_tail or not cohort.idle:
            before, cohort = cohort, Cohort(crowd, self._woken)
            if at_tail and (before is None or not before.parked):
                crowd.cohort = cohort
        cohort.tip = b""
        self._hub.park(cohort, position, at_tail=at_tail, deadline=None)
        return cohort

    def _join(self, lane: Lane, cohort: Cohort, now: float) -> None:
        armed = lane.armed
        lane.since = now
        lane.cohort = cohort
        cohort.members.append(lane)
        armed.holder.held += 1
        self._slots.held += 1
        if not cohort.alarm:
            self._set_alarm(cohort, now + cohort.crowd.wait)
        if now > armed.near:
            self._early.setdefault(int(armed.expires / TICK) + 1, []).append((lane, cohort))

    def _set_alarm(self, cohort: Cohort, at: float) -> None:
        tick = max(int(at / TICK) + 1, self._tick + 1)
        if not cohort.alarm or tick < cohort.alarm:
            cohort.alarm = tick
            self._alarms.setdefault(tick, []).append(cohort)

    def _part(self, lane: Lane, cohort: Cohort) -> None:
        """Take a lane that ends out of its cohort."""
        lane.cohort = None
        self._slots.release_of(lane.armed.holder)
        cohort.leave()
        if not len(cohort):
            self._hub.unpark(cohort)

    def _send(self, lane: Lane, data: bytes, now: float) -> None:
        lane.since = now
        try:
            lane.transport.write(data)
        except Exception:  # noqa: BLE001
            # One connection's failing write must not end the slice for all others.
            _log.exception("an answer could not be written")
            lane.transport.abort()

    # --- deliveries ---

    def _woken(self, cohort: Cohort) -> None:
        """Deliver to a cohort that the hub woke."""
        if len(cohort):
            self._deliver(cohort, None, cohort.why)

    def _deliver(self, cohort: Cohort, position: Position | None, why: Why) -> None:
        self._queue.append(Delivery(iter(cohort.members), cohort, position, why))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        """Answer until the time of a slice is over, and schedule the next one if anything is left."""
        until = self._clock() + SLICE_SECONDS
        while self._queue:
            try:
                done = self._portion(self._queue[0], until)
            except Exception:  # noqa: BLE001
                # One crowd's trouble must not end the deliveries of all others.
                _log.exception("a delivery failed")
                for lane in self._queue[0].lanes:
                    lane.transport.abort()
                done = True
            if done:
                self._queue.popleft()
            if self._queue and self._clock() > until:
                asyncio.get_running_loop().call_soon(self._slice)
                return
        self._scheduled = False

    def _portion(self, delivery: Delivery, until: float) -> bool:
        """Answer some lanes of a delivery; tell whether all are."""
        crowd = delivery.cohort.crowd
        now = self._clock()
        outcome = self._outcome(delivery, crowd, now)
        crowd.touch(now)  # its topics must not be given up between this answer and the next poll
        if outcome is None:
            return self._return(delivery, until)
        if delivery.why in (RECORDS, CHANGED) and not outcome.answer.body:
            self._move(delivery, outcome, now)
            return True
        data = outcome.data(crowd)
        cohort, closing = delivery.cohort, self._draining or delivery.why in (DRAINED, REVOKED)
        if closing:
            data = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        done: list[Lane] = []
        for lane in delivery.lanes:
            if lane.cohort is not cohort:
                continue  # its client has left
            lane.cohort = None
            lane.armed.holder.held -= 1
            self._send(lane, data, lane.since)
            done.append(lane)
            if len(done) % _CHECK_EVERY == 0 and self._clock() > until:
                break
        else:
            until = 0.0
            cohort.empty()
        self._slots.held -= len(done)
        now = self._clock()
        self._accounts.answered(done, outcome, delivery.why, now)
        for lane in done:
            lane.since = now
            if closing:
                lane.transport.close()
            elif lane.holds:
                lane.go_on()
        return not until

    def _outcome(self, delivery: Delivery, crowd: Crowd, now: float) -> Outcome | None:
        if delivery.why in (RECORDS, CHANGED):
            # Moves tell what came to the end of the tails; who knows more than they do keeps that.
            cohort = delivery.cohort
            after = cohort.after if cohort.apart is None else None
            found = None if after is None else crowd.look_after(after)
            return found or crowd.look_from(delivery.place(), now)
        if delivery.outcome is None:
            delivery.outcome = crowd.nothing(delivery.place())
        return delivery.outcome

    def _return(self, delivery: Delivery, until: float) -> bool:
        """Replay some lanes whose place the tails hold no more, from where they stand; tell whether all are."""
        cursor = self._places.cursor(delivery.place())
        for lane in delivery.lanes:
            if lane.cohort is not delivery.cohort:
                continue
            armed = lane.armed
            self._part(lane, delivery.cohort)
            self._addresses.give_back(armed.address_bucket)
            self._polls.give_back(armed.bucket)
            # The head that was armed, perhaps a while ago: what differed from it since is not kept, so it is left out.
            lane.replay(self._arming.bare(armed.head(cursor)))
            if self._clock() > until:
                return False
        return True

    def _move(self, delivery: Delivery, outcome: Outcome, now: float) -> None:
        """Park lanes again for whom there was nothing."""
        lanes = [lane for lane in delivery.lanes if lane.cohort is delivery.cohort]
        if not lanes:
            return
        cohort = self._open(delivery.cohort.crowd, outcome.position, at_tail=outcome.at_tail)
        for lane in lanes:
            lane.cohort = cohort
        cohort.members += lanes
        self._set_alarm(cohort, max(now, lanes[0].since + cohort.crowd.wait))
        self._early_again(lanes, cohort)
        # Those revoked on their way to an answer were passed over then.
        self._end_all([lane for lane in lanes if lane.armed.void], DRAINED if self._draining else REVOKED)

    def _early_again(self, lanes: Iterable[Lane], cohort: Cohort) -> None:
        for lane in lanes:
            if lane.armed.expires < lane.since + cohort.crowd.wait:
                self._early.setdefault(int(lane.armed.expires / TICK) + 1, []).append((lane, cohort))

    # --- clocks ---

    async def run(self) -> None:
        """End polls whose time is over, and connections that are idle or stuck, once a tick, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.tick()

    def tick(self) -> None:
        """Do what is due."""
        now = self._clock()
        tick = int(now / TICK)
        for at in [at for at in self._early if at <= tick]:
            # A lane may have come back to its cohort since, with another token.
            due = [lane for lane, cohort in self._early.pop(at) if lane.cohort is cohort and lane.armed.expires <= now]
            self._end_all(due, EXPIRED)
        for at in [at for at in self._alarms if at <= tick]:
            for cohort in self._alarms.pop(at):
                if cohort.alarm == at:
                    self._expire(cohort, now)
        self._tick = tick
        self._accounts.catch_up()
        self._sweep_some(now)
        offset = self._unix_clock() - now
        if abs(offset - self._offset) > _CLOCK_STEP:
            # The wall clock was set: what was computed from it is wrong.
            self._offset = offset
            self._revoke(None)

    def _expire(self, cohort: Cohort, now: float) -> None:
        """End the members whose wait is over, and watch the first of the others."""
        cohort.alarm = 0
        if not cohort.parked:
            return
        wait, due = cohort.crowd.wait, []
        for lane in cohort.members:
            if lane.cohort is not cohort:
                continue
            if lane.since + wait > now:
                self._set_alarm(cohort, lane.since + wait)
                break
            due.append(lane)
        if due:
            self._end(due, cohort, TIMEOUT)

    def _end(self, lanes: list[Lane], cohort: Cohort, why: Why) -> None:
        """Answer lanes of a parked cohort with 204: they leave it and it sleeps on, so it is told where the tails end now."""
        leaving = Cohort(cohort.crowd, self._woken)
        position = cohort.position_at(self._hub.moment())
        for lane in lanes:
            lane.cohort = leaving
        leaving.members = lanes
        cohort.compact()
        if not len(cohort):
            self._hub.unpark(cohort)
        self._deliver(leaving, position, why)

    def _sweep_some(self, now: float) -> None:
        """Look at a tenth of all lanes."""
        if not self._sweep:
            self._sweep = list(self._lanes)
        share = len(self._lanes) // _SWEEPS + 1
        for lane in self._sweep[-share:]:
            idle = now - lane.since
            if lane.cohort is not None or idle < self._least_idle or lane not in self._lanes:
                continue
            if lane.stuck:
                if (unsent := lane.transport.get_write_buffer_size()) < lane.unsent:
                    lane.unsent, lane.since = unsent, now
                elif idle >= STUCK_SECONDS:
                    lane.transport.abort()
            elif idle >= (self._head_timeout if lane.holds else self._keepalive):
                lane.transport.close()
        del self._sweep[-share:]

    # --- ends ---

    def withdraw(self, key: KeyRef) -> None:
        """End the polls of tokens that a withdrawn key has signed."""
        self._revoke(key)
        self._end_all([lane for lane in self._lanes if lane.cohort is not None and lane.armed.principal.key == key], REVOKED)

    def _revoke(self, key: KeyRef | None) -> None:
        self._arming.revoke(key)
        for lane in self._lanes:
            if key is None or lane.armed.principal.key == key:
                lane.armed.revoke()

    def _end_all(self, lanes: Iterable[Lane], why: Why) -> None:
        together: dict[Cohort, list[Lane]] = {}
        for lane in lanes:
            # Who has been woken already is on the way to an answer.
            if lane.cohort is not None and lane.cohort.parked:
                together.setdefault(lane.cohort, []).append(lane)
        for cohort, members in together.items():
            self._end(members, cohort, why)

    async def drain(self, window: float) -> None:
        """End all parked polls, spread evenly over `window` seconds; from now on every poll goes to aiohttp, which closes."""
        self._draining = True
        self._revoke(None)
        until = self._clock() + window
        while parked := [lane for lane in self._lanes if lane.cohort is not None and lane.cohort.parked]:
            left = until - self._clock()
            ticks = max(1, int(left / TICK))
            self._end_all(parked[: -(-len(parked) // ticks)], DRAINED)
            await asyncio.sleep(min(TICK, max(left, 0.0)))

    async def close(self) -> None:
        """Close all connections, those of parked polls once they have their answer."""
        await self.drain(0.0)
        while self._queue:  # noqa: ASYNC110  # the queue empties itself, a slice a turn
            await asyncio.sleep(0)
        self._accounts.catch_up(self._accounts.late)
        for lane in list(self._lanes):
            lane.transport.close()

    # --- accounts ---

    def readings(self) -> Iterator[Reading]:
        """Yield what is parked, by channel pattern."""
        parked = dict.fromkeys(self._labels, 0)
        crowds = Counter(lane.cohort.crowd for lane in self._lanes if lane.cohort is not None)
        for crowd, count in crowds.items():
            for label in crowd.subscription.labels:
                parked[label] += count
        for label, count in parked.items():
            yield Reading("gateway_parked_waiters", (label,), count)
