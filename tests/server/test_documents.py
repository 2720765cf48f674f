"""Documents in files: read at the start, and again when they change; a broken one takes nothing away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from gateway.server import documents as module
from gateway.server.catalog import Offer
from gateway.server.documents import Documents, Source


def written(file: Path, *paths: str) -> Path:
    """Put a document with these paths in place of a file, later by a second than the last one."""
    later = file.stat().st_mtime + 1 if file.exists() else 1_700_000_000
    file.write_text(json.dumps({"openapi": "3.1.0", "paths": {path: {"get": {}} for path in paths}}))
    os.utime(file, (later, later))
    return file


def source(file: Path, name: str = "a") -> Source:
    return Source(Offer(name, prefix="/"), file, lambda *_: True)


def shown(documents: Documents, name: str = "a") -> list[str]:
    return [operation.path for operation in documents.ready[name].operations]


async def test_they_are_read_at_the_start(tmp_path):
    """Two routes may have one file."""
    file = written(tmp_path / "api", "/x")
    documents = Documents([source(file), source(file, "b")])
    await documents.start()
    assert (shown(documents), shown(documents, "b")) == (["/x"], ["/x"])
    assert repr(documents) == "<Documents of a, b, 0 files of no use>"


async def test_what_cannot_be_used_at_the_start_is_an_error(tmp_path):
    """With the file's name."""
    with pytest.raises(ValueError, match=r"none: No such file"):
        await Documents([source(tmp_path / "none")]).start()
    (tmp_path / "api").write_text("{")
    with pytest.raises(ValueError, match=r"api: expected a document in JSON or YAML"):
        await Documents([source(tmp_path / "api")]).start()


async def test_they_are_read_again_only_when_they_change(tmp_path):
    """What had been made of them is the same until then."""
    file = written(tmp_path / "api", "/x")
    documents = Documents([source(file)])
    await documents.start()
    before = documents.ready
    await documents.look()
    assert documents.ready is before
    written(file, "/y")
    await documents.look()
    assert shown(documents) == ["/y"]


async def test_a_broken_one_leaves_what_was(tmp_path, caplog):
    """It is logged once, and once more when it is good again."""
    caplog.set_level(logging.INFO, module.__name__)
    file = written(tmp_path / "api", "/x")
    documents = Documents([source(file)])
    await documents.start()
    file.write_text("{")
    for _ in range(2):
        await documents.look()
    file.unlink()
    for _ in range(2):
        await documents.look()
    assert shown(documents) == ["/x"]
    assert repr(documents).endswith("1 files of no use>")
    written(file, "/y")
    await documents.look()
    assert shown(documents) == ["/y"]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "an OpenAPI document cannot be used, the old one stays",
        "an OpenAPI document cannot be used, the old one stays",
        "an OpenAPI document can be used again",
    ]


async def test_a_document_that_says_nothing_of_its_route(tmp_path, caplog):
    """Most likely its paths are meant otherwise: that is logged."""
    documents = Documents([Source(Offer("a", prefix="/a"), written(tmp_path / "api", "/b"), lambda *_: True)])
    await documents.start()
    assert shown(documents) == []
    assert "comes to the route a: " in caplog.text


async def test_the_look_goes_on_by_itself(tmp_path, monkeypatch):
    """Until it is cancelled; without files there is nothing to look at."""
    none = Documents([])
    await none.start()
    await none.run()
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    file = written(tmp_path / "api", "/x")
    documents = Documents([source(file)])
    looked = asyncio.Event()
    look = documents.look

    async def noted() -> None:
        await look()
        looked.set()

    monkeypatch.setattr(documents, "look", noted)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(documents.run())
        await looked.wait()
        task.cancel()
    assert shown(documents) == ["/x"]
