"""What the gateway counts, and how Prometheus gets it.

Theory of operation. Everything is counted on the event loop's thread, thousands of times a second, and read once in some
seconds, so counters are plain numbers in cells that callers bind beforehand; prometheus_client's own counters take a lock and
cost six times as much. One collector turns the cells into families when they are asked for, and a registry of our own
keeps other libraries' metrics out.

Labels are bounded twice: they are channel patterns, topics, codes and outcomes, never a user, a key or a name from outside;
and a family that reaches `max_series` counts everything new under "other".

What is a state and no event (parked waiters, lag, tail bytes) is pulled: a source is a function that yields
`Reading`s of the names in PULLED at the time of the scrape.
"""

from __future__ import annotations

import logging
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

OTHER = "other"
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds, from a record's arrival in a parked poll to a client that was away for a minute."""

OUTCOMES = ("messages", "lost", "progress", "empty", "expired", "revoked", "drained", "closed_by_client")
"""How a poll ends other than by an error, whose code is the outcome then."""


class Described(NamedTuple):
    """A metric as documentation shows it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


class Reading(NamedTuple):
    """One pulled value: the name of a gauge in PULLED, its label values in order, and the value."""

    name: str
    labels: tuple[str, ...]
    value: float


COUNTERS = (
    Described("gateway_answers_total", "counter", ("transport", "outcome"), "Answers to subscriptions."),
    Described("gateway_messages_total", "counter", ("channel",), "Messages delivered, by channel pattern."),
    Described("gateway_sent_bytes_total", "counter", ("transport",), "Bytes of answers to subscriptions."),
    Described("gateway_responses_total", "counter", ("route", "status"), "HTTP responses of all routes."),
    Described("gateway_publishes_total", "counter", ("channel", "outcome"), "Messages published, by channel pattern."),
    Described("gateway_cold_reads_total", "counter", (), "Blocks read from Kafka for cursors older than the tails."),
    Described("gateway_cold_read_bytes_total", "counter", (), "Bytes of those blocks."),
    Described("gateway_lost_records_total", "counter", ("channel",), "Offsets reported as lost to clients."),
    Described("gateway_fetched_records_total", "counter", ("topic",), "Records read from Kafka into tails."),
    Described("gateway_fetched_bytes_total", "counter", ("topic",), "Bytes of those records."),
    Described("gateway_limit_refusals_total", "counter", ("policy", "code"), "Requests refused by a limit."),
    Described("gateway_auth_refusals_total", "counter", ("code",), "Requests refused for want of identity or right."),
    Described("gateway_proxy_header_refusals_total", "counter", ("reason",), "Connections without a good PROXY header."),
    Described("gateway_kafka_errors_total", "counter", ("error",), "Errors that Kafka or its client reported, by name."),
    Described("gateway_log_lines_dropped_total", "counter", (), "Access log lines lost because the reader did not keep up."),
    Described("gateway_proxy_requests_total", "counter", ("route", "status"), "Requests to backends, by class of status."),
    Described("gateway_proxy_received_bytes_total", "counter", ("route",), "Bytes of their bodies."),
    Described("gateway_proxy_sent_bytes_total", "counter", ("route",), "Bytes of the answers' bodies."),
    Described("gateway_proxy_cache_total", "counter", ("route", "result"), "What the cache of a route had for a request."),
    Described("gateway_upstream_attempts_total", "counter", ("upstream", "outcome"), "Requests sent to targets, or tried to."),
    Described("gateway_upstream_retries_total", "counter", ("upstream",), "Requests that were sent once more."),
    Described("gateway_upstream_ejections_total", "counter", ("upstream",), "Targets left out for a while for their failures."),
    Described("gateway_scrape_errors_total", "counter", (), "Sources of metrics that failed, or workers that did not answer."),
)

HISTOGRAMS = (
    Described(
        "gateway_record_latency_seconds", "histogram", ("transport",), "From a live record's timestamp to its way to a client."
    ),
    Described("gateway_proxy_seconds", "histogram", ("route",), "From a request to the end of its answer; held ones apart."),
    Described("gateway_proxy_held_seconds", "histogram", ("route",), "The same of requests that are held on purpose."),
    Described("gateway_upstream_seconds", "histogram", ("upstream",), "From a request to the first byte, held ones left out."),
    Described("gateway_publish_latency_seconds", "histogram", (), "From a publish to Kafka's acknowledgement."),
    Described("gateway_loop_lag_seconds", "histogram", (), "How much later than due the event loop runs a timer."),
)

PULLED = (
    Described("gateway_up", "gauge", (), "1: the process serves."),
    Described("gateway_ready", "gauge", (), "1: /readyz says yes."),
    Described("gateway_build_info", "gauge", ("version", "python"), "Always 1; the labels tell what runs."),
    Described("gateway_parked_waiters", "gauge", ("channel",), "Polls that wait, by channel pattern."),
    Described("gateway_open_connections", "gauge", ("transport",), "Client connections that are open."),
    Described("gateway_tail_bytes", "gauge", ("topic",), "Bytes of records held in memory."),
    Described(
        "gateway_consumer_lag_records", "gauge", ("topic", "partition"), "Offsets from a tail's end to the last stable one."
    ),
    Described(
        "gateway_unstable_records", "gauge", ("topic", "partition"), "Offsets from the last stable one to the high watermark."
    ),
    Described("gateway_upstream_targets", "gauge", ("upstream", "state"), "Targets: available, unhealthy, ejected, open."),
    Described("gateway_upstream_outstanding", "gauge", ("upstream", "class"), "Requests: working, held, queued."),
    Described("gateway_upstream_connections", "gauge", ("upstream", "state"), "Connections to targets: idle, busy."),
    Described(
        "gateway_unstable_age_seconds", "gauge", ("topic", "partition"), "How long the last stable offset stands behind."
    ),
)

WORKERS = Described("gateway_workers", "gauge", ("state",), "Worker processes: expected, running, and serving.")
WORKER_RESTARTS = Described("gateway_worker_restarts_total", "counter", (), "Workers that ended and were started again.")
SUPERVISED = (WORKERS, WORKER_RESTARTS)
"""What only the supervisor of several workers shows (see `gateway.workers`)."""


class Count:
    """One series of a counter. Bind it once, then `add` costs next to nothing."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count; the amount is not negative."""
        self.value += amount


