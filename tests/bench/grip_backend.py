"""The smallest backend that pushpin can hold long polls for: `python -m bench.grip_backend PORT CONTROL-PORT`.

It keeps the newest messages of each channel. A poll that lacks some gets them at once; any other is answered with the
instruction to hold it (GRIP's `Grip-Hold: response`) until the message behind the poll's cursor is published. The ids of
messages let pushpin find out whether one came in between, so nothing is lost. No framework, so that pushpin's own work is what is
measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import orjson
import uvloop

KEPT = 1_000
HOLD_SECONDS = 55


def answer(body: bytes, **headers: str) -> bytes:
    """Return an answer with these header fields, whose names have underscores for hyphens."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Channels:
    """The messages; `publish` gets each one, as pushpin's control port takes it."""

    def __init__(self, publish: Callable[[bytes], None]) -> None:
        self._publish = publish
        self._messages: defaultdict[str, list[bytes]] = defaultdict(list)
        self._ends: defaultdict[str, int] = defaultdict(int)

    def poll(self, channel: str, cursor: str | None) -> bytes:
        """Answer a poll; the first one has no cursor and is not held."""
        end = self._ends[channel]
        lacking = 0 if cursor is None else end - int(cursor)
        if cursor is not None and not lacking:
            hold = f"{channel}; prev-id={end}"
            return answer(b"", Grip_Hold="response", Grip_Channel=hold, Grip_Timeout=str(HOLD_SECONDS), Next_Cursor=str(end))
        return answer(b"".join(self._messages[channel][-lacking:]) if lacking else b"", Next_Cursor=str(end))

    def append(self, channel: str, message: bytes) -> bytes:
        """Take a message."""
        self._messages[channel] = [*self._messages[channel][-KEPT:], message]
        end = self._ends[channel] = self._ends[channel] + 1
        formats = {"http-response": {"headers": {"Next-Cursor": str(end)}, "body": message.decode()}}
        item = {"channel": channel, "id": str(end), "prev-id": str(end - 1), "formats": formats}
        self._publish(orjson.dumps({"items": [item]}))
        return answer(b"")


class Connection(asyncio.Protocol):
    """A connection of pushpin's, or of the producer's; requests come one after the other."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].decode()
            size = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
            if len(self._data) < end + 4 + size:
                return
            body, self._data = self._data[end + 4 : end + 4 + size], self._data[end + 4 + size :]
            self._transport.write(self._answer(head, body))

    def _answer(self, head: str, body: bytes) -> bytes:
        method, target, _ = head.split(" ", 2)
        query = parse_qs(urlsplit(target).query)
        if method == "POST":
            return self._channels.append(query["id"][0], body)
        return self._channels.poll(query["id"][0], query.get("cursor", [None])[0])


class Control:
    """Publishes to pushpin, one message after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._items: asyncio.Queue[bytes] = asyncio.Queue()
        self.publish = self._items.put_nowait

    async def run(self) -> None:
        """Publish until cancelled. A connection is opened anew when pushpin closes it."""
        while True:
            item = await self._items.get()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            head = f"POST /publish/ HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {len(item)}\r\n\r\n"
            writer.write(head.encode() + item)
            said = await reader.read()
            writer.close()
            if not said.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"pushpin refused a message: {said!r}")


async def serve(port: int, control_port: int) -> None:
    """Serve until killed."""
    control = Control(control_port)
    channels = Channels(control.publish)
    await asyncio.get_running_loop().create_server(lambda: Connection(channels), "127.0.0.1", port, backlog=4096)
    await control.run()


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
