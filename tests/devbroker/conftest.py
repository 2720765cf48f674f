"""A broker, a client that speaks bare structs, and a way to ask without any socket."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from typing import Any

import pytest
from aiokafka.protocol.types import TaggedFields

from gateway.devbroker.answers import ANSWERS
from gateway.devbroker.call import Call, Waiting
from gateway.devbroker.cluster import Cluster, Node
from gateway.devbroker.protocol import Frames, Request, named, positional, read_request, write_response
from gateway.devbroker.schemas import VERSIONS, Api
from gateway.devbroker.server import Broker


def encoded_request(api: Api, version: int, body: dict[str, Any], correlation_id: int = 7) -> bytes:
    """Encode a request as a client does, without its length."""
    schemas = VERSIONS[api][version]
    head = struct.pack(">hhih", api, version, correlation_id, 4) + b"test"
    if schemas.flexible:
        head += TaggedFields.encode({})
    return head + schemas.request.encode(positional(schemas.request, body))


def decoded_response(api: Api, version: int, frame: bytes) -> dict[str, Any]:
    """Decode an answer as a client does; nothing may be left over."""
    schemas = VERSIONS[api][version]
    data = BytesIO(frame)
    data.read(4)
    if schemas.flexible and api is not Api.API_VERSIONS:
        TaggedFields.decode(data)
    values = [field.decode(data) for field in schemas.response.fields]
    assert not data.read()
    return named(schemas.response, values)


class RawClient:
    """One connection; requests may be pipelined."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, api: Api, version: int, **body: Any) -> dict[str, Any]:
        self.send(api, version, **body)
        return await self.answer(api, version)

    def send(self, api: Api, version: int, **body: Any) -> None:
        self.send_frame(encoded_request(api, version, body))

    def send_frame(self, frame: bytes) -> None:
        self.writer.write(struct.pack(">i", len(frame)) + frame)

    async def answer(self, api: Api, version: int) -> dict[str, Any]:
        async with asyncio.timeout(10):
            size = struct.unpack(">i", await self.reader.readexactly(4))[0]
            return decoded_response(api, version, await self.reader.readexactly(size))

    async def closed(self) -> bool:
        """Wait until the broker has closed the connection."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                return not await self.reader.read()
            return True


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as running:
        yield running


@pytest.fixture
async def connect() -> AsyncIterator[Callable]:
    """Connect a raw client to a broker's node (by index)."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(to: Broker, index: int = 0) -> RawClient:
            host, port = to.addresses[index].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))

            async def close() -> None:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

            stack.push_async_callback(close)
            return RawClient(reader, writer)

        yield start


@pytest.fixture
def cluster() -> Cluster:
    """Two nodes, no topics; ids count up."""
    ids = iter(range(1, 1000))
    fresh = Cluster(new_id=lambda: next(ids).to_bytes(16, "big"))
    for node_id in (1, 2):
        fresh.nodes[node_id] = Node(node_id, "localhost", 9000 + node_id)
    return fresh


@pytest.fixture
def ask(cluster: Cluster) -> Callable[..., Any]:
    """Ask the answers themselves: the body goes through the encoding of its version in both directions.

    A waiting answer is given back as it is, with `decode` to decode its body.
    """

    def put(
        api: Api,
        version: int,
        *,
        node: int = 1,
        now: float = 1000.0,
        fault: Callable[[str | None, int | None], int] = lambda _topic, _partition: 0,
        last: bool | None = None,
        **body: Any,
    ) -> Any:
        request = read_request(encoded_request(api, version, body))
        call = Call(cluster, node, api, version, request.client_id, request.body, now, fault)
        answer = ANSWERS[api](call)

        def through(found: dict[str, Any]) -> dict[str, Any]:
            frame = Frames().feed(write_response(Request(api, version, 1, "test", {}), found))[0]
            return decoded_response(api, version, frame)

        if isinstance(answer, Waiting):
            if last is None:
                return Waiting(
                    lambda over: None if (b := answer.look(over)) is None else through(b), answer.places, answer.seconds
                )
            found = answer.look(last)
            return None if found is None else through(found)
        return through(answer)

    return put