class Spread:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Note a value, `times` over where many clients get the same at once. Below zero (clocks differ) counts as zero."""
        value = max(value, 0.0)
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times


class CounterFamily:
    """All series of one counter."""

    def __init__(self, described: Described, max_series: int) -> None:
        self.described = described
        self._max_series = max_series
        self._series: dict[tuple[str, ...], Count] = {}
        if not described.labels:
            self.bind()

    def bind(self, *labels: str) -> Count:
        """Return the series of these label values, in the order of the description; keep it if you count often."""
        series = self._series.get(labels)
        if series is None:
            labels = _bounded(labels, self.described, len(self._series) >= self._max_series)
            series = self._series.setdefault(labels, Count())
        return series

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count in the series of these label values."""
        self.bind(*labels).add(amount)

    def family(self) -> Metric:
        """Return the present values."""
        family = CounterMetricFamily(self.described.name, self.described.help, labels=self.described.labels)
        for labels, series in self._series.items():
            family.add_metric(labels, series.value)
        return family


class HistogramFamily:
    """All series of one histogram."""

    def __init__(self, described: Described, max_series: int, bounds: Sequence[float] = LATENCY_BUCKETS) -> None:
        self.described = described
        self._max_series = max_series
        self._bounds = tuple(bounds)
        self._names = [str(float(bound)) for bound in bounds] + ["+Inf"]
        self._series: dict[tuple[str, ...], Spread] = {}
        if not described.labels:
            self.bind()

    def bind(self, *labels: str) -> Spread:
        """Return the series of these label values, in the order of the description; keep it if you observe often."""
        series = self._series.get(labels)
        if series is None:
            labels = _bounded(labels, self.described, len(self._series) >= self._max_series)
            series = self._series.setdefault(labels, Spread(self._bounds))
        return series

    def family(self) -> Metric:
        """Return the present values; Prometheus wants its buckets cumulative."""
        family = HistogramMetricFamily(self.described.name, self.described.help, labels=self.described.labels)
        for labels, series in self._series.items():
            cumulative = list(zip(self._names, accumulate(series.counts), strict=True))
            family.add_metric(labels, cumulative, series.total)
        return family


