"""A shared HTTP cache (RFC 9111) for one route, which makes one fetch of many requests for the same.

Theory of operation. What is stored and fresh answers at once. All else of GET and HEAD is a flight (`flight`): the first
request leads, equal ones that come meanwhile wait. When the head is there, `storing.judge` decides:

- STORE: it is recorded while the leader reads. Who waits gets the recorded answer if it may be used for his request: Vary
  fits, it is fresh, his own Cache-Control lets it. Else he goes to the backend.
- WAITING: nothing lets it be stored and nothing forbids to share it, and it was asked for without a name: the route is public,
  forwards no claims, and there is neither Authorization nor Cookie. Those of the same kind who wait now get it; nobody later.
- NO (private, no-store, Set-Cookie, by section 3.5, too large …): all who wait go to the backend at once, side by side, and
  for `shy` seconds nobody waits for this URI again (Varnish's hit-for-miss). Of held requests the path is remembered, for
  their queries change each time.

Held requests are collapsed as they are, conditions and all; their answers are stored like any other if they say so.

Those who wait also go on by themselves if the fetch fails, or if the body takes longer than `patience` seconds after its
head. A leader who leaves leaves the fetch to those who wait. Validation behind the client's back is a flight without leader:
`fetch` must then work after its own request has been answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final, final

from multidict import CIMultiDict

from gateway.errors import GatewayError, UpstreamTimeout
from gateway.proxy.answers import dated, from_store, noted
from gateway.proxy.caching import CacheAnswer, CacheRequest, Fetched, Result
from gateway.proxy.directives import directives, wants_validation
from gateway.proxy.flight import Flight, Reading, Tee
from gateway.proxy.freshness import ERRORS, Use
from gateway.proxy.store import Shy, Store
from gateway.proxy.stored import Stored, vary_of
from gateway.proxy.storing import Keep, invalidated, judge
from gateway.proxy.validation import not_modified, outdated_by, updated, validated, validating

_log = logging.getLogger(__name__)
_METHODS: Final = frozenset({"GET", "HEAD"})
# Range: what is stored is whole. If-Match and If-Unmodified-Since are for the origin alone (section 4.3.2).
_PASSED: Final = ("Range", "If-Range", "If-Match", "If-Unmodified-Since", "Upgrade")

Fetch = Callable[[CIMultiDict[str]], Awaitable[Fetched]]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a leader is shown: the backend's head and a body, and what is going to be stored of it."""

    fetched: Fetched
    draft: Stored | None


@dataclass(frozen=True, slots=True)
class _Landed:
    """What a flight brought for all: an answer, and how it was got."""

    stored: Stored
    result: Result
    how: str
    keep: Keep = Keep.STORE


_Flight = Flight[_Shown, _Landed]


