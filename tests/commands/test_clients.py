"""The commands that talk to a gateway: tail, publish, channels and cursor, in pipes, on a terminal, and when things go wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from client.conformance.scripted import ScriptedServer
from livegateway import Background, background, token
from waiting import eventually_blocking

from gateway.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    """Run one gateway for all."""
    generous = {"rate": 10_000, "burst": 100_000}
    with background(limits={"publishes": generous, "polls": generous, "address": generous}) as running:
        yield running


def env(gateway: Background, given: str | None = None) -> dict[str, str]:
    return {"GATEWAY_URL": f"http://127.0.0.1:{gateway.port}", "GATEWAY_TOKEN": given or token("ann", scope="publish")}


def call(gateway: Background, *words: str, given: str | None = None, text: str | bytes | None = None) -> Result:
    """Call a command in this process."""
    return CliRunner().invoke(main, list(words), env=env(gateway, given), input=text)


@contextmanager
def started(gateway: Background, *words: str, **given: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a process of its own."""
    command = [sys.executable, "-m", "gateway", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | given
    with subprocess.Popen(command, text=True, cwd=ROOT, env={**os.environ, **env(gateway)}, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def parked(gateway: Background, count: int) -> bool:
    return gateway.run(_parked(gateway)) == count


async def _parked(gateway: Background) -> float:
    metrics = await gateway.live.metrics()
    return sum(value for name, value in metrics.items() if name.startswith("gateway_parked_waiters"))


class TestPublish:
    def test_one_value(self, gateway: Background) -> None:
        """It says where the message is."""
        result = call(gateway, "publish", "news", '{"a": 1}')
        assert re.fullmatch(r"partition \d+, offset \d+, cursor [\w-]+\n", result.stdout), result.output
        assert result.exit_code == 0
        document = json.loads(call(gateway, "publish", "news", "2", "--json").stdout)
        assert sorted(document) == ["cursor", "offset", "partition"]

    def test_other_forms(self, gateway: Background) -> None:
        """Text as it is, bytes from base64, and nothing at all for a key."""
        assert call(gateway, "publish", "notes", "plain words", "--form", "text").exit_code == 0
        assert call(gateway, "publish", "blobs", "AAH/", "--form", "binary").exit_code == 0
        assert call(gateway, "publish", "news", "--tombstone", "--key", "k").exit_code == 0

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["{"], "expected JSON"),
            (["?", "--form", "binary"], "expected base64"),
            (["[" * 100_000], "nested too deep"),
            (["--tombstone"], "expected --key"),
            (["1", "--tombstone", "--key", "k"], "expected one of"),
            (["1", "--url", "localhost"], "expected the gateway's URL"),
            (["1", "--token-file", "/none"], "No such file"),
            (["1", "--token", "a", "--token-file", "/none"], "expected one of them"),
            (["1", "--token", "a b"], "expected a token"),
        ],
    )
    def test_usage(self, gateway: Background, words: list[str], said: str) -> None:
        """What cannot be meant is told before anything is sent."""
        result = call(gateway, "publish", "news", *words)
        assert result.exit_code == 2
        assert said in result.stderr

    def test_lines(self, gateway: Background) -> None:
        """Lines of standard input, several in a request; what is wrong is told with its number, and the rest goes on."""
        result = call(gateway, "publish", "news", "--batch", "2", "--json", text=b'1\nno\n\n{"b":2}\n\xff\n3\n')
        assert result.exit_code == 1
        assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1, 4, 6]
        assert "line 2: expected JSON" in result.stderr
        assert "line 5: " in result.stderr
        assert "3 messages stored, 2 refused" in result.stderr

    def test_lines_that_the_gateway_refuses(self, gateway: Background) -> None:
        """Those that pass here and not there have its reason."""
        result = call(gateway, "publish", "news", "--form", "text", text="words\n")
        assert result.exit_code in (0, 1)
        result = call(gateway, "publish", "blobs", text='"no base64"\n')
        assert result.exit_code == 1
        assert "line 1: body_invalid" in result.stderr

    def test_a_file_at_a_rate(self, gateway: Background, tmp_path: Path) -> None:
        """So many a second, by the clock of the whole."""
        file = tmp_path / "lines"
        file.write_text("".join(f"{number}\n" for number in range(30)))
        result = call(gateway, "publish", "news", "--file", str(file), "--rate", "100")
        assert result.exit_code == 0
        seconds = re.search(r"30 messages stored in ([\d.]+) s", result.stderr)
        assert seconds
        assert float(seconds[1]) >= 0.2

    def test_refused(self, gateway: Background) -> None:
        """Not allowed is an exit code of its own."""
        result = call(gateway, "publish", "alerts", '"x"')
        assert (result.exit_code, result.stderr) == (3, "gateway: 403 forbidden: The token does not allow this.\n")

    def test_a_bar_on_a_terminal(self, gateway: Background, tmp_path: Path) -> None:
        """Where somebody looks, a bar tells how far it is."""
        file = tmp_path / "lines"
        file.write_text("1\n" * 300)
        shown = on_terminal(gateway, "publish", "news", "--file", str(file), "--rate", "500")
        assert "messages" in shown
        assert "300 messages stored" in shown
        assert "\x1b[" in shown


