"""Kafka's wire protocol from the broker's side: frames, headers, bodies by field name (sans-I/O).

A connection's bytes go into `Frames`, whole frames come out; `read_request` decodes one, `write_response` encodes the answer.
Bodies are dicts by field name: an answer names every field of every version, and each version's schema picks its own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any

from aiokafka.protocol.types import Array, Schema, TaggedFields

from gateway.devbroker.schemas import VERSIONS, Api

Body = dict[str, Any]

# Kafka's default for socket.request.max.bytes.
MAX_FRAME_BYTES = 100 * 1024 * 1024
UNSUPPORTED_VERSION = 35
EVERYTHING: Mapping[Api, int] = MappingProxyType({})


class ProtocolError(Exception):
    """The peer's bytes are not a request that this broker speaks; Kafka closes the connection."""


class Frames:
    """Cuts a stream of bytes into frames: a length in four bytes, then as many bytes."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the frames that are complete now; ProtocolError for a length out of bounds."""
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> bytes | None:
        if len(self._buffer) < 4:  # noqa: PLR2004
            return None
        size = int.from_bytes(self._buffer[:4], "big", signed=True)
        if not 0 < size <= self._max_bytes:
            raise ProtocolError(f"frame of {size} bytes")
        if len(self._buffer) < 4 + size:
            return None
        frame = bytes(self._buffer[4 : 4 + size])
        del self._buffer[: 4 + size]
        return frame


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `version` None: its ApiVersions version is unknown here and the answer must be version 0 (KIP-511)."""

    api: Api
    version: int | None
    correlation_id: int
    client_id: str | None
    body: Body


_HEADER = struct.Struct(">hhih")


def read_request(frame: bytes, newest: Mapping[Api, int] = EVERYTHING) -> Request:
    """Decode one frame; ProtocolError where Kafka would close the connection.

    `newest` gives the newest version of an API that is spoken, where that is not the newest one there is.
    """
    try:
        return _read_request(frame, newest)
    except (ValueError, struct.error, OverflowError) as error:
        raise ProtocolError(f"request cannot be decoded: {error}") from error


def _read_request(frame: bytes, newest: Mapping[Api, int]) -> Request:
    key, version, correlation_id, length = _HEADER.unpack_from(frame)
    data = BytesIO(frame)
    data.seek(_HEADER.size)
    client_id = None if length < 0 else data.read(length).decode()
    if key not in VERSIONS:
        raise ProtocolError(f"api {key} is not spoken here")
    api = Api(key)
    schemas = VERSIONS[api].get(version)
    if schemas is None or version > newest.get(api, version):
        if api is Api.API_VERSIONS:
            return Request(api, None, correlation_id, client_id, {})
        raise ProtocolError(f"{api.name} v{version} is not spoken here")
    if schemas.flexible:
        TaggedFields.decode(data)
    values = [field.decode(data) for field in schemas.request.fields]
    return Request(api, version, correlation_id, client_id, named(schemas.request, values))


def write_response(request: Request, body: Mapping[str, Any]) -> bytes:
    """Encode an answer as one frame."""
    schemas = VERSIONS[request.api][request.version or 0]
    head = struct.pack(">i", request.correlation_id)
    if schemas.flexible and request.api is not Api.API_VERSIONS:
        # The header of ApiVersions stays at version 0, so that a client can read it before it knows the broker.
        head += TaggedFields.encode({})
    payload = head + schemas.response.encode(positional(schemas.response, body))
    return struct.pack(">i", len(payload)) + payload


def named(schema: Schema, values: Sequence[Any]) -> Body:
    """Turn the positional values of a schema into a dict, all the way down."""
    return {name: _named(field, value) for name, field, value in zip(schema.names, schema.fields, values, strict=True)}


def _named(field: Any, value: Any) -> Any:
    if isinstance(field, Schema):
        return named(field, value)
    if isinstance(field, Array) and isinstance(field.array_of, Schema) and value is not None:
        return [named(field.array_of, item) for item in value]
    return value


def positional(schema: Schema, body: Mapping[str, Any]) -> list[Any]:
    """Pick a schema's fields out of a dict; KeyError for one that is missing."""
    return [_positional(name, field, body) for name, field in zip(schema.names, schema.fields, strict=True)]


def _positional(name: str, field: Any, body: Mapping[str, Any]) -> Any:
    if field is TaggedFields:
        return {}
    if name == "throttle_time_ms":
        return 0
    value = body[name]
    if isinstance(field, Array) and isinstance(field.array_of, Schema) and value is not None:
        return [positional(field.array_of, item) for item in value]
    return value


def api_versions(*, supported: bool, newest: Mapping[Api, int] = EVERYTHING) -> Body:
    """Build the body of an ApiVersions answer: what is spoken here, up to `newest` where it is given."""
    keys = [
        {"api_key": int(api), "min_version": min(versions), "max_version": newest.get(api, max(versions))}
        for api, versions in VERSIONS.items()
    ]
    return {"error_code": 0 if supported else UNSUPPORTED_VERSION, "api_versions": keys}
