"""The Kafka broker of a run, on the load's core: Apache Kafka where it can run, else the gateway's dev broker."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bench.processes import LOAD_CORE, Failed, on_core, running, wait_until
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from integration.apache_kafka import ApacheKafka
from integration.kafka_jars import missing
from integration.ports import free_ports

TESTS = Path(__file__).parents[1]
Kind = Literal["auto", "apache", "dev"]
# The tests' node deletes old records within a second; here topics are as Kafka's own defaults make them.
CALM = {"log.retention.check.interval.ms": "300000", "log.initial.task.delay.ms": "30000", "log.cleaner.backoff.ms": "15000"}


class KafkaBroker:
    """A running broker. `kind` says which it is, `title` to people."""

    def __init__(self, kind: str, address: str, pid: int) -> None:
        self.kind = kind
        self.address = address
        self.pid = pid
        self.title = "Apache Kafka" if kind == "apache" else "the dev broker"
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 0})

    def topic(self, partitions: int = 1) -> str:
        """Make a topic with a name of its own."""
        name = f"bench-{uuid.uuid4().hex[:8]}"
        try:
            self._admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
        except KafkaException as error:
            raise Failed(f"no topic could be made: {error}") from error
        wait_until(lambda: self._partitions(name) == partitions, f"the topic {name}")
        return name

    def delete(self, topic: str) -> None:
        """Delete a topic that is not needed any more; nobody minds if the broker is already gone."""
        with contextlib.suppress(KafkaException, TimeoutError):
            self._admin.delete_topics([topic])[topic].result(5)

    def warm_up(self, seconds: float = 5.0) -> None:
        """Write and read for some seconds: a fresh JVM is far slower, and the first server would be measured with that."""
        topic = self.topic()
        common = {"bootstrap.servers": self.address, "log_level": 0}
        producer = Producer({**common, "linger.ms": 0})
        consumer = Consumer({**common, "group.id": "bench", "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10})
        consumer.assign([TopicPartition(topic, 0, 0)])
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            producer.produce(topic, b"x" * 64)
            producer.poll(0)
            consumer.poll(0.001)
        producer.flush(10)
        consumer.close()
        self.delete(topic)

    def _partitions(self, name: str) -> int:
        topics = self._admin.list_topics(timeout=10).topics
        return len(topics[name].partitions) if name in topics else 0


@contextlib.contextmanager
def broker(kind: Kind, directory: Path) -> Iterator[KafkaBroker]:
    """Run a broker; "auto" takes Apache Kafka if Java and Maven are there."""
    lack = missing() if kind != "dev" else None
    if kind == "apache" and lack:
        raise Failed(lack)
    if kind == "dev" or lack:
        with _dev(directory) as started:
            yield started
        return
    with on_core(LOAD_CORE), ApacheKafka(directory / "kafka", properties=CALM) as kafka:
        process = kafka.nodes[0].process
        if process is None:
            raise AssertionError("a node that was started has a process")
        started = KafkaBroker("apache", kafka.address, process.pid)
        started.warm_up()
        yield started


@contextlib.contextmanager
def _dev(directory: Path) -> Iterator[KafkaBroker]:
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "bench.dev_broker", str(port)]
    with running(command, core=LOAD_CORE, cwd=TESTS, log=directory / "broker.log", stdout=subprocess.PIPE) as process:
        if process.stdout is None or not process.stdout.readline():
            raise Failed("the dev broker did not start")
        yield KafkaBroker("dev", f"127.0.0.1:{port}", process.pid)
