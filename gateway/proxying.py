"""The part of the composition root that builds what stands in front of backends: upstreams, routes, the proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from random import random
from typing import Any
from urllib.parse import urlencode

from multidict import CIMultiDict

from gateway.auth.policy import AUTHENTICATED
from gateway.auth.principal import KeyRef
from gateway.config.routes import RouteSection
from gateway.config.sections import Config
from gateway.config.upstreams import BreakerSection, OutliersSection, UpstreamSection
from gateway.limits import Slots, TokenBuckets
from gateway.metrics import Metrics
from gateway.proxy.balancing import Balancer, Hash, LeastOutstanding, Random, RoundRobin
from gateway.proxy.breaker import Breaker
from gateway.proxy.cache import Cache
from gateway.proxy.events import Event
from gateway.proxy.exchange import NEVER, Backend, Retries, Terms
from gateway.proxy.forward import Forwarder
from gateway.proxy.headers import stripped_names
from gateway.proxy.health import Checks, HttpProbe, Probe, TcpProbe
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.names import Name, Names
from gateway.proxy.outliers import Outliers
from gateway.proxy.pool import Pool
from gateway.proxy.retry import Budget
from gateway.proxy.routes import ANY, Entry, Found, Match, Routes
from gateway.proxy.split import Split
from gateway.proxy.target import Endpoint, split_address
from gateway.proxy.turnstile import Turnstile
from gateway.proxy.upstream import Upstream
from gateway.server.accesslog import AccessLog
from gateway.server.address import TrustedProxies
from gateway.server.admission import Admission
from gateway.server.catalog import Offer
from gateway.server.documents import Documents, Source
from gateway.server.express import Express
from gateway.server.ownpaths import OwnPaths, own_paths
from gateway.server.passage import Route
from gateway.server.proxy import Proxy
from gateway.server.proxymetrics import ProxyMetrics
from gateway.server.tenures import Tenures

Handler = Callable[[Any], Awaitable[Any]]

UNBOUNDED = 2**31
"""Slots of a route where only each principal's are bounded."""


_BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "hash": Hash,
    "random": Random,
}


class Proxied:
    """Upstreams and routes of one process, with all that runs for them. Build it on the loop that runs it."""

    def __init__(
        self,
        config: Config,
        *,
        admission: Admission,
        trusted: TrustedProxies,
        metrics: Metrics,
        access_log: AccessLog | None,
        closing: Callable[[], bool],
    ) -> None:
        self._sections = config.upstreams
        self._backends = {name: _backend(name, section) for name, section in config.upstreams.items()}
        self._observer = ProxyMetrics(metrics, self._backends.values, time.monotonic)
        self._forwarder = Forwarder(self._observer)
        self._table = routes(config, self._backends)
        self._tenures = Tenures()
        own = own_paths(config.server.prefix, single_listener=config.server.single_listener)
        self._proxy = Proxy(
            routes=self._table,
            own=own,
            forwarder=self._forwarder,
            admission=admission,
            trusted=trusted,
            metrics=self._observer,
            access_log=access_log,
            closing=closing,
            tenures=self._tenures,
            scheme="https" if config.server.tls else "http",
        )
        self.offers = [offer(name, section) for name, section in config.routes.items()]
        self.documents = Documents(
            Source(each, section.openapi, partial(_reaches, self._table, own, each.name, section.match))
            for each, section in zip(self.offers, config.routes.values(), strict=True)
            if section.openapi is not None
        )
        self._caches = [route.cache for route in self._table.routes() if route.cache is not None]

    @property
    def express(self) -> Express | None:
        """What answers plain requests without a task; None where there are no routes."""
        return Express(self._proxy) if len(self._table) else None

    def door(self, application: Handler) -> Handler:
        """Return the handler of all requests, given the application's; the same where there are no routes."""
        return self._proxy.door(application) if len(self._table) else application

    async def start(self, spawn: Callable[[Coroutine[Any, Any, Any]], object]) -> None:
        """Begin to watch targets and clocks; `spawn` keeps the tasks."""
        await self.documents.start()
        spawn(self.documents.run())
        for name, backend in self._backends.items():
            section = self._sections[name]
            spawn(backend.pool.run())
            checks = _checks(backend, section, self._observer)
            names = _names(backend, section, self._observer, checks)
            if names is not None:
                await names.look()
                spawn(names.run())
            if checks is not None:
                spawn(checks.run())

    def withdraw(self, key: KeyRef) -> None:
        """End what is held for those whose tokens a withdrawn key has signed."""
        self._tenures.withdraw(key)

    async def drain(self, window: float) -> None:
        """End what backends hold, spread over `window` seconds: the clients come back to another instance."""
        await asyncio.gather(self._forwarder.drain(window), self._tenures.drain(window))

    async def stop(self) -> None:
        """Cut tunnels, end fetches, and close all connections to targets."""
        self._proxy.close()
        for cache in self._caches:
            await cache.close()
        for backend in self._backends.values():
            backend.pool.close()


def _backend(name: str, section: UpstreamSection) -> Backend:
    limits, given = section.limits, section.retries
    outliers = section.outliers
    upstream = Upstream(
        name,
        _endpoints(section),
        _BALANCERS[section.balance](),
        breaker=None if section.breaker is None else partial(_breaker, section.breaker),
        outliers=None if outliers is None else partial(_outliers, outliers),
        healthiness=None
        if section.health is None
        else partial(Healthiness, rise=section.health.rise, fall=section.health.fall),
        max_share=0.0 if outliers is None else outliers.max_share,
        slow_start=section.slow_start,
    )
    kept = section.connections
    return Backend(
        upstream=upstream,
        pool=Pool(
            idle=kept.idle,
            keepalive=kept.keepalive,
            tls=section.tls_context,
            server_name=None if section.tls is None else section.tls.server_name,
        ),
        turnstile=Turnstile(
            name, concurrent=limits.concurrent, held=limits.held, queue=limits.queue, queue_timeout=limits.queue_timeout
        ),
        retries=NEVER
        if given is None
        else Retries(given.attempts, frozenset(given.statuses), given.backoff, given.max_backoff),
        budget=Budget(0.0, 0.0) if given is None else Budget(given.budget, given.budget_least),
        key=section.key,
    )


