"""The servers that the gateway is compared with: a plain aiohttp server, nginx with nchan, pushpin."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.fleet import Plan
from bench.listening import listens
from bench.processes import SERVER_CORE, running, wait_until
from bench.serving import Missing, Running, Setting, Work
from integration.ports import free_ports

TESTS = Path(__file__).parents[1]
NCHAN_MODULE = "ngx_nchan_module.so"
MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"), Path("/usr/share/nginx/modules"))


@contextlib.contextmanager
def aiohttp(setting: Setting, work: Work) -> Iterator[Running]:
    """Run the plain server of baseline.py."""
    topic = setting.broker.topic(work.partitions)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.baseline", str(port), setting.broker.address, topic]
    with contextlib.ExitStack() as stack:
        stack.callback(setting.broker.delete, topic)
        log = setting.directory / "aiohttp.log"
        process = stack.enter_context(running(command, core=SERVER_CORE, cwd=TESTS, log=log))
        wait_until(lambda: listens(port), f"the aiohttp server (its log: {log})", process=process)
        target, rest = "GET /subscribe?channel={0}", " HTTP/1.1\r\nHost: bench\r\n\r\n"
        yield Running(
            port=port,
            pids=[process.pid],
            plan=Plan(
                port,
                f"{target}&wait=0{rest}",
                f"{target}&wait=55&cursor={{a}}{rest}",
                ["Next-Cursor"],
                [(str(number) if work.keyed else "all",) for number in range(work.clients)],
            ),
            sink={"kind": "kafka", "bootstrap": setting.broker.address, "topic": topic},
        )


NGINX = """
load_module {module};
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
    nchan_shared_memory_size 1G;
    nchan_message_buffer_length 2000;
    nchan_message_timeout 10m;
    nchan_channel_timeout 10m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /sub {{
            nchan_subscriber longpoll;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
            nchan_longpoll_multipart_response {multipart};
        }}
        location = /pub {{
            nchan_publisher http;
            nchan_channel_id $arg_id;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nchan(setting: Setting, work: Work, *, multipart: str = "off") -> Iterator[Running]:
    """Run nginx with nchan; `multipart` raw puts several messages into one answer, which is not the default."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    module = next((folder / NCHAN_MODULE for folder in MODULES if (folder / NCHAN_MODULE).exists()), None)
    if program is None or module is None:
        raise Missing("nginx with nchan is not installed (Debian: apt-get install nginx libnginx-mod-nchan)")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if work.clients > files - 500:
        raise Missing(f"one worker of nginx cannot have {work.clients} connections within the limit of {files} open files")
    (port,) = free_ports(1)
    directory = setting.directory / "nginx"
    directory.mkdir(exist_ok=True)
    text = NGINX.format(
        module=module,
        user="user root;" if os.geteuid() == 0 else "",
        files=files,
        connections=files - 100,
        directory=directory,
        port=port,
        multipart=multipart,
    )
    (directory / "nginx.conf").write_text(text)
    command = [program, "-p", directory, "-e", directory / "nginx.log", "-c", directory / "nginx.conf"]
    with running(command, core=SERVER_CORE, log=directory / "nginx.out") as process:
        wait_until(lambda: listens(port), f"nginx (its log: {directory / 'nginx.log'})", process=process)
        target, rest = "GET /sub?id={0} HTTP/1.1\r\nHost: bench\r\n", "If-Modified-Since: {a}\r\nIf-None-Match: {b}\r\n"
        yield Running(
            port=port,
            pids=[process.pid],
            plan=Plan(
                port,
                f"{target}\r\n",
                f"{target}{rest}\r\n",
                ["Last-Modified", "Etag"],
                [(str(number) if work.keyed else "all",) for number in range(work.clients)],
                hold=True,
            ),
            sink={"kind": "http", "port": port, "target": "/pub?id={channel}", "channel": "{key}" if work.keyed else "all"},
        )
