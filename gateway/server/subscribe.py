"""GET /v1/subscribe as a long poll.

Theory of operation. A poll looks; if there is nothing, it parks without an await in between, sleeps until it is woken, and
looks again. Woken by records, it stands where the hub's moment says. It ends with 200 when there is something to tell, and with
204 when its time is over: the wait, the token's life or a channel's, a revocation, or the end of the process.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from gateway import wire
from gateway.auth.principal import Principal
from gateway.channels import Channels
from gateway.errors import BrokerUnavailable, NotAcceptable, ParameterInvalid
from gateway.fanout.cursor import Position, encode
from gateway.fanout.hub import CHANGED, RECORDS, TICK, TIMEOUT, Hub, advance
from gateway.fanout.reader import Reader
from gateway.fanout.reading import Reading
from gateway.fanout.responses import Answer, Responses, build, empty
from gateway.fanout.subscription import Subscription
from gateway.metrics import Metrics
from gateway.server.admission import Admission
from gateway.server.arming import cut
from gateway.server.crowd import CURSOR
from gateway.server.exchange import EXCHANGE
from gateway.server.lanes import Facts, Lanes
from gateway.server.parking import DRAINED, EXPIRED, REVOKED, Parking, Poll
from gateway.server.protocol import Connection

# History that could not be fetched is looked for again this often while a poll is held, in seconds.
RETRY_PAUSE = 1.0
JSON = "application/json"


# Bodies beyond this size are not copied behind their head.
LARGE = 2**16


class Large(web.Response):
    """A response whose body is written as it is: aiohttp would copy it behind the head, for each client anew."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Begin with the head alone."""
        writer = await super().prepare(request)
        if writer is not None:
            writer.send_headers()
        return writer


class Hold(NamedTuple):
    """For whom and how long a poll is held.

    `until` is monotonic, `expires`: it is the end of the token or of a channel. `withdrawals` is how many keys had been
    withdrawn when the token was found good.
    """

    principal: Principal
    until: float
    expires: bool
    withdrawals: int


