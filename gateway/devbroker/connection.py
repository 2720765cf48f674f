"""One client's connection: requests in, answers out, strictly in order, as Kafka does it.

Order is why a long poll, even one whose client has given up, holds back all that follows on its connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from gateway.devbroker.answers import ANSWERS
from gateway.devbroker.call import Call, Waiting, places
from gateway.devbroker.cluster import Cluster
from gateway.devbroker.faults import Faults
from gateway.devbroker.parking import Parking
from gateway.devbroker.protocol import Body, Frames, ProtocolError, Request, api_versions, read_request, write_response
from gateway.devbroker.schemas import Api

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
# Requests that may wait behind the one that is answered; then the socket is not read.
MAX_PIPELINED = 100


class _Dropped(Exception):
    """A fault closes the connection."""


class Connection:
    """Serves one socket until its peer or a fault ends it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        node_id: int,
        cluster: Cluster,
        faults: Faults,
        parking: Parking,
        counts: Counter[Api],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._node_id = node_id
        self._cluster = cluster
        self._faults = faults
        self._parking = parking
        self._counts = counts
        self._clock = clock
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_PIPELINED)
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Read and answer until the end. Cancelling it closes the connection."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                await self._answer_all()
        except* (_Dropped, ConnectionError) as ended:
            log.debug("connection to node %s ended: %s", self._node_id, ended.exceptions)
        except* ProtocolError as error:
            log.warning("connection to node %s closed: %s", self._node_id, error.exceptions)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once, without what is still to be written."""
        self._writer.transport.abort()

    async def _read(self) -> None:
        frames = Frames()
        try:
            while data := await self._reader.read(READ_BYTES):
                for frame in frames.feed(data):
                    await self._frames.put(frame)
        finally:
            # What was received before the end is still processed (a producer with acks=0 may have left), but nobody waits.
            self._gone.set_result(None)
            if not self._frames.full():
                self._frames.put_nowait(None)

    async def _answer_all(self) -> None:
        while (frame := await self._frames.get()) is not None:
            request = read_request(frame, self._cluster.newest)
            self._counts[request.api] += 1
            body = await self._answer(request)
            if body is not None and not self._gone.done():
                self._writer.write(write_response(request, body))
                await self._writer.drain()
            if self._gone.done() and self._frames.empty():
                return

    async def _answer(self, request: Request) -> Body | None:
        named = list(places(request.body))
        await self._misbehave(request.api, named)
        body = await self._body(request, named)
        if (fault := self._faults.find("lose", request.api, self._node_id, named)) is not None:
            fault.count()
            raise _Dropped
        if request.api is Api.PRODUCE and request.body["required_acks"] == 0:
            return None
        return body

    async def _misbehave(self, api: Api, named: list[tuple[str | None, int | None]]) -> None:
        if (fault := self._faults.find("drop", api, self._node_id, named)) is not None:
            fault.count()
            raise _Dropped
        if (fault := self._faults.find("slow", api, self._node_id, named)) is not None:
            fault.count()
            await asyncio.sleep(fault.seconds)
        await self._stalled(api, named)

    async def _stalled(self, api: Api, named: list[tuple[str | None, int | None]]) -> bool:
        """Wait for as long as a stall matches; tell whether there was one."""
        stalled = False
        while (fault := self._faults.find("stall", api, self._node_id, named)) is not None:
            stalled = True
            fault.count()
            await fault.wait_released()
        return stalled

    async def _body(self, request: Request, named: list[tuple[str | None, int | None]]) -> Body | None:
        if request.version is None:
            return api_versions(supported=False, newest=self._cluster.newest)
        answer = ANSWERS[request.api](self._call(request, request.version))
        return await self._wait(answer, request.api, named) if isinstance(answer, Waiting) else answer

    def _call(self, request: Request, version: int) -> Call:
        def fault(topic: str | None, partition: int | None) -> int:
            return self._faults.code(request.api, self._node_id, topic, partition)

        return Call(self._cluster, self._node_id, request.api, version, request.client_id, request.body, self._clock(), fault)

    async def _wait(self, answer: Waiting, api: Api, named: list[tuple[str | None, int | None]]) -> Body | None:
        """Return an answer when it is there, or when its time is over; None when the peer is gone.

        Between the look and the parking there is no await, so no change can fall between them.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + answer.seconds
        while not self._gone.done():
            left = end - loop.time()
            body = answer.look(left <= 0)
            if body is None:
                await self._parking.wait(answer.places, left, self._gone)
            elif not await self._stalled(api, named):
                return body
        return None
