"""Where positions are kept over restarts: in memory, in a file, or wherever the program keeps them.

One store belongs to one subscription. `save` is called with the newest position alone, one call at a time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

from gateway.client.errors import StoreInvalid
from gateway.client.positions import Position

_FOLDERS_ARE_FILES = os.name != "nt"


class CursorStore(Protocol):
    """A store of a program's own. What it raises, the program gets; going on tries again."""

    def load(self) -> Position | None:
        """Return what was saved last; None at the very first time."""
        ...

    def save(self, position: Position) -> None:
        """Keep a position."""
        ...


class AsyncCursorStore(Protocol):
    """The same for an event loop; AsyncClient takes both kinds."""

    def load(self) -> Awaitable[Position | None]:
        """Return what was saved last; None at the very first time."""
        ...

    def save(self, position: Position) -> Awaitable[None]:
        """Keep a position."""
        ...


class MemoryStore:
    """Keeps the position as long as the process lives: for a subscription that is ended and begun again."""

    def __init__(self) -> None:
        self.position: Position | None = None

    def load(self) -> Position | None:
        """Return what was saved last."""
        return self.position

    def save(self, position: Position) -> None:
        """Keep a position."""
        self.position = position


class FileStore:
    """Keeps the position in a file, which is whole at any time: a new one is written beside it and takes its name.

    `durable`: also the disk has it when `save` returns, so that not even a loss of power takes it back.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self._path = Path(path)
        self._durable = durable

    def __repr__(self) -> str:
        return f"<FileStore {self._path}>"

    def load(self) -> Position | None:
        """Return what was saved last; StoreInvalid where that is not a position, OSError where it cannot be read."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return Position.read(json.loads(data))
        except ValueError as error:
            raise StoreInvalid(f"{self._path}: not a position of this client; remove it to begin anew") from error

    def save(self, position: Position) -> None:
        """Keep a position; OSError where it cannot be written, and then the former one is still there."""
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(position.document(), file)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if self._durable:
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Have the disk know the new name, where the system has a way to."""
        if not _FOLDERS_ARE_FILES:
            return
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