class Subscribe:
    """The handler of long polls. `default_wait` and `max_wait` in seconds."""

    def __init__(
        self,
        *,
        admission: Admission,
        channels: Channels,
        reader: Reader,
        hub: Hub,
        parking: Parking,
        responses: Responses,
        metrics: Metrics,
        lanes: Lanes | None,
        default_wait: float,
        max_wait: float,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._reader = reader
        self._hub = hub
        self._parking = parking
        self._responses = responses
        self._metrics = metrics
        self._lanes = lanes
        self._default_wait = default_wait
        self._max_wait = max_wait
        self._clock = clock
        self._unix_clock = unix_clock
        self._latency = metrics.record_latency.bind("poll")

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer one poll."""
        request[EXCHANGE].transport = "poll"
        principal = await self._admission.identify(request)
        withdrawals = self._parking.withdrawals
        self._admission.charge(request, principal, "poll")
        if not wire.accepts(request.headers.getall(hdrs.ACCEPT, []), JSON):
            raise NotAcceptable(JSON)
        poll = self._parse(request)
        until, expires = self._admission.hold_until(principal, poll.wait)
        subscription = self._subscription(poll, principal)
        request[EXCHANGE].announced = subscription.announcement.fields
        left = self._left(subscription)
        if self._clock() + left < until:
            until, expires = self._clock() + left, True
        hold = Hold(principal, until, expires, withdrawals)
        if self._lanes is not None and (handover := await self._hand_over(request, poll, subscription, hold)) is not None:
            return handover
        answer, why = await self._answer(subscription, poll, hold)
        if answer.body:
            self._count(answer)
            request[EXCHANGE].outcome = "messages" if answer.delivered else "lost" if answer.lost else "progress"
            return self._respond(request, poll, 200, answer)
        request[EXCHANGE].outcome = EXPIRED if why == TIMEOUT and expires else "empty" if why == TIMEOUT else why
        return self._respond(request, poll, 204, answer)

    async def _hand_over(
        self, request: web.Request, poll: wire.Poll, subscription: Subscription, hold: Hold
    ) -> web.StreamResponse | None:
        """Return the answer that has a lane take over, None where aiohttp has to see this poll through."""
        if self._lanes is None or poll.cursor is None or poll.linger or not _repeatable(request):
            return None
        await self._reader.begin(subscription, poll.cursor, poll.start)
        # From here on nothing is awaited until the lane has the connection.
        head = request.protocol.sole_head() if isinstance(request.protocol, Connection) else None
        parts = cut(head) if head is not None else None
        if parts is None or parts.cursor.decode() != poll.cursor or self._is_over(hold) is not None:
            return None
        exchange = request[EXCHANGE]
        facts = Facts(subscription, poll.wait, hold.principal, exchange.address, exchange.peer)
        with self._slot(hold.principal):
            return self._lanes.offer(parts, facts, self._fields(request, poll, CURSOR, {hdrs.CONTENT_TYPE: JSON}))

    def _count(self, answer: Answer) -> None:
        for pattern, messages in answer.delivered.items():
            self._metrics.messages.add(pattern, amount=messages)
        for pattern, offsets in answer.lost.items():
            self._metrics.lost_records.add(pattern, amount=offsets)

    def _time(self, answer: Answer) -> None:
        """Note the age of live records; first polls without a cursor ask for history, whose age says nothing."""
        now_ms = self._unix_clock() * 1_000
        for timestamp_ms in answer.timestamps_ms:
            self._latency.observe((now_ms - timestamp_ms) / 1_000)

    def _parse(self, request: web.Request) -> wire.Poll:
        cursors = request.headers.getall("Cursor", [])
        if len(cursors) > 1:
            raise ParameterInvalid("Cursor", "to be given once")
        return wire.parse_poll(
            list(request.query.items()),
            cursor_header=cursors[0] if cursors else None,
            prefer=request.headers.getall("Prefer", []),
            default_wait=self._default_wait,
            max_wait=self._max_wait,
            head=request.method == hdrs.METH_HEAD,
        )

    def _subscription(self, poll: wire.Poll, principal: Principal) -> Subscription:
        selections = self._channels.select(poll.channels, principal)
        if poll.view == "value" and len({selection.format for selection in selections}) > 1:
            raise ParameterInvalid("view", "full, unless all channels have one format")
        return Subscription(selections, poll.limit, poll.max_bytes, poll.view)

    def _left(self, subscription: Subscription) -> float:
        """Return the seconds until a channel's sunset; Gone after it."""
        sunset = subscription.announcement.sunset
        if sunset is None:
            return math.inf
        now = self._unix_clock()
        subscription.check(now)
        return sunset - now

    async def _answer(self, subscription: Subscription, poll: wire.Poll, hold: Hold) -> tuple[Answer, str]:
        """Return the answer, and why the poll ended if it is an empty one."""
        with self._slot(hold.principal):
            position = await self._reader.begin(subscription, poll.cursor, poll.start)
            woken = False
            while True:
                found = self._shared(subscription, position)
                reading = None
                if found is None:
                    reading = self._reader.peek(subscription, position) or await self._reader.read(subscription, position)
                    # It awaits only where there is something to tell, and so nothing to park for.
                    found = await self._worth_telling(subscription, position, reading)
                if found is not None and poll.linger and sum(found.delivered.values()) in range(1, subscription.limit):
                    # Past the token's end there would be nothing to give: what was found in time is given in time.
                    most = hold.until - TICK - self._clock() if hold.expires else math.inf
                    found = await self._linger(subscription, position, found, min(poll.linger / 1_000, most))
                if (over := self._is_over(hold)) is not None:
                    return empty(encode(position)), over
                if found is not None:
                    if woken or poll.cursor is not None:
                        self._time(found)
                    return found, RECORDS
                if reading is None:
                    raise AssertionError("nothing shared, so there was a reading")
                position, why = await self._park(subscription, reading, hold)
                if why not in (RECORDS, CHANGED):
                    if reading.failed:
                        raise BrokerUnavailable
                    return empty(encode(position)), why
                woken = True

    def _is_over(self, hold: Hold) -> str | None:
        """Tell why the identity behind a poll ended while history was read, which may take seconds; None if it did not."""
        if self._parking.is_withdrawn(hold.principal, hold.withdrawals):
            return REVOKED
        return TIMEOUT if hold.expires and self._clock() > hold.until else None

    @contextmanager
    def _slot(self, principal: Principal) -> Iterator[None]:
        self._admission.slots.acquire(principal.id)
        try:
            yield
        finally:
            self._admission.slots.release(principal.id)

    def _key(self, subscription: Subscription, position: Position) -> tuple[object, ...]:
        """Return all that the bytes of an answer from memory depend on."""
        versions = tuple((id(t), t.version) for name in subscription.topics if (t := self._hub.topic(name)) is not None)
        return subscription, _places(position), versions

    def _shared(self, subscription: Subscription, position: Position) -> Answer | None:
        return self._responses.get(self._key(subscription, position))

    async def _worth_telling(self, subscription: Subscription, position: Position, reading: Reading) -> Answer | None:
        if not (reading.messages or reading.lost or not (reading.up_to_date or reading.failed)):
            return None
        if reading.scanned:
            return await self._of_history(subscription, position, reading)
        answer = build(subscription, reading)
        if reading.messages and not reading.lost and not reading.failed:
            self._responses.put(self._key(subscription, position), answer)
        return answer

    async def _of_history(self, subscription: Subscription, position: Position, reading: Reading) -> Answer:
        """Return the answer of what came from the archive; those who replay the same share it.

        Between two positions of one log lie the same records for all, unless some are gone.
        """
        shared = not (reading.lost or reading.failed) and all(own.id_hash for own in position.values())
        key = subscription, _places(position), _places(reading.position), reading.up_to_date
        answer = self._responses.get(key) if shared else None
        if answer is None:
            answer = await self._reader.encode(subscription, reading)
            if shared:
                self._responses.put(key, answer)
        return answer

    async def _linger(self, subscription: Subscription, position: Position, found: Answer, seconds: float) -> Answer:
        await asyncio.sleep(seconds)
        reading = self._reader.peek(subscription, position)
        return build(subscription, reading) if reading is not None and reading.messages else found

    async def _park(self, subscription: Subscription, reading: Reading, hold: Hold) -> tuple[Position, str]:
        """Sleep until woken; return where the poll stands then and why it woke. Nothing awaits before `Hub.park`."""
        now, until = self._clock(), hold.until
        if self._parking.draining:
            return reading.position, DRAINED
        if until <= now:
            return reading.position, TIMEOUT
        deadline = min(until, now + RETRY_PAUSE) if reading.failed else until
        waiter = Poll(subscription.interests, subscription.labels, hold.principal, asyncio.get_running_loop().create_future())
        self._hub.park(waiter, reading.position, at_tail=reading.at_tail, deadline=deadline)
        try:
            await waiter.future
        finally:
            self._hub.unpark(waiter)
        own = waiter.apart
        if reading.failed:
            # What could not be fetched lies before the tails: moving on to their ends would skip it.
            position = reading.position
        else:
            position = subscription.position_at(waiter.moment) if own is None else advance(own, waiter.moment)
        why = CHANGED if waiter.why == TIMEOUT and deadline < until else waiter.why
        return position, why

    def _fields(self, request: web.Request, poll: wire.Poll, cursor: str, first: Mapping[str, str]) -> CIMultiDict[str]:
        exchange = request[EXCHANGE]
        fields = CIMultiDict({**first, "Next-Cursor": cursor, "Cache-Control": "private, no-store", **exchange.headers})
        if len(cursor) <= wire.MAX_LINKED_CURSOR:
            fields["Link"] = f'<{wire.next_link(request.path, poll)}{cursor}>; rel="next"'
        if poll.applied is not None:
            fields["Preference-Applied"] = f"wait={poll.applied}"
        fields.extend(exchange.announced)
        return fields

    def _respond(self, request: web.Request, poll: wire.Poll, status: int, answer: Answer) -> web.Response:
        first: dict[str, str] = {hdrs.CONTENT_TYPE: JSON} if status == web.HTTPOk.status_code else {}
        response = (Large if len(answer.body) > LARGE else web.Response)(
            status=status, body=answer.body or None, headers=self._fields(request, poll, answer.cursor, first)
        )
        exchange = request[EXCHANGE]
        if exchange.outcome in (DRAINED, REVOKED):
            response.force_close()
        return response


def _places(position: Position) -> tuple[object, ...]:
    return tuple((name, own.id_hash, tuple(sorted(own.offsets.items())), own.partition_count) for name, own in position.items())


def _repeatable(request: web.Request) -> bool:
    """Tell whether a request is one that a lane could get again: a plain GET of HTTP/1.1 on a connection that stays."""
    return (
        request.method == hdrs.METH_GET
        and request.version == HttpVersion11
        and request.keep_alive
        and not request.body_exists
        and hdrs.EXPECT not in request.headers
        and hdrs.UPGRADE not in request.headers
        and request.raw_path.startswith("/")
        and "#" not in request.raw_path
    )
