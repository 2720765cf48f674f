"""The gateway's dev broker as a process of its own: `python -m bench.dev_broker PORT`."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from gateway.devbroker.server import Broker


async def serve(port: int) -> None:
    """Run until killed."""
    broker = Broker(port=port)
    await broker.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
