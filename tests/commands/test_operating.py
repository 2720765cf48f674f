"""The `gateway` command, in this process for its words and as a process of its own for its deeds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import click
import jwt
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

import gateway.app
import gateway.workers
from gateway import cli
from gateway.auth.mint import generate
from gateway.commands import operating
from gateway.devbroker.server import Broker
from gateway.errors import Overloaded

SECRET = "0123456789abcdef0123456789abcdef"
TEXT = """
kafka: {bootstrap_servers: "${KAFKA:-localhost:9092}"}
auth:
  issuers:
    main: {issuer: https://main/, audience: [gateway, other], keys: [{id: k, algorithm: HS256, secret: "${SECRET}"}]}
channels:
  news: {topic: news}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(TEXT)
    return path


def call(*words: object, **env: str) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words], env={"SECRET": SECRET, "GATEWAY_CONFIG": None, **env})


class TestWords:
    def test_help_names_every_command(self):
        assert re.findall(r"^  (\w+)  ", call("--help").stdout, re.MULTILINE) == [
            "tail",
            "publish",
            "channels",
            "cursor",
            "bench",
            "serve",
            "check",
            "config",
            "dev",
            "token",
            "keys",
        ]

    def test_the_help_of_the_list_is_that_of_the_commands(self):
        context = click.Context(cli.main)
        for name, place in cli.COMMANDS.items():
            command = cli.main.get_command(context, name)
            assert command.hidden == place.hidden
            assert command.get_short_help_str(limit=200).rstrip(".") == place.help.rstrip("."), name

    def test_every_command_and_option_has_its_help(self):
        def silent(command: click.Command) -> list[str]:
            context = click.Context(command)
            group = isinstance(command, click.Group)
            inner = [command.get_command(context, name) for name in command.list_commands(context)] if group else []
            options = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
            return [*options, *([] if command.help else [command.name]), *(name for each in inner for name in silent(each))]

        assert silent(cli.main) == []

    def test_every_command_has_examples_and_exit_codes(self):
        def lacking(command: click.Command, path: str) -> list[str]:
            context = click.Context(command)
            if isinstance(command, click.Group):
                inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
                return [each for name, child in inner for each in lacking(child, f"{path} {name}") if not child.hidden]
            words = command.get_help(context)
            return [path] if "Examples:" not in words or "Exit codes:" not in words else []

        assert lacking(cli.main, "gateway") == []

    def test_the_version(self, monkeypatch):
        assert call("--version").stdout.startswith("gateway ")
        monkeypatch.setattr(cli.metadata, "version", lambda _: "1.2.3")
        assert cli.version() == "1.2.3"

    def test_the_version_of_what_is_not_installed(self, monkeypatch):
        def missing(name: str) -> str:
            raise cli.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(cli.metadata, "version", missing)
        assert cli.version() == "unknown"

    def test_the_module_is_the_command(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["gateway", "--version"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("gateway", run_name="__main__")
        assert caught.value.code == 0
        assert "gateway" in capsys.readouterr().out

    def test_the_schema(self):
        Draft202012Validator.check_schema(json.loads(call("config", "schema").stdout))


class TestCheck:
    def test_a_sound_file(self, file):
        result = call("check", "-c", file)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"{file}: OK: channels: 1, issuers: main, warnings: 0\n"

    def test_several_workers(self, file):
        """The limits of all together are told in numbers, before anybody is surprised."""
        file.write_text("server: {workers: 4}" + TEXT)
        result = call("check", "-c", file)
        assert result.exit_code == 0
        assert result.stdout.endswith(f"{file}: OK: channels: 1, issuers: main, workers: 4, warnings: 3\n")
        assert "limits.parked_polls 400000\n" in result.stdout

    def test_routes_and_upstreams_can_be_shown(self, file):
        """In the order in which routes are tried."""
        text = "routes: {all: {prefix: /, upstream: b}, a: {path: /a, upstream: b}}\nupstreams: {b: {targets: ['b:1']}}\n"
        file.write_text(TEXT + text)
        result = call("check", "-c", file, "--routes")
        assert result.exit_code == 0
        *shown, last = result.stdout.splitlines()
        assert [line.split(":")[0] for line in shown if line[0] != " "] == ["route a", "route all", "upstream b"]
        assert last == f"{file}: OK: channels: 1, routes: 2, upstreams: 1, issuers: main, warnings: 0"
        assert call("check", "-c", file).stdout == f"{last}\n"

    def test_the_file_may_be_named_by_the_environment(self, file):
        assert call("check", GATEWAY_CONFIG=str(file)).exit_code == 0

    def test_warnings_come_before_the_summary(self, file):
        file.write_text("kafka: {bootstrap_servers: 'a:1'}\n")
        result = call("check", "-c", file)
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [
            f"warning: {file}:1: channels: there are no channels, so there is nothing to read",
            f"warning: {file}:1: auth: there are no issuers, so nobody can come in",
            f"{file}: OK: channels: 0, issuers: none, warnings: 2",
        ]

    def test_mistakes_go_to_stderr_and_are_exit_code_2(self, file):
        file.write_text("server: {port: x}\nlog: {level: loud}\n" + TEXT)
        result = call("check", "-c", file)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [
            f"{file}:1: server.port: expected a whole number, got 'x'",
            f"{file}:2: log.level: expected 'debug', 'info', 'warning' or 'error', got 'loud'",
        ]

    @pytest.mark.parametrize("text", ["", "[", "\x00", "a: *b", "- 1", "kafka: {}", "'"])
    def test_there_is_never_a_stack_trace(self, file, text):
        file.write_text(text)
        result = call("check", "-c", file)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{file}:1: ")
        assert "Traceback" not in result.stderr

    def test_a_file_that_is_missing(self, tmp_path):
        result = call("check", "-c", tmp_path / "none")
        assert (result.exit_code, "No such file" in result.stderr) == (2, True)
        assert "Missing option" in call("check").stderr


class TestBroker:
    """`check --broker` asks for the topics behind the channels."""

    TOPICS = "channels:\n  a: {topic: a}\n  b: {topic: b}\n  k: {topic: k, key: x, partitioner: murmur2}\n"

    async def check(self, tmp_path: Path, **topics: int) -> list[str]:
        async with Broker() as broker:
            for name, partitions in topics.items():
                broker.create_topic(name, partitions)
            file = tmp_path / "f"
            file.write_text(f"kafka: {{bootstrap_servers: '{broker.address}'}}\n{self.TOPICS}")
            config = operating._inspect(file).config
            return await operating._ask_brokers(config)

    async def test_topics_that_are_there_and_narrow(self, tmp_path):
        assert await self.check(tmp_path, a=100, b=100, k=300) == []

    async def test_topics_that_are_missing(self, tmp_path):
        assert await self.check(tmp_path, a=1) == [
            "channels.b.topic: the brokers show no topic b",
            "channels.k.topic: the brokers show no topic k",
        ]

    async def test_topics_that_no_cursor_can_hold(self, tmp_path):
        assert await self.check(tmp_path, a=300, b=1, k=1) == [
            "topic a has 300 partitions: no cursor holds as many, so every subscription is refused"
        ]

    async def test_topics_that_no_cursor_can_hold_together(self, tmp_path):
        assert await self.check(tmp_path, a=150, b=150, k=1) == [
            "not every subscription fits into a cursor: its topics may have 300 partitions together"
        ]

    def test_brokers_that_are_away(self, file):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            result = call("check", "--broker", "-c", file, KAFKA=f"127.0.0.1:{unused.getsockname()[1]}")
        assert result.exit_code == 0
        assert "warning: kafka.bootstrap_servers: no broker answers: 127.0.0.1:" in result.stdout
        assert "warnings: 1" in result.stdout


class TestToken:
    def claims(self, *words: object, **env: str) -> dict[str, object]:
        result = call("token", *words, **env)
        assert (result.exit_code, result.stderr) == (0, ""), result.stderr
        return jwt.decode(result.stdout.strip(), options={"verify_signature": False})

    def refused(self, *words: object) -> str:
        result = call("token", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        return " ".join(result.stderr.split())

    def test_a_secret_signs(self, file):
        token = call("token", "-c", file, "--sub", "alice").stdout.strip()
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="gateway", issuer="https://main/")
        assert claims["sub"] == "alice"
        assert claims["exp"] - claims["iat"] == 3600
        assert abs(claims["iat"] - time.time()) < 60
        assert jwt.get_unverified_header(token)["kid"] == "k"

    def test_scopes_claims_and_lifetime(self, file):
        claims = self.claims(
            "-c", file, "--sub", "a", "--scope", "x y", "--scope", "z", "--claim", 'rooms=["1"]', "--claim", "n=1", "--expires-in", 60
        )  # fmt: skip
        assert claims["scope"] == "x y z"
        assert (claims["rooms"], claims["n"]) == (["1"], 1)
        assert claims["exp"] - claims["iat"] == 60

    @pytest.mark.parametrize(
        ("claim", "expected"),
        [
            ("x", "expected NAME=JSON"),
            ("=1", "expected NAME=JSON"),
            ("x=y", "expected JSON after x="),
            ("sub=1", "--claim: sub: set by the issuer or by an option of its own"),
        ],
    )
    def test_claims_that_cannot_be_set(self, file, claim, expected):
        assert expected in self.refused("-c", file, "--sub", "a", "--claim", claim)

    def test_a_secret_in_a_file_signs(self, file):
        (file.parent / "secret").write_text(SECRET + "\n")
        file.write_text(TEXT.replace('secret: "${SECRET}"', "file: secret").replace("audience: [gateway, other], ", ""))
        assert "aud" not in self.claims("-c", file, "--sub", "a")

    def test_the_issuer_is_chosen_where_there_are_several(self, file):
        file.write_text(
            TEXT.replace(
                "channels:", '    two: {issuer: https://two/, keys: [{algorithm: HS256, secret: "${SECRET}"}]}\nchannels:'
            )
        )
        assert self.claims("-c", file, "--sub", "a", "--issuer", "two")["iss"] == "https://two/"
        assert "--issuer: expected one of: main, two" in self.refused("-c", file, "--sub", "a")
        assert "--issuer: expected one of: main, two" in self.refused("-c", file, "--sub", "a", "--issuer", "x")

    def test_without_issuers_there_are_no_tokens(self, file):
        file.write_text("kafka: {bootstrap_servers: 'a:1'}")
        assert "(none is configured)" in self.refused("-c", file, "--sub", "a")

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "PS256", "RS256"])
    def test_a_private_key_signs(self, file, algorithm):
        dev = generate(algorithm=algorithm)
        (file.parent / "public.pem").write_bytes(dev.public)
        (file.parent / "private.pem").write_bytes(dev.private)
        file.write_text(TEXT.replace('algorithm: HS256, secret: "${SECRET}"', f"algorithm: {algorithm}, file: public.pem"))
        words = ("-c", file, "--sub", "a")
        assert self.claims(*words, "--private-key", file.parent / "private.pem")["sub"] == "a"
        assert "issuer main has public keys only, which cannot sign: give --private-key FILE" in self.refused(*words)
        (file.parent / "private.pem").write_bytes(generate(algorithm=algorithm).private)
        refused = self.refused(*words, "--private-key", file.parent / "private.pem")
        assert "the gateway would not accept this token: bad signature" in refused

    def test_a_private_key_that_does_not_fit(self, file):
        (file.parent / "public.pem").write_bytes(generate().public)
        (file.parent / "private.pem").write_bytes(generate(algorithm="ES256").private)
        file.write_text(TEXT.replace('algorithm: HS256, secret: "${SECRET}"', "algorithm: EdDSA, file: public.pem"))
        words = ("-c", file, "--sub", "a", "--private-key")
        assert "expected a private key in PEM for one of: EdDSA" in self.refused(*words, file.parent / "private.pem")
        assert "No such file" in self.refused(*words, file.parent / "none.pem")

    def test_keys_at_a_url_are_left_to_the_gateway(self, file):
        dev = generate()
        (file.parent / "private.pem").write_bytes(dev.private)
        file.write_text(
            TEXT.replace(
                'keys: [{id: k, algorithm: HS256, secret: "${SECRET}"}]', "algorithms: [EdDSA], jwks_url: https://main/keys"
            )
        )
        assert self.claims("-c", file, "--sub", "a", "--private-key", file.parent / "private.pem")["sub"] == "a"
        assert "public keys only" in self.refused("-c", file, "--sub", "a")


