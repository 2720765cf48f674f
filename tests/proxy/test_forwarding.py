"""What backends are told of the connection, by RFC 7239 and by habit."""

from __future__ import annotations

import pytest

from gateway.proxy import forwarding
from gateway.proxy.forwarding import Hop, forwarded_fields

CLIENT = Hop("198.51.100.7", trusted=False, scheme="https", host="api.example.com")
PROXY = CLIENT._replace(peer="10.0.0.7", trusted=True, scheme="http", host="gateway:8080")
TOLD = {
    b"x-forwarded-for": ["192.0.2.1", "10.0.0.9"],
    b"x-forwarded-proto": ["https"],
    b"x-forwarded-host": ["api.example.com"],
    b"x-forwarded-port": ["8443"],
    b"forwarded": ['for=192.0.2.1;proto=https;by="[2001:db8::9]"', "for=10.0.0.9"],
}


def test_what_a_stranger_says_is_replaced():
    """RFC 7239, section 8.1: the fields cannot be relied on unless every proxy is known."""
    said = [
        ("X-Forwarded-For", "198.51.100.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "api.example.com"),
        ("X-Forwarded-Port", "443"),
        ("Forwarded", "for=198.51.100.7;host=api.example.com;proto=https"),
    ]
    assert list(forwarded_fields(CLIENT, TOLD)) == said
    assert list(forwarded_fields(CLIENT, {})) == said


def test_what_a_trusted_proxy_says_is_continued():
    """RFC 7239, section 4: a proxy adds its element at the end; the fields with one value stay what the client used."""
    assert list(forwarded_fields(PROXY, TOLD)) == [
        ("X-Forwarded-For", "192.0.2.1, 10.0.0.9, 10.0.0.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "api.example.com"),
        ("X-Forwarded-Port", "8443"),
        (
            "Forwarded",
            'for=192.0.2.1;proto=https;by="[2001:db8::9]", for=10.0.0.9, for=10.0.0.7;host="gateway:8080";proto=http',
        ),
    ]


def test_a_trusted_proxy_that_says_nothing_is_the_client():
    """As for limits and logs: who cannot be told apart from his proxy is his proxy."""
    fields = dict(forwarded_fields(PROXY, {b"x-forwarded-for": [""]}))
    assert fields["X-Forwarded-For"] == "10.0.0.7"
    assert (fields["X-Forwarded-Proto"], fields["X-Forwarded-Host"], fields["X-Forwarded-Port"]) == (
        "http",
        "gateway:8080",
        "8080",
    )
    assert fields["Forwarded"] == 'for=10.0.0.7;host="gateway:8080";proto=http'


def test_forwarded_is_made_of_the_habitual_field():
    """RFC 7239, section 7.4: where a trusted proxy gives only X-Forwarded-For; what is no address is unknown."""
    told = {b"x-forwarded-for": ["192.0.2.43, 2001:db8:cafe::17,[2001:db8::1]:4711", '192.0.2.1:80, "x";for=evil']}
    assert dict(forwarded_fields(PROXY, told))["Forwarded"].startswith(
        'for=192.0.2.43, for="[2001:db8:cafe::17]", for="[2001:db8::1]:4711", for="192.0.2.1:80", for=unknown, for=10.0.0.7;'
    )


def test_the_port_is_that_of_what_the_trusted_proxy_was_asked_for():
    """Its own port is where clients never were."""
    told = {b"x-forwarded-proto": ["https"], b"x-forwarded-host": ["api.example.com"]}
    assert dict(forwarded_fields(PROXY, told))["X-Forwarded-Port"] == "443"


@pytest.mark.parametrize(
    ("peer", "entry", "node"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1", '"[2001:db8::1]"'),
        ("unix", "unknown", "unknown"),
        ("unknown", "unknown", "unknown"),
        ("a;for=b", "unknown", "unknown"),
    ],
)
def test_nodes(peer: str, entry: str, node: str):
    """RFC 7239, section 6: IPv6 in brackets and quoted; section 6.2: `unknown` for what has no address."""
    fields = dict(forwarded_fields(CLIENT._replace(peer=peer), {}))
    assert (fields["X-Forwarded-For"], fields["Forwarded"].partition(";")[0]) == (entry, f"for={node}")


@pytest.mark.parametrize(
    ("host", "scheme", "quoted", "port"),
    [
        ("a.example", "http", "a.example", "80"),
        ("a.example:8443", "https", '"a.example:8443"', "8443"),
        ("[2001:db8::1]", "https", '"[2001:db8::1]"', "443"),
        ("[2001:db8::1]:81", "https", '"[2001:db8::1]:81"', "81"),
        ("", "http", '""', "80"),
        ('a";for="b\\', "http", '"a\\";for=\\"b\\\\"', "80"),
        ("a", "x", "a", "80"),
    ],
)
def test_hosts(host: str, scheme: str, quoted: str, port: str):
    """RFC 7239, section 5.3, and RFC 9110, section 5.6.4: no host can end its quotes."""
    fields = dict(forwarded_fields(CLIENT._replace(host=host, scheme=scheme), {}))
    assert fields["Forwarded"] == f"for=198.51.100.7;host={quoted};proto={scheme}"
    assert (fields["X-Forwarded-Host"], fields["X-Forwarded-Port"]) == (host, port)


def test_a_name_that_none_can_have_is_not_remembered():
    """Else whoever sends long ones could fill the memory with them."""
    before = forwarding._own_fields.cache_info().currsize
    fields = dict(forwarded_fields(CLIENT._replace(host="a" * 8000), {}))
    assert fields["X-Forwarded-Host"] == "a" * 8000
    assert forwarding._own_fields.cache_info().currsize == before
