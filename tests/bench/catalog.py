"""The servers that a scenario can name."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from bench.gateways import Variant, gateway
from bench.peers import aiohttp, nchan
from bench.pushpin import pushpin
from bench.serving import ServerContext

SERVERS: Mapping[str, ServerContext] = {
    "gateway": gateway,
    "gateway-rs256": functools.partial(gateway, variant=Variant(algorithm="RS256")),
    "gateway-shared": functools.partial(gateway, variant=Variant(shared_token=True)),
    "gateway-haproxy": functools.partial(gateway, variant=Variant(behind_haproxy=True)),
    "gateway-cut": functools.partial(gateway, variant=Variant(cut_heads=True)),
    "gateway-query": functools.partial(gateway, variant=Variant(cursor_in_query=True)),
    "gateway-nolane": functools.partial(gateway, variant=Variant(lane=False)),
    "aiohttp": aiohttp,
    "nchan": nchan,
    "nchan-multipart": functools.partial(nchan, multipart="raw"),
    "pushpin": pushpin,
}