class TestRun:
    """What `serve` and `dev` do around the gateway; the gateway itself is replaced."""

    @pytest.fixture
    def ran(self, monkeypatch) -> list[object]:
        ran: list[object] = []

        async def run(config, *, ready=None) -> int:
            ran.append(config)
            if ready is not None:
                ready("http://127.0.0.1:1234")
            return 0

        monkeypatch.setattr(gateway.app, "run", run)
        return ran

    def test_serve_runs_the_configuration(self, file, ran):
        assert call("serve", "-c", file).exit_code == 0
        assert [config.channels.keys() for config in ran] == [{"news"}]

    def test_serve_runs_no_configuration_with_mistakes(self, file, ran):
        file.write_text("x")
        assert call("serve", "-c", file).exit_code == 2
        assert ran == []

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OSError(errno.EADDRINUSE, "Address already in use"), "gateway: [Errno 98] Address already in use\n"),
            (Overloaded(), "gateway: The server holds as much as it can.\n"),
        ],
    )
    def test_what_keeps_it_from_running_is_one_line(self, file, monkeypatch, error, said):
        async def run(config, *, ready=None) -> int:
            raise error

        monkeypatch.setattr(gateway.app, "run", run)
        result = call("serve", "-c", file)
        assert (result.exit_code, result.stderr) == (1, said)

    @pytest.fixture
    def supervised(self, ran, monkeypatch) -> list[int]:
        counts: list[int] = []

        async def run(inspected, *, version) -> int:
            counts.append(inspected.config.server.workers)
            return 0

        monkeypatch.setattr(gateway.workers, "run", run)
        return counts

    def test_several_workers_have_a_supervisor(self, file, ran, supervised):
        """By the file or by the option, which wins."""
        assert call("serve", "-c", file, "--workers", 3).exit_code == 0
        file.write_text(TEXT + "server: {workers: 4}")
        assert call("serve", "-c", file).exit_code == 0
        assert (supervised, ran) == ([3, 4], [])
        assert call("serve", "-c", file, "--workers", 1).exit_code == 0
        assert (supervised, len(ran)) == ([3, 4], 1)

    @pytest.mark.parametrize("number", [0, 257, "x"])
    def test_how_many_workers_there_can_be(self, file, ran, supervised, number):
        assert call("serve", "-c", file, "--workers", number).exit_code == 2
        assert (supervised, ran) == ([], [])

    def test_operators_are_not_sent_to_one_worker(self, file, ran, supervised):
        """With one listener /metrics would be about whoever got the connection."""
        file.write_text("server: {single_listener: true, workers: 1}" + TEXT)
        result = call("serve", "-c", file, "--workers", 2)
        assert (result.exit_code, supervised, ran) == (2, [], [])
        assert result.stderr.startswith(f"{file}:1: server.single_listener: expected false with server.workers above 1 (")
        assert call("serve", "-c", file).exit_code == 0

    @pytest.mark.parametrize("text", ["- 1", "server: x", "server:", "{"])
    def test_the_number_of_workers_hides_no_mistake(self, file, text):
        """It is put in where it fits."""
        file.write_text(text)
        result = call("serve", "-c", file, "--workers", 2)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{file}:1: ")

    def test_workers_do_not_begin_by_themselves(self, monkeypatch):
        def missing() -> None:
            raise ValueError("there is no supervisor")

        monkeypatch.setattr(gateway.workers, "receive", missing)
        result = call("worker")
        assert (result.exit_code, "workers are started by `gateway serve`" in result.stderr) == (2, True)

    def test_a_worker_that_gets_a_configuration_with_mistakes(self, monkeypatch):
        """A key file may have gone since the supervisor read it."""
        order = gateway.workers.Order(1, 1, "/none", "gateway.yaml", "/", b"x")
        monkeypatch.setattr(gateway.workers, "receive", lambda: (order, None))
        result = call("worker")
        assert (result.exit_code, result.stderr.startswith("gateway.yaml:1: ")) == (2, True)

    def test_an_interrupt_ends_it_quietly(self, file, monkeypatch):
        async def run(config, *, ready=None) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(gateway.app, "run", run)
        result = call("serve", "-c", file)
        assert (result.exit_code, result.stderr) == (130, "")

    def test_uvloop_is_used_where_it_is(self, file, monkeypatch):
        loops = []

        async def run(config, *, ready=None) -> int:
            loops.append(type(asyncio.get_running_loop()).__module__)
            return 0

        monkeypatch.setattr(gateway.app, "run", run)
        assert call("serve", "-c", file).exit_code == 0
        monkeypatch.setitem(sys.modules, "uvloop", None)
        assert call("serve", "-c", file).exit_code == 0
        assert loops[0] == "uvloop"
        assert loops[1].startswith("asyncio")

    def test_dev_has_a_broker_topics_and_a_token(self, ran):
        result = call("dev", "--port", 0, "--kafka-port", 0)
        assert result.exit_code == 0, result.output
        [config] = ran
        assert config.server.single_listener
        assert [channel.pattern for channel in config.table] == ["news", "chat/{room}", "notifications"]
        assert config.kafka.bootstrap_servers[0] in result.stdout

    def test_a_taken_kafka_port_is_no_obstacle(self, ran):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = call("dev", "--port", 0, "--kafka-port", port)
        assert result.exit_code == 0
        assert result.stderr == f"gateway dev: port {port} is taken, so the broker gets another one\n"
        assert ran[0].kafka.bootstrap_servers != (f"127.0.0.1:{port}",)

    def test_another_trouble_with_the_port_is_told(self, ran, monkeypatch):
        async def denied(self) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Broker, "start", denied)
        result = call("dev", "--port", 0, "--kafka-port", 1)
        assert (result.exit_code, result.stderr, ran) == (1, "gateway: [Errno 13] Permission denied\n", [])


