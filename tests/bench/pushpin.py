"""Pushpin as a peer: its processes, in a directory of their own, in front of the backend of grip_backend.py."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.fleet import Plan
from bench.listening import listens
from bench.processes import LOAD_CORE, SERVER_CORE, running, wait_until
from bench.serving import Missing, Running, Setting, Work
from integration.ports import free_ports

TESTS = Path(__file__).parents[1]
# Its processes' queues to each other hold a hundred entries, which is no setting: of a larger burst it refuses some with 502,
# loses some, and at times ends.
MOST_AT_ONCE = 100

ZURL = """
[General]
in_spec=ipc://{directory}/zurl-in
in_stream_spec=ipc://{directory}/zurl-in-stream
out_spec=ipc://{directory}/zurl-out
in_req_spec=ipc://{directory}/zurl-req
defpolicy=allow
max_open_requests=20000
buffer_size=200000
timeout=600
in_hwm=100000
out_hwm=100000
"""

# As Debian's, but for places and ports, and limits that a measurement must not meet.
PUSHPIN = """
[global]
include={{libdir}}/internal.conf
rundir={directory}
ipc_prefix=pushpin-
port_offset=0

[runner]
services=condure,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={directory}
log_level=1
client_buffer_size=8192
client_maxconn={clients}
condure_bin=condure

[proxy]
routesfile={directory}/routes
updates_check=off
sig_key=bench
zurl_out_specs=ipc://{directory}/zurl-in
zurl_out_stream_specs=ipc://{directory}/zurl-in-stream
zurl_in_specs=ipc://{directory}/zurl-out

[handler]
push_in_spec=tcp://127.0.0.1:{ports[0]}
push_in_sub_specs=tcp://127.0.0.1:{ports[1]}
push_in_http_addr=127.0.0.1
push_in_http_port={control}
push_in_http_max_body_size=1000000
command_spec=tcp://127.0.0.1:{ports[2]}
message_rate=1000000
message_hwm=1000000
"""


@contextlib.contextmanager
def pushpin(setting: Setting, work: Work) -> Iterator[Running]:
    """Run zurl, pushpin with what it starts itself, and the backend, all on the server's core."""
    missing = [name for name in ("pushpin", "condure", "zurl") if shutil.which(name) is None]
    if missing:
        raise Missing(f"{', '.join(missing)} is not installed (Debian: apt-get install pushpin)")
    port, backend, control, *ports = free_ports(6)
    directory = setting.directory / "pushpin"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "zurl.conf").write_text(ZURL.format(directory=directory))
    (directory / "routes").write_text(f"* 127.0.0.1:{backend}\n")
    text = PUSHPIN.format(directory=directory, port=port, control=control, ports=ports, clients=work.clients + 500)
    (directory / "pushpin.conf").write_text(text)
    log = directory / "run.log"
    commands = [
        [sys.executable, "-m", "bench.grip_backend", str(backend), str(control)],
        ["zurl", f"--config={directory}/zurl.conf", f"--logfile={directory}/zurl.log"],
        ["pushpin", f"--config={directory}/pushpin.conf"],
    ]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                running(
                    command,
                    core=LOAD_CORE if "zurl" in command[0] or "bench.grip_backend" in command else SERVER_CORE,
                    cwd=TESTS,
                    log=log,
                )
            )
            for command in commands
        ]
        for each in (backend, control, port):
            wait_until(lambda each=each: listens(each), f"pushpin (its log: {log})", process=processes[-1])
        target, rest = "GET /sub?id={0}", " HTTP/1.1\r\nHost: bench\r\n\r\n"
        yield Running(
            port=port,
            pids=[process.pid for process in processes],
            plan=Plan(
                port,
                f"{target}{rest}",
                f"{target}&cursor={{a}}{rest}",
                ["Next-Cursor"],
                [(str(number) if work.keyed else "all",) for number in range(work.clients)],
            ),
            rest=0.05,
            most_at_once=MOST_AT_ONCE,
            sink={"kind": "http", "port": backend, "target": "/pub?id={channel}", "channel": "{key}" if work.keyed else "all"},
        )
