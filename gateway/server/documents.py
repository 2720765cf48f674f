"""The OpenAPI documents of backends, read from files, and again when these change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gateway.server.apidocs import MAX_BYTES, DocumentInvalid, Json, parse
from gateway.server.apiparts import Reaches, Ready, fitted, joined
from gateway.server.catalog import Offer
from gateway.server.openapi import OPERATIONS, OWN_COMPONENTS

_log = logging.getLogger(__name__)
INTERVAL = 5.0
"""Seconds between two looks at the files."""

_Stamp = tuple[int, int, int]


class Source(NamedTuple):
    """A route and the file with its backend's document. `reaches` tells whether a method and a path come to the route."""

    offer: Offer
    file: Path
    reaches: Reaches


class Documents:
    """Keeps what documents say of routes (`ready`, by the routes' names). While a file cannot be used, what it said stays."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.ready: Mapping[str, Ready] = MappingProxyType({})
        self._sources = tuple(sources)
        self._read: dict[Path, Json] = {}
        self._stamps: dict[Path, _Stamp] = {}
        self._errors: dict[Path, str] = {}

    def __repr__(self) -> str:
        return f"<Documents of {', '.join(self.ready) or 'no route'}, {len(self._errors)} files of no use>"

    async def start(self) -> None:
        """Read all of them; raises ValueError, with the file, if one cannot be used."""
        if self._sources:
            await self.look()
        for path, reason in self._errors.items():
            raise ValueError(f"{path}: {reason}")

    async def run(self) -> None:
        """Read them again when they change, until cancelled."""
        while self._sources:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Look for changes once; what is wrong is logged, once."""
        files = dict.fromkeys(source.file for source in self._sources)
        changed = await asyncio.to_thread(self._changed, files)
        if changed:
            self._read.update(changed)
            self.ready = await asyncio.to_thread(self._joined)

    def _changed(self, files: Iterable[Path]) -> dict[Path, Json]:
        changed = {}
        for path in files:
            try:
                found = self._looked(path)
            except OSError as error:
                self._stamps.pop(path, None)
                self._failed(path, error.strerror or type(error).__name__)
            except DocumentInvalid as error:
                self._failed(path, str(error))
            else:
                if found is not None:
                    changed[path] = found
                    self._mended(path)
        return changed

    def _looked(self, path: Path) -> Json | None:
        """Read a file; None if it is as it was."""
        stat = path.stat()
        stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if self._stamps.get(path) == stamp:
            return None
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        self._stamps[path] = stamp
        return parse(data)

    def _failed(self, path: Path, reason: str) -> None:
        if self._errors.get(path) != reason:  # said once, not at every look
            _log.warning("an OpenAPI document cannot be used, the old one stays: %s: %s", path, reason)
        self._errors[path] = reason

    def _mended(self, path: Path) -> None:
        if self._errors.pop(path, None) is not None:
            _log.info("an OpenAPI document can be used again: %s", path)

    def _joined(self) -> Mapping[str, Ready]:
        parts = {}
        for offer, path, reaches in self._sources:
            if (document := self._read.get(path)) is not None:
                part = parts[offer.name] = fitted(document, offer, reaches, path)
                if not part.operations:
                    _log.warning("nothing that an OpenAPI document describes comes to the route %s: %s", offer.name, path)
        return joined(parts, own=OWN_COMPONENTS, ids=OPERATIONS)
