"""All lanes of the process: how connections become lanes, what their polls come to, and their end.

Theory of operation. A poll is *looked at* by its crowd (`crowd`): there is something to tell, and the lane is answered at once;
or there is nothing, and it joins the crowd's cohort (`cohorts`). When the hub wakes a cohort, or somebody's time in it is over
(`wheel`), it is delivered in slices (`deliveries`). What is in the way of a limit (`charges`), and what the tails alone cannot
tell, is replayed. Lanes without a poll, or with half a head, or whose client does not read, are found by a sweep (`sweep`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from multidict import CIMultiDict

from gateway.auth.principal import KeyRef, Principal
from gateway.draining import spread
from gateway.fanout.hub import RECORDS, TICK, TIMEOUT, Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Subscription
from gateway.limits import Slots, TokenBuckets
from gateway.metrics import Metrics, Reading
from gateway.server.accesslog import AccessLog
from gateway.server.accounts import Accounts
from gateway.server.address import peer_address
from gateway.server.admission import LEAST_HOLD
from gateway.server.arming import HEAD_END, Armed, Arming, Cut
from gateway.server.arrival import Maker
from gateway.server.charges import Charges
from gateway.server.cohorts import Cohorts
from gateway.server.crowd import Cohort, Crowd, Shape
from gateway.server.crowds import Crowds
from gateway.server.deliveries import Deliveries
from gateway.server.lane import Handover, Lane
from gateway.server.outcome import Outcome
from gateway.server.parking import DRAINED, EXPIRED, REVOKED
from gateway.server.protocol import Connection
from gateway.server.sweep import Sweep

_CLOCK_STEP = 1.0
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
        self._crowds = Crowds(hub, reader, unix_clock)
        self._arming = arming
        self._charges = Charges(polls, addresses, slots)
        self._slots = slots
        self._interval, self._reach = self._charges.polls.interval, self._charges.polls.reach
        self._address_interval, self._address_reach = self._charges.addresses.interval, self._charges.addresses.reach
        self._accounts = Accounts(metrics, access_log, route=route, unix_clock=unix_clock)
        self._deliveries = Deliveries(
            slots=slots,
            accounts=self._accounts,
            places=self._crowds.places,
            clock=clock,
            move=self._move,
            turn_away=self._turn_away,
        )
        self._cohorts = Cohorts(hub, slots, self._deliveries.add, now=clock())
        self._sweep = Sweep(keepalive=keepalive, head_timeout=head_timeout)
        self._clock = clock
        self._unix_clock = unix_clock
        self._offset = unix_clock() - clock()
        self._lanes: dict[Lane, None] = {}
        self._make_connection: Maker | None = None

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)}, {len(self._arming)} armed, {len(self._crowds)} crowds, {self._slots!r}>"

    def __len__(self) -> int:
        return len(self._lanes)

    # --- from aiohttp to a lane ---

    def offer(self, parts: Cut, facts: Facts, headers: CIMultiDict[str]) -> Handover | None:
        """Return what a handler answers to have a lane take its poll over, or None if none can.

        It can if the tails alone can tell what the poll comes to. `headers` of the answer have CURSOR in them.
        """
        if self._deliveries.closing or not self._crowds.can_tell(facts.subscription, parts.cursor):
            return None
        return Handover(parts, headers, partial(self._take, facts))

    def _take(self, facts: Facts, given: Handover, connection: Connection) -> None:
        """Take a connection out of aiohttp's hands, and answer or park its poll."""
        now = self._clock()
        self._make_connection = connection.maker()
        fields = tuple((name, value) for name, value in given.headers.items() if name.lower() not in _PER_CLIENT)
        crowd = self._crowds.crowd(Shape(facts.subscription, facts.wait, fields))
        armed = self._armed(given, facts, crowd, now)
        transport = connection.leave()
        lane = self._begin(transport, armed)
        outcome = crowd.look(given.parts.cursor, now)
        if outcome is None or not self._charges.has_slot(armed):
            raise AssertionError("the handler has just looked, and nothing can have changed since")
        self._settle(lane, given.parts.cursor, outcome, now)

    def _armed(self, given: Handover, facts: Facts, crowd: Crowd, now: float) -> Armed:
        principal = facts.principal
        known = self._arming.get(facts.peer, given.parts)
        if known is not None and known.crowd is crowd and known.principal is principal and now <= known.over:
            return known  # one client's many connections share it
        bucket, address_bucket, holder = self._charges.of(principal, facts.address, now)
        armed = Armed(
            given.parts,
            crowd,
            principal=principal,
            peer=facts.peer,
            address=facts.address,
            bucket=bucket,
            address_bucket=address_bucket,
            holder=holder,
        )
        if principal.expires_at is not None:
            armed.expire(principal.expires_at - self._offset, LEAST_HOLD)
        sunset = facts.subscription.announcement.sunset
        if sunset is not None:
            armed.expire(sunset - self._offset, 0.0)
        self._arming.add(given.parts, armed)
        return armed

    def welcome(self, transport: asyncio.Transport, head: bytes, make: Maker) -> bool:
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

        Most polls come back to the end of the tails with nothing in the way. For them this is all: what `Charges.take` and
        `Cohorts.park` do in general is done here in place, in half the time.
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
        if outcome is None or now > armed.over or not self._charges.has_slot(armed) or not self._charges.take(armed, now):
            lane.replay(head)
        else:
            self._settle(lane, cursor, outcome, now)

    def left(self, lane: Lane) -> None:
        """Forget a lane that was replayed or whose connection is lost."""
        if self._lanes.pop(lane, self) is self:
            return
        cohort = lane.cohort
        if cohort is not None:
            self._cohorts.leave(lane, cohort)
            self._accounts.left(lane, self._clock())

    # --- a poll's fate ---

    def _settle(self, lane: Lane, cursor: bytes, outcome: Outcome, now: float) -> None:
        """Answer a poll that has been let in, or park it."""
        crowd = lane.armed.crowd
        crowd.touch(now)
        if outcome.answer.body or not crowd.wait:
            lane.since = now
            lane.send(outcome.data(crowd))
            why = RECORDS if outcome.answer.body else TIMEOUT
            self._accounts.answered((lane,), outcome, why, now)
        else:
            self._cohorts.park(lane, cursor, outcome, now)

    def _move(self, lanes: list[Lane], outcome: Outcome, now: float) -> None:
        """Park lanes again for whom there was nothing."""
        self._cohorts.move(lanes, outcome, now)
        # Those revoked on their way to an answer were passed over then.
        void = [lane for lane in lanes if lane.armed.void]
        self._cohorts.end(void, DRAINED if self._deliveries.closing else REVOKED)

    def _turn_away(self, lane: Lane, cohort: Cohort, cursor: bytes) -> None:
        """Replay a lane whose place the tails hold no more, from there."""
        armed = lane.armed
        self._cohorts.leave(lane, cohort)
        self._charges.give_back(armed)
        # The head that was armed, perhaps a while ago: what differed from it since is not kept, so it is left out.
        lane.replay(self._arming.bare(armed.head(cursor)))

    # --- clocks ---

    async def run(self) -> None:
        """End polls whose time is over, and connections that are idle or stuck, once a tick, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.tick()

    def tick(self) -> None:
        """Do what is due."""
        now = self._clock()
        self._cohorts.tick(now, EXPIRED)
        self._accounts.catch_up()
        for lane in self._sweep.over(self._lanes, now):
            if lane.stuck:
                lane.transport.abort()
            else:
                lane.transport.close()
        offset = self._unix_clock() - now
        if abs(offset - self._offset) > _CLOCK_STEP:
            # The wall clock was set: what was computed from it is wrong.
            self._offset = offset
            self._revoke(None)

    # --- ends ---

    def withdraw(self, key: KeyRef) -> None:
        """End the polls of tokens that a withdrawn key has signed."""
        self._revoke(key)
        self._cohorts.end([lane for lane in self._lanes if lane.armed.principal.key == key], REVOKED)

    def _revoke(self, key: KeyRef | None) -> None:
        self._arming.revoke(key)
        for lane in self._lanes:
            if key is None or lane.armed.principal.key == key:
                lane.armed.revoke()

    async def drain(self, window: float) -> None:
        """End all parked polls, spread evenly over `window` seconds; from now on every poll goes to aiohttp, which closes."""
        self._deliveries.closing = True
        self._revoke(None)

        def parked() -> list[Lane]:
            return [lane for lane in self._lanes if lane.cohort is not None and lane.cohort.parked]

        await spread(parked, lambda lanes: self._cohorts.end(lanes, DRAINED), window, clock=self._clock)

    async def close(self) -> None:
        """Close all connections, those of parked polls once they have their answer."""
        await self.drain(0.0)
        while len(self._deliveries):  # noqa: ASYNC110  # the queue empties itself, a slice a turn
            await asyncio.sleep(0)
        self._accounts.catch_up(self._accounts.late)
        for lane in list(self._lanes):
            lane.transport.close()

    # --- accounts ---

    def readings(self) -> Iterator[Reading]:
        """Yield what is parked, by channel pattern."""
        parked = dict.fromkeys(self._crowds.labels, 0)
        crowds = Counter(lane.cohort.crowd for lane in self._lanes if lane.cohort is not None)
        for crowd, count in crowds.items():
            for label in crowd.subscription.labels:
                parked[label] += count
        for label, count in parked.items():
            yield Reading("gateway_parked_waiters", (label,), count)
