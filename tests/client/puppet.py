"""A shell that is a puppet: it carries out a session's effects from a script, without clock, socket or randomness."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.client.asking import Asker
from gateway.client.backoff import Retry
from gateway.client.breaker import Breaker, BreakerSettings
from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Deliver, Effect, Failure, Load, Renew, Save, Send, Sleep, Tell
from gateway.client.messages import Message
from gateway.client.positions import Position
from gateway.client.running import Run
from gateway.client.session import Session, Subscribe
from gateway.client.tokens import Credentials

Given = Answer | Failure | Exception


def message(offset: int, value: Any = None, *, channel: str = "news", partition: int = 0, **more: Any) -> dict[str, Any]:
    """Return an envelope."""
    head = {"channel": channel, "partition": partition, "offset": offset, "timestamp": 1, "key": None, "headers": []}
    return head | {"value": value} | more


def batch(cursor: str, *messages: Mapping[str, Any], up_to_date: bool = True, seconds: float = 0.0, **more: Any) -> Answer:
    """Return a 200."""
    headers = {"content-type": "application/json"} | more.pop("headers", {})
    document = {"cursor": cursor, "messages": messages, "up_to_date": up_to_date} | more
    return Answer(200, headers, json.dumps(document).encode(), seconds)


def empty(cursor: str, *, seconds: float = 30.0, **headers: str) -> Answer:
    """Return a 204."""
    return Answer(204, {"next-cursor": cursor, **headers}, b"", seconds)


def problem(status: int, code: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    """Return an error of the gateway."""
    return Answer(status, headers or {}, json.dumps({"status": status, "code": code, "title": "No", **more}).encode())


@dataclass
class World:
    """Time, tokens and chance, as a test wants them."""

    now: float = 1000.0
    unix: float = 1_700_000_000.0
    chance: float = 0.5
    retry: Retry = field(default_factory=lambda: Retry(base=1.0, cap=8.0))
    breaker: BreakerSettings = field(default_factory=lambda: BreakerSettings(failures=100))
    token: Any = None
    provided: bool = False
    url: str = "https://gw.test"

    def __post_init__(self) -> None:
        self.guard = Breaker(self.breaker, lambda: self.chance)
        self.credentials = Credentials(self.token, provided=self.provided, renew_before=30.0)
        self.asker = Asker(
            self.url,
            credentials=self.credentials,
            breaker=self.guard,
            retry=self.retry,
            headers={"X-Own": "1"},
            clock=lambda: self.now,
            unix_clock=lambda: self.unix,
            random=lambda: self.chance,
        )


class Puppet:
    """Carries out effects. `given`: what requests get, in order; when there is no more, the program stops."""

    def __init__(
        self,
        steps: Any,
        given: Iterable[Given],
        *,
        world: World | None = None,
        tokens: Iterable[Any] = (),
        stored: Position | None = None,
        told: Callable[[Any], Any] = lambda _: None,
        stop_after: int | None = None,
    ) -> None:
        self.sent: list[Send] = []
        self.slept: list[float] = []
        self.saved: list[Position] = []
        self.told: list[Any] = []
        self.messages: list[Message] = []
        self.renewed = 0
        self._world = world or World()
        self._given = iter(given)
        self._tokens = iter(tokens)
        self._stored = stored
        self._told = told
        self._stop_after = stop_after
        self.run: Run[Any] = Run(steps)

    def play(self) -> Any:
        """Go on to the end; return what the session gives."""
        while (effect := self.run.effect) is not None:
            self.run.advance(self._do(effect))
        return self.run.result()

    def _do(self, effect: Effect) -> Any:  # noqa: PLR0911
        if isinstance(effect, Send):
            return self._send(effect)
        if isinstance(effect, Sleep):
            self.slept.append(effect.seconds)
            self._world.now += effect.seconds
            self._world.unix += effect.seconds
            return None
        if isinstance(effect, Renew):
            self.renewed += 1
            return next(self._tokens)
        if isinstance(effect, Load):
            return self._stored
        if isinstance(effect, Save):
            self.saved.append(effect.position)
            return None
        if isinstance(effect, Deliver):
            self.messages.append(effect.message)
            return STOPPED if len(self.messages) == self._stop_after else None
        assert isinstance(effect, Tell)
        self.told.append(effect.what)
        return self._told(effect.what)

    def _send(self, effect: Send) -> Any:
        answer = next(self._given, None)
        if answer is None:
            return STOPPED
        self.sent.append(effect)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Answer):
            self._world.now += answer.seconds
            self._world.unix += answer.seconds
        return answer


def subscribed(
    *given: Given, world: World | None = None, wanted: Subscribe | None = None, **more: Any
) -> tuple[Puppet, Session]:
    """Return a puppet for a subscription, with its session."""
    world = world or World()
    session = Session(world.asker, wanted or Subscribe(("news",)), Counters())
    return Puppet(session.run(), given, world=world, **more), session
