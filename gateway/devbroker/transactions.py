"""The transaction coordinator: producer ids and epochs, open transactions, what ends them (sans-I/O).

States follow KIP-98 without its two-phase log: one process holds everything, so a transaction is open or it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.devbroker.codes import Code, Refused

MAX_EPOCH = 2**15 - 1

Place = tuple[str, int]  # topic and partition


@dataclass(slots=True)
class Transaction:
    """One transactional id. `places` are the partitions of the open transaction, `since` when it began (seconds)."""

    transactional_id: str
    producer_id: int
    epoch: int
    timeout: float
    places: set[Place] = field(default_factory=set)
    offsets: dict[str, dict[Place, tuple[int, str | None]]] = field(default_factory=dict)
    since: float | None = None
    last_result: bool | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """A transaction that ends now: where markers go, and the group offsets that count from now on."""

    producer_id: int
    epoch: int
    commit: bool
    places: tuple[Place, ...]
    offsets: dict[str, dict[Place, tuple[int, str | None]]]


class Transactions:
    """All producer ids and transactional ids of a cluster."""

    def __init__(self) -> None:
        self._next_id = 1000
        self._by_name: dict[str, Transaction] = {}
        self._by_producer: dict[int, Transaction] = {}

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def register(
        self, transactional_id: str | None, timeout: float, *, known: tuple[int, int] = (-1, -1)
    ) -> tuple[int, int, Ending | None]:
        """Give a producer its id and epoch, fencing older incarnations; an open transaction of theirs is aborted.

        `known` is the id and epoch that the producer has (KIP-360). `timeout` is in seconds. Returns id, epoch and the abort.
        """
        if transactional_id is None:
            return self._new_id(), 0, None
        found = self._by_name.get(transactional_id)
        if found is None:
            fresh = Transaction(transactional_id, self._new_id(), 0, timeout)
            self._by_name[transactional_id] = self._by_producer[fresh.producer_id] = fresh
            return fresh.producer_id, 0, None
        if known[0] != -1 and known != (found.producer_id, found.epoch):
            raise Refused(Code.PRODUCER_FENCED)
        ending = self._fence(found)
        found.timeout = timeout
        found.last_result = None
        return found.producer_id, found.epoch, ending

    def _fence(self, found: Transaction) -> Ending | None:
        open_now = found.since is not None
        if found.epoch == MAX_EPOCH:
            found.producer_id, found.epoch = self._new_id(), -1
            self._by_producer[found.producer_id] = found
        found.epoch += 1
        return self._end(found, commit=False) if open_now else None

    def _end(self, found: Transaction, *, commit: bool) -> Ending:
        ending = Ending(found.producer_id, found.epoch, commit, tuple(sorted(found.places)), found.offsets)
        found.places, found.offsets, found.since, found.last_result = set(), {}, None, commit
        return ending

    def _find(self, transactional_id: str, producer_id: int, epoch: int) -> Transaction:
        found = self._by_name.get(transactional_id)
        if found is None or found.producer_id != producer_id:
            raise Refused(Code.INVALID_PRODUCER_ID_MAPPING)
        if found.epoch != epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH)
        return found

    def add(self, transactional_id: str, producer_id: int, epoch: int, places: set[Place], now: float) -> None:
        """Put partitions into the open transaction, which begins if there is none; `now` in seconds."""
        found = self._find(transactional_id, producer_id, epoch)
        found.since = now if found.since is None else found.since
        found.places |= places

    def add_offsets(
        self,
        transactional_id: str,
        producer_id: int,
        epoch: int,
        group: str,
        offsets: dict[Place, tuple[int, str | None]],
    ) -> None:
        """Keep group offsets until the transaction commits."""
        found = self._find(transactional_id, producer_id, epoch)
        if found.since is None:
            raise Refused(Code.INVALID_TXN_STATE)
        found.offsets.setdefault(group, {}).update(offsets)

    def end(self, transactional_id: str, producer_id: int, epoch: int, *, commit: bool) -> Ending:
        """Commit or abort. A repeated request with the same result is fine: its first answer may have been lost."""
        found = self._find(transactional_id, producer_id, epoch)
        if found.since is None and found.last_result is not commit:
            raise Refused(Code.INVALID_TXN_STATE)
        return self._end(found, commit=commit)

    def check(self, producer_id: int, epoch: int, place: Place) -> None:
        """Refuse a transactional batch whose partition is not part of its producer's open transaction."""
        found = self._by_producer.get(producer_id)
        if found is None or found.producer_id != producer_id:
            raise Refused(Code.INVALID_PRODUCER_ID_MAPPING)
        if found.epoch != epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH)
        if place not in found.places:
            raise Refused(Code.INVALID_TXN_STATE)

    def expire(self, now: float) -> list[Ending]:
        """Abort what has been open for longer than its time-out, and fence its producer."""
        late = [one for one in self._by_name.values() if one.since is not None and now - one.since > one.timeout]
        return [ending for one in late if (ending := self._fence(one)) is not None]