@contextlib.asynccontextmanager
async def process(*words: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command; what it leaves running is killed at the end."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words,
        env=os.environ | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def printed(running: asyncio.subprocess.Process, last: str) -> list[str]:
    """Read lines up to the one that begins with `last`."""
    lines: list[str] = []
    async with asyncio.timeout(30):
        while not lines or not lines[-1].startswith(last):
            line = await running.stdout.readline()
            assert line, (await running.stderr.read()).decode()
            lines.append(line.decode().rstrip("\n"))
    return lines


class TestProcess:
    async def test_dev_as_it_is_printed(self):
        """The printed lines, pasted into a shell: the parked poll returns what is published, and what kcat produces."""
        if shutil.which("curl") is None and not os.environ.get("CI"):
            pytest.skip("curl is not installed")
        async with process("dev", "--port", "0", "--kafka-port", "0") as running:
            lines = await printed(running, "Channels:")
            subscribe, publish, export, _, own, kcat = (line.strip() for line in lines if line.startswith("  "))
            here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            for produce in (publish, f"{export}; {own}", kcat):
                if produce is kcat and not os.environ.get("CI") and shutil.which("kcat") is None:
                    continue
                poll = await asyncio.create_subprocess_exec(*shlex.split(subscribe), stdout=asyncio.subprocess.PIPE)
                await self._parked(subscribe)
                done = await asyncio.create_subprocess_shell(produce, stdout=asyncio.subprocess.PIPE, env=here)
                await done.communicate()
                assert done.returncode == 0
                async with asyncio.timeout(20):
                    body, _ = await poll.communicate()
                [message] = json.loads(body)["messages"]
                assert message["value"]["text"].startswith("hello")
            running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                assert await running.wait() == 0

    async def _parked(self, subscribe: str) -> None:
        base = re.search(r"http://[^/']+", subscribe)[0]
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while True:
                async with session.get(f"{base}/metrics") as response:
                    if re.search(r'^gateway_parked_waiters\{[^}]*"news"[^}]*\} 1(\.0)?$', await response.text(), re.MULTILINE):
                        return
                await asyncio.sleep(0.02)

    async def test_a_served_gateway_takes_the_token_that_is_minted_for_it(self, file):
        async with Broker() as broker:
            broker.create_topic("news", 1)
            file.write_text("server: {host: 127.0.0.1, port: 0, single_listener: true}\ndrain: {delay: 0, window: 0}\n" + TEXT)
            env = {"KAFKA": broker.address, "SECRET": SECRET, "GATEWAY_CONFIG": str(file)}
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            file.write_text(file.read_text().replace("port: 0", f"port: {port}"))
            async with process("token", "--sub", "alice", **env) as minting:
                token = (await minting.stdout.read()).decode().strip()
            async with process("serve", **env) as running, aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{port}/v1/subscribe?channel=news&wait=0"
                async with asyncio.timeout(30):
                    while (status := await self._status(session, url, token)) is None:
                        await asyncio.sleep(0.02)
                assert status == 204
                running.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    assert await running.wait() == 0

    async def _status(self, session: aiohttp.ClientSession, url: str, token: str) -> int | None:
        try:
            async with session.get(url, headers={"Authorization": f"Bearer {token}"}) as response:
                return response.status
        except aiohttp.ClientConnectionError:
            return None

    def test_a_taken_port_is_one_line(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = subprocess.run(
                [sys.executable, "-m", "gateway", "dev", "--port", str(port), "--kafka-port", "0"],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == 1
        *_, last = done.stderr.splitlines()
        assert last.startswith("gateway: ")
        assert "in use" in last
        assert "Traceback" not in done.stderr
