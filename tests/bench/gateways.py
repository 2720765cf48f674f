"""The gateway under test: run as in production, with limits that are never reached."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from bench.fleet import Plan
from bench.listening import listens
from bench.processes import LOAD_CORE, SERVER_CORE, running, wait_until
from bench.serving import Missing, Running, Setting, Work
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from integration.ports import free_ports

from gateway.auth.mint import DevIssuer, generate

HTTP_OK = 200
# A segment of Ethernet carries so many bytes; on loopback a longer head would arrive whole.
SEGMENT = 1_460
# What an issuer puts into a token that is longer than one segment.
GROUPS = [f"urn:example:department:{number:04}" for number in range(40)]


@dataclass(frozen=True)
class Variant:
    """One way to run the gateway, and to ask it."""

    algorithm: str = "HS256"
    shared_token: bool = False
    behind_haproxy: bool = False
    cut_heads: bool = False
    cursor_in_query: bool = False
    lane: bool = True


@functools.cache
def issuer(algorithm: str) -> DevIssuer:
    """Return the issuer of a run: one for each algorithm."""
    return generate("bench", iss="https://id.bench/", algorithm=algorithm)


@functools.cache
def tokens(algorithm: str, count: int, *, long: bool) -> Sequence[str]:
    """Return the tokens of so many subjects."""
    own = issuer(algorithm)
    claims = {"iss": own.issuer.iss, "aud": "gateway", "exp": int(time.time()) + 86_400, **({"groups": GROUPS} if long else {})}
    # Reading and checking an RSA key takes far longer than signing with it: once is enough.
    key: Any = own.private if algorithm == "HS256" else load_pem_private_key(own.private, None)
    subjects = (f"client-{number}" for number in range(count))
    return [jwt.encode({**claims, "sub": subject}, key, algorithm, headers={"kid": own.kid}) for subject in subjects]


def configuration(variant: Variant, setting: Setting, work: Work, topic: str, port: int, admin: int) -> dict[str, Any]:
    """Return the configuration: production's defaults, but for what a measurement must not meet."""
    own = issuer(variant.algorithm)
    key = {"id": own.kid, "algorithm": own.algorithm}
    key |= {"secret": own.private.decode()} if own.algorithm == "HS256" else {"pem": own.public.decode()}
    unlimited = {"rate": 1e6, "burst": 10_000_000}
    most = max(work.clients + 5_000, 20_000)
    document: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": port, "admin": {"port": admin}},
        "kafka": {"bootstrap_servers": setting.broker.address},
        "auth": {"issuers": {"bench": {"issuer": own.issuer.iss, "audience": "gateway", "keys": [key]}}},
        "channels": {"all": {"topic": topic}, "chat/{room}": {"topic": topic, "key": "{room}"}},
        "limits": {"address": unlimited, "polls": unlimited, "concurrent_polls": most, "parked_polls": most},
        "drain": {"delay": 0, "window": 0},
    }
    if variant.behind_haproxy:
        document["server"]["trusted_proxies"] = ["127.0.0.1"]
    if not variant.lane:
        document["lane"] = {"enabled": False}
    return document


def plan(variant: Variant, clients: int, port: int, channel: str, query: str = "") -> Plan:
    """Return what the clients send; {number} in the channel is the client's."""
    signed = tokens(variant.algorithm, 1 if variant.shared_token else clients, long=variant.cut_heads)
    values = [(channel.format(number=number), signed[0 if variant.shared_token else number]) for number in range(clients)]
    target, rest = "GET /v1/subscribe?channel={0}", " HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {1}\r\n"
    following = f"{target}&wait=55{query}"
    following += "&cursor={a}" + rest if variant.cursor_in_query else rest + "Cursor: {a}\r\n"
    options = {"cut": SEGMENT} if variant.cut_heads else {}
    return Plan(port, f"{target}&wait=0{query}{rest}\r\n", f"{following}\r\n", ["Next-Cursor"], values, options=options)


