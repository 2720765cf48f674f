"""The JavaScript client as it is served: in Node, and in Chromium on a page of another origin, both against a live gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from livegateway import Background, background, token
from waiting import eventually_blocking

TYPES = Path(__file__).parents[2] / "gateway" / "javascript"


def needed(*programs: str) -> str:
    """Return the path of the first of these that is there; skip, but not in CI."""
    for program in programs:
        if (path := shutil.which(program)) is not None:
            return path
    if os.environ.get("CI"):
        pytest.fail(f"{programs[0]} must be there in CI")
    pytest.skip(f"there is no {programs[0]}")


PROGRAM = """
import { Client, Forbidden, Unauthorized } from "%(module)s";

export async function main({ url, good, bad }) {
  const told = { values: [] };
  const client = new Client(url, { token: async () => good });
  const subscription = client.subscribe("news", { wait: 5 });
  const reading = (async () => {
    for await (const { value } of subscription) {
      told.values.push(value);
      if (told.values.length < 6) await client.publish("news", told.values.length);
      else subscription.stop();
    }
  })();
  while (subscription.cursor === null) await new Promise((resolve) => setTimeout(resolve, 10));
  const { partition, offset, cursor } = await client.publish("news", 0, { key: "k" });
  told.published = [partition, offset, cursor].map((each) => typeof each);
  await reading;
  const batch = await client.publishBatch("news", [1, "two"]);
  told.batch = batch.results.length;
  told.standing = (await client.cursor(batch.cursor, "news")).channels[0].state;
  told.channels = (await client.channels()).channels.some(({ channel }) => channel === "news");
  told.counters = { ...subscription.counters };

  const stranger = new Client(url, { token: bad });
  told.refused = await stranger.channels().catch((error) => [error instanceof Unauthorized, error.code, error.message]);
  told.forbidden = await client.publish("alerts", "x").catch((error) => [error instanceof Forbidden, error.code]);

  const stopped = client.subscribe("news", { wait: 50 });
  const waiting = stopped.next();
  while (stopped.cursor === null) await new Promise((resolve) => setTimeout(resolve, 10));
  const controller = new AbortController();
  const aborted = client.subscribe("news", { wait: 50, signal: controller.signal });
  const alsoWaiting = aborted.next();
  while (aborted.cursor === null) await new Promise((resolve) => setTimeout(resolve, 10));
  stopped.stop();
  controller.abort();
  told.stopped = [(await waiting).done, (await alsoWaiting).done];
  await client.close();
  return told;
}
"""


class Site:
    """A site of its own: the page, the program, and where the page tells what came of it."""

    def __init__(self, pages: dict[str, tuple[str, str]]) -> None:
        self.told: list[Any] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, text = pages.get(self.path, ("text/plain", ""))
                self.send_response(200 if self.path in pages else 404)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_POST(self) -> None:
                site.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Watch:
    """A wire to the gateway on which requests are counted by their line; on the gateway's own loop."""

    def __init__(self, gateway: Background) -> None:
        self.port = 0
        self.lines: list[str] = []
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._gateway.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.run(self._close())

    def count(self, method: str) -> int:
        return sum(line.startswith(f"{method} /v1/subscribe") for line in self.lines)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self._gateway.port)
            try:
                await asyncio.gather(self._pump(reader, back, watched=True), self._pump(onward, writer, watched=False))
            finally:
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, watched: bool) -> None:
        while data := await source.read(65_536):
            if watched:
                self.lines += [line.decode("latin-1") for line in data.split(b"\r\n") if line.endswith(b" HTTP/1.1")]
            sink.write(data)
            await sink.drain()
        sink.close()


@contextmanager
def world(origin: str) -> Iterator[tuple[Background, Watch]]:
    with background(cors={"origins": [origin]}) as gateway, Watch(gateway) as watch:
        yield gateway, watch


def arguments(watch: Watch) -> dict[str, str]:
    return {"url": f"http://127.0.0.1:{watch.port}", "good": token("ann", scope="publish"), "bad": "nobody"}


def check(told: dict[str, Any]) -> None:
    """Look at what came of the program, which is the same wherever it runs."""
    assert told["values"] == [0, 1, 2, 3, 4, 5]
    assert told["published"] == ["number", "number", "string"]
    assert told["batch"] == 2
    assert told["standing"] == "good"
    assert told["channels"] is True
    assert told["counters"]["messages"] == 6
    assert told["counters"]["failures"] == 0
    assert told["refused"] == [True, "token_invalid", "401 token_invalid: The token could not be verified."]
    assert told["forbidden"] == [True, "forbidden"]
    assert told["stopped"] == [True, True]


def test_in_node(tmp_path: Path) -> None:
    """As the gateway serves it, which is where a program may get it from."""
    program = needed("node")
    with world("http://unused.test") as (_, watch):
        given = arguments(watch)
        fetch = f"""
const text = await (await fetch("{given["url"]}/v1/client.js")).text();
const {{ writeFileSync }} = await import("node:fs");
writeFileSync("longpoll.mjs", text);
const {{ main }} = await import("./program.mjs");
console.log(JSON.stringify(await main({json.dumps(given)})));
"""
        (tmp_path / "program.mjs").write_text(PROGRAM % {"module": "./longpoll.mjs"})
        (tmp_path / "start.mjs").write_text(fetch)
        run = subprocess.run([program, "start.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr
        check(json.loads(run.stdout))


def test_in_a_browser(tmp_path: Path) -> None:
    """From another origin: the module, the polls with their cursor, what is exposed; two preflights serve all polls."""
    program = needed("chromium", "chromium-browser", "google-chrome")
    pages: dict[str, tuple[str, str]] = {}
    with Site(pages) as site, world(site.origin) as (_, watch):
        given = arguments(watch)
        pages["/program.js"] = ("text/javascript", PROGRAM % {"module": f"{given['url']}/v1/client.js"})
        pages["/"] = (
            "text/html",
            f"""<!doctype html><script type="module">
            const tell = (what) => fetch("/told", {{ method: "POST", body: JSON.stringify(what) }});
            try {{
              const {{ main }} = await import("/program.js");
              await tell(await main({json.dumps(given)}));
            }} catch (error) {{
              await tell({{ error: String(error.stack ?? error) }});
            }}
        </script>""",
        )
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path}", f"{site.origin}/",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                eventually_blocking(lambda: site.told, timeout=60)
            finally:
                browser.terminate()
        assert "error" not in site.told[0], site.told[0]["error"]
        check(site.told[0])
        assert watch.count("GET") >= 8
        # One for `wait=0`, one for each length of time that a poll is held: 5 and 50 seconds here.
        assert watch.count("OPTIONS") <= 3


def test_the_types_name_what_there_is() -> None:
    """Every export has its type, and nothing has one that is not there."""
    source, types = ((TYPES / name).read_text() for name in ("longpoll.js", "longpoll.d.ts"))
    exported = {line.split()[2] for line in source.splitlines() if line.startswith("export class")}
    declared = {line.split()[2].partition("<")[0] for line in types.splitlines() if line.startswith("export class")}
    assert exported == declared
