"""The kinds of values: what each takes, and that it says what it expected."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway.config import values


def accepted(kind: object, value: object, base: Path | None = None) -> object:
    return TypeAdapter(kind).validate_python(value, context={"base": base})


def refused(kind: object, value: object, base: Path | None = None) -> str:
    with pytest.raises(ValidationError) as caught:
        accepted(kind, value, base)
    return caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("written", "size"),
    [(0, 0), (65536, 65536), ("512", 512), ("64KiB", 65536), ("1 MiB", 1 << 20), ("2GiB", 2 << 30), ("1kB", 1000), ("3 MB", 3_000_000), ("7B", 7)],
)  # fmt: skip
def test_sizes(written, size):
    assert accepted(values.Size, written) == size


@pytest.mark.parametrize("written", ["", "x", "64K", "1.5MiB", "-1", "64 kib", "1e3", True, 1.5, None, [], "٣", "1" * 16])
def test_what_is_no_size(written):
    assert refused(values.Size, written) == "a size in bytes such as 65536 or 64KiB"


@pytest.mark.parametrize("kind", [values.Seconds, values.Number, values.Count, values.Port])
def test_numbers_come_as_text_too_but_not_as_switches(kind):
    assert accepted(kind, "5") == accepted(kind, 5) == 5
    assert refused(kind, True) == "a number"


@pytest.mark.parametrize("address", ["kafka:9092", "a-b.c_d:1", "10.0.0.1:65535", "[::1]:9092", "[2001:db8::1]:1"])
def test_addresses(address):
    assert accepted(values.Addresses, [address]) == (address,)


@pytest.mark.parametrize(
    "address",
    ["", "kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "kafka:x", "::1:9092", "[::1]", "[x]:1", "[]:1", "a b:1", "http://a:1", "a/b:1", "-a:1", "ä:1", "a:٣"],
)  # fmt: skip
def test_what_is_no_address(address):
    assert "an address such as kafka-1:9092" in refused(values.Addresses, [address])


def test_lists_may_be_one_text():
    """As environment variables are."""
    assert accepted(values.Addresses, " a:1, b:2 ,") == ("a:1", "b:2")
    assert accepted(values.Strings, "x, y") == ("x", "y")
    assert "at least 1" in refused(values.Addresses, "")


@pytest.mark.parametrize("host", ["192.0.2.1", "::", "localhost", "gateway-1.internal"])
def test_hosts(host):
    assert accepted(values.Host, host) == host


@pytest.mark.parametrize("host", ["", "a b", "[::1]", "a:1", "http://a", "-"])
def test_what_is_no_host(host):
    assert refused(values.Host, host) == "an IP address or a host name"


def test_networks():
    given_ = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1", "unix"]
    assert accepted(values.Networks, given_) == tuple(given_)


@pytest.mark.parametrize("network", ["10.0.0.5/8", "x", "", "10.0.0.0/33", "UNIX"])
def test_what_is_no_network(network):
    assert "no bits set beyond its prefix" in refused(values.Networks, [network])


@pytest.mark.parametrize("url", ["https://id.example.com/keys?x=1", "http://localhost:8080", "https://[::1]:1/"])
def test_urls(url):
    assert accepted(values.Url, url) == url


@pytest.mark.parametrize(
    "url",
    ["", "id.example.com", "//x", "ftp://x", "https://", "https://u@x/", "https://u:p@x/", "https://x/#f", "https://x:y/", "https://x:99999/", "https://[x/", "https://x/ y", "https://ä/", "https://x/\n"],
)  # fmt: skip
def test_what_is_no_url(url):
    assert "without user name, password and fragment" in refused(values.Url, url)


@pytest.mark.parametrize("origin", ["*", "https://app.example.com", "http://localhost:3000", "https://[::1]:8443"])
def test_origins(origin):
    assert accepted(values.Origins, [origin]) == (origin,)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "app.example.com", "https://a/", "https://A.example", "https://a:443", "http://a:80", "https://*.a.b", "https://u@a", "https://a:", "https://a:x", "https://:1", "https://[::1", "file://a", "https://a:99999"],
)  # fmt: skip
def test_what_no_browser_sends_as_origin(origin):
    assert "an origin as browsers send it" in refused(values.Origins, [origin])


@pytest.mark.parametrize("topic", ["orders", "a.b_c-D9", "x" * 249])
def test_topics(topic):
    assert accepted(values.Topic, topic) == topic


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "a/b", "x" * 250, "ä", "a\n"])
def test_what_is_no_topic(topic):
    assert "a Kafka topic" in refused(values.Topic, topic)


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1.2"])
def test_prefixes(prefix):
    assert accepted(values.Prefix, prefix) == prefix


@pytest.mark.parametrize("prefix", ["", "/", "v1", "/v1/", "//v1", "/../v1", "/{x}", "/a b", "/v1\n"])
def test_what_is_no_prefix(prefix):
    assert "a path such as /v1" in refused(values.Prefix, prefix)


@pytest.mark.parametrize("name", ["trace", "X-Id 2", "a"])
def test_headers(name):
    assert accepted(values.HeaderName, name) == name


@pytest.mark.parametrize("name", ["", " a", "a ", "ä", "a\n", "x" * 129])
def test_what_is_no_header(name):
    assert "1 to 128 printable ASCII" in refused(values.HeaderName, name)


class TestFiles:
    def test_paths_are_relative_to_the_configuration(self, tmp_path):
        (tmp_path / "key.pem").write_text("x")
        assert accepted(values.File, "key.pem", tmp_path) == tmp_path / "key.pem"
        assert accepted(values.File, str(tmp_path / "key.pem"), Path("/nowhere")) == tmp_path / "key.pem"

    @pytest.mark.parametrize("name", ["none.pem", ".", "x" * 5000, "a\x00b", ""])
    def test_a_file_has_to_be_there(self, tmp_path, name):
        assert refused(values.File, name, tmp_path) == "a file that can be read"

    def test_without_a_folder_nobody_looks(self):
        assert accepted(values.File, "none.pem") == Path("none.pem")
        assert TypeAdapter(values.File).validate_python("none.pem") == Path("none.pem")


@given(st.text(), st.sampled_from([values.Size, values.Host, values.Url, values.Topic, values.Prefix, values.HeaderName]))
def test_any_text_is_taken_or_refused(text, kind):
    with contextlib.suppress(ValidationError):
        accepted(kind, text)


@given(st.text(), st.sampled_from([values.Addresses, values.Networks, values.Origins]))
def test_any_item_is_taken_or_refused(text, kind):
    with contextlib.suppress(ValidationError):
        accepted(kind, [text])