def on_terminal(gateway: Background, *words: str, until: str | None = None) -> str:
    """Run a command on a terminal of its own; return what was shown, up to `until`, where it is interrupted, or to its end."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, **env(gateway), "TERM": "xterm-256color", "COLUMNS": "100"}
    variables.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "gateway", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = ""
    try:
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            shown += data.decode(errors="replace")
            if until is not None and until in shown:
                process.send_signal(signal.SIGINT)
                until = None
    finally:
        process.wait(20)
        os.close(ours)
    return shown


class TestTail:
    def test_no_further_than_the_end(self, gateway: Background) -> None:
        """A line a message, with time, channel, place and value."""
        call(gateway, "publish", "notes", "some words", "--form", "text")
        result = call(gateway, "tail", "notes", "--from", "-1", "--no-follow")
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} notes \d+/\d+ some words\n", result.stdout), result.output
        assert result.exit_code == 0

    def test_json(self, gateway: Background) -> None:
        """The envelopes of the gateway, one a line."""
        call(gateway, "publish", "news", "--tombstone", "--key", "k")
        (line,) = call(gateway, "tail", "news", "--from", "-1", "--no-follow", "--json").stdout.splitlines()
        assert json.loads(line) | {"partition": 0, "offset": 0, "timestamp": 0} == {
            "channel": "news", "partition": 0, "offset": 0, "timestamp": 0, "key": "k", "headers": [], "value": None,
            "tombstone": True,
        }  # fmt: skip

    def test_control_characters_do_nothing(self, gateway: Background) -> None:
        """A message cannot drive the terminal that shows it."""
        call(gateway, "publish", "notes", "a\x1b[2Jb\rc", "--form", "text")
        assert "a\\x1b[2Jb\\rc\n" in call(gateway, "tail", "notes", "--from", "-1", "--no-follow").stdout

    def test_what_is_not_in_the_format(self, gateway: Background) -> None:
        """Bytes are shown as base64, and marked."""
        call(gateway, "publish", "news", '"x"', "--key", "key-1")
        assert " key-1 x\n" in call(gateway, "tail", "news", "--from", "-1", "--no-follow").stdout

    def test_so_many(self, gateway: Background) -> None:
        """--count ends it."""
        call(gateway, "publish", "news", text="1\n2\n3\n")
        assert len(call(gateway, "tail", "news", "--from", "-3", "--count", "2").stdout.splitlines()) == 2

    def test_a_store(self, gateway: Background, tmp_path: Path) -> None:
        """It goes on where it was ended."""
        words = ("tail", "news", "--no-follow", "--store", str(tmp_path / "position"))
        assert call(gateway, *words).stdout == ""
        call(gateway, "publish", "news", '"one"')
        assert call(gateway, *words).stdout.endswith(" one\n")
        assert call(gateway, *words).stdout == ""
        assert call(gateway, *words, "--from", "latest", "--cursor", "?").exit_code == 2

    def test_a_damaged_store(self, gateway: Background, tmp_path: Path) -> None:
        """It is told, and left alone."""
        file = tmp_path / "position"
        file.write_text("{")
        result = call(gateway, "tail", "news", "--store", str(file))
        assert result.exit_code == 1
        assert "remove it to begin anew" in result.stderr

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
    def test_signals_end_it_in_order(self, gateway: Background, tmp_path: Path, number: signal.Signals, code: int) -> None:
        """It comes as it comes, and at the end the position is stored."""
        file = tmp_path / "position"
        with started(gateway, "tail", "news", "--store", str(file)) as process:
            eventually_blocking(lambda: parked(gateway, 1))
            call(gateway, "publish", "news", '"now"')
            assert process.stdout is not None
            assert process.stdout.readline().endswith(" now\n")
            eventually_blocking(lambda: parked(gateway, 1))
            process.send_signal(number)
            assert process.communicate(timeout=20) == ("", "")
            assert process.returncode == code
        assert json.loads(file.read_text())["channels"] == ["news"]

    def test_a_pipe_that_closes(self, gateway: Background) -> None:
        """Whoever reads has seen enough: no trace, no complaint."""
        call(gateway, "publish", "news", text="1\n" * 50)
        with started(gateway, "tail", "news", "--from", "-50") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            call(gateway, "publish", "news", text="1\n" * 2000)
            assert process.wait(20) == 1
            assert process.stderr.read() == ""

    def test_a_cut_and_a_gateway_that_is_away_for_a_while(self, gateway: Background) -> None:
        """It goes on by itself, and misses nothing."""
        with ScriptedServer() as server:
            first = {"status": 204, "cursor": "c1"}
            one, two = ({"messages": [[0, number, f"m{number}"]], "cursor": f"d{number}"} for number in (1, 2))
            script, address = server.play("tail", [first, {**one, "cut": 90}, {"status": 503, "code": "draining"}, one, two])
            result = call(gateway, "tail", "news", "--count", "2", "--url", address)
        assert [line.split()[-1] for line in result.stdout.splitlines()] == ["m1", "m2"]
        assert [request["headers"].get("cursor") for request in script.asked] == [None, "c1", "c1", "c1", "d1"]

    def test_on_a_terminal(self, gateway: Background) -> None:
        """In colours, with a line of rates, and at the end the way to go on."""
        call(gateway, "publish", "news", '"bright"')
        shown = on_terminal(gateway, "tail", "news", "--from", "-1", until="bright")
        assert "\x1b[36m news" in shown
        assert " a second" in shown
        assert "To go on: gateway tail news --cursor " in shown

    def test_what_was_refused(self, gateway: Background) -> None:
        """Exit code 3, in one line."""
        assert call(gateway, "tail", "secret").exit_code == 3
        result = call(gateway, "tail", "news", given="nobody")
        assert (result.exit_code, result.stderr) == (3, "gateway: 401 token_invalid: The token could not be verified.\n")

    def test_a_token_from_a_file(self, gateway: Background, tmp_path: Path) -> None:
        """The file is meant more than the variable."""
        file = tmp_path / "token"
        file.write_text(token("ann") + "\n")
        assert call(gateway, "tail", "news", "--no-follow", "--token-file", str(file), given="nobody").exit_code == 0

    @pytest.mark.parametrize("words", [["--from", "yesterday"], ["--cursor", "a b"]])
    def test_usage(self, gateway: Background, words: list[str]) -> None:
        """What cannot be asked for is the caller's mistake."""
        assert call(gateway, "tail", "news", *words).exit_code == 2


