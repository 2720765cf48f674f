"""The kinds of values that a configuration holds: sizes, durations, addresses, names and files.

Each kind is an annotated type whose error says what was expected, so that `loading` can put it into a problem as it is.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\-\[\]:]+")
_HEADER: Final = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")


def expected(what: str) -> PydanticCustomError:
    """Make the error of a value that is not `what`."""
    # The text goes in as a value: braces in it would be taken for fields of the template.
    return PydanticCustomError("expected", "{what}", {"what": what})


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[2] not in _UNITS:
            raise expected("a size in bytes such as 65536 or 64KiB")
        return int(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected("a size in bytes such as 65536 or 64KiB")
    return value


def _not_bool(value: Any) -> Any:
    # pydantic reads `true` as the number 1.
    if isinstance(value, bool):
        raise expected("a number")
    return value


def _items(value: Any) -> Any:
    """Take `a, b` for a list: what an environment variable can hold."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def split_address(value: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; raises ValueError."""
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:  # noqa: PLR2004  # TCP's own
        raise ValueError(value)
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    if not _HOST.fullmatch(host):
        raise ValueError(value)
    return host, int(port)


def _address(value: str) -> str:
    try:
        split_address(value)
    except ValueError:
        raise expected("an address such as kafka-1:9092 or [::1]:9092") from None
    return value


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not _HOST.fullmatch(value):
            raise expected("an IP address or a host name") from None
    return value


def _network(value: str) -> str:
    if value != "unix":
        try:
            ipaddress.ip_network(value)
        except ValueError:
            raise expected("a network such as 10.0.0.0/8 (no bits set beyond its prefix), an address, or unix") from None
    return value


def _url(value: str) -> str:
    what = "a URL such as https://id.example.com/keys, without user name, password and fragment"
    try:
        parts = urlsplit(value)
        _ = parts.port  # is parsed, and refused, only now
    except ValueError:
        raise expected(what) from None
    good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and not parts.fragment
    if not good or not value.isascii() or not value.isprintable() or " " in value:
        raise expected(what)
    return value


def _origin(value: str) -> str:
    # As browsers send it: no path, no upper case, not the scheme's own port.
    good = value == "*" or (_ORIGIN.fullmatch(value) and _parses(value))
    if not good or value.endswith(":443" if value.startswith("https:") else ":80"):
        raise expected("an origin as browsers send it, such as https://app.example.com, or *")
    return value


def _parses(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        _ = parts.port
        return bool(parts.hostname) and not parts.netloc.endswith(":")
    except ValueError:
        return False


def _topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise expected("a Kafka topic: 1 to 249 of A-Z a-z 0-9 . _ -")
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,8}", value):
        raise expected("a path such as /v1, without a slash at its end")
    return value


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        raise expected("the name of a record header: 1 to 128 printable ASCII characters")
    return value


def _file(value: Path, info: ValidationInfo) -> Path:
    """Make a path absolute, from the folder of the configuration; without that folder, files are not looked for."""
    base = (info.context or {}).get("base")
    if base is None:
        return value
    path = Path(base) / value
    try:
        readable = path.is_file() and os.access(path, os.R_OK)
    except OSError:  # too long, for one
        readable = False
    if not readable:
        raise expected("a file that can be read")
    return path


_SIZE_SCHEMA: Final = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+ ?([KMG]iB|kB|MB|GB|B)?$"}]}
)


def _list_schema(item: dict[str, object]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "array", "items": item}, {"type": "string"}]})


Size = Annotated[int, BeforeValidator(_size), _SIZE_SCHEMA]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=86400)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Port = Annotated[int, BeforeValidator(_not_bool), Field(ge=0, le=65535)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Host = Annotated[str, AfterValidator(_host)]
File = Annotated[Path, AfterValidator(_file)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Topic = Annotated[str, AfterValidator(_topic)]
Url = Annotated[str, AfterValidator(_url)]
HeaderName = Annotated[str, AfterValidator(_header)]
Addresses = Annotated[
    tuple[Annotated[str, AfterValidator(_address)], ...],
    BeforeValidator(_items),
    Field(min_length=1),
    _list_schema({"type": "string"}),
]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_items), _list_schema({"type": "string"})
]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_items), _list_schema({"type": "string"})
]
Strings = Annotated[tuple[Text, ...], BeforeValidator(_items), _list_schema({"type": "string"})]
