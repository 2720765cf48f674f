"""Free ports on loopback for brokers that are killed and come back."""

import contextlib
import os
import random
import socket

HOST = "127.0.0.1"

# Below the range from which Linux takes the local ports of outgoing connections: a client that redials a killed broker
# could otherwise be given the broker's own port, and would then be connected to itself.
PORTS = range(20_000, 32_000)
# Of several processes that run tests each has ports of its own: from looking to listening takes a broker seconds. And the
# order comes from the system: Hypothesis seeds everybody's random numbers alike.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_RANDOM = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Return `count` loopback ports that nothing listens on and that no outgoing connection will be given."""
    ports: list[int] = []
    own = PORTS[WORKER % WORKERS :: WORKERS]
    for port in _RANDOM.sample(own, len(own)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")
