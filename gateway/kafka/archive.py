"""The archive: what lies before the tails, read in blocks that many readers share.

Theory of operation. Where a block of bounded bytes ends is known only after it was read, so blocks cannot be aligned
beforehand. Instead a *shelf* (one partition's blocks) remembers boundaries: a read begins at the end of the block before it,
or at an offset aligned down to a coarse grid, and a block is cut where the next known one begins. Chains of readers that
start anywhere so fall onto the same boundaries after one step.

Loads are single-flight: they belong to the archive and not to the reader that asked first, so a reader that leaves disturbs
nobody. Each leader has a few connections for them, and a load holds one until its records are decoded: that bounds the bytes
in the air, and one dead leader does not delay the others. A reader that goes through block after block has the next one
loaded ahead, and in larger steps: brokers cut an answer off in the middle of a batch, and what of it came in vain comes again.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gateway.errors import BrokerUnavailable
from gateway.kafka.cluster import Cluster
from gateway.kafka.connect import Backoff, Pool, Unreachable
from gateway.kafka.fetch import Corrupt, Decoder, Fetch, Pacer, Part, Position, decode
from gateway.kafka.observer import Observer
from gateway.kafka.requests import EARLIEST, LATEST, OFFSET_OUT_OF_RANGE, error_name
from gateway.records import Block, Record, cost_of_history

log = logging.getLogger(__name__)

_GRID: Final = 512
_STRIKES: Final = 3
_BLOCK_OVERHEAD: Final = 300
# A block that follows another one is so many times as large: of batches of a megabyte, hardly a tenth is read twice.
_STRIDE: Final = 4
# While others are live, a slice of decoding is no longer than this, in seconds.
_SLICE: Final = 0.002
# Brokers answer at once with what they have on disk; this is the time that they get for remote storage.
_MAX_WAIT: Final = 0.5


class _Retry(Exception):
    """Why one attempt failed; another one may not."""


class Shelf:
    """One partition's cached blocks and loads under way."""

    __slots__ = ("blocks", "dropped", "loads", "log_start", "partition", "starts", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.starts: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.loads: dict[int, asyncio.Task[Block]] = {}
        self.log_start = 0
        self.dropped = False

    def __repr__(self) -> str:
        held = " ".join(f"{start}..{self.blocks[start].end}" for start in self.starts)
        return f"<Shelf {self.topic}-{self.partition} {held or 'empty'}>"

    def find(self, offset: int) -> Block | None:
        """Return the block that holds `offset`."""
        block = self._before(offset)
        return block if block is not None and offset < block.end else None

    def load_of(self, offset: int) -> asyncio.Task[Block] | None:
        """Return a load that probably brings `offset`."""
        near = [start for start in self.loads if offset - offset % _GRID <= start <= offset]
        return self.loads[max(near)] if near else None

    def start_for(self, offset: int) -> int:
        """Return where a block that holds `offset` should begin."""
        block = self._before(offset)
        return max(offset - offset % _GRID, self.log_start, block.end if block is not None else 0)

    def follows(self, start: int) -> bool:
        """Tell whether a block ends exactly where `start` is: then a reader came from there."""
        block = self._before(start - 1)
        return block is not None and block.end == start

    def cut(self, block: Block) -> Block:
        """Return what of a new block lies before the next known one."""
        index = bisect_right(self.starts, block.start)
        if index == len(self.starts) or self.starts[index] >= block.end:
            return block
        end = self.starts[index]
        return replace(block, end=end, records=[record for record in block.records if record.offset < end])

    def put(self, block: Block) -> None:
        """Keep a block; none with its start may be there."""
        insort(self.starts, block.start)
        self.blocks[block.start] = block

    def remove(self, start: int) -> None:
        """Give a block up."""
        if self.blocks.pop(start, None) is not None:
            self.starts.remove(start)

    def _before(self, offset: int) -> Block | None:
        index = bisect_right(self.starts, offset)
        return self.blocks[self.starts[index - 1]] if index else None


class Archive:
    """Reads blocks, and keeps those that were used last.

    `max_bytes` bounds the cache (by the cost of records), `block_bytes` one block on the wire, four times that where a reader
    goes on from one block to the next (softly: a single batch comes whole). `patience` bounds one read in seconds, `timeout`
    one request. `urge` asks for metadata soon.
    """

    def __init__(
        self,
        cluster: Cluster,
        observer: Observer,
        *,
        max_bytes: int = 256 * 2**20,
        block_bytes: int = 2**20,
        connections_per_leader: int = 3,
        patience: float = 5.0,
        timeout: float = 5.0,
        urge: Callable[[], None] = lambda: None,
    ) -> None:
        self.cost = 0
        self._cluster = cluster
        self._observer = observer
        self._max_bytes = max_bytes
        self._block_bytes = block_bytes
        self._per_leader = connections_per_leader
        self._patience = patience
        self._timeout = timeout
        self._urge = urge
        self._shelves: dict[tuple[str, int], Shelf] = {}
        self._pools: dict[int, Pool] = {}
        self._costs: OrderedDict[tuple[Shelf, int], int] = OrderedDict()
        self._closed = False

    def __repr__(self) -> str:
        loads = sum(len(shelf.loads) for shelf in self._shelves.values())
        return f"<Archive {len(self._costs)} blocks, {self.cost} bytes, {loads} loading>"

    async def read(self, topic: str, partition: int, offset: int, until: int) -> Block:
        """Return the block that holds `offset`; see `KafkaLog.read`. Cancelling is safe and disturbs no other reader."""
        shelf = self._shelves.get((topic, partition))
        if shelf is None:
            shelf = self._shelves[topic, partition] = Shelf(topic, partition)
        if offset < shelf.log_start:
            return _above(await self._read(shelf, shelf.log_start, until), shelf.log_start)
        return await self._read(shelf, offset, until)

    def forget(self, topic: str) -> None:
        """Drop all blocks of a topic: its log is not the one that they were read from."""
        for place in [place for place in self._shelves if place[0] == topic]:
            shelf = self._shelves.pop(place)
            shelf.dropped = True
            for start in list(shelf.starts):
                self._evict((shelf, start))

    async def close(self) -> None:
        """End all loads; readers get BrokerUnavailable."""
        self._closed = True
        loads = [load for shelf in self._shelves.values() for load in shelf.loads.values()]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    # --- inside ---

    async def _read(self, shelf: Shelf, offset: int, until: int) -> Block:
        block = shelf.find(offset)
        if block is not None:
            self._costs.move_to_end((shelf, block.start))
            self._observer.cold_hit(shelf.topic)
        else:
            block = await self._loaded(shelf, offset)
        self._read_ahead(shelf, block, offset, until)
        return block

    async def _loaded(self, shelf: Shelf, offset: int) -> Block:
        load, start = shelf.load_of(offset), None
        if load is None:
            start = shelf.start_for(offset)
            load = self._load(shelf, start, offset)
        block = await self._outcome(load)
        if block.end <= offset and start != offset:
            # Records so large that the grid's step is more than a block, or a load that began before `offset` was stable.
            block = await self._outcome(shelf.loads.get(offset) or self._load(shelf, offset, offset))
        return block if offset < block.end else replace(block, start=offset, end=offset, records=[])

    async def _outcome(self, load: asyncio.Task[Block]) -> Block:
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if load.cancelled():
                raise BrokerUnavailable from None
            raise

    def _load(self, shelf: Shelf, start: int, offset: int) -> asyncio.Task[Block]:
        if self._closed:
            raise BrokerUnavailable
        # The archive owns the task: it stands in `loads` until it is done, and `close` ends it.
        load = asyncio.get_running_loop().create_task(self._bring(shelf, start, offset))
        shelf.loads[start] = load
        load.add_done_callback(lambda done: _forget_load(shelf, start, done))
        return load

    def _read_ahead(self, shelf: Shelf, block: Block, offset: int, until: int) -> None:
        goes_on = (offset == block.start and shelf.follows(offset)) or 2 * offset >= block.start + block.end
        if not goes_on or not offset < block.end < min(until, block.stable_end):
            return
        node = self._cluster.leader(shelf.topic, shelf.partition)
        free = node is not None and not (node in self._pools and self._pools[node].busy)
        if free and not self._closed and shelf.find(block.end) is None and shelf.load_of(block.end) is None:
            self._load(shelf, block.end, block.end)

    async def _bring(self, shelf: Shelf, start: int, offset: int) -> Block:
        """Get the block that begins at `start`, if need be in several attempts; BrokerUnavailable after `patience`."""
        backoff = Backoff(0.05, 1.0)
        reason: Exception | None = None
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        return await self._attempt(shelf, start, offset, backoff.failures)
                    except (_Retry, Unreachable) as error:
                        reason = error
                    self._urge()
                    await asyncio.sleep(backoff.next())
        except TimeoutError as error:
            log.info("%s-%d: no cold read at %d: %s", shelf.topic, shelf.partition, start, reason or "no answer")
            raise BrokerUnavailable from reason or error

    async def _attempt(self, shelf: Shelf, start: int, offset: int, failures: int) -> Block:
        place = (shelf.topic, shelf.partition)
        node = self._cluster.leader(*place)
        if node is None:
            raise _Retry("no leader")
        if node not in self._pools:
            self._pools[node] = Pool(self._per_leader)
        async with self._pools[node].slot() as number:
            part = await self._fetch(shelf, node, start, number)
            if part.error == OFFSET_OUT_OF_RANGE:
                low, high = await self._bounds(shelf)
                shelf.log_start = max(shelf.log_start, low)
                if start > high:
                    return Block(offset, offset, [], low, high)
                start = max(start, low)
                part = await self._fetch(shelf, node, start, number)
            if not part.data and start < part.stable_end:
                await self._check_hole(shelf, node, part, number)
            return await self._decode(shelf, part, start, failures)

    async def _check_hole(self, shelf: Shelf, node: int, part: Part, number: int) -> None:
        """Raise unless compaction has removed all that was left up to the end of the log.

        Remote storage that is slow gives nothing as well, without an error; but it never holds a compacted topic, nor the last
        record of any (KIP-405).
        """
        last = await self._fetch(shelf, node, part.stable_end - 1, number)
        if last.data:
            raise _Retry("nothing came although there is more")

    async def _fetch(self, shelf: Shelf, node: int, start: int, number: int) -> Part:
        size = self._block_bytes * (_STRIDE if shelf.follows(start) else 1)
        request = Fetch(
            [Position(shelf.topic, shelf.partition, start)], max_wait=_MAX_WAIT, max_bytes=size, partition_max_bytes=size
        )
        parts: list[Part] = await self._cluster.send(
            node, request, group=("archive", number), timeout=self._timeout, exclusive=True
        )
        if not parts:
            raise _Retry("throttled")
        if parts[0].error and parts[0].error != OFFSET_OUT_OF_RANGE:
            self._observer.kafka_error(error_name(parts[0].error))
            raise _Retry(error_name(parts[0].error))
        return parts[0]

    async def _bounds(self, shelf: Shelf) -> tuple[int, int]:
        place = (shelf.topic, shelf.partition)
        low = (await self._cluster.list_offsets([place], EARLIEST))[place]
        high = (await self._cluster.list_offsets([place], LATEST))[place]
        if low.error or high.error:
            raise _Retry(low.error or high.error)
        return low.offset, high.offset

    async def _decode(self, shelf: Shelf, part: Part, start: int, failures: int) -> Block:
        if part.error:
            raise _Retry(error_name(part.error))
        shelf.log_start = max(shelf.log_start, part.log_start)
        records: list[Record] = []
        cost = _BLOCK_OVERHEAD

        def take(more: list[Record], _: int) -> bool:
            nonlocal cost
            records.extend(more)
            cost += cost_of_history(more)
            return True

        decoder = await decode(part, start, take, Pacer(_SLICE))
        self._observer.cold_read(shelf.topic, records=len(records), size=len(part.data))
        end = self._end(shelf, part, decoder, failures)
        if decoder.corrupt is not None and not decoder.moved:
            records.append(Record.hole(max(start, decoder.corrupt.start), end))
        return self._keep(shelf, Block(start, end, records, max(part.log_start, 0), part.stable_end), cost)

    def _end(self, shelf: Shelf, part: Part, decoder: Decoder, failures: int) -> int:
        if not part.data:
            return max(decoder.next, part.stable_end)
        if decoder.corrupt is not None and not decoder.moved:
            return self._skip(shelf, decoder.corrupt, failures)
        if not decoder.moved:
            raise _Retry("a batch came in part only")
        return decoder.next

    def _skip(self, shelf: Shelf, corrupt: Corrupt, failures: int) -> int:
        """Give up a batch that could not be read several times (see `feed`)."""
        self._observer.kafka_error("CORRUPT_BATCH")
        if failures < _STRIKES - 1:
            raise _Retry(corrupt.reason)
        log.error(
            "%s-%d: offsets %d to %d cannot be read and are skipped: %s",
            shelf.topic, shelf.partition, corrupt.start, corrupt.end - 1, corrupt.reason,
        )  # fmt: skip
        self._observer.skipped(shelf.topic, shelf.partition, corrupt.start, corrupt.end)
        return corrupt.end

    def _keep(self, shelf: Shelf, whole: Block, cost: int) -> Block:
        block = shelf.cut(whole)
        if shelf.dropped or block.end == block.start:
            return block
        if block is not whole:
            cost = _BLOCK_OVERHEAD + cost_of_history(block.records)
        self._evict((shelf, block.start))
        shelf.put(block)
        self._costs[shelf, block.start] = cost
        self.cost += cost
        while self.cost > self._max_bytes:
            self._evict(next(iter(self._costs)))
        return block

    def _evict(self, key: tuple[Shelf, int]) -> None:
        self.cost -= self._costs.pop(key, 0)
        key[0].remove(key[1])


def _forget_load(shelf: Shelf, start: int, load: asyncio.Task[Block]) -> None:
    if shelf.loads.get(start) is load:
        del shelf.loads[start]
    if not load.cancelled():
        load.exception()  # nobody may be left to hear it


def _above(block: Block, log_start: int) -> Block:
    """Return a block as the reader of an older offset must see it: from the log start on, which is not a hole but a loss."""
    if block.start >= log_start:
        return block
    records = [record for record in block.records if record.offset >= log_start]
    return replace(block, start=log_start, log_start=log_start, records=records)
