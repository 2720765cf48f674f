"""Counting, pulling, bounds of labels, and what a scrape shows."""

from __future__ import annotations

import re
import timeit
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from gateway.metrics import (
    COUNTERS,
    HISTOGRAMS,
    LATENCY_BUCKETS,
    OTHER,
    PULLED,
    SUPERVISED,
    Metrics,
    Reading,
    Spread,
    documented,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_counters(metrics: Metrics) -> None:
    """A series counts from its first use; one without labels shows 0 before it."""
    assert value(metrics, "gateway_cold_reads_total") == 0
    metrics.cold_reads.add()
    metrics.cold_read_bytes.add(4096)
    metrics.answers.add("lane", "messages")
    metrics.answers.bind("lane", "messages").add(2)
    metrics.answers.add("poll", "empty", amount=5)
    assert value(metrics, "gateway_cold_reads_total") == 1
    assert value(metrics, "gateway_cold_read_bytes_total") == 4096
    assert value(metrics, "gateway_answers_total", transport="lane", outcome="messages") == 3
    assert value(metrics, "gateway_answers_total", transport="poll", outcome="empty") == 5
    assert value(metrics, "gateway_answers_total", transport="poll", outcome="messages") is None


def test_bind_returns_one_series(metrics: Metrics) -> None:
    """Whoever binds the same labels counts in the same place."""
    assert metrics.kafka_errors.bind("NOT_LEADER") is metrics.kafka_errors.bind("NOT_LEADER")
    assert metrics.record_latency.bind("lane") is metrics.record_latency.bind("lane")


def test_histogram_buckets_are_cumulative_and_include_their_bound(metrics: Metrics) -> None:
    """`le` means less or equal; the last bucket takes the rest; negative latencies of foreign clocks count as zero."""
    latency = metrics.record_latency.bind("lane")
    for seconds in (-3.0, 0.001, 0.0011, 60.0, 61.0):
        latency.observe(seconds)
    latency.observe(0.5, times=10)
    sample = {
        bound: value(metrics, "gateway_record_latency_seconds_bucket", transport="lane", le=bound)
        for bound in ("0.001", "0.002", "0.2", "0.5", "60.0", "+Inf")
    }
    assert sample == {"0.001": 2, "0.002": 3, "0.2": 3, "0.5": 13, "60.0": 14, "+Inf": 15}
    assert value(metrics, "gateway_record_latency_seconds_count", transport="lane") == 15
    assert value(metrics, "gateway_record_latency_seconds_sum", transport="lane") == pytest.approx(126.0021)


def test_bucket_bounds() -> None:
    """Buckets run from a millisecond to a minute, ascending."""
    assert (LATENCY_BUCKETS[0], LATENCY_BUCKETS[-1]) == (0.001, 60.0)
    assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))
    assert len(Spread(LATENCY_BUCKETS).counts) == len(LATENCY_BUCKETS) + 1


