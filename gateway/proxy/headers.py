"""What of a message's head is passed on, in both directions (sans-I/O).

End-to-end fields keep their order, their repetitions and the case of their names. What belongs to one connection only is
dropped (RFC 9110, section 7.6.1), and what the gateway says itself stands at the end.

Clients decide less than they might think. With `Connection` they can name fields away, but never one that frames the message,
that somebody on the way relies on, or that the gateway sets. And backends that read fields as CGI variables see no difference
between `X-User`, `x_user` and `X.User`: so names are compared with all of their punctuation as one, and a field that is merely
spelled like one of the gateway's is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from aiohttp.http_parser import RawResponseMessage
from multidict import CIMultiDict

from gateway.errors import Forbidden, UpstreamFailed
from gateway.proxy import forwarding
from gateway.proxy.forwarding import Hop, forwarded_fields
from gateway.proxy.tracing import trace_fields

Raw = Iterable[tuple[bytes, bytes]]
"""Fields as aiohttp's parsers give them in `raw_headers`."""

PSEUDONYM: Final = "longpoll-gateway"
MAX_PASSES: Final = 8
"""Times that one request may come through gateways of ours: more are a loop."""

# All but letters and digits becomes "-", letters become small.
_TOKEN: Final = b"!#$%&'*+-.^_`|~" + bytes(b for b in range(128) if chr(b).isalnum())
_CONTROL: Final = bytes({*range(32), 127} - {ord("\t")})
_LEAST_STATUS: Final = 100
_VERSIONS: Final = ((1, 0), (1, 1))

_NORMAL: Final = bytes(ord(chr(b).lower()) if b < 128 and chr(b).isalnum() else ord("-") for b in range(256))  # noqa: PLR2004

# RFC 9110, section 7.6.1, and what else ends at a proxy: sections 11.7 (authentication), 10.1.1 (Expect, which the gateway
# answers itself), RFC 9113, section 3.1 (HTTP2-Settings).
_HOP_BY_HOP: Final = frozenset((
    b"connection", b"expect", b"http2-settings", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info",
    b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
))  # fmt: skip
# Fields that are looked at, and written anew.
_NOTED: Final = _HOP_BY_HOP | {
    b"content-length", b"host", b"max-forwards", b"traceparent", b"tracestate", b"via",
    forwarding.FORWARDED, forwarding.FOR, forwarding.HOST, forwarding.PORT, forwarding.PROTO,
}  # fmt: skip
_NOTED_OF_ANSWERS: Final = _HOP_BY_HOP | {b"content-length", b"via"}
# What only a proxy can know. Of others it is a lie: about their address, or about the path that was asked for.
_OF_PROXIES: Final = frozenset((
    b"cf-connecting-ip", b"client-ip", b"true-client-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-original-host",
    b"x-original-uri", b"x-original-url", b"x-real-ip", b"x-rewrite-url",
))  # fmt: skip
# What Connection cannot name away. RFC 9110, section 7.6.1: never what is meant for all recipients.
_END_TO_END: Final = frozenset((
    "accept-encoding", "access-control-allow-origin", "age", "authorization", "cache-control", "content-disposition",
    "content-encoding", "content-language", "content-location", "content-range", "content-security-policy", "content-type",
    "cookie", "date", "etag", "expires", "idempotency-key", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "last-modified", "location", "origin", "range", "retry-after", "set-cookie",
    "strict-transport-security", "vary", "www-authenticate", "x-api-key", "x-real-ip",
))  # fmt: skip
_NEVER_BEHIND: Final = _NOTED | {name.encode() for name in _END_TO_END} | {b"x-request-id"}
# Kinds of fields in a request; from the third on they may be passed.
_MISSPELLED, _LOOKED_AT, _OF_PROXY, _PLAIN = range(4)
_OPTIONS_OF_ITS_OWN: Final = frozenset(("close", "keep-alive", "te", "upgrade", ""))
_BOUNDED: Final = frozenset(("OPTIONS", "TRACE"))
_FORWARDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
# A recipient would cut off blanks at the ends: " admin" and "admin" would be one.
_UNSPEAKABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]|\A\s|\s\Z")


def normal(name: str | bytes) -> bytes:
    """Return the name of a field as all of its spellings have it: in small letters, with "-" for punctuation."""
    return (name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name).translate(_NORMAL)


