"""The clients under test, each asked to play a case: what it is told goes in as JSON, and what it does comes out as JSON.

A case has the options of the client and of the subscription by their Python names, or what to publish; the outcome has the events
in order, the position that is stored, and the counters. JavaScript is played by `player.mjs` in one Node process for all.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from gateway.client import AsyncClient, BreakerSettings, Client, ClientError, Lost, Message, Position, Reset, Retry, Token

HERE = Path(__file__).parent
MOST_SECONDS = 20.0
Case = Mapping[str, Any]
Outcome = dict[str, Any]


class Player(Protocol):
    """Plays cases."""

    def play(self, case: Case, url: str) -> Outcome:
        """Play one against this URL, and return what came of it."""
        ...


def shown(value: Any) -> Any:
    """Return a value as an event has it: bytes in base64."""
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def event_of(message: Message) -> dict[str, Any]:
    """Return the event of a message."""
    told = asdict(message) | {"key": shown(message.key), "value": shown(message.value)}
    told["headers"] = [list(pair) for pair in message.headers]
    return {"message": told}


def failure_of(error: Exception) -> dict[str, Any]:
    """Return the event of an error."""
    return {"error": type(error).__name__, "code": getattr(error, "code", "")}


class Store:
    """A store that tells what was saved. `given`: what it holds at first."""

    def __init__(self, given: Any) -> None:
        self.position = None if given is None else Position.read(given)
        self.saved: list[str] = []

    def load(self) -> Position | None:
        return self.position

    def save(self, position: Position) -> None:
        self.position = position
        self.saved.append(position.cursor)


class Doing:
    """What a case says about the program around a client, for both kinds of Python client."""

    def __init__(self, case: Case) -> None:
        self.events: list[Any] = []
        self.case = case
        self.store = Store(case["store"]) if "store" in case else None
        self._tokens = list(case.get("tokens", []))

    def client(self) -> dict[str, Any]:
        """Return the options of the client."""
        given = dict(self.case.get("client", {}))
        retry = {"base": 0.002, "cap": 0.02} | given.pop("retry", {})
        breaker = {"failures": 100, "seconds": 0.01, "cap": 0.02} | given.pop("breaker", {})
        token = self.next_token if self._tokens else self.case.get("token")
        times = {"connect_timeout": 5.0, "read_timeout": 5.0} | given
        return {"token": token, "retry": Retry(**retry), "breaker": BreakerSettings(**breaker)} | times

    def next_token(self) -> Any:
        """Be the token provider."""
        self.events.append("token")
        given = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        if given == "fails":
            raise RuntimeError("no token")
        return Token(given["value"], given.get("expires_at")) if isinstance(given, Mapping) else given

    def subscription(self) -> tuple[list[str], dict[str, Any]]:
        """Return the channels and the options of the subscription."""
        given = dict(self.case.get("subscribe", {}))
        channels = given.pop("channels", ["news"])
        if self.case.get("on_lost", True):
            given["on_lost"] = self.lost
        if "on_reset" in self.case:
            given["on_reset"] = self.reset
        if self.store is not None:
            given["store"] = self.store
        return channels, given

    def lost(self, lost: Lost) -> None:
        """Be told of what is lost."""
        self.events.append({"lost": [lost.channel, lost.partition, lost.first, lost.end]})

    def reset(self, reset: Reset) -> str | None:
        """Decide where to go on."""
        self.events.append({"reset": reset.code})
        chosen: str | None = self.case["on_reset"]
        return chosen

    def got(self, message: Message) -> str:
        """Note a message; return what to do then."""
        self.events.append(event_of(message))
        return str(self.case.get("then", {}).get(str(self._count()), ""))

    def is_enough(self) -> bool:
        """Tell whether the last message that the case waits for is there."""
        return self._count() >= int(self.case["take"])

    def _count(self) -> int:
        return sum("message" in each for each in self.events if isinstance(each, dict))

    def impossible(self, error: ValueError) -> Outcome:
        """Return the outcome where the case asks for what cannot be."""
        return {"events": [failure_of(error)], "stored": None, "saved": [], "counters": {}}

    def outcome(self, counters: Any) -> Outcome:
        """Return what came of it."""
        stored = None if self.store is None or self.store.position is None else self.store.position.document()
        saved = None if self.store is None else self.store.saved
        return {"events": self.events, "stored": stored, "saved": saved, "counters": asdict(counters)}


class SyncPlayer:
    """The client for threads."""

    def play(self, case: Case, url: str) -> Outcome:
        """Play one."""
        doing = Doing(case)
        try:
            return self._play(doing, url)
        except ValueError as error:
            return doing.impossible(error)

    def _play(self, doing: Doing, url: str) -> Outcome:
        case = doing.case
        with Client(url, **doing.client()) as client:
            if "publish" in case or "batch" in case:
                return self._publish(doing, client)
            channels, options = doing.subscription()
            with client.subscribe(*channels, **options) as subscription:
                watchdog = threading.Timer(MOST_SECONDS, subscription.stop)
                watchdog.start()
                try:
                    for message in subscription:
                        told = doing.got(message)
                        if told == "ack":
                            subscription.ack(message)
                        if told == "break":
                            break
                        if doing.is_enough():
                            subscription.stop()
                except (ClientError, ValueError) as error:
                    doing.events.append(failure_of(error))
                finally:
                    watchdog.cancel()
        doing.events.append("end")
        return doing.outcome(subscription.counters)

    def _publish(self, doing: Doing, client: Client) -> Outcome:
        try:
            if "publish" in doing.case:
                doing.events.append({"published": asdict(client.publish(**doing.case["publish"]))})
            else:
                result = client.publish_batch(**doing.case["batch"])
                doing.events.append({"batch": batch_of(result), "cursor": result.cursor})
        except (ClientError, ValueError) as error:
            doing.events.append(failure_of(error))
        return doing.outcome(client.counters)


def batch_of(result: Any) -> list[Any]:
    """Return what became of each message of a batch."""
    return [each.problem.code if hasattr(each, "problem") else [each.partition, each.offset] for each in result.results]


class AsyncPlayer:
    """The client for asyncio."""

    def play(self, case: Case, url: str) -> Outcome:
        """Play one."""
        doing = Doing(case)
        try:
            return asyncio.run(self._play(doing, url))
        except ValueError as error:
            return doing.impossible(error)

    async def _play(self, doing: Doing, url: str) -> Outcome:
        case = doing.case
        async with AsyncClient(url, **doing.client()) as client:
            if "publish" in case or "batch" in case:
                return await self._publish(doing, client)
            channels, options = doing.subscription()
            async with client.subscribe(*channels, **options) as subscription:
                watchdog = asyncio.get_running_loop().call_later(MOST_SECONDS, subscription.stop)
                try:
                    async for message in subscription:
                        told = doing.got(message)
                        if told == "ack":
                            subscription.ack(message)
                        if told == "break":
                            break
                        if doing.is_enough():
                            subscription.stop()
                except (ClientError, ValueError) as error:
                    doing.events.append(failure_of(error))
                finally:
                    watchdog.cancel()
        doing.events.append("end")
        return doing.outcome(subscription.counters)

    async def _publish(self, doing: Doing, client: AsyncClient) -> Outcome:
        try:
            if "publish" in doing.case:
                doing.events.append({"published": asdict(await client.publish(**doing.case["publish"]))})
            else:
                result = await client.publish_batch(**doing.case["batch"])
                doing.events.append({"batch": batch_of(result), "cursor": result.cursor})
        except (ClientError, ValueError) as error:
            doing.events.append(failure_of(error))
        return doing.outcome(client.counters)


class NodePlayer:
    """The JavaScript client, in one Node process; plays come out in any order."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Outcome]] = {}
        self._reader = threading.Thread(target=self._read, name="node")
        self._reader.start()

    def play(self, case: Case, url: str) -> Outcome:
        """Play one."""
        assert self._process.stdin is not None
        outcome: Future[Outcome] = Future()
        with self._lock:
            number = len(self._waiting)
            self._waiting[number] = outcome
            self._process.stdin.write(json.dumps({"number": number, "url": url, "case": case}) + "\n")
            self._process.stdin.flush()
        return outcome.result(MOST_SECONDS + 10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            self._waiting[told.pop("number")].set_result(told)

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0
        self._reader.join()


@contextmanager
def node() -> Iterator[NodePlayer]:
    """Run the player in Node."""
    command = ["node", str(HERE / "player.mjs")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            player = NodePlayer(process)
            yield player
            player.end()
        finally:
            process.kill()
