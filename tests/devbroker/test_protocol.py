"""Frames, headers and bodies: whole, byte by byte, and broken."""

import struct

import pytest
from aiokafka.protocol import admin, fetch, metadata, offset
from hypothesis import given
from hypothesis import strategies as st

from gateway.devbroker.protocol import (
    Frames,
    ProtocolError,
    Request,
    api_versions,
    named,
    positional,
    read_request,
    write_response,
)
from gateway.devbroker.schemas import VERSIONS, Api, Uuid


def head(api: int, version: int, client_id: str | None = "me") -> bytes:
    name = b"" if client_id is None else client_id.encode()
    return struct.pack(">hhih", api, version, 99, -1 if client_id is None else len(name)) + name


def framed(*payloads: bytes) -> bytes:
    return b"".join(struct.pack(">i", len(one)) + one for one in payloads)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_come_out_however_their_bytes_come_in(step):
    data = framed(b"one", b"two", b"x" * 100) + b"\0\0"
    frames = Frames()
    found = []
    for at in range(0, len(data), step):
        found += frames.feed(data[at : at + step])
    assert found == [b"one", b"two", b"x" * 100]


@pytest.mark.parametrize("size", [-1, 0, 101])
def test_a_length_out_of_bounds_ends_the_connection(size):
    with pytest.raises(ProtocolError, match="frame"):
        Frames(max_bytes=100).feed(struct.pack(">i", size))


def test_a_request_of_aiokafkas_own_structs_is_read_by_name():
    sent = fetch.FetchRequest_v11(-1, 500, 1, 1000, 1, 0, -1, [("t", [(3, -1, 42, -1, 100)])], [], "")
    request = read_request(head(1, 11) + sent.encode())
    assert (request.api, request.version, request.correlation_id, request.client_id) == (Api.FETCH, 11, 99, "me")
    assert request.body["topics"] == [
        {
            "topic": "t",
            "partitions": [
                {"partition": 3, "current_leader_epoch": -1, "fetch_offset": 42, "log_start_offset": -1, "max_bytes": 100}
            ],
        }
    ]


def test_null_arrays_and_null_client_ids_stay_null():
    request = read_request(head(3, 5, None) + metadata.MetadataRequest_v5(None, False).encode())
    assert (request.client_id, request.body["topics"]) == (None, None)


def test_a_nested_struct_is_read_by_name():
    sent = admin.CreatePartitionsRequest_v1([("t", (4, []))], 1000, False)
    body = read_request(head(37, 1) + sent.encode()).body
    assert body["topic_partitions"] == [{"topic": "t", "new_partitions": {"count": 4, "assignment": []}}]


def test_an_answer_is_what_aiokafka_decodes():
    request = Request(Api.LIST_OFFSETS, 3, 99, "me", {})
    item = {"partition": 1, "error_code": 0, "timestamp": 5, "offset": 6, "leader_epoch": 7, "offsets": [6]}
    frame = write_response(request, {"topics": [{"topic": "t", "partitions": [item]}]})
    assert struct.unpack(">ii", frame[:8]) == (len(frame) - 4, 99)
    found = offset.OffsetResponse_v3.decode(frame[8:])
    assert found.topics == [("t", [(1, 0, 5, 6)])]


def test_a_missing_field_is_an_error_of_ours():
    with pytest.raises(KeyError):
        write_response(Request(Api.LIST_OFFSETS, 3, 99, "me", {}), {})


def test_flexible_versions_have_tags_in_their_headers_but_for_api_versions():
    plain = write_response(Request(Api.API_VERSIONS, 3, 99, None, {}), api_versions(supported=True))
    assert plain[8:10] == b"\0\0"
    body = {"error_code": 0, "producer_id": 1, "producer_epoch": 2}
    tagged = write_response(Request(Api.INIT_PRODUCER_ID, 2, 99, None, {}), body)
    assert tagged[8:] == b"\0" + bytes(4) + bytes(2) + (1).to_bytes(8, "big") + (2).to_bytes(2, "big") + b"\0"
    flexible = VERSIONS[Api.API_VERSIONS][3].request.encode(["lib", "1.0", {}])
    request = read_request(head(18, 3) + b"\0" + flexible)
    assert request.body["client_software_name"] == "lib"


def test_an_unknown_version_of_api_versions_is_answered_in_version_0():
    request = read_request(head(18, 77) + b"whatever")
    assert request.version is None
    frame = write_response(request, api_versions(supported=False))
    found = admin.ApiVersionResponse_v0.decode(frame[8:])
    assert found.error_code == 35
    assert (18, 0, 3) in found.api_versions


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\1",
        head(999, 0),
        head(1, 999),
        head(3, 5),
        head(3, 5) + b"\0\0\0\5",
        head(3, 9),
        head(3, 10) + b"\0\2" + b"short",
        struct.pack(">hhih", 3, 5, 1, 2) + b"\xff\xfe",
    ],
)
def test_what_is_no_request_ends_the_connection(frame):
    with pytest.raises(ProtocolError):
        read_request(frame)


@given(st.binary(max_size=60), st.sampled_from(sorted(VERSIONS)), st.integers(0, 12))
def test_any_bytes_give_a_request_or_the_documented_error(data, api, version):
    try:
        request = read_request(head(api, version) + data)
    except ProtocolError:
        return
    assert request.api == api


def test_a_uuid_is_16_bytes():
    assert Uuid.encode(bytes(range(16))) == bytes(range(16))


@pytest.mark.parametrize("api", list(VERSIONS), ids=lambda api: api.name)
def test_versions_have_no_holes(api):
    """A client takes any version between the lowest and the highest."""
    versions = sorted(VERSIONS[api])
    assert versions == list(range(versions[0], versions[-1] + 1))


def test_names_and_positions_are_inverse():
    schema = VERSIONS[Api.METADATA][12].request
    values = [[(bytes(16), "t", {}), (bytes(16), None, {})], True, False, {}]
    body = named(schema, values)
    assert body["topics"][1] == {"topic_id": bytes(16), "topic": None, "tags": {}}
    assert [tuple(one) for one in positional(schema, body)[0]] == values[0]