class TestAsking:
    def test_channels(self, gateway: Background) -> None:
        """A table, or the answer as it is."""
        shown = call(gateway, "channels").stdout
        assert re.search(r"^news +read, publish +json", shown, re.MULTILINE)
        assert {each["channel"] for each in json.loads(call(gateway, "channels", "--json").stdout)["channels"]} >= {"news"}

    def test_a_cursor(self, gateway: Background) -> None:
        """Where it stands in each partition, and what is to be said of it."""
        cursor = json.loads(call(gateway, "publish", "news", "1", "--json").stdout)["cursor"]
        result = call(gateway, "cursor", cursor, "--channel", "news", "--channel", "notes")
        assert result.exit_code == 0
        assert re.search(r"^channel +partition +offset +log start +end +lag +lost$", result.stdout, re.MULTILINE)
        assert "notes: the cursor says nothing of it" in result.stdout
        assert json.loads(call(gateway, "cursor", cursor, "--channel", "news", "--json").stdout)["dropped"] == 0

    def test_a_cursor_that_is_none(self, gateway: Background) -> None:
        """The gateway says so."""
        result = call(gateway, "cursor", "abc", "--channel", "news")
        assert result.exit_code == 1
        assert "400 cursor_invalid" in result.stderr

    def test_tables_on_a_terminal(self, gateway: Background) -> None:
        """There they have bold heads."""
        assert "\x1b[1m" in on_terminal(gateway, "channels")


class TestWithoutAGateway:
    def test_it_is_told_in_a_line(self) -> None:
        """No trace: the reason."""
        result = CliRunner().invoke(main, ["publish", "news", "1", "--url", "http://127.0.0.1:9"])
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("gateway: gave up after")


BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["gateway", *{words}]
from gateway.cli import main
main()
"""
SERVER = (
    "aiohttp",
    "aiokafka",
    "pydantic",
    "jwt",
    "prometheus_client",
    "uvloop",
    "orjson",
    "msgspec",
    "yaml",
    "hishel",
    "cramjam",
)


def without(blocked: tuple[str, ...], *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command where some packages are not installed."""
    program = BLOCKER.format(blocked=set(blocked), words=list(words))
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, text=True, capture_output=True, cwd=ROOT, env={**os.environ, **variables}, timeout=60, check=False
    )


class TestExtras:
    @pytest.mark.parametrize("name", [name for name, place in COMMANDS.items() if place.extra == "client"])
    def test_the_clients_commands_need_no_server(self, name: str) -> None:
        """Who has installed the client has their help."""
        result = without(SERVER, name, "--help")
        assert (result.returncode, result.stderr) == (0, "")
        assert "Examples:" in result.stdout
        assert "Exit codes:" in result.stdout

    def test_and_they_work(self, gateway: Background) -> None:
        """Not only the help."""
        assert without(SERVER, "tail", "news", "--no-follow", **env(gateway)).returncode == 0

    def test_what_is_missing_is_told(self) -> None:
        """With the line that installs it."""
        result = without(SERVER, "serve")
        assert result.returncode == 1
        assert result.stderr == "gateway serve needs more: pip install 'longpoll-gateway[server]'\n"
        result = without(("httpx",), "tail", "news")
        assert result.stderr == "gateway tail needs more: pip install 'longpoll-gateway[client]'\n"

    def test_help_needs_nothing(self) -> None:
        """The list of commands is there with no extra at all."""
        result = without((*SERVER, "httpx", "rich"), "--help")
        assert result.returncode == 0
        assert "tail " in result.stdout
