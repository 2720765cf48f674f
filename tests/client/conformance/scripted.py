"""A server that follows scripts: what each request has to be, and byte for byte what comes back. Used by `cases`.

Many scripts are played at the same time, each below a path of its own. A script is a list of exchanges, one for each request in
order; when it is over, further requests are held until the client goes. What was not as expected is kept and told by `faults`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Exchange = Mapping[str, Any]
_REASONS = {200: "OK", 201: "Created", 204: "No Content", 307: "Temporary Redirect", 429: "Too Many Requests"}
_RESET = struct.pack("ii", 1, 0)


class Script:
    """One script on its way. `asked`: the requests so far, `faults`: what was not as it should be."""

    def __init__(self, exchanges: list[Exchange], *, cut: int | None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.connections = 0
        self._exchanges = exchanges
        self._cut = cut
        self._answered = 0.0

    @property
    def is_over(self) -> bool:
        """Whether every exchange has had its request."""
        return len(self.asked) >= len(self._exchanges)

    def next(self, request: dict[str, Any], words: Mapping[str, str]) -> Exchange | None:
        """Note a request; return how it is to be answered, None: not at all."""
        at = len(self.asked)
        waited = time.monotonic() - self._answered
        self.asked.append(request)
        if at >= len(self._exchanges):
            return None
        exchange = self._exchanges[at]
        for name, wanted in exchange.get("expect", {}).items():
            given = waited if name == "waited" else _said(request, name)
            good = given >= wanted if name == "waited" else given == _filled(wanted, words)
            if not good:
                self.faults.append(f"request {at}: {name} is {given!r}, not {wanted!r}")
        return exchange

    def cut_of(self, exchange: Exchange) -> Any:
        """Return after how many bytes an answer is cut; None: it is not."""
        return self._cut if exchange.get("cut") == "every byte" else exchange.get("cut")

    def answered(self) -> None:
        """Note that an answer is out, for the time until the next request."""
        self._answered = time.monotonic()


def _said(request: Mapping[str, Any], name: str) -> Any:
    if name in ("method", "path", "body", "query"):
        return request[name]
    if name in request["query"]:
        values = request["query"][name]
        return values[0] if len(values) == 1 else values
    return request["headers"].get(name.lower())


def _filled(text: Any, words: Mapping[str, str]) -> Any:
    if isinstance(text, str):
        for word, value in words.items():
            text = text.replace("${" + word + "}", value)
    return text


def whole(exchange: Exchange, words: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of an answer."""
    if "raw" in exchange:
        return str(_filled(exchange["raw"], words or {})).replace("\n", "\r\n").encode("latin-1")
    fields = {str(name): str(_filled(value, words or {})) for name, value in exchange.get("headers", {}).items()}
    status, body = int(exchange.get("status", 200)), b""
    if "messages" in exchange or "lost" in exchange:
        envelopes = [_envelope(message) for message in exchange.get("messages", [])]
        document = {"cursor": exchange["cursor"], "messages": envelopes, "up_to_date": exchange.get("up_to_date", True)}
        if "lost" in exchange:
            document["lost"] = [
                dict(zip(("channel", "partition", "from", "to"), entry, strict=True)) for entry in exchange["lost"]
            ]
        body = json.dumps(document).encode()
        fields = {"Content-Type": "application/json"} | fields
    elif "json" in exchange:
        body = json.dumps(exchange["json"]).encode()
        fields = {"Content-Type": "application/json"} | fields
    elif "code" in exchange:
        problem = {"type": "about:blank", "title": "No", "status": status, "code": exchange["code"]} | exchange.get(
            "problem", {}
        )
        body = json.dumps(problem).encode()
        fields = {"Content-Type": "application/problem+json"} | fields
    elif "body" in exchange:
        body = str(exchange["body"]).encode()
    if status == 204 and "cursor" in exchange:
        fields["Next-Cursor"] = exchange["cursor"]
    if status != 204:  # RFC 9110 §8.6: a 204 has no length
        fields = {"Content-Length": str(len(body) + exchange.get("longer", 0))} | fields
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'So')}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in fields.items()
    )
    return head.encode() + b"\r\n" + body


def _envelope(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        return {"channel": "news", "partition": 0, "timestamp": 1, "key": None, "headers": []} | dict(message)
    channel, partition, offset, value = message if len(message) == 4 else ("news", *message)
    return {
        "channel": channel, "partition": partition, "offset": offset, "timestamp": 1795334400000, "key": None, "headers": [],
        "value": value,
    }  # fmt: skip


class ScriptedServer:
    """The server, on a thread of its own; a context manager. `other`: the origin of another port, which is a fault to ask."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted")
        self._stop: asyncio.Event
        self._serving: Any = None
        self.port = self.other = 0

    def __enter__(self) -> Self:
        self._thread.start()
        started = threading.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(started), self._loop)
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._serving.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def play(self, name: str, exchanges: list[Exchange], *, cut: int | None = None) -> tuple[Script, str]:
        """Begin a script; return it and the URL that a client is to be given."""
        script = self._scripts[name] = Script(exchanges, cut=cut)
        return script, f"http://127.0.0.1:{self.port}/{name}"

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._converse(reader, writer)
            finally:
                tasks.discard(task)
                writer.transport.abort()

        async with (
            await asyncio.start_server(accept, "127.0.0.1", 0) as server,
            await asyncio.start_server(accept, "127.0.0.1", 0) as second,
        ):
            self.port = server.sockets[0].getsockname()[1]
            self.other = second.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            second.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known: set[str] = set()
        while True:
            request = await _read(reader)
            name = request["path"].split("/")[1]
            script = self._scripts[name]
            if writer.get_extra_info("sockname")[1] != self.port:
                script.faults.append("the other origin was asked")
            if name not in known:
                known.add(name)
                script.connections += 1
            request["path"] = request["path"].removeprefix(f"/{name}")
            words = {
                "base": f"http://127.0.0.1:{self.port}/{name}",
                "other": f"http://127.0.0.1:{self.other}/{name}",
                "name": name,
            }
            exchange = script.next(request, words)
            if exchange is None:
                await reader.read(1)  # the client goes
                return
            if not await self._answer(script, exchange, words, reader, writer):
                return

    async def _answer(
        self,
        script: Script,
        exchange: Exchange,
        words: Mapping[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Answer as the script says; return whether the connection goes on."""
        data = whole(exchange, words)
        if "delay" in exchange:
            await asyncio.sleep(exchange["delay"])
        if "drip" in exchange:
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await writer.drain()
                await asyncio.sleep(exchange["drip"])
        if "stall" in exchange:
            writer.write(data[: exchange["stall"]])
            await writer.drain()
            script.answered()
            await reader.read(1)
            return False
        cut = script.cut_of(exchange)
        if "drip" not in exchange:
            writer.write(data if cut is None else data[:cut])
        await writer.drain()
        script.answered()
        if cut is None and not exchange.get("close"):
            return True
        if exchange.get("reset"):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            writer.close()
            await writer.wait_closed()
        return False


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return {
        "method": method,
        "path": parts.path,
        "query": parse_qs(parts.query, keep_blank_values=True),
        "headers": headers,
        "body": body.decode(),
    }
