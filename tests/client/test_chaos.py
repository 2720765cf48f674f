"""The clients over a network that drops, stalls and cuts, against gateways that are restarted: exactly once, in order.

A short run of the benchmark's; `make bench ARGS=chaos` has one of ten minutes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from bench import chaos, overhead
from bench.broker import KafkaBroker, broker
from bench.processes import Failed
from bench.serving import Missing, Setting
from integration.apache_kafka import ApacheKafka
from integration.kafka_jars import missing


def running_apache(apache: ApacheKafka) -> KafkaBroker:
    """Return the node that all tests share, as the benchmark knows brokers."""
    process = apache.nodes[0].process
    assert process is not None
    return KafkaBroker("apache", apache.address, process.pid)


@pytest.mark.kafka
def test_exactly_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every record is processed once by each of three clients, each ended and begun again in between."""
    names = [name for name in chaos.READERS if name != "javascript" or shutil.which("node") or os.environ.get("CI")]
    with contextlib.ExitStack() as stack:
        if missing():
            kafka = stack.enter_context(broker("dev", tmp_path))
        else:
            kafka = running_apache(request.getfixturevalue("apache_kafka"))
        setting = Setting(kafka, tmp_path)
        figures = chaos.read_all(setting, names, rate=60, seconds=12.0, seed=1, restart_every=3.0, reader_every=4.0)
    for name, each in figures.items():
        assert each["records"] > 300, name
        assert (each["lost"], each["doubled"], each["out_of_order"]) == (0, 0, 0), (name, each)
        assert each["processed"] == each["records"]
    assert sum(each["failures"] for each in figures.values()) > 10
    assert all(each["restarts"] >= 1 and each["faults"] > 10 for each in figures.values())


class TestJudge:
    WRITTEN: Mapping[chaos.Spot, int] = {(0, 0): 1, (0, 1): 2, (1, 0): 3}

    def test_what_is_right(self) -> None:
        """All of it, once, in order."""
        found = chaos.judge(self.WRITTEN, iter([(0, 0, 1, 10**6), (1, 0, 3, 3 * 10**6), (0, 1, 2, 2 * 10**6)]))
        assert (found["processed"], found["lost"], found["doubled"], found["out_of_order"]) == (3, 0, 0, 0)
        assert (found["p50_ms"], found["max_ms"]) == (2.0, 3.0)

    def test_what_is_wrong(self) -> None:
        """Each kind of it is counted."""
        found = chaos.judge(self.WRITTEN, iter([(0, 1, 2, 0), (0, 0, 1, 0), (0, 0, 1, 0)]))
        assert (found["lost"], found["doubled"], found["out_of_order"]) == (1, 1, 2)
        assert chaos.judge(self.WRITTEN, iter([]))["max_ms"] is None

    def test_what_was_never_written(self) -> None:
        """It is no measurement then."""
        with pytest.raises(Failed, match="where Kafka has 1"):
            chaos.judge(self.WRITTEN, iter([(0, 0, 7, 0)]))


def test_without_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JavaScript client is left out with a word."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Missing, match="node"):
        chaos.check(["javascript"])
    chaos.check(["python-sync"])


def test_overhead(tmp_path: Path) -> None:
    """What a client costs is measured beside a bare loop."""
    with broker("dev", tmp_path) as kafka:
        setting = Setting(kafka, tmp_path)
        for name in ("python-async", "httpx"):
            figures = overhead.measure(name, setting, rate=100, seconds=0.5, burst=500)
            assert figures["us_per_message"] > 0
            assert figures["most_per_s"] > 0
