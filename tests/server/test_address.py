"""The client's address: trusted chains, lies, garbage, and the bucket of an address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.server.address import MAX_HOPS, TrustedProxies, bucket_key, client_address, parse, peer_address

PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7"])


class TestTrustedProxies:
    def test_contains(self) -> None:
        """Networks and single addresses of both families; mapped addresses count as what they map."""
        assert "10.255.0.1" in PROXIES
        assert "::ffff:10.1.2.3" in PROXIES
        assert "192.0.2.7" in PROXIES
        assert "2001:db8:1:ffff::9" in PROXIES
        assert ip_address("10.0.0.1") in PROXIES
        assert "192.0.2.8" not in PROXIES
        assert "2001:db8:2::1" not in PROXIES

    def test_other_text_is_no_proxy(self) -> None:
        """Text that is no address is trusted only as `unix`, and only where that was said."""
        assert "unix" not in PROXIES
        assert "garbage" not in PROXIES
        assert "unix" in TrustedProxies(["unix"])

    def test_emptiness_and_repr(self) -> None:
        assert not TrustedProxies()
        assert TrustedProxies(["unix"])
        assert repr(TrustedProxies(["10.0.0.0/8", "unix"])) == "TrustedProxies(10.0.0.0/8, unix)"

    @pytest.mark.parametrize("network", ["10.0.0.5/8", "10.0.0.0/33", "localhost", ""])
    def test_not_a_network(self, network: str) -> None:
        """Slips are errors at start, not silent trust."""
        with pytest.raises(ValueError):
            TrustedProxies([network])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1\t", "192.0.2.1"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("192.0.2", None),
        ("192.0.2.1.5", None),
        ("0300.0.0.1", None),
        ("3221225985", None),
        ("[192.0.2.1", "192.0.2.1"),
        ("2001:db8::1::", None),
        ("[", None),
        ("\x00", None),
        ("\uff11\uff19\uff12.0.2.1", None),
    ],
)
def test_parse(text: str, address: str | None) -> None:
    """What proxies write is read, anything else is None."""
    found = parse(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("peername", "address"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::1"),
        (("odd", 5), "odd"),
        ("", "unix"),
        (b"\x00abstract", "unix"),
        (None, "unknown"),
        ((), "unknown"),
    ],
)
def test_peer_address(peername: object, address: str) -> None:
    """Every form that asyncio and uvloop give."""
    assert peer_address(peername) == address


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param("198.51.100.9", ["192.0.2.1"], "198.51.100.9", id="an untrusted peer's header is ignored"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", ["192.0.2.1"], "192.0.2.1", id="one proxy"),
        pytest.param("10.0.0.1", ["192.0.2.1, 10.0.0.2"], "192.0.2.1", id="two proxies"),
        pytest.param("10.0.0.1", ["1.1.1.1, 192.0.2.1"], "192.0.2.1", id="the leftmost lie is ignored"),
        pytest.param("10.0.0.1", ["10.0.0.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1", id="a lie that names our own proxy"),
        pytest.param("10.0.0.1", ["1.1.1.1", "192.0.2.1"], "192.0.2.1", id="several fields: the last is nearest"),
        pytest.param("10.0.0.1", ["garbage, 192.0.2.1"], "192.0.2.1", id="garbage from the client"),
        pytest.param("10.0.0.1", ["192.0.2.1, garbage"], "10.0.0.1", id="garbage from the proxy itself"),
        pytest.param("10.0.0.1", ["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2", id="unknown behind an inner proxy"),
        pytest.param("10.0.0.1", [""], "10.0.0.1", id="an empty field"),
        pytest.param("10.0.0.1", ["192.0.2.1,"], "10.0.0.1", id="an empty last entry"),
        pytest.param("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="only our own"),
        pytest.param("10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1", id="mapped"),
        pytest.param("10.0.0.1", ["[2001:DB8::1]:80"], "2001:db8::1", id="IPv6 with a port"),
        pytest.param("2001:db8:1::1", ["192.0.2.1"], "192.0.2.1", id="an IPv6 proxy"),
        pytest.param("unix", ["192.0.2.1"], "unix", id="a Unix peer that is not trusted"),
        pytest.param("unknown", ["192.0.2.1"], "unknown", id="no peer"),
    ],
)
def test_client_address(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_a_trusted_unix_peer() -> None:
    """A proxy on the same machine that connects through a Unix socket."""
    assert client_address("unix", ["192.0.2.1"], TrustedProxies(["unix"])) == "192.0.2.1"


def test_long_chains_are_cut() -> None:
    """A head full of our own addresses costs a bounded amount of work."""
    chain = ["192.0.2.1"] + ["10.0.0.2"] * 5_000
    assert client_address("10.0.0.1", [",".join(chain)], PROXIES) == "10.0.0.2"
    assert client_address("10.0.0.1", chain, PROXIES) == "10.0.0.2"
    assert client_address("10.0.0.1", [",".join(chain[:MAX_HOPS])], PROXIES) == "192.0.2.1"


@given(st.lists(st.text(), max_size=5), st.ip_addresses())
def test_no_client_can_move_his_address(lies: list[str], client: object) -> None:
    """Whatever the client sends, what our proxy appended decides."""
    if str(client) in PROXIES:
        return
    expected = str(parse(str(client)))
    assert client_address("10.0.0.1", [*lies, str(client)], PROXIES) == expected
    assert client_address("10.0.0.1", [",".join([*lies, str(client)])], PROXIES) == expected
    assert client_address("203.0.113.5", lies, PROXIES) == "203.0.113.5"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
        ("unknown", "unknown"),
        ("odd:", "odd:"),
    ],
)
def test_bucket_key(address: str, key: str) -> None:
    assert bucket_key(address) == key
