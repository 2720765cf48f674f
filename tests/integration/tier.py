"""A pytest plugin with the brokers that tests run against: `broker` gives each case the dev broker and Apache Kafka in turn."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from integration.apache_kafka import ApacheKafka
from integration.brokers import ApacheHandle, BrokerHandle
from integration.dev_broker import DevHandle
from integration.kafka_jars import KafkaError, fetch, missing

NOT_RUN = "not run against Apache Kafka"
KAFKA = pytest.StashKey[ApacheKafka]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Get Apache Kafka before the first test, outside of its time limit; in CI its absence ends the run."""
    if not any(item.get_closest_marker("kafka") for item in items):
        return
    lack = missing()
    if lack is None:
        try:
            fetch()
        except KafkaError as failure:
            raise pytest.UsageError(str(failure)) from failure
    elif os.environ.get("CI"):
        raise pytest.UsageError(f"the tests against Apache Kafka must run in CI: {lack}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the broker's log with a failure of a test that used it, and all skipped ones as one line."""
    report = yield
    kafka = item.session.stash.get(KAFKA, None)
    if report.failed and kafka is not None and item.get_closest_marker("kafka"):
        report.sections.append(("Apache Kafka's log", kafka.tail()))
    if report.skipped and isinstance(report.longrepr, tuple) and NOT_RUN in report.longrepr[2]:
        # pytest folds what was skipped at the same place for the same reason.
        report.longrepr = ("tests", 0, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def apache_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One node of Apache Kafka for the whole session. Tests that use it carry the mark `kafka`."""
    lack = missing()
    if lack:
        pytest.skip(f"{NOT_RUN}: {lack}")
    with ApacheKafka(tmp_path_factory.mktemp("apache-kafka")) as kafka:
        request.session.stash[KAFKA] = kafka
        yield kafka


@pytest.fixture
async def apache(apache_kafka: ApacheKafka) -> AsyncIterator[ApacheHandle]:
    """Apache Kafka with no topic but the test's own; killed by a test, it is up again for the next."""
    async with ApacheHandle(apache_kafka) as handle:
        yield handle


@pytest.fixture
async def dev() -> AsyncIterator[DevHandle]:
    """Start the dev broker in this process, a new one for each test."""
    async with DevHandle() as handle:
        yield handle


@pytest.fixture(params=["dev", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> BrokerHandle:
    """Run the test against the dev broker and again against Apache Kafka."""
    return request.getfixturevalue(request.param)