class Metrics(Collector):
    """All metrics of a process, on a registry of their own. `max_series`: the most series of one family."""

    def __init__(self, *, version: str, max_series: int = 2_000) -> None:
        self.registry = CollectorRegistry()
        self._max_series = max_series
        self._version = version
        self._families: dict[str, CounterFamily | HistogramFamily] = {}
        self._sources: list[Callable[[], Iterable[Reading]]] = [self._about_process]
        counters = {described.name: self._counter(described) for described in COUNTERS}
        histograms = {described.name: self._histogram(described) for described in HISTOGRAMS}
        self.answers = counters["gateway_answers_total"]
        self.messages = counters["gateway_messages_total"]
        self.sent_bytes = counters["gateway_sent_bytes_total"]
        self.responses = counters["gateway_responses_total"]
        self.publishes = counters["gateway_publishes_total"]
        self.cold_reads = counters["gateway_cold_reads_total"].bind()
        self.cold_read_bytes = counters["gateway_cold_read_bytes_total"].bind()
        self.lost_records = counters["gateway_lost_records_total"]
        self.fetched_records = counters["gateway_fetched_records_total"]
        self.fetched_bytes = counters["gateway_fetched_bytes_total"]
        self.limit_refusals = counters["gateway_limit_refusals_total"]
        self.auth_refusals = counters["gateway_auth_refusals_total"]
        self.proxy_header_refusals = counters["gateway_proxy_header_refusals_total"]
        self.kafka_errors = counters["gateway_kafka_errors_total"]
        self.log_lines_dropped = counters["gateway_log_lines_dropped_total"].bind()
        self.scrape_errors = counters["gateway_scrape_errors_total"].bind()
        self.record_latency = histograms["gateway_record_latency_seconds"]
        self.publish_latency = histograms["gateway_publish_latency_seconds"].bind()
        self.loop_lag = histograms["gateway_loop_lag_seconds"].bind()
        self.proxy_requests = counters["gateway_proxy_requests_total"]
        self.proxy_received_bytes = counters["gateway_proxy_received_bytes_total"]
        self.proxy_sent_bytes = counters["gateway_proxy_sent_bytes_total"]
        self.proxy_cache = counters["gateway_proxy_cache_total"]
        self.proxy_seconds = histograms["gateway_proxy_seconds"]
        self.proxy_held_seconds = histograms["gateway_proxy_held_seconds"]
        self.upstream_attempts = counters["gateway_upstream_attempts_total"]
        self.upstream_retries = counters["gateway_upstream_retries_total"]
        self.upstream_ejections = counters["gateway_upstream_ejections_total"]
        self.upstream_seconds = histograms["gateway_upstream_seconds"]
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def pull(self, source: Callable[[], Iterable[Reading]]) -> None:
        """Ask `source` at each scrape. Readings of equal name and labels are added up, so sources may share a gauge."""
        self._sources.append(source)

    def collect(self) -> Iterator[Metric]:
        """Yield every family; prometheus_client calls it."""
        pulled = self._pulled()
        for family in self._families.values():
            yield family.family()
        for described in PULLED:
            gauge = GaugeMetricFamily(described.name, described.help, labels=described.labels)
            for labels, value in pulled[described.name].items():
                gauge.add_metric(labels, value)
            yield gauge

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body and Content-Type of /metrics: OpenMetrics where `accept` asks for it, else plain text."""
        return encoded(self.registry, accept)

    def _counter(self, described: Described) -> CounterFamily:
        family = self._families[described.name] = CounterFamily(described, self._max_series)
        return family

    def _histogram(self, described: Described) -> HistogramFamily:
        family = self._families[described.name] = HistogramFamily(described, self._max_series)
        return family

    def _about_process(self) -> Iterable[Reading]:
        yield Reading("gateway_up", (), 1)
        yield Reading("gateway_build_info", (self._version, platform.python_version()), 1)

    def _pulled(self) -> dict[str, dict[tuple[str, ...], float]]:
        gauges: dict[str, dict[tuple[str, ...], float]] = {described.name: {} for described in PULLED}
        for source in self._sources:
            try:
                for reading in source():
                    self._take(reading, gauges[reading.name])
            except Exception:
                # One broken source must not hide all the others from the operator, now of all times.
                self.scrape_errors.add()
                log.exception("a source of metrics failed")
        return gauges

    def _take(self, reading: Reading, gauge: dict[tuple[str, ...], float]) -> None:
        labels = reading.labels
        if labels not in gauge:
            labels = _bounded(labels, _PULLED_BY_NAME[reading.name], len(gauge) >= self._max_series)
        gauge[labels] = gauge.get(labels, 0.0) + reading.value


_PULLED_BY_NAME = {described.name: described for described in PULLED}


def _bounded(labels: tuple[str, ...], described: Described, full: bool) -> tuple[str, ...]:
    """Return the labels of a new series, or of the one that takes the rest."""
    if len(labels) != len(described.labels):
        raise ValueError(f"{described.name} has the labels {described.labels}")
    return (OTHER,) * len(labels) if full and labels else labels


def encoded(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return what a registry shows and its Content-Type: OpenMetrics where `accept` asks for it, else plain text."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # A version in Accept that is no number: prometheus_client compares it all the same.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def documented() -> tuple[Described, ...]:
    """Return every metric that the /metrics of one process can show, for the documentation and the test that compares them."""
    return (*COUNTERS, *HISTOGRAMS, *PULLED, *_process_metrics())


def _process_metrics() -> Iterator[Described]:
    for family in ProcessCollector(registry=None).collect():
        counter = family.type == "counter"
        name = f"{family.name}_total" if counter else family.name
        yield Described(name, "counter" if counter else "gauge", (), family.documentation)