class TestPull:
    def test_asked_at_each_scrape(self, metrics: Metrics) -> None:
        """A gauge shows the state at the time of the scrape, not that of an earlier one."""
        parked = {"chat/{room}": 3.0}
        metrics.pull(lambda: [Reading("gateway_parked_waiters", (name,), number) for name, number in parked.items()])
        assert value(metrics, "gateway_parked_waiters", channel="chat/{room}") == 3
        parked.clear()
        parked["orders"] = 1.0
        assert value(metrics, "gateway_parked_waiters", channel="chat/{room}") is None
        assert value(metrics, "gateway_parked_waiters", channel="orders") == 1

    def test_sources_add_up(self, metrics: Metrics) -> None:
        """Two parts of the process may hold waiters of one channel."""
        for number in (2, 3):
            metrics.pull(lambda number=number: [Reading("gateway_parked_waiters", ("orders",), number)])
        assert value(metrics, "gateway_parked_waiters", channel="orders") == 5

    def test_a_failing_source_hides_nothing_else(self, metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
        """The others are shown, what the source gave before it failed too, and the failure is counted and logged."""

        def failing() -> Iterator[Reading]:
            yield Reading("gateway_ready", (), 1)
            raise RuntimeError("hub is gone")

        metrics.pull(failing)
        metrics.pull(lambda: [Reading("gateway_tail_bytes", ("chat",), 7)])
        body = metrics.exposition()[0].decode()
        assert 'gateway_tail_bytes{topic="chat"} 7.0' in body
        assert "gateway_ready 1.0" in body
        assert "gateway_scrape_errors_total 1.0" in body
        assert "hub is gone" in caplog.text

    @pytest.mark.parametrize("reading", [Reading("gateway_nonsense", (), 1), Reading("gateway_tail_bytes", (), 1)])
    def test_readings_must_be_described(self, metrics: Metrics, reading: Reading) -> None:
        """An unknown name or wrong labels count as a failure of the source."""
        metrics.pull(lambda: [reading])
        assert value(metrics, "gateway_scrape_errors_total") == 1
        assert "gateway_nonsense" not in metrics.exposition()[0].decode()


class TestBounds:
    def test_series_beyond_the_bound_are_other(self) -> None:
        """Whatever finds its way into a label, memory and the scrape stay bounded, and sums stay right."""
        metrics = Metrics(version="1", max_series=3)
        for number in range(10):
            metrics.kafka_errors.add(f"E{number}")
            metrics.record_latency.bind(f"t{number}").observe(1.0)
        metrics.pull(lambda: [Reading("gateway_tail_bytes", (f"topic{number}",), 1) for number in range(10)])
        assert value(metrics, "gateway_kafka_errors_total", error="E2") == 1
        assert value(metrics, "gateway_kafka_errors_total", error=OTHER) == 7
        assert value(metrics, "gateway_record_latency_seconds_count", transport=OTHER) == 7
        assert value(metrics, "gateway_tail_bytes", topic=OTHER) == 7
        assert metrics.kafka_errors.bind("E5") is metrics.kafka_errors.bind("E6")

    def test_wrong_labels(self, metrics: Metrics) -> None:
        """Too few or too many label values are a programming error."""
        with pytest.raises(ValueError, match="gateway_answers_total"):
            metrics.answers.add("lane")
        with pytest.raises(ValueError, match="gateway_record_latency_seconds"):
            metrics.record_latency.bind()


class TestExposition:
    def test_plain(self, metrics: Metrics) -> None:
        """Without a wish, and with one that makes no sense, it is the text that every Prometheus reads."""
        for accept in ("", "*/*", "text/html", "application/openmetrics-text; version=zero", ";;,,=", "text/plain; version=x"):
            body, content_type = metrics.exposition(accept)
            assert content_type.startswith("text/plain; version=0.0.4")
            names = {family.name for family in plain(body.decode())}
            assert {"gateway_up", "gateway_answers", "process_cpu_seconds"} <= names

    def test_openmetrics(self, metrics: Metrics) -> None:
        """A Prometheus that asks for OpenMetrics gets it, valid by the reference parser."""
        metrics.answers.add("lane", "messages")
        metrics.record_latency.bind("lane").observe(0.1)
        body, content_type = metrics.exposition("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert content_type.startswith("application/openmetrics-text")
        families = {family.name: family for family in openmetrics(body.decode())}
        assert families["gateway_answers"].type == "counter"
        assert families["gateway_record_latency_seconds"].type == "histogram"

    def test_build_info(self, metrics: Metrics) -> None:
        """The process says what it is."""
        body = metrics.exposition()[0].decode()
        assert re.search(r'gateway_build_info{python="3\.\d+\.\d+\w*",version="1\.2\.3"} 1\.0', body)
        assert "gateway_up 1.0" in body

    def test_registries_are_apart(self, metrics: Metrics) -> None:
        """Two gateways in one process (as in tests) do not share numbers."""
        metrics.cold_reads.add()
        assert value(Metrics(version="2"), "gateway_cold_reads_total") == 0


class TestDocumented:
    def test_everything_shown_is_documented_and_the_reverse(self, metrics: Metrics) -> None:
        """The list for the documentation is what a scrape shows."""
        shown = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
        assert shown == {described.name for described in documented()}

    def test_names_and_units(self) -> None:
        """gateway_<noun>_<unit>, counters with _total, and no other word for the same label."""
        labels = {"transport", "outcome", "channel", "route", "status", "topic", "partition", "policy", "code"}
        labels |= {"reason", "error", "version", "python", "state", "upstream", "class", "result"}
        for described in (*COUNTERS, *HISTOGRAMS, *PULLED, *SUPERVISED):
            assert re.fullmatch(r"gateway(_[a-z]+)+", described.name)
            assert described.name.endswith("_total") == (described.kind == "counter")
            assert described.name.endswith("_seconds") or described.kind != "histogram"
            assert set(described.labels) <= labels
            assert described.help.endswith(".")

    def test_types(self, metrics: Metrics) -> None:
        """The documented type is the one exposed."""
        kinds = {described.name.removesuffix("_total"): described.kind for described in documented()}
        assert kinds == {family.name: family.type for family in metrics.registry.collect()}


def test_counting_is_cheap(metrics: Metrics) -> None:
    """A bound series costs far less than the microseconds of a delivery; the bound is generous for slow machines."""
    answers = metrics.answers.bind("lane", "messages")
    latency = metrics.record_latency.bind("lane")

    def count() -> None:
        answers.add()
        latency.observe(0.004)

    assert min(timeit.repeat(count, number=2_000, repeat=5)) / 2_000 < 20e-6
