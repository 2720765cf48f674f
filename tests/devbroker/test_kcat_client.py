"""The broker under kcat, as developers use it from their shell."""

import asyncio
import os
import shutil

import pytest

KCAT = shutil.which("kcat")
if KCAT is None and not os.environ.get("CI"):
    pytest.skip("kcat is not on the PATH (Debian: kcat)", allow_module_level=True)
pytestmark = pytest.mark.kcat


async def kcat(broker, *arguments: str, given: bytes = b"") -> bytes:
    """Run kcat against a broker and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        KCAT or "kcat",
        "-b",
        broker.address,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        printed, complaints = await process.communicate(given)
    assert process.returncode == 0, complaints.decode()
    return printed


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_produce_and_consume(broker, codec):
    broker.create_topic("t")
    lines = b"".join(b"key%d:value%d\n" % (n, n) for n in range(50))
    await kcat(broker, "-P", "-t", "t", "-K", ":", "-z", codec, "-H", "h=1", given=lines)
    assert [(one.key, one.value, one.headers) for one in broker.records("t", 0)] == [
        (b"key%d" % n, b"value%d" % n, (("h", b"1"),)) for n in range(50)
    ]
    assert await kcat(broker, "-C", "-t", "t", "-o", "beginning", "-e", "-q", "-K", ":") == lines


async def test_tailing_is_woken_by_an_append(broker):
    broker.create_topic("t")
    async with asyncio.TaskGroup() as group:
        patient = ["-X", "fetch.wait.max.ms=60000", "-X", "socket.timeout.ms=90000"]
        tail = group.create_task(kcat(broker, "-C", "-t", "t", "-o", "end", "-c", "1", "-q", *patient))
        await broker.until_parked("t", 0)
        broker.append("t", 0, [b"woken"])
    assert tail.result() == b"woken\n"


async def test_metadata_offsets_by_time_and_auto_creation(broker):
    broker.cluster.auto_create, broker.cluster.default_partitions = True, 2
    await kcat(broker, "-P", "-t", "new", "-p", "1", given=b"one\ntwo\n")
    listed = await kcat(broker, "-L")
    assert b'topic "new" with 2 partitions' in listed
    assert await kcat(broker, "-Q", "-t", "new:1:0") == b"new [1] offset 0\n"
    assert await kcat(broker, "-Q", "-t", "new:1:-1") == b"new [1] offset 2\n"


async def test_a_group(broker):
    broker.create_topic("t", 2)
    for index in range(2):
        broker.append("t", index, [b"%d" % index])
    printed = await kcat(broker, "-G", "g", "-c", "2", "-q", "-X", "auto.offset.reset=earliest", "t")
    assert sorted(printed.split()) == [b"0", b"1"]


async def test_what_a_transaction_hides(broker):
    broker.create_topic("t")
    aborted = broker.transaction("aborted")
    aborted.append("t", 0, [b"aborted"])
    aborted.abort()
    broker.append("t", 0, [b"plain"])
    broker.transaction("open").append("t", 0, [b"open"])
    broker.append("t", 0, [b"behind it"])
    assert await kcat(broker, "-C", "-t", "t", "-o", "beginning", "-e", "-q") == b"plain\n"
