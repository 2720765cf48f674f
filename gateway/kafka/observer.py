"""What the Kafka side reports for metrics: facts, no Prometheus."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Receives facts as they happen; its methods must be quick and must not raise."""

    def kafka_error(self, name: str) -> None:
        """Count an error by its stable name: Kafka's own (NOT_LEADER_FOR_PARTITION) or UNREACHABLE, STALLED, CORRUPT, …."""

    def fetched(self, topic: str, partition: int, *, records: int, size: int, lag: int, unstable: int) -> None:
        """Note what a live fetch brought: records, bytes on the wire; also when only `unstable` changed.

        `lag` is the number of offsets below the last stable one that are still to be fetched, `unstable` the number of
        offsets above it (open transactions).
        """

    def cold_read(self, topic: str, *, records: int, size: int) -> None:
        """Count one block that the archive fetched: records, bytes on the wire."""

    def cold_hit(self, topic: str) -> None:
        """Count one block that the archive's cache gave."""

    def skipped(self, topic: str, partition: int, start: int, end: int) -> None:
        """Report that [start, end) was given up because it cannot be decoded: these records are lost to readers."""

    def connected(self, up: bool) -> None:
        """Report whether brokers answer; called at every change."""

    def produced(self, topic: str, *, records: int, size: int) -> None:
        """Count records, and bytes of keys and values, that Kafka has acknowledged."""


class Silent:
    """An observer that looks away."""

    def kafka_error(self, name: str) -> None:
        """Ignore."""

    def fetched(self, topic: str, partition: int, *, records: int, size: int, lag: int, unstable: int) -> None:
        """Ignore."""

    def cold_read(self, topic: str, *, records: int, size: int) -> None:
        """Ignore."""

    def cold_hit(self, topic: str) -> None:
        """Ignore."""

    def skipped(self, topic: str, partition: int, start: int, end: int) -> None:
        """Ignore."""

    def connected(self, up: bool) -> None:
        """Ignore."""

    def produced(self, topic: str, *, records: int, size: int) -> None:
        """Ignore."""
