"""The kinds of values that routes and upstreams hold: paths, hosts, methods, header fields, statuses and dates (sans-I/O)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from functools import partial
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.config.values import Count, Text, expected, split_address
from gateway.proxy.paths import parse_path, parse_prefix
from gateway.proxy.rewriting import parse_path_rewrite, parse_prefix_rewrite

# Of the connection and its framing (RFC 9110, section 7.6.1, RFC 9112, section 6): whoever set them by hand would break it.
FRAMING: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# What the gateway itself says about the way that a request took.
WAY: Final = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"))

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # RFC 9110, section 5.6.2
_METHOD: Final = re.compile(r"[A-Z0-9!#$%&'*+.^_`|~-]{1,32}")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_PATTERN: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_PARAMETER: Final = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_VALUE: Final = re.compile(r"[!-~\x80-\U0010ffff](?:[\t -~\x80-\U0010ffff]*[!-~\x80-\U0010ffff])?")
_TARGET: Final = "an address with its port, such as 10.0.0.1:8080, shop.internal:8080 or [::1]:8080"
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def parameters(path: str) -> frozenset[str]:
    """Give the names of a path's parameters."""
    return frozenset(_PARAMETER.findall(path))


def _path(value: str) -> str:
    return _parsed(parse_path, value)


def _prefix(value: str) -> str:
    return _parsed(parse_prefix, value)


def _parsed(parse: Callable[[str], object], value: str) -> str:
    try:
        parse(value)
    except ValueError as error:
        raise expected(str(error).removeprefix("expected ")) from None
    return value


def _rewritten_path(value: str) -> str:
    return _parsed(partial(parse_path_rewrite, parameters=parameters(value)), value)


def _rewritten_prefix(value: str) -> str:
    return _parsed(parse_prefix_rewrite, value)


def _plain_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise expected("a path such as /healthz")
    return value


def _host_pattern(value: str) -> str:
    lowered = value.lower()
    if lowered.startswith("[") and lowered.endswith("]") and _is_v6(lowered[1:-1]):
        return lowered
    if not _PATTERN.fullmatch(lowered) or len(lowered) > 255:  # noqa: PLR2004  # DNS's own
        raise expected("a host such as api.example.com, or *.example.com for all below it, without a port")
    return lowered


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _authority(value: str) -> str:
    try:
        split_address(value if re.search(r":[0-9]*\Z", value) else f"{value}:80")
    except ValueError:
        raise expected("a host such as shop.internal, or with a port shop.internal:8080") from None
    return value


def _method(value: str) -> str:
    if not _METHOD.fullmatch(value) or value == "CONNECT":
        raise expected("a method in capitals such as GET (CONNECT is never passed on)")
    return value


def _field_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise expected("the name of a header field such as X-Name")
    return value


def _field_value(value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise expected("the value of a header field: text without line breaks, and without spaces around it")
    return value


def _target_address(value: str) -> str:
    try:
        split_address(value)
    except ValueError:
        raise expected(_TARGET) from None
    return value


def _dns(value: str) -> str:
    try:
        host, _ = split_address(value)
    except ValueError:
        raise expected("a DNS name with a port, such as shop.internal:8080") from None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return value
    raise expected("a DNS name with a port, such as shop.internal:8080 (addresses go under address)")


def _target(value: Any) -> Any:
    """Take a text for the address of a target."""
    return {"address": _target_address(value)} if isinstance(value, str) else value


def _retried(value: int) -> int:
    if value != 429 and not 500 <= value <= 599:  # noqa: PLR2004  # Too Many Requests, and the errors of servers
        raise expected("429, or a status of 500 to 599: others are answers")
    return value


def _moment(value: Any) -> Any:
    """Read a date (its first second, in UTC) or a time with its offset (RFC 3339)."""
    what = "a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z"
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise expected(what)
    try:
        if _DATE.fullmatch(value):
            return datetime.combine(date.fromisoformat(value), time(), UTC)
        if _TIME.fullmatch(value):
            return datetime.fromisoformat(value.upper())
    except ValueError:
        pass  # no such day or hour
    raise expected(what)


def _link(value: str) -> str:
    if not re.fullmatch(r"(?:/|https?://[^/?#]+)[!-~]*", value) or any(sign in value for sign in '<>"\\^`{|}'):
        raise expected("a path such as /v2/orders, or a URL")
    return value


def _some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    # pydantic's own bound also counts the items that it refused.
    if not value:
        raise expected("a list of at least 1")
    return value


def _listed(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


class OrText:
    """Says in the JSON schema that a text may stand in the place of the mapping."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "string"}]}


_LIST_SCHEMA: Final[Mapping[str, Any]] = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
_MOMENT_SCHEMA: Final = WithJsonSchema({"type": "string"})

some = AfterValidator(_some)
as_target = BeforeValidator(_target)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
RoutePath = Annotated[str, AfterValidator(_path)]
RoutePrefix = Annotated[str, AfterValidator(_prefix)]
RewrittenPath = Annotated[str, AfterValidator(_rewritten_path)]
RewrittenPrefix = Annotated[str, AfterValidator(_rewritten_prefix)]
PlainPath = Annotated[str, AfterValidator(_plain_path)]
Authority = Annotated[str, AfterValidator(_authority)]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_host_pattern)], ...],
    BeforeValidator(_listed),
    some,
    WithJsonSchema(dict(_LIST_SCHEMA)),
]
Methods = Annotated[
    tuple[Annotated[str, AfterValidator(_method)], ...],
    BeforeValidator(_listed),
    some,
    WithJsonSchema(dict(_LIST_SCHEMA)),
]
FieldName = Annotated[str, AfterValidator(_field_name)]
FieldValue = Annotated[Text, AfterValidator(_field_value)]
TargetAddress = Annotated[str, AfterValidator(_target_address)]
DnsName = Annotated[str, AfterValidator(_dns)]
Status = Annotated[Count, Field(ge=100, le=599)]
RetriedStatus = Annotated[Count, AfterValidator(_retried)]
Moment = Annotated[datetime, BeforeValidator(_moment), _MOMENT_SCHEMA]
Link = Annotated[str, AfterValidator(_link)]