@lru_cache(maxsize=512)  # a name may have thousands of bytes
def _known(name: bytes) -> tuple[int, bytes, str]:
    """Return of what kind a request's field is, its name as all spellings have it, and as sent."""
    key, text = normal(name), name.decode("utf-8", "surrogateescape")
    if key in _NOTED:
        return (_LOOKED_AT if name.lower() == key else _MISSPELLED), key, text
    return (_OF_PROXY if key in _OF_PROXIES or key.startswith(b"x-forwarded-") else _PLAIN), key, text


def well_formed(message: RawResponseMessage) -> bool:
    """Tell whether the head of an answer is one: aiohttp's parser takes more from servers than it is safe to pass on.

    That is: other versions, a status below 100, a transfer coding that is not chunked alone or comes with HTTP/1.0 (RFC 9112
    §6.1), blanks in names (§5.1), and control characters (RFC 9110 §5.5).
    """
    version, raw, headers = message.version, message.raw_headers, message.headers
    if version not in _VERSIONS or message.code < _LEAST_STATUS:
        return False
    if "Transfer-Encoding" in headers and (
        version.minor == 0 or [coding.lower() for coding in headers.getall("Transfer-Encoding")] != ["chunked"]
    ):
        return False
    names, values = map(b"".join, zip(*raw, strict=True)) if raw else (b"", b"")
    values += message.reason.encode("utf-8", "surrogateescape")
    return not names.translate(None, _TOKEN) and len(values.translate(None, _CONTROL)) == len(values)


