"""What is counted of proxied requests and of upstreams; the names are in `gateway.metrics`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from gateway import errors
from gateway.metrics import Metrics, Reading
from gateway.proxy.events import Ejected, Event, Opened, Unhealthy
from gateway.proxy.forward import Backend
from gateway.server.middleware import count_refusal

_log = logging.getLogger(__name__)


class ProxyMetrics:
    """Counts; it is the observer of a forwarder too."""

    def __init__(self, metrics: Metrics, backends: Callable[[], Iterable[Backend]], clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._backends = backends
        self._clock = clock
        metrics.pull(self._readings)

    def done(self, route: str, status: int, duration: float, *, held: bool, received: int, sent: int) -> None:
        """Count a request. `duration` in seconds, sizes of the bodies in bytes."""
        metrics = self._metrics
        metrics.proxy_requests.bind(route, f"{status // 100}xx").add()
        (metrics.proxy_held_seconds if held else metrics.proxy_seconds).bind(route).observe(duration)
        if received:
            metrics.proxy_received_bytes.bind(route).add(received)
        if sent:
            metrics.proxy_sent_bytes.bind(route).add(sent)

    def cached(self, route: str, result: str) -> None:
        """Count what a cache had."""
        self._metrics.proxy_cache.bind(route, result).add()

    def refused(self, error: errors.GatewayError) -> None:
        """Count what a limit or the want of a right refused."""
        count_refusal(self._metrics, error)

    # --- the forwarder's observer ---

    def attempted(self, upstream: str, outcome: str, seconds: float | None) -> None:
        """Count an attempt."""
        self._metrics.upstream_attempts.bind(upstream, outcome).add()
        if seconds is not None:
            self._metrics.upstream_seconds.bind(upstream).observe(seconds)

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
