"""POST /v1/publish: one value, a tombstone, or a batch of lines, stored with acks=all before the answer says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDict

from gateway import wire
from gateway.auth.principal import Principal
from gateway.channels import Channels, Target
from gateway.errors import (
    BodyInvalid,
    BrokerUnavailable,
    Draining,
    GatewayError,
    LengthRequired,
    MediaType,
    ParameterInvalid,
    RequestMalformed,
)
from gateway.fanout.cursor import Position, TopicPosition, encode, partition_for
from gateway.fanout.reader import Log
from gateway.metrics import Metrics
from gateway.records import Headers
from gateway.server.admission import Admission
from gateway.server.exchange import EXCHANGE
from gateway.server.idempotency import Memory
from gateway.server.unpacking import unpacked

NDJSON = "application/x-ndjson"
STAMP = "gateway-principal"
MAX_KEY = 1_024
MAX_IDEMPOTENCY_KEY = 255
# What aiohttp unpacks wherever it runs; anything else would be stored as it came, packed.
ENCODINGS = ("", "identity", "gzip", "deflate")
_MEDIA = {"json": "application/json", "text": "text/plain", "binary": "application/octet-stream"}


class Stored(Protocol):
    """Where a record went."""

    @property
    def partition(self) -> int:
        """The partition."""
        ...

    @property
    def offset(self) -> int:
        """The offset."""
        ...


class Send(Protocol):
    """What stores records: Kafka's producer."""

    async def __call__(
        self, topic: str, key: bytes | None, values: Sequence[bytes | None], headers: Headers
    ) -> Sequence[Stored | GatewayError]:
        """Store records of one key in order, and return what became of each: BrokerUnavailable, BodyTooLarge."""
        ...


class Outcome:
    """What a publish came to: status and document, or the error that all repeats get too.

    `stored`: a record was stored, or may have been.
    """

    def __init__(self, status: int, document: object, error: GatewayError | None = None, *, stored: bool = True) -> None:
        self.status = status
        self.document = document
        self.error = error
        self.stored = stored


