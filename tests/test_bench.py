"""The benchmark itself: its load generator compiles, and finds nothing lost in servers that lose nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from bench import broadcast
from bench.broker import broker
from bench.catalog import SERVERS
from bench.histogram import middle, percentile
from bench.results import medians
from bench.serving import Setting
from bench.window import largest_gap

CLIENTS = 20


@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler")
def test_a_broadcast_reaches_everybody_exactly_once(tmp_path: Path):
    """Clients of the load generator get every message from the gateway, and from the plain server that it is compared with."""
    with broker("dev", tmp_path) as kafka:
        for name in ("gateway", "aiohttp"):
            figures = broadcast.measure(SERVERS[name], Setting(kafka, tmp_path), clients=CLIENTS, size=64, seconds=1.0)
            assert {fault: figures[fault] for fault in ("lost", "doubled", "errors")} == {"lost": 0, "doubled": 0, "errors": 0}
            assert figures["messages"] == CLIENTS * figures["cycles"] > 0
            assert 0 < figures["us_per_delivery"] < 1e6


def test_percentiles_come_out_of_the_histogram_that_the_load_generator_fills():
    """A place stands for the middle of its values: 1 µs wide up to 128, then twice as wide for each power of two."""
    assert [middle(index) for index in (0, 63, 64, 127, 128, 192)] == [0, 63, 64, 127, 128.5, 257.5]
    histogram = {10: 90, 64: 9, 128: 1}
    assert [percentile(histogram, share) for share in (0.5, 0.9, 0.99, 1.0)] == [10, 10, 64, 128.5]
    assert percentile({}, 0.5) is None


def test_no_fault_hides_behind_a_median():
    """Rounds are combined by the median; losses, doubles and errors are added up."""
    rows = [
        {
            "scenario": "s",
            "server": "a",
            "parameters": {},
            "figures": {"p50_ms": value, "lost": lost, "doubled": 0, "errors": 1},
        }
        for value, lost in ((3.0, 0), (1.0, 5), (2.0, 0))
    ]
    (row,) = medians(rows)
    assert row["figures"] == {"p50_ms": 2.0, "lost": 5, "doubled": 0, "errors": 3}
    assert row["rounds"] == 3


def test_the_largest_gap_is_the_highest_bucket_that_grew():
    """The buckets of a histogram are cumulative."""
    before = {0.001: 5.0, 0.01: 6.0, 0.1: 7.0}
    assert largest_gap(before, {0.001: 9.0, 0.01: 11.0, 0.1: 12.0}) == 10.0
    assert largest_gap(before, before) is None
