"""What is counted of proxied requests and of upstreams; the names are in `gateway.metrics`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from gateway import errors
from gateway.metrics import Count, Metrics, Reading, Spread
from gateway.proxy.events import Ejected, Event, Opened, Unhealthy
from gateway.proxy.exchange import Backend
from gateway.server.middleware import count_refusal

_log = logging.getLogger(__name__)


class ProxyMetrics:
    """Counts; it is the observer of a forwarder too."""

    def __init__(self, metrics: Metrics, backends: Callable[[], Iterable[Backend]], clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._backends = backends
        self._clock = clock
        # Series that were counted in before: by route, status and whether it was held; by upstream and outcome.
        self._done: dict[tuple[str, int, bool], tuple[Count, Spread, Count]] = {}
        self._attempted: dict[tuple[str, str], tuple[Count, Spread]] = {}
        metrics.pull(self._readings)

    def done(self, route: str, status: int, duration: float, *, sent: int, held: bool = False, received: int = 0) -> None:
        """Count a request. `duration` in seconds, sizes of the bodies in bytes."""
        series = self._done.get((route, status, held))
        if series is None:
            series = self._done[route, status, held] = self._series(route, status, held=held)
        series[0].value += 1
        series[1].observe(duration)
        series[2].value += sent
        if received:
            self._metrics.proxy_received_bytes.bind(route).add(received)

    def _series(self, route: str, status: int, *, held: bool) -> tuple[Count, Spread, Count]:
        metrics = self._metrics
        seconds = metrics.proxy_held_seconds if held else metrics.proxy_seconds
        requests = metrics.proxy_requests.bind(route, f"{status // 100}xx")
        return requests, seconds.bind(route), metrics.proxy_sent_bytes.bind(route)

    def cached(self, route: str, result: str) -> None:
        """Count what a cache had."""
        self._metrics.proxy_cache.bind(route, result).add()

    def refused(self, error: errors.GatewayError) -> None:
        """Count what a limit or the want of a right refused."""
        count_refusal(self._metrics, error)

    # --- the forwarder's observer ---

    def attempted(self, upstream: str, outcome: str, seconds: float | None) -> None:
        """Count an attempt."""
        series = self._attempted.get((upstream, outcome))
        if series is None:
            metrics = self._metrics
            series = metrics.upstream_attempts.bind(upstream, outcome), metrics.upstream_seconds.bind(upstream)
            self._attempted[upstream, outcome] = series
        series[0].value += 1
        if seconds is not None:
            series[1].observe(seconds)

    def retried(self, upstream: str) -> None:
        """Count a repetition."""
        self._metrics.upstream_retries.bind(upstream).add()

    def told(self, upstream: str, events: Iterable[Event]) -> None:
        """Note what checks and look-ups changed."""
        for event in events:
            self.changed(upstream, event)

    def changed(self, upstream: str, event: Event) -> None:
        """Log, and count ejections."""
        level = logging.WARNING if isinstance(event, Ejected | Opened | Unhealthy) else logging.INFO
        _log.log(level, "upstream %s: %s", upstream, event)
        if isinstance(event, Ejected):
            self._metrics.upstream_ejections.bind(upstream).add()

    # --- what is asked for at a scrape ---

    def _readings(self) -> Iterator[Reading]:
        now = self._clock()
        for backend in self._backends():
            name = backend.name
            for state, count in backend.upstream.states(now).items():
                yield Reading("gateway_upstream_targets", (name, state), count)
            yield Reading("gateway_upstream_outstanding", (name, "working"), backend.upstream.working)
            yield Reading("gateway_upstream_outstanding", (name, "held"), backend.upstream.held)
            yield Reading("gateway_upstream_outstanding", (name, "queued"), backend.turnstile.queued)
            idle = backend.pool.idle
            yield Reading("gateway_upstream_connections", (name, "idle"), idle)
            yield Reading("gateway_upstream_connections", (name, "busy"), len(backend.pool) - idle)