@final
class Cache:
    """The stored answers of a route and its fetches under way.

    At most `max_bytes` are stored, no answer with a body over `max_answer_bytes`. `clock` gives Unix seconds. `patience` and
    `shy` are seconds. `close` it in the loop that used it.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_answer_bytes: int,
        collapse: bool = True,
        clock: Callable[[], float] = time.time,
        patience: float = 5.0,
        shy: float = 120.0,
    ) -> None:
        self.store = Store(max_bytes)
        self._max_answer_bytes = max_answer_bytes
        self._collapse = collapse
        self._clock = clock
        self._patience = patience
        self._shy = Shy(shy)
        self._flights: dict[str, dict[Hashable, _Flight]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Cache {self.store!r}, {sum(map(len, self._flights.values()))} to join of {len(self._tasks)} fetches>"

    async def fetch(self, request: CacheRequest, fetch: Fetch) -> CacheAnswer:
        """Answer a request from what is stored or from the backend; cancelling is safe.

        `fetch` is called with the head to send, at most twice, maybe in another task and after this has returned; it raises a
        GatewayError where the backend fails. That is raised here too, and UpstreamTimeout for only-if-cached if nothing fits.
        """
        if request.method not in _METHODS:
            return await self._written(request, fetch)
        if any(name in request.headers for name in _PASSED):
            return await _passed(request, fetch, "fwd=bypass", self._clock)
        return await self._answer(request, fetch, may_wait=True)

    async def close(self) -> None:
        """End all fetches; who waits for one goes to the backend himself."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: CacheRequest, fetch: Fetch, *, may_wait: bool) -> CacheAnswer:
        now = self._clock()
        # What a held request waits for is beyond what is stored, if it says what it has.
        stored = None if request.held and request.conditional else self.store.find(request)
        use = Use.VALIDATE if stored is None else stored.freshness.use(request.headers, now)
        if stored is not None and use is not Use.VALIDATE:
            if use is Use.BEHIND:
                self._validate_behind(request, fetch, stored)
            return from_store(request, stored, now, Result.HIT if use is Use.FRESH else Result.STALE, "hit")
        wanted = directives(request.headers)
        if wanted.only_if_cached:
            raise UpstreamTimeout("Nothing that is stored fits, and the request wants nothing else.")
        shy = self._shy.has(_shy_key(request), now)
        if wanted.no_store or (shy and stored is None and request.conditional):
            # What will hardly be stored keeps its conditions: the backend's 304 is worth more than a whole answer.
            return await _passed(request, fetch, "fwd=request" if wanted.no_store else "fwd=bypass", self._clock)
        joins = may_wait and not shy and self._joins(request)
        flight = self._flights.get(request.uri, {}).get(self._kind(request)) if joins else None
        if flight is not None:
            return await self._waited(request, flight) or await self._answer(request, fetch, may_wait=False)
        why = self._why(request, stored, now)
        return await self._led(request, fetch, self._launch(request, fetch, stored, open_to_all=joins), why)

    def _why(self, request: CacheRequest, stored: Stored | None, now: float) -> str:
        if stored is not None:
            return "fwd=request" if stored.freshness.left(now) > 0 else "fwd=stale"
        return "fwd=vary-miss" if self.store.knows(request.uri) else "fwd=uri-miss"

    # --- flights ---

    def _joins(self, request: CacheRequest) -> bool:
        """Tell whether a request may wait for another one's answer, or be waited for."""
        return self._collapse and not wants_validation(request.headers) and directives(request.headers).max_age != 0

    def _kind(self, request: CacheRequest) -> Hashable:
        """Return what requests for one URI must have in common to wait for each other."""
        conditions = (request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")) if request.held else None
        vary = vary_of(request.headers, self.store.names(request.uri))
        return (request.method, request.held, request.nameless, conditions, vary)

    def _launch(
        self,
        request: CacheRequest,
        fetch: Fetch,
        stored: Stored | None,
        *,
        open_to_all: bool = False,
        detached: bool = False,
    ) -> _Flight:
        flight: _Flight = Flight(detached=detached)
        kind = self._kind(request) if open_to_all else object()
        self._flights.setdefault(request.uri, {})[kind] = flight
        # Owned by this object: it stands in a set until it is done, and `close` ends it.
        task = asyncio.get_running_loop().create_task(self._fly(flight, request, fetch, stored))
        flight.task = task
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._retire(request.uri, flight)
            flight.bring(None)  # also where the task was cancelled before it began

        task.add_done_callback(done)
        return flight

    def _retire(self, uri: str, flight: _Flight) -> None:
        """Let nobody join any more."""
        flights = self._flights.get(uri, {})
        for kind in [kind for kind, one in flights.items() if one is flight]:
            del flights[kind]
        if not flights:
            self._flights.pop(uri, None)

    def _left(self, uri: str, flight: _Flight) -> None:
        """Leave a flight; one that nobody is left to look at is not joined any more."""
        if flight.leave():
            self._retire(uri, flight)

    async def _led(self, request: CacheRequest, fetch: Fetch, flight: _Flight, why: str) -> CacheAnswer:
        flight.enter()
        flight.led = True
        answer: CacheAnswer | None = None
        try:
            await flight.head()
            if flight.shown is not None:
                answer = await self._first_hand(request, flight, flight.shown, why)
        except asyncio.CancelledError:
            if flight.shown is not None:
                await flight.shown.fetched.close()
            raise
        finally:
            if answer is None or not isinstance(answer.body, Reading):
                flight.led = False
                self._left(request.uri, flight)
        if answer is not None:
            return answer
        if flight.error is not None:
            raise flight.error
        if flight.answer is not None:
            landed = flight.answer
            return from_store(request, landed.stored, self._clock(), landed.result, landed.how)
        # The flight was ended from outside.
        return await _passed(request, fetch, why, self._clock)

    async def _first_hand(self, request: CacheRequest, flight: _Flight, shown: _Shown, why: str) -> CacheAnswer:
        fetched, draft = shown.fetched, shown.draft
        how = f"{why}; fwd-status={fetched.status}" + ("; stored" if draft is not None else "")
        if draft is not None and not request.held and not_modified(request, draft):
            flight.detached = True  # the body is for the store
            await fetched.close()
            return from_store(request, draft, self._clock(), Result.MISS, how)
        body = fetched.body
        if isinstance(body, Tee):
            body = Reading(body, lambda: self._left(request.uri, flight))
        return CacheAnswer(fetched.status, noted(fetched.headers.copy(), how), body, Result.MISS)

    async def _waited(self, request: CacheRequest, flight: _Flight) -> CacheAnswer | None:
        flight.enter()
        try:
            await flight.land()
        finally:
            self._left(request.uri, flight)
        landed, now = flight.answer, self._clock()
        if landed is None or not landed.stored.suits(request):
            return None
        if landed.keep is Keep.WAITING:
            return from_store(request, landed.stored, now, Result.COLLAPSED, "fwd=miss; collapsed")
        if landed.result is Result.STALE:
            usable = landed.stored.freshness.on_error(request.headers, now)
            return from_store(request, landed.stored, now, Result.STALE, landed.how) if usable else None
        if landed.stored.freshness.use(request.headers, now) in {Use.FRESH, Use.STALE}:
            return from_store(request, landed.stored, now, Result.COLLAPSED, "fwd=miss; collapsed")
        return None

    def _validate_behind(self, request: CacheRequest, fetch: Fetch, stored: Stored) -> None:
        if self._kind(request) not in self._flights.get(request.uri, {}):
            self._launch(request, fetch, stored, open_to_all=True, detached=True)

    # --- what the task of a flight does ---

    async def _fly(self, flight: _Flight, request: CacheRequest, fetch: Fetch, stored: Stored | None) -> None:
        timer: asyncio.TimerHandle | None = None
        try:
            fetched, asked = await self._asked(flight, request, fetch, stored)
            if fetched is None:
                return
            received = self._clock()
            fetched = replace(fetched, headers=dated(fetched.headers, received))
            if stored is not None and stored.method != request.method and outdated_by(stored, fetched.status, fetched.headers):
                self.store.remove(stored)
            keep, draft = judge(request, fetched.status, fetched.headers, asked=asked, received=received)
            if not await self._recordable(flight, request, keep, fetched):
                return
            timer = asyncio.get_running_loop().call_later(self._patience, self._let_go, request.uri, flight)
            await self._record(flight, request, keep, fetched, draft)
        except Exception as error:  # noqa: BLE001  # the leader raises it; a flight without one has nobody to tell
            if flight.detached and not isinstance(error, GatewayError):
                _log.exception("validating %s failed", request.uri)
            flight.fail(error)
        finally:
            if timer is not None:
                timer.cancel()

    async def _asked(
        self, flight: _Flight, request: CacheRequest, fetch: Fetch, stored: Stored | None
    ) -> tuple[Fetched | None, float]:
        """Return the backend's answer and when it was asked for; None: the flight has landed with what is stored."""
        asked = self._clock()
        conditional = stored is not None and not request.held and validated(stored)
        try:
            fetched = await fetch(validating(request, stored if conditional else None))
        except GatewayError:
            if stored is not None and self._stands_in(flight, request, stored, "fwd=stale; detail=unreachable"):
                return None, asked
            raise
        if stored is not None and fetched.status in ERRORS:
            if self._stands_in(flight, request, stored, f"fwd=stale; fwd-status={fetched.status}"):
                await fetched.close()
                return None, asked
        elif stored is not None and conditional and fetched.status == 304:  # noqa: PLR2004  # not modified
            await fetched.close()
            if self._freshened(flight, request, stored, fetched, asked):
                return None, asked
            asked = self._clock()
            fetched = await fetch(validating(request, None))
        return fetched, asked

    def _stands_in(self, flight: _Flight, request: CacheRequest, stored: Stored, how: str) -> bool:
        if not stored.freshness.on_error(request.headers, self._clock()):
            return False
        flight.bring(_Landed(stored, Result.STALE, how))
        return True

    def _freshened(self, flight: _Flight, request: CacheRequest, stored: Stored, fetched: Fetched, asked: float) -> bool:
        """Land with the stored answer as a 304 updates it; False if the 304 means another."""
        received = self._clock()
        headers = updated(request, stored, dated(fetched.headers, received))
        if headers is None:
            self.store.remove(stored)
            return False
        as_stored = replace(request, method=stored.method)
        keep, fresh = judge(as_stored, stored.status, headers, asked=asked, received=received)
        fresh = replace(fresh, body=stored.body)
        self.store.remove(stored)
        if keep is Keep.STORE and not flight.tainted:
            self.store.put(fresh)
        landed = _Landed(fresh, Result.REVALIDATED, "fwd=stale; fwd-status=304", keep)
        if keep is Keep.NO:
            # For the leader alone: those who wait find no answer that they may use.
            flight.show(_Shown(Fetched(fresh.status, headers, b"" if request.method == "HEAD" else fresh.body), None))
            flight.bring(None)
        else:
            flight.bring(landed)
        return True

    async def _recordable(self, flight: _Flight, request: CacheRequest, keep: Keep, fetched: Fetched) -> bool:
        """Tell whether a body is worth recording; if not, hand it to the leader and let go of those who wait."""
        too_large = _declared(fetched.headers) > self._max_answer_bytes and request.method == "GET"
        if keep is Keep.WAITING and not too_large and (flight.interest > 1 or isinstance(fetched.body, bytes)):
            return True
        if keep is Keep.STORE and not too_large:
            return True
        if keep is not Keep.WAITING or too_large:
            self._mark(request, fetched.status)
        self._let_go(request.uri, flight, _Shown(fetched, None))
        if not flight.led:
            await fetched.close()
        return False

    async def _record(self, flight: _Flight, request: CacheRequest, keep: Keep, fetched: Fetched, draft: Stored) -> None:
        shown_draft = draft if keep is Keep.STORE else None
        if isinstance(fetched.body, bytes):
            flight.show(_Shown(fetched, shown_draft))
            whole: bytes | None = fetched.body if len(fetched.body) <= self._max_answer_bytes else None
        else:
            tee = Tee(fetched.body, self._max_answer_bytes)
            flight.show(_Shown(replace(fetched, body=tee), shown_draft))
            whole = await tee.record()
            if not flight.led:
                await tee.aclose()
        if whole is None:
            self._mark(request, fetched.status)
            flight.bring(None)
            return
        if request.method == "GET" and _declared(fetched.headers) not in {-1, len(whole)}:
            flight.bring(None)  # section 3.3: an incomplete answer
            return
        stored = replace(draft, body=whole)
        if keep is Keep.STORE and not flight.tainted:
            self.store.put(stored)
            self._shy.clear(_shy_key(request))
        flight.bring(_Landed(stored, Result.MISS, "fwd=miss", keep))

    def _let_go(self, uri: str, flight: _Flight, shown: _Shown | None = None) -> None:
        if shown is not None:
            flight.show(shown)
        self._retire(uri, flight)
        flight.bring(None)

    def _mark(self, request: CacheRequest, status: int) -> None:
        # A failure says nothing of what the answer will be like.
        if status < 500:  # noqa: PLR2004  # server errors
            self._shy.mark(_shy_key(request), self._clock())

    # --- all other methods ---

    async def _written(self, request: CacheRequest, fetch: Fetch) -> CacheAnswer:
        answer = await _passed(request, fetch, "fwd=method", self._clock)
        for uri in invalidated(request, answer.status, answer.headers):
            self.store.invalidate(uri)
            for flight in self._flights.pop(uri, {}).values():
                flight.tainted = True
        return answer


async def _passed(request: CacheRequest, fetch: Fetch, how: str, clock: Callable[[], float]) -> CacheAnswer:
    """Answer by the backend alone, with the request as it is."""
    fetched = await fetch(request.headers)
    headers = noted(dated(fetched.headers, clock()).copy(), f"{how}; fwd-status={fetched.status}")
    body: bytes | AsyncIterator[bytes] = fetched.body
    return CacheAnswer(fetched.status, headers, body, Result.BYPASS)


def _declared(headers: CIMultiDict[str]) -> int:
    """Return Content-Length, -1 if there is none."""
    value = headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else -1  # noqa: PLR2004


def _shy_key(request: CacheRequest) -> str:
    uri = request.uri.partition("?")[0] if request.held else request.uri
    return f"{request.nameless:d}{uri}"
