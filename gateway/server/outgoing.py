"""A client's request as a backend gets it."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict

from gateway.proxy.body import Body
from gateway.proxy.exchange import Outgoing
from gateway.proxy.headers import forwarded_head
from gateway.server.passage import Passage
from gateway.server.returning import returned

WITH_BODY = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})
"""Methods whose requests usually have a body."""


def outgoing(passage: Passage, random: Callable[[int], bytes]) -> Outgoing:
    """Return the request as the backend gets it; Forbidden where a claim for it cannot be had."""
    route, message = passage.route, passage.message
    fields = message.headers
    body = passage.body = _body(passage)
    headers = forwarded_head(
        message.raw_headers,
        passage.hop,
        method=message.method,
        random=random,
        host=route.host,
        stripped=route.stripped,
        vouched=[(name, passage.values.text(template)) for name, template in route.claims],
        upgrade=body is None and _wants_websocket(message),
        trailers=False,
    )
    if body is None and message.method in WITH_BODY:
        headers[hdrs.CONTENT_LENGTH] = "0"  # RFC 9110 §8.6: some wait for a body otherwise, or answer 411
    if body is not None:
        headers.popall(hdrs.CONTENT_LENGTH, None)
        if body.length is None:
            headers[hdrs.TRANSFER_ENCODING] = "chunked"
        else:
            headers[hdrs.CONTENT_LENGTH] = str(body.length)
    headers["X-Request-Id"] = passage.facts.request_id
    route.request_edits.apply(headers, passage.values)
    path = passage.path if route.rewrite is None else route.rewrite.apply(passage.found)
    # RFC 9110 §10.1.1: in HTTP/1.0 it means nothing.
    expects = body is not None and message.version >= HttpVersion11 and fields.get(hdrs.EXPECT, "").lower() == "100-continue"
    passage.expects = expects
    if expects:
        headers[hdrs.EXPECT] = "100-continue"
    return Outgoing(
        message.method,
        passage.target(path),
        headers,
        body,
        expects=expects,
        on_informational=lambda answer: passage.relay.informational(answer.code, answer.reason, returned(answer)),
        on_continue=lambda: passage.relay.informational(100, "Continue", CIMultiDict()),
    )


def _body(passage: Passage) -> Body | None:
    message = passage.message
    length = int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
    if not message.chunked and not length:
        return None
    request = passage.request
    return Body(
        request.content,
        length=None if message.chunked else length,
        limit=passage.route.max_body,
        idle=passage.route.terms.idle,
    )


def _wants_websocket(message: RawRequestMessage) -> bool:
    # RFC 9110 §7.8: in HTTP/1.0 it means nothing.
    return message.upgrade and message.version >= HttpVersion11 and message.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