def head_bytes(line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a head as it is sent, its bytes over 127 as they came; ValueError if a field cannot be one."""
    lines = [line, *[f"{name}: {value}" for name, value in fields]]
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header field with a line break")
    return (text + "\r\n\r\n").encode("utf-8", "surrogateescape")


def stripped_names(claims: Iterable[str] = (), *, authorization: bool = False) -> frozenset[bytes]:
    """Return the fields that clients cannot send on a route: those of its `claims` and, unless it is to be passed, identity.

    Raise ValueError for a claim's field that frames the message or is the gateway's own.
    """
    names = frozenset(map(normal, claims))
    if not names.isdisjoint(_NOTED):
        raise ValueError("expected fields for claims that the gateway does not set itself")
    return names if authorization else names | {b"authorization", b"x-api-key"}


STRIPPED: Final = stripped_names()


def ends_here(method: str, raw: Raw) -> bool:
    """Tell whether a request has to be answered here and is not to be forwarded (RFC 9110, section 7.6.2)."""
    return method in _BOUNDED and any(name.lower() == b"max-forwards" and not value.strip(b"0") for name, value in raw)


def forwarded_head(
    raw: Raw,
    hop: Hop,
    *,
    method: str,
    random: Callable[[int], bytes],
    host: str | None = None,
    stripped: frozenset[bytes] = STRIPPED,
    vouched: Iterable[tuple[str, str]] = (),
    upgrade: bool = False,
    trailers: bool = False,
    new_parent: bool = False,
    sampled: bool = True,
) -> CIMultiDict[str]:
    """Return the head of the request to the backend; its body's framing is the caller's, who knows the body.

    `host`: in place of the one sent. `stripped` (see `stripped_names`) is left out, and `vouched` are the fields made of
    claims. `upgrade`, `trailers`: the caller will pass them on. `random`, `new_parent`, `sampled`: see `trace_fields`.
    Raise Forbidden where a claim cannot be the value of a field, UpstreamFailed where the request goes in circles.
    """
    kept = [("Host", hop.host if host is None else host)]
    told: dict[bytes, list[str]] = {}
    least = _OF_PROXY if hop.trusted else _PLAIN
    for name, value in raw:
        kind, key, text = _known(name)
        if kind >= least:
            if key not in stripped:
                kept.append((text, value.decode("utf-8", "surrogateescape")))
        elif kind == _LOOKED_AT:
            told.setdefault(key, []).append(value.decode("utf-8", "surrogateescape"))
    options = _options(told)
    if not options <= _OPTIONS_OF_ITS_OWN:
        kept = _without(kept, options)
    kept += _of_this_connection(told, options, upgrade=upgrade, trailers=trailers)
    if method in _BOUNDED:
        kept += _max_forwards(told)
    if any(value.count(PSEUDONYM) for value in told.get(b"via", ())):
        _check_passes(told)
    kept.append(_via(told, hop.version))
    kept += forwarded_fields(hop, told)
    kept += trace_fields(
        told.get(b"traceparent", ()),
        told.get(b"tracestate", ()),
        random=random,
        new_parent=new_parent,
        sampled=sampled,
    )
    for pair in vouched:
        if _UNSPEAKABLE.search(pair[1]):
            raise Forbidden
        kept.append(pair)
    return CIMultiDict(kept)


def returned_head(raw: Raw, *, version: str = "1.1", upgrade: bool = False, trailers: bool = False) -> CIMultiDict[str]:
    """Return the head of the answer to the client; `version` is the HTTP version of the backend's.

    `upgrade` (of a 101, or what a 426 offers), `trailers`: the caller passes them on.
    """
    kept: list[tuple[str, str]] = []
    told: dict[bytes, list[str]] = {}
    for name, value in raw:
        _, key, text = _known(name)
        if key in _NOTED_OF_ANSWERS:
            told.setdefault(key, []).append(value.decode("utf-8", "surrogateescape"))
        else:
            kept.append((text, value.decode("utf-8", "surrogateescape")))
    options = _options(told)
    if not options <= _OPTIONS_OF_ITS_OWN:
        kept = _without(kept, options)
    told.pop(b"te", None)  # means nothing in an answer
    kept += _of_this_connection(told, options, upgrade=upgrade, trailers=trailers)
    kept.append(_via(told, version))
    return CIMultiDict(kept)


def returned_trailers(fields: CIMultiDict[str] | None) -> CIMultiDict[str] | None:
    """Return the fields behind an answer's body that may be passed on (RFC 9110 §6.5.1); None without any.

    What frames a message, belongs to one connection, or is acted upon before the body has come is none of them.
    """
    kept = [(name, value) for name, value in (fields or {}).items() if normal(name) not in _NEVER_BEHIND]
    return CIMultiDict(kept) if kept else None


def _options(told: Mapping[bytes, list[str]]) -> frozenset[str]:
    """Return what Connection names, in small letters."""
    values = told.get(b"connection")
    return frozenset([option.strip().lower() for option in ",".join(values).split(",")]) if values else frozenset()


def _without(kept: list[tuple[str, str]], options: frozenset[str]) -> list[tuple[str, str]]:
    """Return the fields that Connection does not name, and those that it cannot."""

    def stays(name: str) -> bool:
        lower = name.lower()
        return lower not in options or lower in _END_TO_END or lower == "host" or lower.startswith("x-forwarded-")

    return [pair for pair in kept if stays(pair[0])]


def _of_this_connection(
    told: Mapping[bytes, list[str]], options: frozenset[str], *, upgrade: bool, trailers: bool
) -> list[tuple[str, str]]:
    """Return what the gateway says in its own name where it was told the same."""
    fields: list[tuple[str, str]] = []
    connection: list[str] = []
    if b"content-length" in told and b"transfer-encoding" not in told:
        # RFC 9112, section 6.3: beside Transfer-Encoding a length must not go on.
        fields += [("Content-Length", value) for value in told[b"content-length"]]
    if upgrade and "upgrade" in options and b"upgrade" in told:
        fields += [("Upgrade", value) for value in told[b"upgrade"]]
        connection.append("Upgrade")
    if trailers and b"trailer" in told:
        fields += [("Trailer", value) for value in told[b"trailer"]]
    if b"te" in told and "trailers" in [member.strip().lower() for member in ",".join(told[b"te"]).split(",")]:
        # RFC 9110, section 10.1.4: codings are negotiated for one connection; TE goes with its own connection option.
        fields.append(("TE", "trailers"))
        connection.append("TE")
    if connection:
        fields.append(("Connection", ", ".join(connection)))
    return fields


def _max_forwards(told: Mapping[bytes, list[str]]) -> list[tuple[str, str]]:
    """Return the count less one; one that is none, or not alone, is dropped."""
    values = told.get(b"max-forwards", ())
    return [
        ("Max-Forwards", str(max(0, int(value) - 1))) for value in values if len(values) == 1 and _FORWARDS.fullmatch(value)
    ]


def _check_passes(told: Mapping[bytes, list[str]]) -> None:
    # RFC 9110, section 7.6.3: Via is for avoiding request loops.
    if ",".join(told[b"via"]).count(PSEUDONYM) >= MAX_PASSES:
        raise UpstreamFailed("The request came through this gateway too often: it goes in circles.")


def _via(told: Mapping[bytes, list[str]], version: str) -> tuple[str, str]:
    """Return Via with the gateway at its end, which tells in which version it *received* the message."""
    before = told.get(b"via")
    own = f"{version} {PSEUDONYM}"
    return ("Via", f"{', '.join(before)}, {own}" if before else own)
