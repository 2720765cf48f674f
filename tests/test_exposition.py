"""Expositions added up: what adds, what does not, and counters that never go back while members come and go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.registry import Collector

from gateway.exposition import LEAST, MOST, UNANIMOUS, Sums
from gateway.metrics import PULLED, Metrics, Reading, documented, encoded


def shown(sums: Sums, own: list[Metric] | None = None, *, expected: int = 2) -> dict[str, float]:
    """Return the samples by name and label values."""
    found = {}
    for family in sums.families(own or [], expected=expected):
        for sample in family.samples:
            labels = ",".join(value for _, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def counter(value: float, status: int = 200) -> str:
    return f'# HELP a_total Help.\n# TYPE a_total counter\na_total{{status="{status}"}} {value}\n'


def gauge(name: str, value: float) -> str:
    return f"# HELP {name} Help.\n# TYPE {name} gauge\n{name} {value}\n"


def member(metrics: Metrics) -> str:
    return metrics.exposition()[0].decode()


class TestAdding:
    def test_counters_and_histograms_of_all_members(self):
        """Series by series, buckets, sums and counts alike; what only one has is there as well."""
        sums = Sums()
        for number in (1, 2):
            metrics = Metrics(version="1")
            metrics.answers.add("poll", "empty", amount=number)
            metrics.record_latency.bind("poll").observe(0.05)
            if number == 2:
                metrics.answers.add("poll", "messages")
                metrics.record_latency.bind("poll").observe(3.0)
            sums.join(number)
            sums.take(number, member(metrics))
        samples = shown(sums)
        assert samples["gateway_answers_total{empty,poll}"] == 3
        assert samples["gateway_answers_total{messages,poll}"] == 1
        buckets = [
            samples[f"gateway_record_latency_seconds_bucket{{{le},poll}}"] for le in ("0.02", "0.05", "2.0", "5.0", "+Inf")
        ]
        assert buckets == [0, 2, 2, 3, 3]
        assert samples["gateway_record_latency_seconds_count{poll}"] == 3
        assert samples["gateway_record_latency_seconds_sum{poll}"] == pytest.approx(3.1)

    def test_gauges_are_added_or_the_least_or_the_greatest(self):
        """Memory adds up; a start time is the first one, a lag that of who is furthest behind; what runs is told once."""
        sums = Sums()
        for number, value in ((1, 3.0), (2, 5.0)):
            sums.join(number)
            names = ("gateway_tail_bytes", "process_start_time_seconds", "gateway_consumer_lag_records")
            build = '# TYPE gateway_build_info gauge\ngateway_build_info{version="1"} 1\n'
            sums.take(number, "".join(gauge(name, value) for name in names) + build)
        samples = shown(sums)
        assert samples["gateway_tail_bytes"] == 8
        assert samples["process_start_time_seconds"] == 3
        assert samples["gateway_consumer_lag_records"] == 5
        assert samples["gateway_build_info{1}"] == 1

    def test_the_names_are_gauges_of_ours(self):
        """A metric that is renamed is renamed here as well."""
        gauges = {described.name for described in documented() if described.kind == "gauge"}
        assert gauges > LEAST | MOST | UNANIMOUS

    def test_the_one_that_adds_up_adds_its_own(self):
        """It costs processor time and memory too, but it is no member: its word on being ready does not count."""
        sums = Sums()
        own = Metrics(version="1")
        own.scrape_errors.add()
        own.pull(lambda: [Reading("gateway_ready", (), 1), Reading("gateway_tail_bytes", ("t",), 4)])
        sums.join(1)
        sums.take(1, counter(2) + gauge("gateway_up", 1))
        samples = shown(sums, list(own.registry.collect()), expected=1)
        assert samples["a_total{200}"] == 2
        assert samples["gateway_scrape_errors_total"] == 1
        assert samples["gateway_tail_bytes{t}"] == 4
        assert samples["process_cpu_seconds_total"] > 0
        assert (samples["gateway_up"], samples["gateway_ready"]) == (1, 0)

    def test_being_ready_takes_all_that_there_should_be(self):
        """One that says no, that does not answer or that is not there is enough."""
        sums = Sums()
        sums.join(1)
        sums.take(1, gauge("gateway_ready", 1))
        assert shown(sums, expected=1)["gateway_ready"] == 1
        assert shown(sums, expected=2)["gateway_ready"] == 0
        sums.join(2)
        sums.take(2, gauge("gateway_ready", 1))
        assert shown(sums)["gateway_ready"] == 1
        sums.take(2, gauge("gateway_ready", 0))
        assert shown(sums)["gateway_ready"] == 0
        sums.take(2, gauge("gateway_ready", 1))
        sums.missed(2)
        assert shown(sums)["gateway_ready"] == 0

    def test_the_whole_can_be_shown_in_both_formats(self):
        """Every family once, with its help and type, valid by the reference parser."""
        sums = Sums()
        for number in (1, 2):
            metrics = Metrics(version="1")
            metrics.record_latency.bind("poll").observe(0.1)
            metrics.answers.add("poll", "empty")
            sums.join(number)
            sums.take(number, member(metrics))

        class Shown(Collector):
            def collect(self):
                return sums.families(Metrics(version="1").registry.collect(), expected=2)

        registry = CollectorRegistry()
        registry.register(Shown())
        body, _ = encoded(registry, "application/openmetrics-text; version=1.0.0")
        families = {family.name: (family.type, family.documentation) for family in openmetrics(body.decode())}
        assert families == {d.name.removesuffix("_total"): (d.kind, d.help) for d in documented()}
        assert {described.name for described in PULLED} <= families.keys()
        assert encoded(registry, "")[0].decode().count("# TYPE gateway_answers_total counter") == 1


class TestComingAndGoing:
    def test_what_a_member_counted_stays_when_it_leaves(self):
        """Up to its last reading; its gauges go with it."""
        sums = Sums()
        for number in (1, 2):
            sums.join(number)
            sums.take(number, counter(10) + gauge("gateway_tail_bytes", 7))
        sums.leave(1)
        assert shown(sums)["a_total{200}"] == 20
        assert shown(sums)["gateway_tail_bytes"] == 7
        sums.join(3)
        sums.take(3, counter(1) + counter(5, status=204))
        sums.leave(3)
        assert (shown(sums)["a_total{200}"], shown(sums)["a_total{204}"]) == (21, 5)
        assert repr(sums) == "<Sums of 1 members>"

    def test_one_that_does_not_answer_counts_as_before(self):
        """Its gauges are unknown, so they are not shown."""
        sums = Sums()
        sums.join(1)
        sums.take(1, counter(10) + gauge("gateway_tail_bytes", 7))
        sums.missed(1)
        assert shown(sums)["a_total{200}"] == 10
        assert "gateway_tail_bytes" not in shown(sums)

    def test_an_answer_that_is_overtaken_does_not_bring_a_counter_back(self):
        """Two scrapes at once may end in another order than they began."""
        sums = Sums()
        sums.join(1)
        sums.take(1, counter(10))
        sums.take(1, counter(9))
        assert shown(sums)["a_total{200}"] == 10

    def test_an_answer_that_comes_after_its_end_is_overlooked(self):
        """Else it would count twice."""
        sums = Sums()
        sums.join(1)
        sums.take(1, counter(10))
        sums.leave(1)
        sums.take(1, counter(11))
        sums.missed(1)
        assert shown(sums)["a_total{200}"] == 10

    def test_what_is_no_exposition_changes_nothing(self):
        """ValueError, and all as before."""
        sums = Sums()
        sums.join(1)
        sums.take(1, counter(10))
        with pytest.raises(ValueError, match="could not convert"):
            sums.take(1, counter(11) + "b_total x\n")
        assert shown(sums)["a_total{200}"] == 10

    @given(st.text())
    def test_any_text_is_taken_or_refused(self, text):
        """Nothing else comes out of it."""
        sums = Sums()
        sums.join(1)
        try:
            sums.take(1, text)
        except ValueError:
            assert shown(sums).keys() == set()

    @given(st.lists(st.tuples(st.sampled_from(["count", "read", "miss", "die"]), st.integers(0, 2))))
    def test_no_counter_ever_goes_back(self, steps):
        """Whatever happens to three members in whatever order; and what was read is all there."""
        sums = Sums()
        serials = iter(range(1_000))
        counts, numbers = [0, 0, 0], [next(serials) for _ in range(3)]
        read_of, departed = [0, 0, 0], 0
        for number in numbers:
            sums.join(number)
        last = 0.0
        for what, who in steps:
            if what == "count":
                counts[who] += 1
            elif what == "read":
                sums.take(numbers[who], counter(counts[who]))
                read_of[who] = counts[who]
            elif what == "miss":
                sums.missed(numbers[who])
            else:
                sums.leave(numbers[who])
                departed += read_of[who]
                counts[who] = read_of[who] = 0
                numbers[who] = next(serials)
                sums.join(numbers[who])
            now = shown(sums).get("a_total{200}", 0.0)
            assert now == departed + sum(read_of)
            assert now >= last
            last = now
