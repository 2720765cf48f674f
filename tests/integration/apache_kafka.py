"""A real Apache Kafka on loopback for the tests and for `make kafka`: its configuration and its process.

A node is one `java` process in KRaft mode
whose files live in a directory of the caller's. Ports are chosen once and kept over `restart`, so that clients
find the broker where it was.

All methods block; under asyncio use `async with` and `asyncio.to_thread(kafka.restart)`.
"""

# ruff: noqa: T201 - also what `make kafka` runs

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Self

import trustme
from aiokafka.protocol.api import RequestHeader_v1
from aiokafka.protocol.metadata import MetadataRequest_v1, MetadataResponse_v1
from cryptography.hazmat.primitives import serialization
from integration.kafka_jars import KafkaError, fetch, missing
from integration.ports import HOST, free_ports

HERE = Path(__file__).resolve().parent
USERNAME = "alice"
PASSWORD = "alice-secret"
LISTENERS = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL", "PROXIED")

JVM = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
    f"-Dlog4j2.configurationFile={HERE / 'kafka' / 'log4j2.xml'}",
)

PROPERTIES = {
    "auto.create.topics.enable": "false",
    "delete.topic.enable": "true",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Retention and compaction within a test's patience. The first of these is an internal setting of Kafka, 30 s by default.
    "log.initial.task.delay.ms": "100",
    "log.retention.check.interval.ms": "200",
    "log.segment.delete.delay.ms": "100",
    "log.cleaner.backoff.ms": "100",
    "log.cleaner.min.cleanable.ratio": "0.001",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.io.buffer.size": "65536",
    "log.index.size.max.bytes": "1048576",
    # After a SIGKILL the controller refuses a broker until its former session has ended: 9 s by default.
    "broker.session.timeout.ms": "2500",
    "broker.heartbeat.interval.ms": "250",
    "controlled.shutdown.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "3",
    "background.threads": "2",
}


def brokers(address: str, timeout: float = 1.0) -> int:
    """Ask the broker at `address` for its metadata and return how many brokers are up in its cluster.

    Raises OSError when it does not answer within `timeout` seconds.
    """
    host, _, port = address.rpartition(":")
    request = MetadataRequest_v1([])  # an empty list: no topics, just the cluster
    message = RequestHeader_v1(request, correlation_id=1, client_id="test").encode() + request.encode()
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        connection.sendall(struct.pack(">i", len(message)) + message)
        with connection.makefile("rb") as stream:
            head = stream.read(8)
            if len(head) < 8:
                raise ConnectionError("the broker closed the connection")
            size, _ = struct.unpack(">ii", head)
            response = MetadataResponse_v1.decode(BytesIO(stream.read(size - 4)))
    return len(response.brokers) if response.controller_id >= 0 else 0


@dataclass
class Node:
    """One broker process: its number, its ports by listener, its files."""

    number: int
    ports: dict[str, int]
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def address(self, listener: str = "PLAINTEXT") -> str:
        """Return host:port of one of LISTENERS, as the broker advertises it."""
        return f"{HOST}:{self.ports[listener]}"

    @property
    def log(self) -> Path:
        """The file that has the broker's log; it goes on over restarts."""
        return self.directory / "broker.log"


def _finish(nodes: list[Node]) -> None:
    for node in nodes:
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait()