def _names(backend: Backend, section: UpstreamSection, observer: ProxyMetrics, checks: Checks | None) -> Names | None:
    """Return what keeps the addresses of names fresh; None where there are no names."""
    given = [each for each in section.targets if each.dns is not None]
    if not given:
        return None

    def told(events: list[Event]) -> None:
        observer.told(backend.name, events)
        if checks is not None:
            checks.targets_changed()

    return Names(
        backend.upstream,
        _endpoints(section),
        [Name(*split_address(each.dns or ""), each.weight, each.priority) for each in given],
        refresh=section.dns_refresh,
        told=told,
        clock=time.monotonic,
        rand=random,
    )


def _checks(backend: Backend, section: UpstreamSection, observer: ProxyMetrics) -> Checks | None:
    """Return what asks targets whether they are well; None where nobody does."""
    given = section.health
    if given is None:
        return None
    tls, name = section.tls_context, None if section.tls is None else section.tls.server_name
    probe: Probe = TcpProbe(tls=tls, server_name=name)
    if given.path is not None:
        probe = HttpProbe(
            given.path,
            statuses=given.statuses,
            body=None if given.body is None else given.body.encode(),
            tls=tls,
            server_name=name,
        )
    return Checks(
        backend.upstream,
        probe,
        interval=given.interval,
        jitter=given.jitter,
        timeout=given.timeout,
        told=partial(observer.told, backend.name),
        clock=time.monotonic,
        rand=random,
    )


def _endpoints(section: UpstreamSection) -> list[Endpoint]:
    return [Endpoint(each.address, each.weight, each.priority) for each in section.targets if each.address is not None]


def _breaker(given: BreakerSection) -> Breaker:
    return Breaker(consecutive=given.consecutive, open=given.open, max_open=given.max_open, trials=given.trials)


def _outliers(given: OutliersSection) -> Outliers:
    return Outliers(
        consecutive=given.consecutive,
        rate=given.rate,
        least_requests=given.least_requests,
        window=given.window,
        ejection=given.ejection,
        max_ejection=given.max_ejection,
    )


# --- routes ---


def routes(config: Config, backends: Mapping[str, Backend]) -> Routes[Route]:
    """Return the table of routes; a configuration that was checked cannot fail here."""
    return Routes(
        Entry(name, section.match, _route(name, section, config, backends)) for name, section in config.routes.items()
    )


def _route(name: str, section: RouteSection, config: Config, backends: Mapping[str, Backend]) -> Route:
    cors = section.cors or config.cors
    limits = section.limits
    requests = None if limits is None else limits.requests
    concurrent = None if limits is None else limits.concurrent
    return Route(
        name=name,
        backends={upstream: backends[upstream] for upstream, _ in section.shares},
        split=None if section.split is None else Split(section.shares),
        split_on=section.key,
        terms=_terms(section),
        allow=section.rule or AUTHENTICATED,
        public=section.public,
        max_body=config.server.max_body_bytes if section.max_body_bytes is None else section.max_body_bytes,
        rewrite=section.rewrite.change,
        host=section.rewrite.host,
        request_edits=section.request_headers.edits(section.parameters),
        response_edits=section.response_headers.edits(section.parameters),
        claims=section.told,
        stripped=stripped_names(section.claims, authorization=section.authorization == "forward"),
        bucket=None if requests is None else TokenBuckets(name, quota=requests.burst, window=requests.window),
        slots=None if concurrent is None else Slots(quota=concurrent, total=UNBOUNDED),
        origins=frozenset(cors.origins) if cors.origins else None,
        lifecycle=section.lifecycle,
        compress=section.compress,
        cache=None
        if section.cache is None
        else Cache(
            max_bytes=section.cache.max_bytes,
            max_answer_bytes=section.cache.max_answer_bytes,
            collapse=section.cache.collapse,
        ),
    )


def offer(name: str, section: RouteSection) -> Offer:
    """Return a route as its callers see it."""
    return Offer(
        name=name,
        path=section.path,
        prefix=section.prefix,
        backend=section.rewrite.prefix if section.path is None else section.rewrite.path,
        hosts=section.hosts,
        methods=section.methods,
        public=section.public,
        allow=section.rule or AUTHENTICATED,
        told=tuple(template for _, template in section.told),
        lifecycle=section.lifecycle,
        description=section.description,
    )


def _reaches(table: Routes[Route], own: OwnPaths, name: str, match: Match, method: str, path: str) -> bool:
    """Tell whether a request that meets all conditions of a route but for its path comes to the route."""
    if path in own:
        return False
    host = "" if match.hosts is None else match.hosts[0].replace("*", "a")
    query = urlencode([(key, "1" if value == ANY else value) for key, value in match.query])
    found = table.find(
        host, method, path, query, CIMultiDict((key, "1" if value == ANY else value) for key, value in match.headers)
    )
    return isinstance(found, Found) and found.route.name == name


def _terms(section: RouteSection) -> Terms:
    given, hold = section.timeouts, section.hold
    return Terms(
        connect=given.connect,
        first_byte=given.first_byte if hold is None else hold.first_byte,
        idle=given.idle,
        total=given.total if hold is None else hold.total,
        held=hold is not None,
        retries=section.retries,
    )
