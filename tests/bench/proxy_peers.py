"""nginx and HAProxy as proxies, set as like the gateway as they can be.

nginx checks backends only by the requests that fail, and has no slow start; both are in its commercial edition alone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.listening import listens
from bench.processes import SERVER_CORE, running, wait_until
from bench.proxying import (
    ATTEMPTS,
    CHECK,
    CHECK_SECONDS,
    CONNECT_SECONDS,
    FAILURES,
    FALL,
    HOLD,
    HOLD_SECONDS,
    ITEM,
    KEPT,
    OUT_SECONDS,
    RISE,
    Proxying,
    requests,
)
from bench.serving import Missing, Running, Setting
from integration.ports import free_ports

NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log {directory}/nginx.log error;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_connect_timeout {connect}s;
    proxy_next_upstream error timeout http_502 http_503 http_504;
    proxy_next_upstream_tries {attempts};
    upstream polls {{
        least_conn;
        {servers}
        keepalive {kept};
        keepalive_requests 100000000;
    }}
    upstream items {{
        {servers}
        keepalive {kept};
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location {held} {{ proxy_pass http://polls; proxy_read_timeout {hold}s; }}
        location / {{ proxy_pass http://items; proxy_read_timeout {first_byte}s; }}
    }}
}}
"""

HAPROXY = """
global
    nbthread 1
    maxconn {maxconn}
    # Otherwise it closes idle connections as soon as a quarter of its files is in use.
    tune.pool-low-fd-ratio 100
    tune.pool-high-fd-ratio 100
defaults
    mode http
    timeout connect {connect}s
    timeout client 600s
    timeout server {first_byte}s
    http-reuse always
    # Otherwise a backend holds on to a poll whose client has left.
    option abortonclose
    retries {retries}
    option redispatch 1
    retry-on conn-failure empty-response response-timeout 502 503 504
    option httpchk
    http-check send meth GET uri {check} ver HTTP/1.1 hdr Host bench
    default-server check inter {interval}s rise {rise} fall {fall} observe layer7 error-limit {failures} on-error mark-down
frontend public
    bind 127.0.0.1:{port} backlog 4096
    option forwardfor
    use_backend polls if {{ path_beg {held} }}
    default_backend items
backend polls
    balance leastconn
    timeout server {hold}s
    {servers}
backend items
    balance roundrobin
    default-server slowstart {slow_start}ms
    {servers}
"""


def _program(name: str) -> str:
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        raise Missing(f"{name} is not installed (Debian: apt-get install {name})")
    return program


@contextlib.contextmanager
def _proxy(command: Sequence[str | Path], port: int, work: Proxying, log: Path) -> Iterator[Running]:
    with running(command, core=SERVER_CORE, log=log) as process:
        wait_until(lambda: listens(port), f"{Path(command[0]).name} (its log: {log})", process=process)
        yield Running(port=port, pids=[process.pid], plan=requests(port, ITEM, work.clients), sink={})


@contextlib.contextmanager
def nginx(setting: Setting, work: Proxying) -> Iterator[Running]:
    """Run nginx with one worker."""
    program = _program("nginx")
    (port,) = free_ports(1)
    directory = setting.directory / "nginx"
    directory.mkdir(exist_ok=True)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    failing = f"max_fails={FAILURES} fail_timeout={OUT_SECONDS:g}s"
    text = NGINX.format(
        user="user root;" if os.geteuid() == 0 else "",
        files=files,
        connections=files - 100,
        directory=directory,
        port=port,
        servers="\n        ".join(f"server 127.0.0.1:{each} {failing};" for each in work.ports),
        kept=KEPT,
        connect=f"{CONNECT_SECONDS:g}",
        attempts=ATTEMPTS,
        held=HOLD,
        hold=f"{HOLD_SECONDS:g}",
        first_byte=f"{work.first_byte:g}",
    )
    (directory / "nginx.conf").write_text(text)
    command = [program, "-p", directory, "-e", directory / "nginx.log", "-c", directory / "nginx.conf"]
    with _proxy(command, port, work, directory / "nginx.out") as server:
        yield server


@contextlib.contextmanager
def haproxy(setting: Setting, work: Proxying) -> Iterator[Running]:
    """Run HAProxy with one thread."""
    program = _program("haproxy")
    (port,) = free_ports(1)
    file = setting.directory / "haproxy-peer.cfg"
    text = HAPROXY.format(
        maxconn=work.clients + 300,
        port=port,
        servers="\n    ".join(f"server b{number} 127.0.0.1:{each}" for number, each in enumerate(work.ports)),
        connect=f"{CONNECT_SECONDS:g}",
        retries=ATTEMPTS - 1,
        check=CHECK,
        interval=f"{CHECK_SECONDS:g}",
        rise=RISE,
        fall=FALL,
        failures=FAILURES,
        held=HOLD,
        hold=f"{HOLD_SECONDS:g}",
        first_byte=f"{work.first_byte:g}",
        slow_start=int(work.slow_start * 1_000),
    )
    file.write_text(text)
    with _proxy([program, "-db", "-f", file], port, work, setting.directory / "haproxy-peer.log") as server:
        yield server