class ApacheKafka:
    """A cluster of one or more KRaft nodes; the first is the controller as well.

    `properties` are added to every node's configuration. `ca.pem` in `directory` verifies the TLS listeners, `client.pem` (key and
    certificate) is one that they accept, USERNAME and PASSWORD are known to PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
    The listener PROXIED advertises a port on which nobody listens: a test starts a TCP proxy on `proxied(…)`.
    """

    def __init__(self, directory: Path, *, nodes: int = 1, properties: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self._properties = dict(properties or {})
        self._cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a")
        used = (*LISTENERS, "CONTROLLER", "BEHIND_PROXY")
        ports = iter(free_ports(nodes * len(used)))
        self.nodes = [
            Node(number, {name: next(ports) for name in used}, directory / f"node-{number}") for number in range(1, nodes + 1)
        ]
        # An interrupted test run leaves no broker behind.
        weakref.finalize(self, _finish, self.nodes)

    @property
    def address(self) -> str:
        """Bootstrap servers of the PLAINTEXT listener, "host:port[,host:port…]"."""
        return self.bootstrap()

    def bootstrap(self, listener: str = "PLAINTEXT") -> str:
        """Return the bootstrap servers of one of LISTENERS."""
        return ",".join(node.address(listener) for node in self.nodes)

    def proxied(self, number: int = 1) -> tuple[int, int]:
        """Return the port that node `number` advertises for PROXIED, and the one to which a proxy there must forward."""
        ports = self.nodes[number - 1].ports
        return ports["PROXIED"], ports["BEHIND_PROXY"]

    @property
    def cafile(self) -> Path:
        """PEM with the authority that signed the brokers' certificates."""
        return self.directory / "ca.pem"

    @property
    def client_certificate(self) -> Path:
        """PEM with key and certificate of a client, signed by the same authority."""
        return self.directory / "client.pem"

    def __repr__(self) -> str:
        states = ("up" if node.process is not None and node.process.poll() is None else "down" for node in self.nodes)
        return f"<ApacheKafka {self.address} {' '.join(states)}>"

    # Life

    def start(self, timeout: float = 60.0) -> Self:
        """Format the storage where that is still to do, start every node and wait until all of them answer.

        Raises KafkaError with the end of the log when they do not within `timeout` seconds.
        """
        classpath = f"{fetch()}/*"
        if not self.cafile.exists():
            self._issue_certificates()
        for node in self.nodes:
            if not node.directory.exists():
                self._format(node, classpath)
        for node in self.nodes:
            if node.process is None:
                self._launch(node, classpath)
        self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until every running node's metadata shows all running nodes."""
        deadline = time.monotonic() + timeout
        running = [node for node in self.nodes if node.process is not None]
        for node in running:
            while self._shown(node) < len(running):
                if node.process is None or node.process.poll() is not None:
                    raise KafkaError(f"node {node.number} has ended:\n{self.tail(node.number)}")
                if time.monotonic() > deadline:
                    raise KafkaError(f"node {node.number} is not ready after {timeout} s:\n{self.tail(node.number)}")
                time.sleep(0.05)

    def kill(self, number: int | None = None) -> None:
        """End one node, or all, with SIGKILL: nothing is flushed, no leader is moved first."""
        self._end(number, signal.SIGKILL)

    def stop(self, number: int | None = None) -> None:
        """End one node, or all, in order."""
        self._end(number, signal.SIGTERM)

    def restart(self, timeout: float = 60.0) -> None:
        """Start the nodes that were killed or stopped, on the same ports and data, and wait until they answer."""
        self.start(timeout)

    def pause(self, number: int | None = None) -> None:
        """Stall one node, or all: connections stay open and nothing answers, until `resume`."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int | None = None) -> None:
        """Let paused nodes go on."""
        self._signal(number, signal.SIGCONT)

    def tail(self, number: int = 1, lines: int = 60) -> str:
        """Return the last lines of a node's log."""
        log = self.nodes[number - 1].log
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    # Parts

    def _chosen(self, number: int | None) -> Iterator[tuple[Node, subprocess.Popen[bytes]]]:
        for node in self.nodes:
            if node.process is not None and number in (None, node.number):
                yield node, node.process

    def _signal(self, number: int | None, sent: signal.Signals) -> None:
        for _, process in self._chosen(number):
            process.send_signal(sent)

    def _end(self, number: int | None, sent: signal.Signals) -> None:
        self._signal(number, signal.SIGCONT)
        self._signal(number, sent)
        for node, process in self._chosen(number):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            node.process = None

    @staticmethod
    def _shown(node: Node) -> int:
        try:
            return brokers(node.address())
        except (OSError, ValueError, struct.error):
            return 0

    def _launch(self, node: Node, classpath: str) -> None:
        command = ["java", *JVM, "-cp", classpath, "kafka.Kafka", str(node.directory / "server.properties")]
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def _format(self, node: Node, classpath: str) -> None:
        node.directory.mkdir(parents=True)
        file = node.directory / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in self._configuration(node).items()))
        command = ["java", *JVM, "-cp", classpath, "kafka.tools.StorageTool", "format"]
        command += ["-t", self._cluster, "-c", str(file)]
        command += ["--standalone"] if node.number == 1 else ["--no-initial-controllers"]
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512") if node.number == 1 else ():
            command += ["--add-scram", f"{mechanism}=[name={USERNAME},password={PASSWORD}]"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(node.directory)
            raise KafkaError(f"formatting the storage failed:\n{done.stdout}")

    def _configuration(self, node: Node) -> dict[str, str]:
        controller = node is self.nodes[0]
        advertised = {name: node.ports[name] for name in LISTENERS}
        listeners = advertised | {"PROXIED": node.ports["BEHIND_PROXY"]}
        if controller:
            listeners["CONTROLLER"] = node.ports["CONTROLLER"]
        protocols = [
            f"{name}:{'PLAINTEXT' if name in ('PROXIED', 'CONTROLLER') else name}" for name in (*LISTENERS, "CONTROLLER")
        ]
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        configuration = {
            "process.roles": "broker,controller" if controller else "broker",
            "node.id": str(node.number),
            "controller.quorum.bootstrap.servers": f"{HOST}:{self.nodes[0].ports['CONTROLLER']}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in advertised.items()),
            "listener.security.protocol.map": ",".join(protocols),
            "log.dirs": str(node.directory / "data"),
            "default.replication.factor": str(min(3, len(self.nodes))),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.directory / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.cafile),
            "listener.name.ssl.ssl.client.auth": "requested",
        }
        for listener in ("sasl_plaintext", "sasl_ssl"):
            prefix = f"listener.name.{listener}"
            configuration[f"{prefix}.plain.sasl.jaas.config"] = f'{plain} required user_{USERNAME}="{PASSWORD}";'
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                configuration[f"{prefix}.{mechanism}.sasl.jaas.config"] = scram
        return configuration | PROPERTIES | self._properties

    def _issue_certificates(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        for name, identity in (("server", HOST), ("client", "client.test")):
            certificate = authority.issue_cert(identity, *(("localhost",) if name == "server" else ()))
            # Java reads keys only as PKCS #8.
            key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), password=None).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            (self.directory / f"{name}.pem").write_bytes(key + chain)
        authority.cert_pem.write_to_path(str(self.cafile))


def main() -> int:
    """Run one node until Ctrl-C; its data are gone afterwards."""
    lack = missing()
    if lack:
        print(f"make kafka: {lack}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Apache Kafka is being fetched and started …", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="kafka-") as directory, contextlib.suppress(KeyboardInterrupt):
        try:
            return _run_until_interrupted(Path(directory))
        except KafkaError as failure:
            print(failure, file=sys.stderr)
            return 1
    return 0


def _run_until_interrupted(directory: Path) -> int:
    with ApacheKafka(directory) as kafka:
        node = kafka.nodes[0]
        print(f"Apache Kafka listens on {kafka.address}, Ctrl-C ends it (its log: {node.log})", flush=True)
        if node.process is not None:
            node.process.wait()
        print(kafka.tail(), file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
