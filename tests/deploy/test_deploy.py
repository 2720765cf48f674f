"""What is in deploy/: each file is accepted by the tool that reads it, and they agree with each other and with the gateway.

Docker is not needed: the Dockerfile is read here, the compose file is held against the Compose Specification's schema.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway.config.document import parse
from gateway.config.loading import inspect, json_schema
from gateway.config.routes import CacheSection, HoldSection, RouteSection, Timeouts
from gateway.config.sections import ChannelSection, Config
from gateway.config.upstreams import Health, UpstreamSection

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ENV = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "JWT_SECRET": "0123456789abcdef0123456789abcdef"}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def config() -> Config:
    return inspect(DEPLOY / "gateway.yaml", ENV).config


class TestGatewayYaml:
    TEXT = (DEPLOY / "gateway.yaml").read_text()

    def test_the_gateway_accepts_it_without_advice(self):
        assert inspect(DEPLOY / "gateway.yaml", ENV).warnings() == []

    def test_the_command_accepts_it(self):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "check", "-c", "deploy/gateway.yaml"],
            cwd=ROOT,
            env=os.environ | ENV,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "OK: channels: 4" in done.stdout

    def test_editors_accept_it(self):
        Draft202012Validator(json_schema()).validate(yaml.safe_load(self.TEXT))

    def test_sasl_can_be_put_in_by_variables(self):
        sasl = {
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_USERNAME": "u",
            "KAFKA_PASSWORD": "12345",
        }
        settings = inspect(DEPLOY / "gateway.yaml", ENV | sasl).config.kafka.settings
        assert (settings.security_protocol, settings.sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")
        assert (settings.sasl_username, settings.sasl_password) == ("u", "12345")

    def test_every_key_is_explained_in_the_words_of_the_schema(self):
        """Each description is a comment (or in the table of rules), directly above the key."""
        flat = " ".join(re.sub(r"^[ #-]+", "", line) for line in self.TEXT.splitlines())
        flat = re.sub(r"\s+", " ", flat)
        missing = []
        for name, section in [("Config", json_schema()), *json_schema()["$defs"].items()]:
            for key, value in section.get("properties", {}).items():
                text = value.get("description") or json_schema()["$defs"][value["$ref"].rsplit("/", 1)[1]]["description"]
                explained = re.search(
                    rf"\b{key}: .*{re.escape(text)}" if name == "RuleSection" else rf"{re.escape(text)} \"?{key}\"?:", flat
                )
                if not explained and not self._only_in_rules(name, key):
                    missing.append(f"{name}.{key}: {text}")
        assert missing == []

    @staticmethod
    def _only_in_rules(section: str, key: str) -> bool:
        return section == "RuleSection" and key == "claim"  # shown with `contains` and `equals`

    def test_what_is_not_put_in_is_the_default(self):
        given = parse(self.TEXT, ENV).values
        least = Config.model_validate({"kafka": {"bootstrap_servers": ["kafka:9092"]}}).model_dump(mode="json")
        whole = Config.model_validate(given).model_dump(mode="json")
        for name in ("channels", "auth", "upstreams", "routes"):
            del least[name], whole[name]
        assert whole == least
        shown = Config.model_validate(given).channels["chat/{room}"]
        plain = ChannelSection(topic="chat")
        own = {name for name in ChannelSection.model_fields if getattr(shown, name) != getattr(plain, name)}
        assert own == {"key", "allow", "publish", "headers", "partitioner", "cors", "description"}

    def test_upstreams_and_routes_show_their_defaults(self):
        """Also what is shown as a comment, once it is none."""
        config = Config.model_validate(parse(self._with_comments_opened(), ENV).values)
        plain = UpstreamSection(targets=["a:1"]).model_dump() | {"health": Health(path="/healthz").model_dump()}
        shown = config.upstreams["shop"].model_dump()
        assert {name for name in shown if shown[name] != plain[name]} == {"targets", "tls", "balance", "hash_on"}
        route = config.routes["orders"]
        assert route.timeouts == Timeouts()
        assert route.hold == HoldSection()
        assert route.cache == CacheSection()
        assert (route.public, route.compress, route.authorization) == (False, False, "strip")
        assert set(RouteSection.model_fields) == set(route.model_fields_set) | {"prefix", "upstream"}

    def _with_comments_opened(self) -> str:
        """Open the blocks that stand as comments under a null."""
        lines = self.TEXT.splitlines()
        opened = ("tls", "health", "hold", "cache")
        for name in opened:
            at = next(i for i, line in enumerate(lines) if line.startswith("    ") and line.strip() == f"# {name}:")
            while lines[at].startswith("    # "):
                lines[at] = "    " + lines[at][6:]
                at += 1
                if not lines[at].startswith("    #   "):
                    break
        return "\n".join(line for line in lines if line not in {f"    {name}: null" for name in opened})


class TestDockerfile:
    LINES = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()

    def instructions(self, name: str) -> list[str]:
        return [line.removeprefix(name).strip() for line in self.LINES if line.startswith(name + " ")]

    def test_it_is_built_in_one_stage_and_runs_in_another(self):
        stages = self.instructions("FROM")
        assert [stage.partition(" AS ")[2] for stage in stages] == ["build", ""]
        assert len({stage.partition(" AS ")[0] for stage in stages}) == 1, "virtual environments do not move between Pythons"

    def test_it_does_not_run_as_root(self):
        last_stage = self.LINES[max(i for i, line in enumerate(self.LINES) if line.startswith("FROM")) :]
        [user] = [line.split()[1] for line in last_stage if line.startswith("USER")]
        assert int(user.split(":")[0]) > 0
        assert last_stage.index(f"USER {user}") < next(i for i, line in enumerate(last_stage) if line.startswith("ENTRYPOINT"))

    def test_what_it_copies_is_there_and_not_ignored(self):
        ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        for copy in self.instructions("COPY"):
            *sources, _ = [word for word in shlex.split(copy) if not word.startswith("--")]
            for source in [] if "--from=" in copy else sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignore

    def test_every_package_is_pinned(self):
        constraints = (DEPLOY / "constraints.txt").read_text().splitlines()
        pins = [line for line in constraints if line and not line.startswith("#")]
        assert pins
        assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+( *;.*)?", line)] == []
        installs = [line for line in self.instructions("RUN") if "pip install" in line]
        assert all("-c deploy/constraints.txt" in line or "--no-deps" in line for line in installs)

    def test_its_health_is_asked_where_the_gateway_tells_it(self, config):
        [check] = self.instructions("HEALTHCHECK")
        assert f"http://127.0.0.1:{config.server.admin.port}/livez" in check
        [ports] = self.instructions("EXPOSE")
        assert ports.split() == [str(config.server.port), str(config.server.admin.port)]

    def test_its_commands_exist(self):
        [entrypoint], [command] = self.instructions("ENTRYPOINT"), self.instructions("CMD")
        words = [*json.loads(entrypoint), *json.loads(command)]
        assert words == ["gateway", "serve"]
        assert any("GATEWAY_CONFIG=" in line for line in self.LINES)


class TestCompose:
    def test_it_follows_the_compose_specification(self):
        run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))

    def test_docker_accepts_it_where_it_can(self):
        docker = shutil.which("docker")
        if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
            pytest.skip("there is no Docker with its compose plugin here")
        done = subprocess.run(
            [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
            env=os.environ | ENV, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def test_there_are_two_gateways_with_one_configuration(self, compose):
        one, two = (compose["services"][f"gateway-{n}"] for n in (1, 2))
        assert one == two

    def test_the_files_that_it_mounts_are_there(self, compose):
        mounts = [mount.split(":") for service in compose["services"].values() for mount in service.get("volumes", [])]
        files = [source for source, *_ in mounts if source.startswith(".")]
        assert len(files) == 4
        for source in files:
            assert (DEPLOY / source).is_file(), source
        named = {source for source, *_ in mounts if not source.startswith(".")}
        assert named == compose["volumes"].keys()

    def test_the_gateways_can_use_what_they_are_given(self, compose):
        given = dict(compose["services"]["gateway-1"]["environment"])
        secret = given.pop("JWT_SECRET")
        assert secret.startswith("${JWT_SECRET:?"), "there is no secret that everybody knows"
        inspected = inspect(DEPLOY / "gateway.yaml", given | {"JWT_SECRET": ENV["JWT_SECRET"]})
        assert inspected.config.server.admin.host == given["GATEWAY_ADMIN_HOST"] != "127.0.0.1"
        assert len(inspected.config.server.trusted_proxies) == 2

    def test_every_topic_is_made(self, compose, config):
        [script] = compose["services"]["topics"]["command"]
        made = re.search(r"for topic in ([\w ]+); do", script)[1].split()
        assert sorted(made) == sorted({section.topic for section in config.channels.values()})

    def test_there_is_time_to_drain(self, compose, config):
        grace = compose["services"]["gateway-1"]["stop_grace_period"]
        assert int(grace.removesuffix("s")) > config.drain.delay + config.drain.window + 5

    def test_images_are_pinned(self, compose):
        images = {service["image"] for service in compose["services"].values()} - {"longpoll-gateway"}
        assert all(re.search(r":v?\d", image) for image in images)


class TestHaproxy:
    FILE = DEPLOY / "haproxy" / "haproxy.cfg"

    def test_haproxy_accepts_it(self, tool):
        said = run(tool("haproxy"), "-c", "-f", str(self.FILE))
        warnings = [
            line for line in said.splitlines() if "[WARNING]" in line and "could not resolve address 'gateway-" not in line
        ]
        assert warnings == []

    def test_it_sends_to_both_gateways_and_asks_their_admin_port(self, compose, config):
        text = self.FILE.read_text()
        servers = dict(re.findall(r"^ +server (\S+) (\S+)$", text, re.MULTILINE))
        assert servers == {name: f"{name}:{config.server.port}" for name in compose["services"] if name.startswith("gateway-")}
        assert f"check port {config.server.admin.port} " in text
        assert "uri /readyz" in text
        for sticky in ("cookie", "stick", "balance source"):
            assert not re.search(rf"^ +{sticky}", text, re.MULTILINE)

    def test_it_waits_longer_than_a_poll(self, config):
        text = self.FILE.read_text()
        for side in ("client", "server"):
            seconds = int(re.search(rf"^ +timeout {side} (\d+)s$", text, re.MULTILINE)[1])
            assert seconds > config.subscribe.max_wait + 10

    def test_it_notices_a_gateway_that_ends_in_time(self, config):
        inter, fall = re.search(r"inter (\d+)s fall (\d+)", self.FILE.read_text()).groups()
        assert int(inter) * (int(fall) + 1) < config.drain.delay


class TestPrometheus:
    FILE = DEPLOY / "prometheus" / "prometheus.yml"

    def test_prometheus_accepts_it(self, tool):
        assert "SUCCESS" in run(tool("promtool"), "check", "config", str(self.FILE))

    def test_it_scrapes_every_gateway(self, compose, config):
        [job] = yaml.safe_load(self.FILE.read_text())["scrape_configs"]
        targets = job["static_configs"][0]["targets"]
        assert targets == [f"{name}:{config.server.admin.port}" for name in compose["services"] if name.startswith("gateway-")]
