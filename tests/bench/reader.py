"""A reader that processes records with the Python client: `python -m bench.reader sync|async|plain URL CHANNEL STORE LINES`.

For each record it appends a line to the file LINES: partition, offset, the record's number, and nanoseconds since it was written.
It says `ready` on standard output when it has its first position; after SIGTERM it ends in order and tells its counters as JSON.
With LINES `-` it writes nothing, and with STORE `-` keeps nothing: that is what the client itself costs. `plain` is a bare loop
over httpx, to compare with.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import httpx

from gateway.client import AsyncClient, Client, Counters, FileStore, Message, Retry

RETRY = Retry(base=0.1, cap=1.0)
LIMIT = 1_000


class Lines:
    """Where processed records go."""

    def __init__(self, file: str) -> None:
        self._stack = ExitStack()
        self._file = None if file == "-" else self._stack.enter_context(open(file, "a", buffering=1))  # noqa: PTH123, SIM115

    def process(self, message: Message) -> None:
        """Write a line, whole and at once."""
        if self._file is not None:
            late = time.time_ns() - message.value["t"]
            self._file.write(f"{message.partition} {message.offset} {message.value['n']} {late}\n")

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


def say(what: Any) -> None:
    """Tell whoever started this."""
    print(what if isinstance(what, str) else json.dumps(what), flush=True)  # noqa: T201


def options(store: str) -> dict[str, Any]:
    """Return what a subscription is to be like."""
    return {"store": None if store == "-" else FileStore(store, durable=False), "wait": 20, "limit": LIMIT}


def read_sync(url: str, channel: str, store: str, lines: Lines) -> Counters:
    """Read with a thread."""
    with Client(url, os.environ["GATEWAY_TOKEN"], retry=RETRY) as client:
        subscription = client.subscribe(channel, **options(store))
        signal.signal(signal.SIGTERM, lambda *_: subscription.stop())
        threading.Thread(target=_tell_ready, args=(subscription,), daemon=True).start()
        with subscription:
            for message in subscription:
                lines.process(message)
        return subscription.counters


def _tell_ready(subscription: Any) -> None:
    while subscription.cursor is None:
        time.sleep(0.005)
    say("ready")


async def read_async(url: str, channel: str, store: str, lines: Lines) -> Counters:
    """Read with a task."""
    async with AsyncClient(url, os.environ["GATEWAY_TOKEN"], retry=RETRY) as client:
        subscription = client.subscribe(channel, **options(store))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, subscription.stop)
        threading.Thread(target=_tell_ready, args=(subscription,), daemon=True).start()
        async with subscription:
            async for message in subscription:
                lines.process(message)
        return subscription.counters


async def read_plain(url: str, channel: str) -> Counters:
    """Read with nothing but httpx and json: what cannot be had for less."""
    counters, stopping = Counters(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    headers = {"Authorization": f"Bearer {os.environ['GATEWAY_TOKEN']}"}
    query: dict[str, Any] = {"channel": channel, "wait": 0, "limit": LIMIT}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        while not stopping.is_set():
            answer = (await client.get("/v1/subscribe", params=query)).raise_for_status()
            counters.polls += 1
            if answer.status_code == httpx.codes.OK:
                for _ in json.loads(answer.content)["messages"]:
                    counters.messages += 1
            if query["wait"] == 0:
                say("ready")
            query |= {"wait": 1, "cursor": answer.headers["Next-Cursor"]}
    return counters


def main() -> None:
    """Read until SIGTERM."""
    kind, url, channel, store, file = sys.argv[1:]
    lines = Lines(file)
    if kind == "plain":
        counters = asyncio.run(read_plain(url, channel))
    elif kind == "sync":
        counters = read_sync(url, channel, store, lines)
    else:
        counters = asyncio.run(read_async(url, channel, store, lines))
    lines.close()
    say(asdict(counters))


if __name__ == "__main__":
    main()