class Publish:
    """The handler of publishes. `max_batch` lines at most; `spawn` runs a publish on after its client has left.

    While `closing` says so nothing is begun any more: Draining tells for certain that nothing was stored, which a publish that
    the end of the process cuts off could not.

    `body_timeout`: seconds within which a whole body has to arrive.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        channels: Channels,
        send: Send,
        log: Log,
        memory: Memory[Outcome],
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, Outcome]], asyncio.Task[Outcome]],
        max_batch: int,
        closing: Callable[[], bool],
        body_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._send = send
        self._log = log
        self._memory = memory
        self._metrics = metrics
        self._spawn = spawn
        self._max_batch = max_batch
        self._closing = closing
        self._body_timeout = body_timeout
        self._clock = clock
        self._unix_clock = unix_clock

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer one publish."""
        request[EXCHANGE].transport = "publish"
        principal = await self._admission.identify(request)
        if self._closing():
            raise Draining
        given = wire.single(list(request.query.items()), ("channel", "key", "tombstone"))
        target = self._channels.publish_target(_channel(given), principal)
        lifecycle = target.channel.lifecycle
        request[EXCHANGE].announced = lifecycle.fields
        lifecycle.check(self._unix_clock(), channel=target.channel.pattern)
        key = _key(given, target)
        batch = request.content_type == NDJSON and hdrs.CONTENT_TYPE in request.headers
        try:
            async with asyncio.timeout(self._body_timeout):
                body = await _body(request, given, target, batch=batch)
        except TimeoutError as error:
            raise RequestMalformed("The body did not arrive in time.") from error
        lines = self._lines(body, target) if batch else []
        self._admission.charge(request, principal, "publish", max(1, len(lines)))
        stamp = ((STAMP, f"{principal.issuer}/{principal.subject}".encode()),)

        def work() -> Coroutine[Any, Any, Outcome]:
            return self._batch(target, key, lines, stamp) if batch else self._one(target, key, body, stamp)

        outcome = await self._once(request, principal, target, _digest(given, body, request.content_type), work)
        if outcome.error is not None:
            # The same error may be raised for many repeats: without this it would collect their frames.
            raise outcome.error.with_traceback(None)
        headers = CIMultiDict({"Content-Type": "application/json", "Cache-Control": "no-store", **request[EXCHANGE].headers})
        headers.extend(request[EXCHANGE].announced)
        return web.Response(status=outcome.status, body=msgspec.json.encode(outcome.document), headers=headers)

    def _lines(self, body: bytes | None, target: Target) -> list[bytes | GatewayError]:
        lines = [line for line in (body or b"").split(b"\n") if line.strip()]
        if not 1 <= len(lines) <= self._max_batch:
            raise BodyInvalid(f"Expected 1 to {self._max_batch} lines.")
        return [_line(line, target) for line in lines]

    async def _once(
        self,
        request: web.Request,
        principal: Principal,
        target: Target,
        digest: bytes,
        work: Callable[[], Coroutine[Any, Any, Outcome]],
    ) -> Outcome:
        """Do the work once for each Idempotency-Key, and on to its end whether or not the client stays."""
        name = _idempotency_key(request)
        if name is None:
            return await asyncio.shield(self._spawn(work()))
        scope = (principal.id, target.name, name)
        use, first = self._memory.begin(scope, digest, self._clock())
        if first:
            self._spawn(self._settle(scope, use.outcome, work()))
        return await asyncio.shield(use.outcome)

    async def _settle(self, scope: object, settled: asyncio.Future[Outcome], work: Awaitable[Outcome]) -> Outcome:
        try:
            outcome = await work
        except BaseException as error:
            # The records may have been stored, so the key stays reserved.
            settled.set_exception(error if isinstance(error, Exception) else BrokerUnavailable(outcome="unknown"))
            settled.exception()
            raise
        if not outcome.stored:
            self._memory.free(scope)
        settled.set_result(outcome)
        return outcome

    async def _one(self, target: Target, key: bytes | None, value: bytes | None, stamp: Headers) -> Outcome:
        before = await self._ends(target)
        (result,) = await self._store(target, key, [value], stamp)
        if isinstance(result, GatewayError):
            return Outcome(0, None, result, stored=_may_be_stored(result))
        place = {"partition": result.partition, "offset": result.offset}
        return Outcome(201, {**place, "cursor": _after(target, before, [result])})

    async def _batch(self, target: Target, key: bytes | None, values: list[bytes | GatewayError], stamp: Headers) -> Outcome:
        before = await self._ends(target)
        sent = iter(await self._store(target, key, [v for v in values if not isinstance(v, GatewayError)], stamp))
        results = [value if isinstance(value, GatewayError) else next(sent) for value in values]
        shown = [
            {"problem": _problem(result)}
            if isinstance(result, GatewayError)
            else {"partition": result.partition, "offset": result.offset}
            for result in results
        ]
        cursor = _after(target, before, [result for result in results if not isinstance(result, GatewayError)])
        return Outcome(200, {"results": shown, "cursor": cursor}, stored=any(map(_may_be_stored, results)))

    async def _store(
        self, target: Target, key: bytes | None, values: Sequence[bytes | None], stamp: Headers
    ) -> Sequence[Stored | GatewayError]:
        began = self._clock()
        results = await self._send(target.channel.topic, key, values, stamp) if values else []
        for result in results:
            outcome = result.code if isinstance(result, GatewayError) else "stored"
            self._metrics.publishes.add(target.channel.pattern, outcome)
        self._metrics.publish_latency.observe(self._clock() - began)
        return results

    async def _ends(self, target: Target) -> Position | None:
        """Return where the topic ends before the publish; None where that cannot be told: then there is no cursor."""
        try:
            topic = await self._log.follow(target.channel.topic, self._clock())
        except BrokerUnavailable:
            return None
        if not topic.partition_count or len(topic.tails) < topic.partition_count:
            return None
        return {topic.name: topic.position._replace(partition_count=topic.partition_count)}


def _channel(given: dict[str, str]) -> str:
    if not 1 <= len(given.get("channel", "")) <= wire.MAX_CHANNEL_NAME:
        raise ParameterInvalid("channel", "the name of one channel")
    return given["channel"]


