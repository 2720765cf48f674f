"""Where keys come from: inline, a file that is re-read, a JWKS URL that is asked again.

A `KeySource` is the shell around `Refresh`: one task looks at one source, so looks are single-flight by construction, and
whoever waits for a key waits for that task's present look, never starts one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, final

import aiohttp
from yarl import URL

from gateway.auth.keys import K, Kind, Parsed
from gateway.auth.refresh import Pace, Refresh
from gateway.errors import Overloaded

_log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024
_MAX_WAITING = 1000
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?(\d{1,9})\"?\s*(?:,|$)", re.ASCII | re.IGNORECASE)

Pause = Callable[[asyncio.Event, float], Awaitable[None]]


@final
@dataclass(frozen=True, slots=True)
class Inline:
    """Keys written in the configuration. `algorithm` is needed where the issuer allows two for the key's type."""

    kind: Kind
    data: bytes = field(repr=False)
    algorithm: str | None = None
    kid: str | None = None


@final
@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file with keys, read again every `interval` seconds.

    While it cannot be read or understood, the keys last read serve for `stale` seconds.
    """

    path: Path
    kind: Kind
    algorithm: str | None = None
    kid: str | None = None
    interval: float = 5.0
    stale: float = 3600.0

    def __post_init__(self) -> None:
        _ = self.pace  # raises

    @property
    def place(self) -> str:
        """Return the path."""
        return str(self.path)

    @property
    def pace(self) -> Pace:
        """Return how often to look."""
        return file_pace(self.interval, self.stale)


def file_pace(interval: float = 5.0, stale: float = 3600.0) -> Pace:
    """Return how often to look at a file."""
    return Pace(max_age=interval, cooldown=min(1.0, interval), stale=stale, max_retry=interval)


@final
@dataclass(frozen=True, slots=True)
class KeyUrl:
    """A JWKS URL, http or https, asked every `max_age` seconds, or sooner where its answer's Cache-Control says so.

    An unknown kid makes it be asked at once, but not within `cooldown` of the last time. While it fails, the keys last got
    serve for `stale` seconds. An answer takes at most `timeout` seconds and 256 KiB; redirects are not followed. `ca_file`
    holds the certificates to trust instead of the system's. Raise ValueError for values out of bounds.
    """

    url: str
    max_age: float = 600.0
    cooldown: float = 10.0
    stale: float = 86_400.0
    timeout: float = 5.0
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        url = URL(self.url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("expected an absolute http or https URL")
        if self.timeout <= 0:
            raise ValueError("expected a timeout above 0 seconds")
        _ = self.pace  # raises

    @property
    def place(self) -> str:
        """Return the URL as logs may show it: without user, password and query."""
        return str(URL(self.url).with_user(None).with_query(None))

    @property
    def pace(self) -> Pace:
        """Return how often to look."""
        return Pace(max_age=self.max_age, cooldown=self.cooldown, stale=self.stale)


Source = Inline | KeyFile | KeyUrl


class Unusable(Exception):
    """A look at a source brought nothing that can be used; the text says why."""


class Found(NamedTuple):
    """What a look brought, and for how many seconds its origin says it is good (None: not said)."""

    data: bytes
    max_age: float | None = None


async def read(path: Path, max_bytes: int = MAX_BYTES) -> Found:
    """Read a file of at most so many bytes; raise Unusable."""
    try:
        return Found(await asyncio.to_thread(_read, path, max_bytes))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or type(error).__name__}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Unusable(f"{path}: longer than {max_bytes} bytes")
    return data


async def fetch(session: aiohttp.ClientSession, spec: KeyUrl) -> Found:
    """Ask the URL for its JWK Set; raise Unusable for everything but a bounded 200 in time."""
    # Without content codings no small answer can grow into a large one.
    headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
    try:
        # Made anew each time, which is rarely, so that certificates may be replaced.
        context = True if spec.ca_file is None else ssl.create_default_context(cafile=spec.ca_file)
        async with (
            asyncio.timeout(spec.timeout),
            session.get(spec.url, headers=headers, allow_redirects=False, ssl=context) as response,
        ):
            if response.status != 200:  # noqa: PLR2004  # OK
                raise Unusable(f"{spec.place}: status {response.status}")
            return Found(await _body(spec, response), _max_age(response.headers.get("Cache-Control", "")))
    except TimeoutError as error:
        raise Unusable(f"{spec.place}: no answer within {spec.timeout:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unusable(f"{spec.place}: {type(error).__name__}") from error


async def _body(spec: KeyUrl, response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        data += chunk
        if len(data) > MAX_BYTES:
            raise Unusable(f"{spec.place}: longer than {MAX_BYTES} bytes")
    return bytes(data)


def _max_age(cache_control: str) -> float | None:
    found = _MAX_AGE.search(cache_control)
    return None if found is None else float(found[1])


async def pause(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so many seconds."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return


@final
class KeySource(Generic[K]):
    """Looks at one source of keys for as long as `run` runs.

    `look` brings the bytes (or raises Unusable), `parse` makes keys of them (or raises ValueError), and `changed` is called
    after each look, and when the keys were given up as stale. `keys` are the present ones, `error` says why the last look
    failed, None if it did not.
    """

    def __init__(
        self,
        place: str,
        pace: Pace,
        *,
        look: Callable[[], Awaitable[Found]],
        parse: Callable[[bytes], Parsed[K]],
        changed: Callable[[], None],
        clock: Callable[[], float],
        pause: Pause,
        jitter: Callable[[], float],
    ) -> None:
        self.place = place
        self.keys: tuple[K, ...] = ()
        self.skipped: tuple[str, ...] = ()
        self.error: str | None = None
        self.plan = Refresh(pace, clock())
        self._look = look
        self._parse = parse
        self._changed = changed
        self._clock = clock
        self._pause = pause
        self._jitter = jitter
        self._asked = asyncio.Event()
        self._landed = asyncio.Event()
        self._running = False
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<KeySource {self.place} keys {len(self.keys)} waiting {self._waiting} {self.plan!r} error {self.error}>"

    def open(self) -> None:
        """Note that `run` will run: from now on its looks may be waited for, though its task has not had its first turn."""
        self._running = True

    def close(self) -> None:
        """Note that no further look comes, and release whoever waits for one."""
        self._running = False
        self._landed.set()

    async def run(self) -> None:
        """Look whenever a look is due, until cancelled."""
        try:
            while True:
                await self._pause(self._asked, min(self.plan.due, self.plan.stale_at) - self._clock())
                self._asked.clear()
                if self.plan.stale_at <= self._clock():
                    self._give_up()
                if self.plan.due <= self._clock():
                    await self.look()
        finally:
            self.close()

    async def ask(self, kid: str | None) -> bool:
        """Wait for a look that may bring the key named `kid`; False, at once, if there is none to wait for.

        Raise Overloaded when too many wait already.
        """
        if not self._running or not self.plan.ask(kid, self._clock()):
            return False
        if self._waiting >= _MAX_WAITING:
            raise Overloaded(retry_after=1.0, bound="keys")
        self._asked.set()
        self._waiting += 1
        try:
            await self._landed.wait()
        finally:
            self._waiting -= 1
        return True

    def missed(self, kid: str | None) -> None:
        """Remember that the look waited for did not bring the key; a look that failed proves nothing."""
        if self.error is None:
            self.plan.miss(kid, self._clock())

    def doubt(self, kid: str | None) -> float | None:
        """Return the seconds to the next look while this source fails and may have the key; else None."""
        return self.plan.doubt(kid, self._clock())

    async def look(self) -> None:
        """Look once; what is wrong with the answer is logged and kept in `error`."""
        self.plan.begin(self._clock())
        try:
            found = await self._look()
            parsed = self._parse(found.data)
        except Unusable as error:
            self._failed(str(error))
        except ValueError as error:
            self._failed(f"{self.place}: {error}")
        except Exception:  # noqa: BLE001  # Whatever a strange answer provokes, the keys must go on being refreshed.
            _log.exception("unexpected failure of a key source")
            self._failed(f"{self.place}: unexpected failure")
        else:
            self._succeeded(parsed, found.max_age)
        finally:
            landed, self._landed = self._landed, asyncio.Event()
            landed.set()

    def _succeeded(self, parsed: Parsed[K], max_age: float | None) -> None:
        self.plan.succeed(self._clock(), self._jitter(), max_age)
        if self.error is not None:
            _log.info("keys are read again: %s", self.place)
        if parsed.skipped != self.skipped:
            _log.warning("keys of no use in %s: %s", self.place, "; ".join(parsed.skipped) or "none any more")
        self.error = None
        self.keys, self.skipped = parsed
        self._changed()

    def _failed(self, reason: str) -> None:
        self.plan.fail(self._clock(), self._jitter())
        if reason != self.error:  # said once, not at every retry of a long outage
            _log.warning("keys cannot be read, the old ones stay: %s", reason)
        self.error = reason

    def _give_up(self) -> None:
        _log.error("keys are too old to trust, they are withdrawn: %s", self.place)
        self.plan.drop()
        self.keys = ()
        self._changed()