@contextlib.contextmanager
def process(setting: Setting, document: Mapping[str, Any], workers: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Run a gateway with this configuration and wait until it is ready."""
    file = setting.directory / "gateway.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(file)]
    if workers > 1:
        command += ["--workers", str(workers)]
    log = setting.directory / "gateway.log"
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("a"))
        # The access log goes into a pipe that is read, as under systemd or a container runtime.
        reader = stack.enter_context(running(["cat"], core=LOAD_CORE, stdin=subprocess.PIPE))
        started = stack.enter_context(running(command, core=SERVER_CORE, stdout=reader.stdin, stderr=errors))
        admin = document["server"]["admin"]["port"]
        wait_until(lambda: _is_ready(admin), f"the gateway (its log: {log})", process=started)
        yield started


@contextlib.contextmanager
def gateway(setting: Setting, work: Work, *, variant: Variant = Variant()) -> Iterator[Running]:  # frozen
    """Run a gateway with a topic of its own."""
    topic, history = setting.broker.topic(work.partitions), setting.broker.topic() if work.history else None
    port, admin, front = free_ports(3)
    document = configuration(variant, setting, work, topic, port, admin)
    if history is not None:
        document["channels"]["history"] = {"topic": history}
    with contextlib.ExitStack() as stack:
        for name in filter(None, (topic, history)):
            stack.callback(setting.broker.delete, name)
        started = stack.enter_context(process(setting, document, work.workers))
        apart = {}
        if variant.behind_haproxy:
            apart["haproxy"] = stack.enter_context(_haproxy(setting.directory, work.clients, front, port))
        asked = front if variant.behind_haproxy else port
        sink = {"kind": "kafka", "bootstrap": setting.broker.address, "topic": topic}
        yield Running(
            port=asked,
            pids=[started.pid],
            plan=plan(variant, work.clients, asked, "chat/{number}" if work.keyed else "all"),
            sink=sink,
            apart=apart,
            metrics=lambda: metrics(admin),
            asking=lambda channel, clients, query: plan(variant, clients, asked, channel, query),
            history=sink | {"topic": history} if history else None,
        )


def _is_ready(admin: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2) as answer:
            return bool(answer.status == HTTP_OK)
    except (urllib.error.URLError, OSError):
        return False


def metrics(admin: int) -> Mapping[str, float]:
    """Return what a gateway tells on its admin listener."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as answer:
        return parse_metrics(answer.read().decode())


def parse_metrics(text: str) -> dict[str, float]:
    """Return the samples of a text exposition by name with labels."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


HAPROXY = """
global
    maxconn {maxconn}
    # Otherwise it closes idle connections to the gateway as soon as a quarter of its files is in use, and every poll opens one.
    tune.pool-low-fd-ratio 100
    tune.pool-high-fd-ratio 100
defaults
    mode http
    timeout connect 5s
    timeout client 75s
    timeout server 75s
    timeout http-keep-alive 75s
    http-reuse always
frontend public
    bind 127.0.0.1:{front} backlog 4096
    option forwardfor
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:{port}
"""
# A parked poll takes two of the files that one process may open.
HAPROXY_CLIENTS = 9_500


@contextlib.contextmanager
def _haproxy(directory: Path, clients: int, front: int, port: int) -> Iterator[list[int]]:
    """Run HAProxy on the load's core: as many processes on one port as the limit of open files makes necessary."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        raise Missing("haproxy is not installed")
    count = -(-clients // HAPROXY_CLIENTS)
    file = directory / "haproxy.cfg"
    # The kernel deals connections out at random: some room for one process to get more than its share.
    file.write_text(HAPROXY.format(maxconn=HAPROXY_CLIENTS + 300, front=front, port=port))
    with contextlib.ExitStack() as stack:
        log = directory / "haproxy.log"
        command = [program, "-db", "-f", str(file)]
        processes = [stack.enter_context(running(command, core=LOAD_CORE, log=log)) for _ in range(count)]
        wait_until(lambda: listens(front), f"haproxy (its log: {log})", process=processes[0])
        yield [process.pid for process in processes]
