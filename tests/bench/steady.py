"""Steady: messages at a steady rate, on one channel for all clients or each for one client's own channel.

From the sending to the receipt, through Kafka where the server reads it, whether or not the client has asked again in time.
"""

from __future__ import annotations

from typing import Any

from bench import proc
from bench.fleet import fleet
from bench.serving import ServerContext, Setting, Work
from bench.source import source
from bench.window import Window

COLUMNS = {
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "us_per_delivery": "CPU µs/delivery",
    "core_percent": "core %",
    "messages_per_answer": "messages/answer",
    "sent_per_s": "sent/s",
    "stored_p99_ms": "stored in Kafka p99 ms",
    "kafka_percent": "Kafka's core %",
    "load_percent": "load %",
    "lost": "lost",
    "doubled": "doubled",
    "errors": "errors",
    "others_percent": "others on its core %",
    "loop_gap_ms": "loop gap <= ms",
}
WARM_UP_SECONDS = 1.0
PARTITIONS = 4


def measure(
    serve: ServerContext, setting: Setting, *, clients: int, rate: int, size: int, seconds: float, keyed: bool = False
) -> dict[str, Any]:
    """Send at this rate for some seconds and return the figures. Keyed: every client gets the same number of messages."""
    keys = clients if keyed else 0
    count = int(rate * seconds)
    warm_up = keys or max(3, int(rate * WARM_UP_SECONDS))
    if keyed:
        count = -(-count // keys) * keys
    work = Work(clients, keyed=keyed, partitions=PARTITIONS if keyed else 1)
    with (
        serve(setting, work) as server,
        source(server.sink, setting.directory) as messages,
        fleet(server.plan, setting.directory) as crowd,
    ):
        if keyed:
            server.check_burst(clients)
        crowd.connect()
        server.settle()
        last = 1 if keyed else warm_up
        crowd.await_message(last)
        messages.begin("steady", size=size, count=warm_up, rate=rate, keys=keys)
        messages.done(60 + warm_up / rate)
        crowd.reached()
        server.settle()
        last += count // keys if keyed else count
        kafka = proc.cpu([setting.broker.pid])
        with Window(server, crowd) as window:
            crowd.await_message(last)
            messages.begin("steady", size=size, count=count, rate=rate, keys=keys)
            sent = messages.done(60 + count / rate)
            crowd.reached()
        figures = window.figures()
        kafka = proc.cpu([setting.broker.pid]) - kafka
        return {
            **figures,
            "us_per_delivery": figures["cpu_s"] / (window.report.messages or 1) * 1e6,
            "messages_per_answer": window.report.messages / (window.report.answers or 1),
            "sent_per_s": sent["rate"],
            "stored_p99_ms": sent["stored_p99_ms"],
            "kafka_percent": 100 * kafka / window.seconds,
            "producer_behind_ms": sent["behind_ms"],
        }
