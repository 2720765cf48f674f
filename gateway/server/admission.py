"""Who may ask: the address's limit, then identity, then the principal's limits, the cheap refusals first."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from secrets import token_bytes
from typing import Literal

from aiohttp import hdrs, web
from multidict import MultiMapping

from gateway.auth.apikeys import PREFIX
from gateway.auth.authenticator import Authenticator
from gateway.auth.principal import Principal
from gateway.auth.tokens import NotYetValid, UnknownKey
from gateway.errors import TokenExpired, TokenInvalid
from gateway.limits import Decision, NegativeCache, Slots, TokenBuckets, bucket_fields
from gateway.server.address import bucket_key
from gateway.server.exchange import EXCHANGE

# A poll that would end for its token's expiry within this time is refused instead: it could only come back refused.
LEAST_HOLD = 1.0
API_KEY = "X-API-Key"


class Admission:
    """Admits requests. A bucket that is None sets no limit."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        addresses: TokenBuckets | None,
        polls: TokenBuckets | None,
        publishes: TokenBuckets | None,
        slots: Slots,
        refused: NegativeCache[type[TokenInvalid | TokenExpired]],
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._authenticator = authenticator
        self.addresses = addresses
        self.polls = polls
        self._buckets = {"poll": polls, "publish": publishes}
        self.slots = slots
        self._refused = refused
        self._clock = clock
        self._unix_clock = unix_clock
        self._secret = token_bytes(16)

    def charge_address(self, address: str) -> None:
        """Take from an address's bucket, for a request that needs no identity; RateLimited."""
        if self.addresses is not None:
            self.addresses.check(bucket_key(address), self._clock())

    async def identify(self, request: web.BaseRequest) -> Principal:
        """Return who asks; RateLimited by address, TokenMissing, TokenInvalid, TokenExpired."""
        exchange = request[EXCHANGE]
        self.charge_address(exchange.address)
        principal = await self._principal(self.credential(request.headers))
        exchange.principal = principal
        return principal

    def known(self, credential: str) -> Principal | None:
        """Return whose credential this is where that needs no verification; otherwise `identify` has to say what is wrong."""
        return self._authenticator.known(credential, self._unix_clock())

    def credential(self, headers: MultiMapping[str]) -> str | None:
        """Return the request's one credential, an API key as if it came as a bearer token; of two, TokenInvalid."""
        authorization = _authorization(headers)
        keys = headers.getall(API_KEY, ())
        if not keys or not self._authenticator.takes_api_keys:
            return authorization
        # Another scheme may be meant for a backend; a bearer token would be a second identity.
        if len(keys) > 1 or (authorization is not None and authorization[:7].lower() == "bearer "):
            raise TokenInvalid("several credentials")
        if not keys[0].startswith(PREFIX):
            raise TokenInvalid("not an API key of ours")
        return f"Bearer {keys[0]}"

    async def _principal(self, authorization: str | None) -> Principal:
        if authorization is None:
            return await self._authenticator.authenticate(None, self._unix_clock())
        digest = blake2b(authorization.encode("utf-8", "surrogateescape"), digest_size=16, key=self._secret).digest()
        generation = self._authenticator.generation
        refusal = self._refused.find(digest, self._clock(), generation)
        if refusal is not None:
            raise refusal()
        try:
            return await self._authenticator.authenticate(authorization, self._unix_clock())
        except UnknownKey:
            # Its issuer may publish the key at any moment, and the key source bounds the looks by itself.
            raise
        except NotYetValid:
            raise  # will be good soon
        except (TokenInvalid, TokenExpired) as error:
            kind = TokenExpired if isinstance(error, TokenExpired) else TokenInvalid
            self._refused.remember(digest, kind, self._clock(), generation)
            raise

    def charge(self, request: web.Request, principal: Principal, kind: Literal["poll", "publish"], cost: int = 1) -> None:
        """Take from the principal's bucket, or raise RateLimited; the answer will tell what is left."""
        bucket = self._buckets[kind]
        if bucket is not None:
            decision: Decision = bucket.take(principal.id, self._clock(), cost)
            if not decision.allowed:
                raise bucket.refusal(decision)
            request[EXCHANGE].headers.update(bucket_fields(bucket, decision))

    def hold_until(self, principal: Principal, wait: float) -> tuple[float, bool]:
        """Return until when (monotonic) a poll may be held, and whether that is the token's expiry.

        TokenExpired for a poll that its token would end within a second: it could only come back refused.
        """
        now = self._clock()
        if principal.expires_at is None:
            return now + wait, False
        left = principal.expires_at - self._unix_clock()
        if left < min(wait, LEAST_HOLD):
            raise TokenExpired
        return now + min(wait, left), left < wait


def _authorization(headers: MultiMapping[str]) -> str | None:
    """Return the one Authorization field; of two, which one a proxy in front looked at cannot be known: TokenInvalid."""
    values = headers.getall(hdrs.AUTHORIZATION, [])
    if len(values) > 1:
        raise TokenInvalid("several Authorization fields")
    return values[0] if values else None
