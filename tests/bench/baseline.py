"""The plain aiohttp server that one would write first, for comparison: `python -m bench.baseline PORT BOOTSTRAP TOPIC`.

One list of messages and one future per waiter for each channel, no identity, no limits, no metrics. A record goes to the channel
that its key names, without a key to the channel `all`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import orjson
import uvloop
from aiohttp import web
from aiokafka import AIOKafkaConsumer

KEPT = 1_000


class Channel:
    """The newest messages, and who waits for the next one. A cursor is the number of messages before it."""

    def __init__(self) -> None:
        self.messages: list[object] = []
        self.first = 0
        self.waiters: set[asyncio.Future[None]] = set()

    @property
    def end(self) -> int:
        """The cursor behind the newest message."""
        return self.first + len(self.messages)

    def append(self, message: object) -> None:
        """Take a message and wake everybody."""
        self.messages.append(message)
        if len(self.messages) > 2 * KEPT:
            del self.messages[:KEPT]
            self.first += KEPT
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    async def wait(self, seconds: float) -> None:
        """Wait for the next message, or until the time is over."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            self.waiters.discard(waiter)


channels: defaultdict[str, Channel] = defaultdict(Channel)


async def subscribe(request: web.Request) -> web.Response:
    """Answer with all messages behind the cursor as soon as there is one."""
    channel = channels[request.query["channel"]]
    cursor = int(request.query.get("cursor", channel.end))
    wait = float(request.query.get("wait", 30))
    if cursor >= channel.end and wait:
        await channel.wait(wait)
    messages = channel.messages[max(0, cursor - channel.first) :]
    headers = {"Next-Cursor": str(channel.end)}
    if not messages:
        return web.Response(status=204, headers=headers)
    return web.json_response({"messages": messages}, headers=headers, dumps=lambda answer: orjson.dumps(answer).decode())


async def consume(app: web.Application) -> AsyncIterator[None]:
    """Read the topic while the server runs."""
    bootstrap, topic = app["kafka"]
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="latest")
    await consumer.start()
    await consumer.seek_to_end()

    async def read() -> None:
        async for record in consumer:
            channels[record.key.decode() if record.key else "all"].append(orjson.loads(record.value))

    reading = asyncio.create_task(read())
    yield
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await consumer.stop()


def main() -> None:
    """Serve until SIGTERM."""
    port, bootstrap, topic = sys.argv[1:]
    uvloop.install()
    app = web.Application()
    app["kafka"] = bootstrap, topic
    app.cleanup_ctx.append(consume)
    app.router.add_get("/subscribe", subscribe)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, backlog=4096, handler_cancellation=True)


if __name__ == "__main__":
    main()
