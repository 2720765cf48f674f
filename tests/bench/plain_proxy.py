"""The proxy that one would write first with aiohttp, for comparison: `python -m bench.plain_proxy PORT BACKEND-PORT…`.

One client session for all backends, which are asked in turn; bodies are streamed; no identity, limits, retries, checks or metrics.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict

HOP_BY_HOP = (
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)

session: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
origins: web.AppKey[itertools.cycle[str]] = web.AppKey("origins", itertools.cycle)


def end_to_end(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """Return the fields that are not for one connection alone."""
    kept = CIMultiDict(headers)
    for name in HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def forward(request: web.Request) -> web.StreamResponse:
    """Ask the next backend and pass its answer on as it comes."""
    url = next(request.app[origins]) + request.raw_path
    body = request.content if request.can_read_body else None
    headers = end_to_end(CIMultiDict(request.headers))
    async with request.app[session].request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
        response = web.StreamResponse(status=answer.status, headers=end_to_end(CIMultiDict(answer.headers)))
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def connections(app: web.Application) -> AsyncIterator[None]:
    """Keep the session while the server runs."""
    timeout = ClientTimeout(total=75)
    async with ClientSession(
        connector=TCPConnector(limit=0), timeout=timeout, auto_decompress=False, cookie_jar=DummyCookieJar()
    ) as made:
        app[session] = made
        yield


def main() -> None:
    """Serve until SIGTERM."""
    port, *ports = sys.argv[1:]
    uvloop.install()
    app = web.Application()
    app[origins] = itertools.cycle([f"http://127.0.0.1:{each}" for each in ports])
    app.cleanup_ctx.append(connections)
    app.router.add_route("*", "/{rest:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, backlog=4096, handler_cancellation=True)


if __name__ == "__main__":
    main()
