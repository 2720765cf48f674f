"""Whose request it is: the client's address behind trusted proxies, and the bucket that it falls into (sans-I/O).

Each proxy appends the address of whom it talked to, so X-Forwarded-For is trustworthy from the right, for as long as the
one who wrote an entry is a proxy of ours. The first entry from the right that is not one of our proxies is the client;
what stands left of it was written by the client himself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

UNIX = "unix"
"""The address of whoever connects through a Unix socket; as a trusted proxy: everybody who can open the socket."""

UNKNOWN = "unknown"
"""The address where the transport knows none."""

_LONGEST = 128  # of an address with a zone, a port and what is around it

MAX_HOPS = 32
"""Entries of X-Forwarded-For that are looked at; a chain of more proxies of our own does not exist."""


class TrustedProxies:
    """The networks whose X-Forwarded-For entries and PROXY headers are believed.

    `networks`: CIDR notation or single addresses, and "unix" for peers on Unix sockets. Host bits must be zero, for
    10.0.0.5/8 is more likely a slip than a wish to trust 16 million addresses. Raises ValueError.
    """

    __slots__ = ("_networks", "_unix")

    def __init__(self, networks: Iterable[str] = ()) -> None:
        names = list(networks)
        self._unix = UNIX in names
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(ip_network(name) for name in names if name != UNIX)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __repr__(self) -> str:
        names = [str(network) for network in self._networks] + [UNIX] * self._unix
        return f"TrustedProxies({', '.join(names)})"

    def __contains__(self, address: Address | str) -> bool:
        """Say whether an address (or the text of one) is a proxy of ours; text that is no address is not."""
        if isinstance(address, str):
            if address == UNIX:
                return self._unix
            parsed = parse(address)
            if parsed is None:
                return False
            address = parsed
        return any(address in network for network in self._networks)


def parse(text: str) -> Address | None:
    """Read an address as proxies write them, or return None.

    Takes surrounding blanks and quotes, a port (`192.0.2.1:80`, `[2001:db8::1]:80`), brackets without a port; drops zone
    ids, and unwraps IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2), which are the same client on a dual-stack socket.
    """
    return _parsed(text) if len(text) <= _LONGEST else None


@lru_cache(maxsize=8192)  # connections live longer than requests, and clients come back
def _parsed(text: str) -> Address | None:
    text = text.strip(' \t"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def peer_address(peername: object) -> str:
    """Return the canonical address of a transport's `peername`; UNIX for Unix sockets, UNKNOWN where there is none."""
    if isinstance(peername, tuple) and peername:
        return _canonical(str(peername[0]))
    # A client's end of a Unix socket is mostly unnamed: '' on asyncio and uvloop, bytes in Linux's abstract space.
    return UNIX if isinstance(peername, str | bytes) else UNKNOWN


@lru_cache(maxsize=8192)
def _canonical(host: str) -> str:
    return str(parse(host) or host)


def client_address(peer: str, forwarded: Sequence[str], trusted: TrustedProxies) -> str:
    """Return the client's canonical address. `forwarded`: the X-Forwarded-For fields, in the order of the head.

    `peer` is the address that the connection comes from (see `peer_address`). Where an entry by one of our proxies is no
    address ("unknown", an obfuscated name, garbage), nothing further can be known, and the proxy itself is the answer:
    so its clients share its limits, which is the safe side. A chain of our own proxies only: the leftmost of them.
    """
    if not forwarded or peer not in trusted:
        return peer
    address = peer
    for entry in _from_the_right(forwarded):
        parsed = parse(entry)
        if parsed is None:
            break
        address = str(parsed)
        if parsed not in trusted:
            break
    return address


def _from_the_right(fields: Sequence[str]) -> Iterable[str]:
    entries = ",".join(fields[-MAX_HOPS:]).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    return reversed(entries)


def bucket_key(address: str) -> str:
    """Return the key that address limits count by: an IPv4 address whole, an IPv6 address by its /64, other text as it is.

    A /64 is the smallest network that is given to a customer (RFC 6177), so it is one client however many addresses he uses.
    """
    if ":" not in address:
        return address
    parsed = parse(address)
    if not isinstance(parsed, IPv6Address):
        return address if parsed is None else str(parsed)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