def _key(given: dict[str, str], target: Target) -> bytes | None:
    key = given.get("key")
    if key is None:
        return target.key
    if target.channel.key is not None:
        raise ParameterInvalid("key", "to be absent: the channel fixes it")
    # U+FFFD is what the query's decoder makes of bytes that are no UTF-8: different keys would become one.
    if not 1 <= len(key.encode()) <= MAX_KEY or "\ufffd" in key:
        raise ParameterInvalid("key", f"1 to {MAX_KEY} bytes of UTF-8")
    return key.encode()


async def _body(request: web.Request, given: dict[str, str], target: Target, *, batch: bool) -> bytes | None:
    """Return the value to store, None for a tombstone."""
    tombstone = given.get("tombstone", "false")
    if tombstone not in ("true", "false"):
        raise ParameterInvalid("tombstone", "true or false")
    if tombstone == "false" and not (request.body_exists or hdrs.CONTENT_LENGTH in request.headers):
        raise LengthRequired
    if request.headers.get(hdrs.CONTENT_ENCODING, "").lower() not in ENCODINGS:
        raise MediaType("bodies in gzip, deflate, or as they are")
    body = unpacked(await request.read(), request.headers.get(hdrs.CONTENT_ENCODING, ""), limit=request._client_max_size)  # noqa: SLF001
    if tombstone == "true":
        if body:
            raise BodyInvalid("A tombstone has no body.")
        if target.key is None and "key" not in given:
            raise ParameterInvalid("key", "the key that a tombstone is for")
        return None
    expected = _MEDIA[target.channel.format]
    if not batch and hdrs.CONTENT_TYPE in request.headers and request.content_type != expected:
        raise MediaType(f"{expected} or {NDJSON}")
    return body if batch else _checked(body, target)


def _checked(value: bytes, target: Target) -> bytes:
    if target.channel.format == "json" and wire.compact_json(value) is None:
        raise BodyInvalid(f"Expected one JSON value in UTF-8, at most {wire.MAX_DEPTH} levels deep.")
    if target.channel.format == "text":
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BodyInvalid("Expected text in UTF-8.") from error
    return value


def _line(line: bytes, target: Target) -> bytes | GatewayError:
    """Return the value of one line: JSON as it stands; for text a JSON string, for binary one in base64."""
    try:
        if target.channel.format == "json":
            return _checked(line.strip(), target)
        if target.channel.format == "text":
            return msgspec.json.decode(line, type=str).encode()
        return msgspec.json.decode(line, type=bytes)
    except BodyInvalid as error:
        return error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return BodyInvalid("Expected a JSON string" + (" in base64." if target.channel.format == "binary" else "."))


def _idempotency_key(request: web.Request) -> str | None:
    names = request.headers.getall("Idempotency-Key", [])
    if not names:
        return None
    if len(names) > 1 or not 1 <= len(names[0]) <= MAX_IDEMPOTENCY_KEY or not (names[0].isascii() and names[0].isprintable()):
        raise ParameterInvalid("Idempotency-Key", f"1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters, once")
    return names[0]


def _digest(given: dict[str, str], body: bytes | None, content_type: str) -> bytes:
    head = "\0".join(f"{name}={given[name]}" for name in sorted(given)) + "\0" + content_type
    return blake2b(head.encode("utf-8", "surrogatepass") + b"\0" + (body or b"")).digest()


def _after(target: Target, before: Position | None, stored: list[Stored]) -> str | None:
    """Return the cursor behind the last of these records in each partition; elsewhere it stands where the topic ended."""
    if before is None or not stored:
        return None
    name = target.channel.topic
    own = before[name]
    offsets = dict(own.offsets)
    for place in stored:
        offsets[place.partition] = max(offsets.get(place.partition, 0), place.offset + 1)
    if target.channel.partitioner is None or target.key is None:
        return encode({name: TopicPosition(own.id_hash, offsets)})
    mine = partition_for(target.key, own.partition_count)
    return encode({name: TopicPosition(own.id_hash, {mine: offsets[mine]}, own.partition_count)})


def _may_be_stored(result: Stored | GatewayError) -> bool:
    return not isinstance(result, GatewayError) or getattr(result, "outcome", None) == "unknown"


def _problem(error: GatewayError) -> dict[str, object]:
    status, title = wire.STATUS[error.code]
    return {"title": title, "status": status, "detail": error.detail, "code": error.code, **error.extra}
