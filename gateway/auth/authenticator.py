"""Turns an Authorization header into a principal: the shell that joins verification and the sources of keys.

An API key after `Bearer` is one as well: it is told from a token by its first letters, and its file is a source like others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import aiohttp

from gateway.auth import jwks, keyfile
from gateway.auth.apikeys import PREFIX, ApiKey, Keyring
from gateway.auth.jwks import Found, Inline, KeyFile, KeySource, KeyUrl, Source, file_pace
from gateway.auth.keys import Key, Parsed, parse_keys
from gateway.auth.principal import API_KEYS, KeyRef, Principal
from gateway.auth.tokens import Issuer, UnknownKey, Verifier, bearer
from gateway.errors import TokenExpired, TokenInvalid, TokenRevoked, UpstreamFailed

_log = logging.getLogger(__name__)
_BEARER_KEY = f"Bearer {PREFIX}"


@final
@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a file or URL with keys is: `error` is None if the last look at it was good."""

    issuer: str
    place: str
    keys: int
    error: str | None


@final
class Authenticator:
    """Knows all issuers and keeps their keys current between `start` and `stop`.

    `issuers` gives each issuer the sources of its keys. `api_keys` are there from the beginning, those of `api_key_file` come
    and go with it. Verified tokens are cached, `max_cached` of them in about
    `max_cached_bytes`. `clock` is monotonic and paces the looks at sources, `pause` waits for an event with a time limit,
    `jitter` gives numbers in [0, 1). Raise ValueError, saying what was expected, for inline keys that are weak or unusable.
    """

    def __init__(
        self,
        issuers: Mapping[Issuer, Sequence[Source]],
        *,
        api_keys: Iterable[ApiKey] = (),
        api_key_file: Path | None = None,
        max_cached: int = 20_000,
        max_cached_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
        pause: jwks.Pause = jwks.pause,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._verifier = Verifier(
            issuers, secret=secrets.token_bytes(32), max_cached=max_cached, max_cached_bytes=max_cached_bytes
        )
        self._clock = clock
        self._pause = pause
        self._jitter = jitter
        self._withdrawn: list[Callable[[KeyRef], None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._inline: dict[str, list[Key]] = {issuer.alias: [] for issuer in issuers}
        self._files: dict[str, list[KeySource[Key]]] = {issuer.alias: [] for issuer in issuers}
        self._urls: dict[str, list[KeySource[Key]]] = {issuer.alias: [] for issuer in issuers}
        self._keyring = Keyring(api_keys)
        self._key_list = None if api_key_file is None else self._listing(api_key_file)
        self.takes_api_keys = api_key_file is not None or len(self._keyring) > 0
        for issuer, sources in issuers.items():
            for source in sources:
                self._add(issuer, source)
            self._publish(issuer.alias)

    def __repr__(self) -> str:
        return f"<Authenticator {self._verifier!r}>"

    def _add(self, issuer: Issuer, source: Source) -> None:
        alias = issuer.alias
        match source:
            case Inline(kind, data, algorithm, kid):
                parsed = parse_keys(alias, kind, data, algorithms=issuer.algorithms, algorithm=algorithm, kid=kid)
                if not parsed.keys:
                    raise ValueError(f"expected a usable key: {'; '.join(parsed.skipped)}")
                self._inline[alias] += parsed.keys
            case KeyFile(kind=kind, algorithm=algorithm, kid=kid):
                parse = partial(parse_keys, alias, kind, algorithms=issuer.algorithms, algorithm=algorithm, kid=kid)
                self._files[alias].append(self._source(alias, source, look=partial(jwks.read, source.path), parse=parse))
            case _:
                parse = partial(parse_keys, alias, "jwks", algorithms=issuer.algorithms, remote=True)
                self._urls[alias].append(self._source(alias, source, look=partial(self._fetch, source), parse=parse))

    def _listing(self, path: Path) -> KeySource[ApiKey]:
        parse = _Parsing()

        async def look() -> Found:
            found = await jwks.read(path, keyfile.MAX_BYTES)
            await asyncio.to_thread(parse, found.data)  # takes a while for thousands of keys
            return found

        calls: dict[str, Any] = {"clock": self._clock, "pause": self._pause, "jitter": self._jitter}
        return KeySource(str(path), file_pace(), look=look, parse=parse, changed=self._publish_api_keys, **calls)

    def _source(self, alias: str, spec: KeyFile | KeyUrl, **calls: Any) -> KeySource[Key]:
        changed = partial(self._publish, alias)
        return KeySource(
            spec.place, spec.pace, **calls, changed=changed, clock=self._clock, pause=self._pause, jitter=self._jitter
        )

    async def _fetch(self, spec: KeyUrl) -> Found:
        if self._session is None:
            raise AssertionError("sources run between start and stop only")
        return await jwks.fetch(self._session, spec)

    @property
    def generation(self) -> int:
        """Return a number that changes whenever any issuer's key set does, or the API keys do."""
        return self._verifier.generation + self._keyring.generation

    def on_withdrawn(self, callback: Callable[[KeyRef], None]) -> None:
        """Call `callback` with each key that is withdrawn, after the tokens it vouched for are forgotten."""
        self._withdrawn.append(callback)

    def status(self) -> list[SourceStatus]:
        """Return how each file and URL is."""
        return [SourceStatus(alias, source.place, len(source.keys), source.error) for alias, source in self._looked_at()]

    def _looked_at(self) -> list[tuple[str, KeySource[Any]]]:
        """Return the files, then the URLs, each with its issuer's alias, and the file of API keys."""
        both = (self._files, self._urls)
        found: list[tuple[str, KeySource[Any]]] = [
            (alias, source) for kind in both for alias, sources in kind.items() for source in sources
        ]
        return found if self._key_list is None else [*found, (API_KEYS, self._key_list)]

    async def load_files(self) -> None:
        """Read all files once; raise ValueError for one without a usable key (after `start`, that is only logged).

        A file of API keys may be empty: there will be some later.
        """
        for source in [source for sources in self._files.values() for source in sources]:
            await source.look()
            if not source.keys:
                raise ValueError(source.error or f"{source.place}: expected a usable key: {'; '.join(source.skipped)}")
        if self._key_list is not None:
            await self._key_list.look()
            if self._key_list.error is not None:
                raise ValueError(self._key_list.error)

    async def start(self) -> None:
        """Read the files as `load_files` does, and begin to keep all sources current; URLs are not waited for."""
        await self.load_files()
        if any(self._urls.values()):
            # Minutes lie between two looks: a connection kept that long is a dead one.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        for _, source in self._looked_at():
            source.open()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="auth: sources of keys")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _, source in self._looked_at():
                group.create_task(source.run(), name=f"auth: {source.place}")

    async def stop(self) -> None:
        """End the looks at sources; raise what ended them before, if anything did. May be repeated, and without `start`."""
        task, self._task = self._task, None
        session, self._session = self._session, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for _, source in self._looked_at():
            source.close()  # a task that never had its first turn did not
        if session is not None:
            await session.close()
        if task is not None and not task.cancelled():
            task.result()

    async def authenticate(self, authorization: str | None, now: float) -> Principal:
        """Return the principal of a request at Unix time `now`, from the one value of its Authorization header.

        Does not yield to the loop unless the token names a key that its issuer may just have published. Raise TokenMissing,
        TokenInvalid, TokenExpired; UpstreamFailed where the issuer's keys cannot be had, so that nobody can tell whether
        the token is good; Overloaded when too many wait for that.
        """
        # The usual spelling needs no parsing to be found: what is in the cache has been parsed before.
        if authorization is not None and authorization.startswith("Bearer ") and not authorization.startswith(_BEARER_KEY):
            known = self._verifier.match(authorization[7:], now)
            if known is not None:
                return known
        token = bearer(authorization)
        verify = self._keyring.verify if token.startswith(PREFIX) else self._verifier.verify
        try:
            return verify(token, now)
        except UnknownKey as unknown:
            return await self._look_for(unknown, verify, token, now)

    def known(self, authorization: str, now: float) -> Principal | None:
        """Return the principal of an Authorization header's value where no signature has to be checked, else None."""
        if not authorization.startswith("Bearer "):
            return None
        token = authorization[7:]
        try:
            return self._keyring.verify(token, now) if token.startswith(PREFIX) else self._verifier.match(token, now)
        except (TokenInvalid, TokenExpired, TokenRevoked):
            return None

    async def _look_for(
        self, unknown: UnknownKey, verify: Callable[[str, float], Principal], token: str, now: float
    ) -> Principal:
        """Verify the token again after each look that may bring its key."""
        kid = unknown.kid
        began = self._clock()
        sources = [source for alias, source in self._looked_at() if alias == unknown.issuer]
        for source in sources:
            if await source.ask(kid):
                try:
                    return verify(token, now + self._clock() - began)
                except UnknownKey:
                    source.missed(kid)
        waits = [wait for source in sources if (wait := source.doubt(kid)) is not None]
        if waits:
            raise UpstreamFailed("The keys behind this token cannot be fetched now.", retry_after=max(1.0, min(waits)))
        raise unknown

    def _publish(self, alias: str) -> None:
        """Give the verifier all keys that the issuer's sources list now, and tell of those that are gone."""
        keys = [key for source in self._files[alias] + self._urls[alias] for key in source.keys]
        self._tell(self._verifier.replace(alias, [*self._inline[alias], *keys]))

    def _publish_api_keys(self) -> None:
        self._tell(self._keyring.replace(() if self._key_list is None else self._key_list.keys))

    def _tell(self, withdrawn: Iterable[KeyRef]) -> None:
        for key in withdrawn:
            _log.info("key withdrawn: %s", key)
            for callback in self._withdrawn:
                try:
                    callback(key)
                except Exception:  # noqa: BLE001  # One who cannot be told must not keep the others' polls open.
                    _log.exception("a callback for withdrawn keys failed")


@final
class _Parsing:
    """Parses a file of API keys; what has not changed since the last time it need not parse again."""

    def __init__(self) -> None:
        self._data: bytes | None = None
        self._parsed: Parsed[ApiKey] = Parsed(())

    def __call__(self, data: bytes) -> Parsed[ApiKey]:
        if data != self._data:
            self._parsed = keyfile.parse_file(data)
            self._data = data
        return self._parsed
