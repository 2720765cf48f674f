"""Requests that aiokafka lacks, on the wire."""

from io import BytesIO

import pytest
from aiokafka.protocol.offset import OffsetRequest_v3

from gateway.devbroker import schemas
from gateway.kafka.requests import ListOffsets, Metadata, Uuid, error_name


@pytest.mark.parametrize(("version", "sent"), [((0, 4), 4), ((0, 5), 5), ((3, 9), 5), ((0, 10), 10), ((0, 13), 10)])
def test_metadata_is_asked_for_in_the_newest_version_that_both_know(version, sent):
    request = Metadata(["a", "é"]).prepare({3: version})
    assert sent == request.API_VERSION
    assert request.encode()


def test_metadata_creates_no_topic():
    request = Metadata(["a"])
    assert request.prepare({3: (0, 10)}).allow_auto_topic_creation is False
    assert request.prepare({3: (0, 5)}).allow_auto_topic_creation is False


def test_metadata_v10_is_what_the_dev_broker_reads():
    known = schemas.VERSIONS[schemas.Api.METADATA][10] if hasattr(schemas, "VERSIONS") else None
    encoded = Metadata(["a"]).prepare({3: (10, 10)}).encode()
    if known is not None:
        assert known.request.decode(BytesIO(encoded))[0][0][1] == "a"
    assert encoded == b"\x02" + bytes(16) + b"\x02a\x00" + b"\x00\x00\x00\x00"


def test_list_offsets_are_asked_for_as_a_read_committed_reader():
    old = ListOffsets({"a": [0, 1]}, -1).prepare({2: (0, 3)})
    assert old == OffsetRequest_v3(-1, 1, [("a", [(0, -1), (1, -1)])])
    new = ListOffsets({"a": [7]}, 1700).prepare({2: (1, 11)})
    assert new.API_VERSION == 5
    assert new.encode() == (
        b"\xff\xff\xff\xff\x01" + b"\0\0\0\x01\0\x01a\0\0\0\x01" + b"\0\0\0\x07" + b"\xff" * 4 + (1700).to_bytes(8, "big")
    )


def test_a_uuid_has_16_bytes():
    assert Uuid.decode(BytesIO(Uuid.encode(bytes(range(16))))) == bytes(range(16))
    with pytest.raises(ValueError, match="uuid"):
        Uuid.decode(BytesIO(b"short"))


def test_error_names():
    assert error_name(1) == "OFFSET_OUT_OF_RANGE"
    assert error_name(78) == "OFFSET_NOT_AVAILABLE"
    assert error_name(9999) == "ERROR_9999"
