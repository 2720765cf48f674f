"""The README is true: its clients run, and it names every command, option, error code, parameter and metric."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click
import pytest
import requests
import yaml
from waiting import eventually_blocking

from gateway import metrics, wire
from gateway.cli import main
from gateway.config.loading import read
from gateway.config.routes import RouteSection
from gateway.config.section import Section
from gateway.config.sections import ChannelSection
from gateway.config.upstreams import UpstreamSection

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program, ended at the end of the block."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[str, str, str]]:
    """Start what `make run` starts; give the URL, the token and the welcome text."""
    with running("-m", "gateway", "dev", "--port", "0", "--kafka-port", "0") as process:
        assert process.stdout is not None
        welcome = ""
        while "Channels:" not in welcome:
            line = process.stdout.readline()
            assert line, welcome
            welcome += line
        url = re.search(r"(http://127\.0\.0\.1:\d+)/v1/subscribe", welcome)
        token = re.search(r"Bearer ([\w.-]+)", welcome)
        assert url
        assert token
        yield url[1], token[1], welcome


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_the_client_of_the_readme_gets_what_is_published(demo: tuple[str, str, str], library: str, tmp_path: Path) -> None:
    """Each client is about ten lines, and prints a message that was published after it began to wait."""
    url, token, _ = demo
    (program,) = (text for text in blocks("python") if f"import {library}" in text or f", {library}" in text)
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    script = tmp_path / "client.py"
    script.write_text(f"URL, TOKEN = {url!r}, {token!r}\n{program}", encoding="utf-8")
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"

    def parked() -> bool:
        return 'gateway_parked_waiters{channel="news"} 1.0' in session.get(f"{url}/metrics", timeout=5).text

    with session, running(str(script)) as client:
        eventually_blocking(parked, timeout=20)
        stored = session.post(f"{url}/v1/publish", params={"channel": "news"}, json={"from": library}, timeout=10)
        assert stored.status_code == 201
        assert client.stdout is not None
        assert client.stdout.readline() == f"news {{'from': '{library}'}}\n"


def parked_at(url: str) -> bool:
    return 'gateway_parked_waiters{channel="news"} 1.0' in requests.get(f"{url}/metrics", timeout=5).text


def test_the_client_library_as_the_readme_has_it(demo: tuple[str, str, str], tmp_path: Path) -> None:
    """The program prints what is published, and its position is there for the next time."""
    url, token, _ = demo
    (program,) = (text for text in blocks("python") if "import Client" in text)
    script = tmp_path / "client.py"
    given = program.replace("news.position", str(tmp_path / "news.position"))
    script.write_text(f"URL, TOKEN = {url!r}, {token!r}\n{given}", encoding="utf-8")
    with running(str(script)) as client:
        eventually_blocking(lambda: parked_at(url), timeout=20)
        publish(url, token, {"from": "Client"})
        assert client.stdout is not None
        assert client.stdout.readline() == "news {'from': 'Client'}\n"
    assert (tmp_path / "news.position").exists()


def test_the_async_client_as_the_readme_has_it(demo: tuple[str, str, str], tmp_path: Path) -> None:
    """The same for asyncio, from the newest ten on."""
    url, token, _ = demo
    publish(url, token, {"from": "AsyncClient"})
    (program,) = (text for text in blocks("python") if "import AsyncClient" in text)
    head, body = program.split("\n\n", 1)
    lines = "".join(f"    {line}\n" for line in body.replace("message.value)", "message.value, flush=True)").splitlines())
    script = tmp_path / "client.py"
    text = f"import asyncio\nURL, TOKEN = {url!r}, {token!r}\n{head}\nasync def main():\n{lines}\nasyncio.run(main())\n"
    script.write_text(text, encoding="utf-8")
    with running(str(script)) as client:
        assert client.stdout is not None
        assert any("AsyncClient" in client.stdout.readline() for _ in range(10))


def test_the_curl_loop_of_the_readme(demo: tuple[str, str, str], tmp_path: Path) -> None:
    """A shell and curl are enough."""
    url, token, _ = demo
    (program,) = (text for text in blocks("sh") if "poll()" in text)
    variables = {**os.environ, "URL": url, "TOKEN": token}
    command = ["timeout", "30", "sh", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=variables) as loop:
        try:
            for number in range(2):
                eventually_blocking(lambda: parked_at(url), timeout=20)
                publish(url, token, {"from": f"curl {number}"})
                assert loop.stdout is not None
                assert f"curl {number}" in read_some(loop.stdout)
        finally:
            loop.terminate()


def read_some(stream: IO[str]) -> str:
    return os.read(stream.fileno(), 65_536).decode()


def publish(url: str, token: str, value: object) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    stored = requests.post(f"{url}/v1/publish", params={"channel": "news"}, json=value, headers=headers, timeout=10)
    assert stored.status_code == 201


def test_the_lines_to_paste_show_a_message_within_50_ms(demo: tuple[str, str, str]) -> None:
    """A message published with the printed line reaches the parked printed poll, both as printed.

    The best of three counts: what else the machine does at one moment is not the gateway's.
    """
    _, _, welcome = demo
    poll, publish = (line.strip() for line in welcome.splitlines() if line.strip().startswith("curl"))
    assert min(seconds_until_seen(poll, publish) for _ in range(3)) < 0.05


def seconds_until_seen(poll: str, publish: str) -> float:
    """Park the one line, run the other, and return how much later than it the first one ends."""
    url = re.search(r"http://127\.0\.0\.1:\d+", poll)
    assert url

    def parked() -> bool:
        return 'gateway_parked_waiters{channel="news"} 1.0' in requests.get(f"{url[0]}/metrics", timeout=5).text

    with subprocess.Popen(["timeout", "20", "bash", "-c", poll], stdout=subprocess.PIPE, text=True) as waiting:
        eventually_blocking(parked, timeout=20)
        stored = subprocess.run(["timeout", "20", "bash", "-c", publish], stdout=subprocess.PIPE, text=True, check=True)
        began = time.monotonic()
        out, _ = waiting.communicate(timeout=20)
        took = time.monotonic() - began
    assert '"value":{"text":"hello"}' in out
    assert '"cursor"' in stored.stdout
    return took


def test_the_configurations_are_some() -> None:
    """The YAML of the README is accepted as it stands."""
    smallest, routes = blocks("yaml")
    assert set(read(smallest, {}, source="README.md").channels) == set(yaml.safe_load(smallest)["channels"])
    assert set(read(routes, {}, source="README.md").routes) == {"orders", "order-events", "docs"}


def test_every_error_code_is_named() -> None:
    """A client author finds each code, under its status."""
    rows = [line for line in README.splitlines() if line.startswith(("| ", "Reserved"))]
    for code, (status, _) in wire.STATUS.items():
        assert any(f"`{code}`" in row and str(status) in row for row in rows), code


def test_every_metric_is_named() -> None:
    """An operator finds each metric."""
    shown = [*metrics.documented(), *metrics.SUPERVISED]
    missing = [d.name for d in shown if d.name.startswith("gateway_") and f"`{d.name}`" not in README]
    assert not missing


def test_every_command_and_option_is_named() -> None:
    """What --help lists is in the README."""

    def walk(command: click.Command, path: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from () if child.hidden else walk(child, f"{path} {name}")
        else:
            yield path
            for parameter in command.params:
                yield from (option for option in parameter.opts if option.startswith("--") and option != "--config")

    missing = [text for text in walk(main, "gateway") if text not in README]
    assert not missing


def test_every_parameter_of_a_poll_is_named() -> None:
    """The table of the contract is complete."""
    assert all(f"`{name}`" in README for name in wire._SUBSCRIBE)


@pytest.mark.parametrize("section", [ChannelSection, RouteSection, UpstreamSection])
def test_every_key_of_channels_routes_and_upstreams_is_named(section: type[Section]) -> None:
    """Each is in one of the tables, or in the text; what is inside of it is in the annotated example."""
    assert [name for name in section.model_fields if f"`{name}`" not in README] == []


def test_the_make_targets_exist() -> None:
    """Each `make target` that the README names is listed by `make`."""
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout
    for target in set(re.findall(r"`?make (\w+)", README)) - {"alone"}:
        assert f"make {target}" in listed
