"""What backends are told of the connection that a request came over: Forwarded (RFC 7239) and X-Forwarded-* (sans-I/O).

X-Forwarded-For and Forwarded are lists to which each proxy appends whom it talked to. X-Forwarded-Proto, -Host and -Port have
one value, what the client used, so a trusted proxy's stay as they are: backends compare them whole. What others say of
themselves is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

FOR: Final = b"x-forwarded-for"
HOST: Final = b"x-forwarded-host"
PORT: Final = b"x-forwarded-port"
PROTO: Final = b"x-forwarded-proto"
FORWARDED: Final = b"forwarded"

_MAX_HOST = 262  # of DNS, with a port; what is longer is not worth to be remembered
_UNKNOWN = "unknown"  # RFC 7239, section 6.2
_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", re.ASCII)
_NODE = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_OWN_PORT = re.compile(r":([0-9]{1,5})\Z", re.ASCII)
_USUAL_PORTS = {"http": "80", "https": "443"}


class Hop(NamedTuple):
    """The connection that a request came over, and what it said of itself.

    `peer` is the canonical address of its other end, or a word such as "unix" where that has none; `trusted`: it is a proxy of
    ours. `host` is the Host field as sent, `version` the HTTP version of the request.
    """

    peer: str
    trusted: bool
    scheme: str
    host: str
    version: str = "1.1"


def forwarded_fields(hop: Hop, told: Mapping[bytes, Sequence[str]]) -> Sequence[tuple[str, str]]:
    """Return the fields for the request to the backend; `told` has the values received, by name in lower case."""
    own = _own_fields(hop) if len(hop.host) <= _MAX_HOST else _own_fields.__wrapped__(hop)
    return _continued(hop, own, told) if hop.trusted else own


@lru_cache(maxsize=4096)  # connections live longer than requests
def _own_fields(hop: Hop) -> tuple[tuple[str, str], ...]:
    """Return what is to be said of this connection alone."""
    peer = hop.peer if _ADDRESS.fullmatch(hop.peer) else _UNKNOWN
    return (
        ("X-Forwarded-For", peer),
        ("X-Forwarded-Proto", hop.scheme),
        ("X-Forwarded-Host", hop.host),
        ("X-Forwarded-Port", _port(hop.host, hop.scheme)),
        ("Forwarded", f"for={_node(peer)};host={_quoted(hop.host)};proto={hop.scheme}"),
    )


def _continued(hop: Hop, own: Sequence[tuple[str, str]], told: Mapping[bytes, Sequence[str]]) -> list[tuple[str, str]]:
    """Return what a trusted proxy said, continued by what is to be said of the connection to it."""
    chain, before = _joined(told, FOR), _joined(told, FORWARDED)
    proto = _joined(told, PROTO) or hop.scheme
    host = _joined(told, HOST) or hop.host
    if chain and not before:
        # RFC 7239, section 7.4: else the backend would take our proxy for the client.
        before = ", ".join([f"for={_node(entry.strip())}" for entry in chain.split(",")])
    peer, element = own[0][1], own[-1][1]
    return [
        ("X-Forwarded-For", f"{chain}, {peer}" if chain else peer),
        ("X-Forwarded-Proto", proto),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Port", _joined(told, PORT) or _port(host, proto)),
        ("Forwarded", f"{before}, {element}" if before else element),
    ]


def _joined(told: Mapping[bytes, Sequence[str]], name: bytes) -> str:
    """Return the values of all fields of a name as one list (RFC 9110, section 5.3)."""
    values = told.get(name)
    if not values:
        return ""
    return values[0] if len(values) == 1 else ", ".join(filter(None, values))


@lru_cache(maxsize=4096)  # the clients behind a proxy come again
def _node(address: str) -> str:
    """Return an address as RFC 7239, section 6, has it: IPv6 in brackets, and quoted as all that has a colon."""
    if _NODE.fullmatch(address):
        return f'"{address}"' if ":" in address else address
    return f'"[{address}]"' if _ADDRESS.fullmatch(address) else _UNKNOWN


def _quoted(text: str) -> str:
    """Return a token as it is, other text as a quoted string (RFC 9110, sections 5.6.2 and 5.6.4)."""
    if _TOKEN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _port(host: str, proto: str) -> str:
    """Return the port that the client used: that of the host as it wrote it, else the usual one of the scheme."""
    found = _OWN_PORT.search(host)
    return found[1] if found else _USUAL_PORTS.get(proto, "80")
