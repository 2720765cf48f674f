"""Where positions are kept: whole at any time, and nothing is taken for one that is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually_blocking

from gateway.client import FileStore, MemoryStore, Position, StoreInvalid
from gateway.client import stores as module

POSITION = Position("c1", {"news": {0: 5}}, ("news",))
SAVER = """
import sys
from gateway.client import FileStore, Position
store = FileStore(sys.argv[1])
number = 0
while True:
    number += 1
    store.save(Position(f"c{number}", {"news": {partition: number for partition in range(200)}}, ("news",)))
"""


def test_in_memory() -> None:
    """As long as the process lives."""
    store = MemoryStore()
    assert store.load() is None
    store.save(POSITION)
    assert store.load() == POSITION


@pytest.mark.parametrize("durable", [True, False])
def test_in_a_file(tmp_path: Path, durable: bool) -> None:
    """What was saved last is there, and nothing else is left beside it."""
    store = FileStore(tmp_path / "position", durable=durable)
    assert store.load() is None
    store.save(Position("c0"))
    store.save(POSITION)
    assert FileStore(str(tmp_path / "position")).load() == POSITION
    assert [each.name for each in tmp_path.iterdir()] == ["position"]
    assert repr(store) == f"<FileStore {tmp_path / 'position'}>"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cursor": 7}', "\xff"])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    """It is told with its name, and not written over."""
    file = tmp_path / "position"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreInvalid, match="position: not a position of this client"):
        FileStore(file).load()
    assert file.read_bytes() == text.encode("latin-1")


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former one stays."""
    store = FileStore(tmp_path / "position")
    store.save(POSITION)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(Position("c2"))
    assert store.load() == POSITION
    assert [each.name for each in tmp_path.iterdir()] == ["position"]
    with pytest.raises(OSError, match="No such file"):
        FileStore(tmp_path / "none" / "position").save(POSITION)


def test_where_folders_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the name is left to the system."""
    monkeypatch.setattr(module, "_FOLDERS_ARE_FILES", False)
    store = FileStore(str(tmp_path / "position"))
    monkeypatch.setattr(module.os, "open", lambda *_: pytest.fail("a folder was opened"))
    store._sync_folder()


def test_a_process_that_is_killed_while_it_saves(tmp_path: Path) -> None:
    """The file is whole, whenever that is."""
    file = tmp_path / "position"
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", SAVER, str(file)], cwd=Path(__file__).parents[2]) as process:
            before = file.read_bytes() if file.exists() else b""
            eventually_blocking(lambda before=before: file.exists() and file.read_bytes() != before)
            process.send_signal(signal.SIGKILL)
        assert FileStore(file).load() is not None
        assert len(json.loads(file.read_text())["beyond"]["news"]) == 200
