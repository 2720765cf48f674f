"""The OpenAPI 3.1 description of what one caller may use, made from the channels and routes that it may see (sans-I/O)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from gateway import wire
from gateway.channels import Visible
from gateway.server.apiparts import Ready
from gateway.server.catalog import Offer

Document = dict[str, Any]

_NONE: Mapping[str, Ready] = MappingProxyType({})

_SCHEMAS: Mapping[str, Document] = {
    "Message": {
        "type": "object",
        "required": ["channel", "partition", "offset", "timestamp", "key", "headers", "value"],
        "properties": {
            "channel": {"type": "string"},
            "partition": {"type": "integer", "minimum": 0},
            "offset": {"type": "integer", "minimum": 0},
            "timestamp": {"type": ["integer", "null"], "description": "Unix time in milliseconds"},
            "key": {"description": "A string, {base64} where it is not UTF-8, or null"},
            "headers": {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}},
            "value": {"description": "In the channel's format; null for a tombstone"},
            "encoding": {"const": "base64", "description": "The record is not what its channel says"},
            "tombstone": {"const": True},
        },
    },
    "Lost": {
        "type": "object",
        "required": ["channel", "partition", "from", "to"],
        "properties": {
            "channel": {"type": "string"},
            "partition": {"type": "integer"},
            "from": {"type": "integer"},
            "to": {"type": "integer", "description": "Exclusive"},
        },
    },
    "Answer": {
        "type": "object",
        "required": ["cursor", "messages", "up_to_date"],
        "properties": {
            "cursor": {"type": "string", "maxLength": wire.MAX_CURSOR},
            "messages": {"type": "array", "items": {"description": "A Message; with view=value its value alone"}},
            "lost": {"type": "array", "items": {"$ref": "#/components/schemas/Lost"}},
            "up_to_date": {"type": "boolean", "description": "False: more is there, poll again at once"},
        },
    },
    "Standing": {
        "type": "object",
        "required": ["channels", "dropped"],
        "properties": {
            "channels": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["channel", "state", "keyed", "partitions"],
                    "properties": {
                        "channel": {"type": "string"},
                        "state": {"enum": ["good", "reset", "absent"]},
                        "keyed": {"type": "boolean", "description": "Lag and losses are upper bounds then"},
                        "partitions": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": {"type": "integer", "minimum": 0},
                                "required": ["partition", "offset", "log_start", "end", "lag", "lost"],
                            },
                        },
                    },
                },
            },
            "dropped": {"type": "integer", "description": "Topics in the cursor that these channels do not read"},
        },
    },
    "Stored": {
        "type": "object",
        "required": ["partition", "offset", "cursor"],
        "properties": {
            "partition": {"type": "integer"},
            "offset": {"type": "integer"},
            "cursor": {"type": ["string", "null"], "description": "Reads on after this message"},
        },
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"enum": sorted(wire.STATUS)},
            "request_id": {"type": "string"},
        },
    },
}
_MEDIA = {"json": "application/json", "text": "text/plain", "binary": "application/octet-stream"}


OWN_COMPONENTS: Mapping[str, Iterable[str]] = {"schemas": _SCHEMAS, "securitySchemes": ("bearer",)}
OPERATIONS = ("channels", "subscribe", "publish", "cursor")


def describe(
    seen: Iterable[Visible],
    *,
    prefix: str,
    version: str,
    now: float,
    offers: Iterable[Offer] = (),
    ready: Mapping[str, Ready] = _NONE,
) -> Document:
    """Return the document, to be encoded with msgspec; what is gone at `now` (Unix time) is not in it.

    `seen` is what `Channels.visible` gave for the caller, `offers` the routes that it may use, `ready` what is to be said of
    them. The gateway's own paths begin with `prefix`.
    """
    listed = [line for line in seen if line.channel.lifecycle.state(now) != "gone"]
    readable = [line.channel for line in listed if line.read]
    writable = [line.channel for line in listed if line.publish]
    paths: Document = {f"{prefix}/channels": {"get": _operation("channels", "What the caller may read, publish and call", {})}}
    if readable:
        patterns = [channel.pattern for channel in readable]
        paths[f"{prefix}/subscribe"] = {"get": _subscribe(patterns)}
        paths[f"{prefix}/cursors/{{cursor}}"] = {"get": _explain(patterns)}
    if writable:
        media = sorted({_MEDIA[channel.format] for channel in writable})
        paths[f"{prefix}/publish"] = {"post": _publish([channel.pattern for channel in writable], media)}
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": "longpoll gateway", "version": version},
        "paths": paths,
        "security": [{"bearer": []}, {"api_key": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": dict(_SCHEMAS),
        },
    }
    for offer in offers:
        state = offer.lifecycle.state(now)
        if state != "gone" and offer.name in ready:
            _add(document, ready[offer.name], deprecated=state == "deprecated")
    return document


def _add(document: Document, part: Ready, *, deprecated: bool) -> None:
    """Put in what is said of one route; an operation that is there already stays."""
    for operation in part.operations:
        item = document["paths"].setdefault(operation.path, {})
        item.setdefault(operation.method, operation.deprecated if deprecated else operation.plain)
    for kind, name, component in part.components:
        document["components"].setdefault(kind, {}).setdefault(name, component)
    tags = document.setdefault("tags", []) if part.tags else []
    known = {tag["name"] for tag in tags}
    tags += [tag for tag in part.tags if tag["name"] not in known]


def _operation(name: str, summary: str, responses: Document, **more: Any) -> Document:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers = {"200": {"description": "Done"}, **responses, "default": {"description": "A problem", "content": problem}}
    return {"operationId": name, "summary": summary, "responses": answers, **more}


def _query(name: str, description: str, *, required: bool = False, **schema: Any) -> Document:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


def _names(patterns: Iterable[str]) -> str:
    return "One of: " + ", ".join(patterns) + ", with each {parameter} filled in"


def _json(schema: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _subscribe(patterns: list[str]) -> Document:
    channel = _query("channel", _names(patterns), required=True, type="array", items={"type": "string"}, minItems=1)
    channel["schema"]["maxItems"] = wire.MAX_CHANNELS
    cursor: Document = {"type": "string", "maxLength": wire.MAX_CURSOR, "pattern": "^[A-Za-z0-9_-]+$"}
    parameters = [
        channel,
        _query("cursor", "Read on from here: Next-Cursor of an earlier answer", **cursor),
        {"name": "Cursor", "in": "header", "description": "The cursor, instead of in the query", "schema": cursor},
        _query("from", "Where to start without a cursor: latest, earliest, an RFC 3339 time, or -N", type="string"),
        _query("wait", "Seconds to hold when there is nothing yet", type="number", minimum=0, maximum=55),
        _query("limit", "Most messages of one answer", type="integer", minimum=1, maximum=1_000, default=100),
        _query("max_bytes", "Most bytes of values of one answer", type="integer", minimum=2**10, maximum=8 * 2**20),
        _query("linger", "Milliseconds to go on collecting", type="integer", minimum=0, maximum=1_000, default=0),
        _query("view", "Envelopes, or bare values", type="string", enum=["full", "value"], default="full"),
    ]
    responses = {
        "200": {"description": "Messages, or progress", "content": _json("Answer")},
        "204": {"description": "Nothing yet; go on with Next-Cursor"},
    }
    return _operation("subscribe", "Wait for messages", responses, parameters=parameters)


def _explain(patterns: list[str]) -> Document:
    channel = _query("channel", _names(patterns), required=True, type="array", items={"type": "string"}, minItems=1)
    cursor = {"name": "cursor", "in": "path", "required": True, "schema": {"type": "string", "maxLength": wire.MAX_CURSOR}}
    responses = {"200": {"description": "Where it stands in each channel", "content": _json("Standing")}}
    return _operation("cursor", "Tell what a cursor says", responses, parameters=[cursor, channel])


def _publish(patterns: list[str], media: list[str]) -> Document:
    parameters = [
        _query("channel", _names(patterns), required=True, type="string"),
        _query("key", "Key of the record, where the channel does not fix it", type="string"),
        _query("tombstone", "Store a tombstone; the body is empty", type="boolean", default=False),
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}},
    ]
    body: Document = {"content": {kind: {} for kind in [*media, "application/x-ndjson"]}}
    responses = {"201": {"description": "Stored by all replicas", "content": _json("Stored")}}
    return _operation("publish", "Store a message, or a batch of lines", responses, parameters=parameters, requestBody=body)
