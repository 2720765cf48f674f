"""The composition root: the one place that builds everything, starts it in order, and ends it in order.

Constructors take values; only this module and the command line see a configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from aiohttp import web

from gateway.auth.authenticator import Authenticator
from gateway.config.access import Bucket
from gateway.config.sections import Config
from gateway.errors import GatewayError
from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.responses import Responses
from gateway.kafka.log import KafkaLog
from gateway.kafka.produce import Draft
from gateway.limits import NegativeCache, Slots, TokenBuckets
from gateway.metrics import Metrics, Reading
from gateway.proxying import Proxied
from gateway.records import Headers
from gateway.server.accesslog import AccessLog, Lines, log_as_json
from gateway.server.address import TrustedProxies
from gateway.server.admin import Admin
from gateway.server.admission import Admission
from gateway.server.application import ListChannels, Listener, OpenApi, application, public_routes, tls_context
from gateway.server.arming import Arming
from gateway.server.clientmodule import ClientModule
from gateway.server.explain import ExplainCursor
from gateway.server.express import Express
from gateway.server.idempotency import Memory
from gateway.server.lanes import Lanes
from gateway.server.looplag import LoopLag
from gateway.server.middleware import Cors, Exchanges, Problems
from gateway.server.parking import Parking
from gateway.server.protocol import Runner
from gateway.server.proxyprotocol import ProxyProtocol
from gateway.server.publish import Publish, Stored
from gateway.server.subscribe import Subscribe

_log = logging.getLogger(__name__)
SHARED_ANSWERS_BYTES = 32 * 2**20
# A collection of the middle generation walks through all that came since the last one: the product of the first two numbers.
GC_THRESHOLDS = (10_000, 5, 1_000)
# Answers under way when the process ends get this long, in seconds.
LAST_ANSWERS = 5.0


class KafkaFacts:
    """What the Kafka side reports, counted (see `gateway.kafka.observer`); lag only of the topics that are `followed`."""

    def __init__(self, metrics: Metrics, followed: Container[str]) -> None:
        self._metrics = metrics
        self._followed = followed
        self._lag: dict[tuple[str, str], float] = {}
        self._unstable: dict[tuple[str, str], tuple[float, float]] = {}
        metrics.pull(self._pulled)

    def kafka_error(self, name: str) -> None:
        """Count."""
        self._metrics.kafka_errors.add(name)

    def fetched(self, topic: str, partition: int, *, records: int, size: int, lag: int, unstable: int) -> None:
        """Count, and keep the lag."""
        self._metrics.fetched_records.add(topic, amount=records)
        self._metrics.fetched_bytes.add(topic, amount=size)
        place = topic, str(partition)
        self._lag[place] = lag
        since = self._unstable.get(place, (0, 0.0))[1] or time.monotonic()
        self._unstable[place] = (unstable, since if unstable else 0.0)

    def cold_read(self, topic: str, *, records: int, size: int) -> None:  # noqa: ARG002  # Observer
        """Count."""
        self._metrics.cold_reads.add()
        self._metrics.cold_read_bytes.add(size)

    def cold_hit(self, topic: str) -> None:
        """Look away: a hit costs nobody anything."""

    def skipped(self, topic: str, partition: int, start: int, end: int) -> None:
        """Count and log: records that cannot be decoded are lost to readers."""
        self._metrics.kafka_errors.add("UNDECODABLE")
        _log.error("gave up undecodable records of %s-%d: offsets %d to %d", topic, partition, start, end - 1)

    def connected(self, up: bool) -> None:
        """Log."""
        _log.log(logging.INFO if up else logging.WARNING, "Kafka %s", "answers" if up else "cannot be reached")

    def produced(self, topic: str, *, records: int, size: int) -> None:
        """Look away: publishes are counted by channel where they enter."""

    def _pulled(self) -> Iterable[Reading]:
        now = time.monotonic()
        for place in [place for place in self._lag if place[0] not in self._followed]:
            del self._lag[place], self._unstable[place]
        for place, lag in self._lag.items():
            yield Reading("gateway_consumer_lag_records", place, lag)
        for place, (unstable, since) in self._unstable.items():
            yield Reading("gateway_unstable_records", place, unstable)
            yield Reading("gateway_unstable_age_seconds", place, now - since if since else 0.0)


@dataclass(frozen=True)
class Place:
    """Where this process listens as one of several: the public port, which all share, and its own Unix socket for operators.

    `number` tells it from the others in the log; `abandoned` returns when there is nobody any more who looks after it.
    """

    number: int
    port: int
    admin_path: str
    abandoned: Callable[[], Coroutine[Any, Any, object]]


class Gateway:
    """Everything that one process runs. Build it on the loop that runs it; `start`, then `drain` and `stop`, once each."""

    def __init__(self, config: Config, place: Place | None = None) -> None:
        self._config = config
        self._place = place
        self._tasks: set[asyncio.Task[Any]] = set()
        self.metrics = Metrics(version=version())
        self.parking = Parking()
        self.hub = Hub(budget=config.kafka.tails_bytes, tail_budget=config.kafka.tail_bytes, on_woken=self.parking.woken)
        self.parking.attach(self.hub)
        self.metrics.pull(self._pulled)
        self._draining = False
        self._lines: Lines | None = None
        kafka = config.kafka
        facts = KafkaFacts(self.metrics, self.hub.topics)
        self.kafka = KafkaLog(
            kafka.settings,
            self.hub,
            observer=facts,
            retire_after=kafka.live_after,
            archive_bytes=kafka.cold_cache_bytes,
            max_wait=kafka.fetch_max_wait,
            max_record_bytes=config.server.max_body_bytes,
        )
        self._authenticator = Authenticator(
            config.auth.trusted,
            api_keys=config.api_keys.given,
            api_key_file=config.api_keys.file,
            max_cached=config.auth.cache_size,
            max_cached_bytes=config.auth.cache_bytes,
        )
        self._authenticator.on_withdrawn(self.parking.withdraw)
        self._build_http()

    def _build_http(self) -> None:
        config, metrics, channels = self._config, self.metrics, self._config.table
        admission, access_log = self._admission(), self._access_log()
        self.slots = admission.slots
        reader = Reader(self.hub, self.kafka, scan_bytes=config.subscribe.scan_bytes, scan_seconds=config.subscribe.scan_time)
        self.lanes = self._build_lanes(admission, reader, access_log)
        subscribe = Subscribe(
            admission=admission,
            channels=channels,
            reader=reader,
            hub=self.hub,
            parking=self.parking,
            responses=Responses(SHARED_ANSWERS_BYTES),
            metrics=metrics,
            lanes=self.lanes if config.lane.enabled else None,
            default_wait=config.subscribe.default_wait,
            max_wait=config.subscribe.max_wait,
        )
        publish = Publish(
            admission=admission,
            channels=channels,
            send=self._send,
            log=self.kafka,
            memory=Memory(window=config.publish.idempotency_window, size=config.publish.idempotency_size),
            metrics=metrics,
            spawn=self._spawn,
            max_batch=config.publish.max_batch,
            closing=lambda: self.parking.draining,
        )
        trusted = TrustedProxies(config.server.trusted_proxies)
        exchanges = Exchanges(
            trusted=trusted,
            metrics=metrics,
            access_log=access_log,
            closing=lambda: self.parking.draining,
        ).middleware()
        problems = Problems(metrics, max_body=config.server.max_body_bytes).middleware()
        cors = Cors(config.cors.origins, channels).middleware()
        admin = Admin(metrics, checks=self._checks, facts=self._facts)
        prefix = config.server.prefix
        self.proxied = Proxied(
            config,
            admission=admission,
            trusted=trusted,
            metrics=metrics,
            access_log=access_log,
            closing=lambda: self.parking.draining,
        )
        self._authenticator.on_withdrawn(self.proxied.withdraw)
        offers, documents = self.proxied.offers, self.proxied.documents
        routes = public_routes(
            prefix,
            subscribe=subscribe,
            publish=publish,
            channels=ListChannels(admission, channels, offers),
            cursors=ExplainCursor(admission=admission, channels=channels, reader=reader),
            client=ClientModule(admission),
            openapi=OpenApi(admission, channels, offers, documents, prefix=prefix, version=version()),
        )
        own = admin.routes() if config.server.single_listener else []
        self._listeners = [self._public([exchanges, cors, problems], [*routes, *own], trusted)]
        if not config.server.single_listener:
            self._listeners.append(self._admin([exchanges, problems], admin.routes()))

    def _build_lanes(self, admission: Admission, reader: Reader, access_log: AccessLog | None) -> Lanes:
        config = self._config
        lanes = Lanes(
            hub=self.hub,
            reader=reader,
            arming=Arming(bound=config.lane.armed_heads, ignored=config.lane.ignore_headers, secret=secrets.token_bytes(32)),
            polls=admission.polls,
            addresses=admission.addresses,
            slots=admission.slots,
            metrics=self.metrics,
            access_log=access_log,
            route=f"{config.server.prefix}/subscribe",
            keepalive=config.server.keepalive,
            head_timeout=config.server.head_timeout,
        )
        self._authenticator.on_withdrawn(lanes.withdraw)
        self.metrics.pull(lanes.readings)
        return lanes

    def _admission(self) -> Admission:
        limits = self._config.limits
        return Admission(
            self._authenticator,
            addresses=_bucket("address", limits.address, limits.parked_polls),
            polls=_bucket("polls", limits.polls, limits.parked_polls),
            publishes=_bucket("publishes", limits.publishes, limits.parked_polls),
            slots=Slots(quota=limits.concurrent_polls, total=limits.parked_polls),
            refused=NegativeCache(ttl=limits.refused_tokens.keep, bound=max(1, limits.refused_tokens.size)),
        )

    def _access_log(self) -> AccessLog | None:
        log = self._config.log
        if not log.access:
            return None
        self._lines = Lines(sys.stdout.fileno(), on_dropped=self.metrics.log_lines_dropped.add)
        return AccessLog(self._lines, sample=log.sample)

    def _public(self, middlewares: list[Any], routes: list[web.RouteDef], trusted: TrustedProxies) -> Listener:
        server = self._config.server
        app = application(middlewares, routes, max_body=server.max_body_bytes)
        refused = self.metrics.proxy_header_refusals.add

        def behind_proxy(http: Callable[[], asyncio.BaseProtocol]) -> ProxyProtocol:
            return ProxyProtocol(http, trusted=trusted, on_refused=refused)

        return Listener(
            self._runner(app, door=self.proxied.door, express=self.proxied.express),
            host=server.host,
            port=server.port if self._place is None else self._place.port,
            reuse_port=self._place is not None,
            backlog=server.backlog,
            tls=tls_context(str(server.tls.certfile), str(server.tls.keyfile)) if server.tls else None,
            front=behind_proxy if server.proxy_protocol else None,
            take=self.lanes.welcome if self._config.lane.enabled else None,
            patience=server.keepalive,
        )

    def _admin(self, middlewares: list[Any], routes: list[web.RouteDef]) -> Listener:
        if self._place is not None:
            # Only the supervisor asks there, in the course of answering somebody: it counts and logs that request.
            return Listener(self._runner(application([], routes)), path=self._place.admin_path)
        admin = self._config.server.admin
        return Listener(self._runner(application(middlewares, routes)), host=admin.host, port=admin.port)

    def _runner(self, app: web.Application, door: Callable[[Any], Any] | None = None, express: Express | None = None) -> Runner:
        server = self._config.server
        return Runner(
            app,
            door=door,
            express=express,
            max_target_bytes=server.max_target_bytes,
            max_field_bytes=server.max_head_bytes,
            head_timeout=server.head_timeout,
            keepalive_timeout=server.keepalive,
            shutdown_timeout=LAST_ANSWERS,
            on_refused=lambda status: self.metrics.responses.add("none", str(status)),
        )

    # --- what is asked of it ---

    @property
    def port(self) -> int:
        """The port of the public listener."""
        return self._listeners[0].port

    @property
    def admin_port(self) -> int:
        """The port of the admin listener; the public one where both are one."""
        return self._listeners[-1].port

    @property
    def url(self) -> str:
        """Where clients find it."""
        server = self._config.server
        host = "127.0.0.1" if server.host in ("0.0.0.0", "::", "") else server.host  # noqa: S104
        return f"{'https' if server.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def _send(
        self, topic: str, key: bytes | None, values: Sequence[bytes | None], headers: Headers
    ) -> Sequence[Stored | GatewayError]:
        drafts = [Draft(key, value, headers) for value in values]
        return await self.kafka.producer.send_many(topic, drafts, timeout=self._config.publish.timeout)

    def _checks(self) -> Mapping[str, str]:
        wrong = {}
        if self._draining:
            wrong["process"] = "draining"
        status = self.kafka.status()
        if not status.connected:
            wrong["kafka"] = status.reason or "not connected"
        return wrong

    def _facts(self) -> Mapping[str, object]:
        status = self.kafka.status()
        return {
            "kafka": {
                "connected": status.connected,
                "topic_ids": status.topic_ids,
                "sick_partitions": [
                    {"topic": topic, "partition": partition, "error": error} for topic, partition, error in status.sick
                ],
            },
            "parked_polls": self.slots.held,
            "keys": [
                {"issuer": source.issuer, "source": source.place, "keys": source.keys, "error": source.error}
                for source in self._authenticator.status()
            ],
        }

    def _pulled(self) -> Iterable[Reading]:
        yield Reading("gateway_ready", (), float(not self._checks()))
        for listener in self._listeners if self._place is None else self._listeners[:1]:
            yield Reading("gateway_open_connections", ("http",), listener.connections)
        yield Reading("gateway_open_connections", ("http",), len(self.lanes))
        for pattern, parked in self.hub.parked_by.items():
            yield Reading("gateway_parked_waiters", (pattern,), parked)
        for name, topic in self.hub.topics.items():
            yield Reading("gateway_tail_bytes", (name,), sum(tail.cost for tail in topic.tails.values()))

    # --- its life ---

    async def start(self) -> None:
        """Begin to serve. Kafka need not be there yet; an address in use is OSError, an unusable key file ValueError."""
        await self._authenticator.start()
        await self.kafka.start()
        self._spawn(self.parking.run())
        self._spawn(self.lanes.run())
        await self.proxied.start(self._spawn)
        self._spawn(LoopLag(self.metrics.loop_lag.observe).run())
        for listener in self._listeners:
            await listener.start()

    async def drain(self) -> None:
        """Say that it is going, wait for load balancers to notice, accept no more, and end the parked polls in turn."""
        self._draining = True
        await asyncio.sleep(self._config.drain.delay)
        self._listeners[0].stop_accepting()
        window = self._config.drain.window
        await asyncio.gather(self.parking.drain(window), self.lanes.drain(window), self.proxied.drain(window))

    async def stop(self) -> None:
        """End everything, the newest first; polls that are parked still get their answer."""
        await self.parking.drain(0.0)
        await self.lanes.close()
        await self.proxied.drain(0.0)
        for listener in self._listeners:
            await listener.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.proxied.stop()
        await self.kafka.stop()
        await self._authenticator.stop()
        if self._lines is not None:
            self._lines.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task ended with an error", exc_info=task.exception())


def version() -> str:
    """Return the version of the installed distribution."""
    try:
        return metadata.version("longpoll-gateway")
    except metadata.PackageNotFoundError:
        return "unknown"


def _bucket(policy: str, given: Bucket | None, clients: int) -> TokenBuckets | None:
    """Make a table with room for as many clients as may be parked, and as many who are not."""
    bound = max(65_536, 2 * clients)
    return None if given is None else TokenBuckets(policy, quota=given.burst, window=given.window, bound=bound)


@asynccontextmanager
async def serving(config: Config, place: Place | None = None) -> AsyncIterator[Gateway]:
    """Run a gateway inside a block; it is stopped, without draining, at the end of it."""
    gateway = Gateway(config, place)
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.stop()


async def run(config: Config, *, ready: Callable[[str], None] | None = None, place: Place | None = None) -> int:
    """Serve until SIGTERM or SIGINT, drain (a second signal cuts that short), and return the exit code.

    `ready` is called with the URL once clients can connect. With a `place` it also ends when it is abandoned.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    log_as_json(config.log.level.upper(), fields=None if place is None else {"worker": place.number})
    async with serving(config, place) as gateway:
        _calm_collector()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        if ready is not None:
            ready(gateway.url)
        await _first(asked.wait(), *([] if place is None else [place.abandoned()]))
        asked.clear()
        await _first(gateway.drain(), asked.wait())
    return 0


def _calm_collector() -> None:
    """Have the garbage collector look less often, and never again at what is there already."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _first(*works: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them is done, and cancel the others."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
