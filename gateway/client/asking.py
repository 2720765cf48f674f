"""One request until it has an outcome (sans-I/O): token, breaker, redirects, failures, back-off, by the table in `policy`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from gateway.client.backoff import Retry, retry_after
from gateway.client.breaker import Breaker
from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Effect, Failure, Renew, Send, Sleep
from gateway.client.errors import AnswerInvalid, CircuitOpen, ClientError, GaveUp, RedirectRefused, read_problem, refusal
from gateway.client.policy import Action, action
from gateway.client.tokens import Credentials

T = TypeVar("T")
MOST_REDIRECTS = 5
_TOO_MANY_REQUESTS = 429
_ERRORS = 400


class StoppedByProgram(Exception):
    """The program wants an end; never leaves the session."""


def do(effect: Effect) -> Generator[Effect, Any, Any]:
    """Have the shell carry out an effect; return what it hands back. StoppedByProgram where the program wants an end."""
    result = yield effect
    if result is STOPPED:
        raise StoppedByProgram
    return result


@dataclass(frozen=True, slots=True)
class Query:
    """A request as a program means it: `path` with its query below the gateway's URL; `patience`: seconds to the first byte."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    patience: float = 15.0


class Asker:
    """What all requests of a client have in common.

    `url`: the gateway's, with a path in front of `/v1` where there is one. `clock` is monotonic, `unix_clock` tells the time of
    day, both in seconds; `random` draws from [0, 1).
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials,
        breaker: Breaker,
        retry: Retry,
        headers: Mapping[str, str],
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self.url = checked_url(url)
        self.credentials = credentials
        self.breaker = breaker
        self.retry = retry
        self.random = random
        self.clock = clock
        self._headers = headers
        self._unix_clock = unix_clock

    def ask(
        self,
        query: Query,
        read: Callable[[Answer], T],
        counters: Counters,
        *,
        attempts: int | None = None,
        deadline: float | None = None,
    ) -> Generator[Effect, Any, T]:
        """Ask until there is a good answer; return what `read` makes of it, which may raise AnswerInvalid.

        `attempts`: failures after which to give up. With a `deadline`, in seconds from now, it is also given up where that
        would pass, and an open breaker is an error at once. Raises GaveUp, CircuitOpen, Refused and its kind, RedirectRefused.
        """
        course = _Course(self, query, counters, attempts, None if deadline is None else self.clock() + deadline)
        while True:
            yield from course.enter()
            yield from course.renew_if_due()
            try:
                answer = yield from course.send()
            except StoppedByProgram:
                self.breaker.left()
                raise
            if isinstance(answer, Failure):
                yield from course.failed(answer.reason)
                continue
            step = yield from course.judge(answer)
            if step is Action.TAKE:
                try:
                    taken = read(answer)
                except AnswerInvalid as error:
                    yield from course.failed(str(error))
                    continue
                self.breaker.succeeded()
                return taken

    def request(self, query: Query, url: str) -> Send:
        """Return what is sent for a query at a URL."""
        headers = {**self._headers, **query.headers, **self.credentials.header()}
        return Send(query.method, url, headers, query.body, query.patience)

    def unix_now(self) -> float:
        """Return the time of day, in seconds of Unix time."""
        return self._unix_clock()


class _Course:
    """One query on its way to an outcome."""

    def __init__(self, asker: Asker, query: Query, counters: Counters, attempts: int | None, deadline: float | None) -> None:
        self._asker = asker
        self._query = query
        self._counters = counters
        self._attempts = attempts
        self._deadline = deadline
        self._url = asker.url + query.path
        self._failures = self._redirects = 0
        self._generation = 0
        self._renewed = False

    def enter(self) -> Generator[Effect, Any, None]:
        """Wait for the breaker, or raise CircuitOpen."""
        asker = self._asker
        while wait := asker.breaker.enter(asker.clock(), self._query.patience):
            if self._deadline is not None:
                raise CircuitOpen(wait)
            yield from do(Sleep(wait))

    def renew_if_due(self) -> Generator[Effect, Any, None]:
        """Get a token where one is due; that this fails matters where the one before is over."""
        asker = self._asker
        while asker.credentials.is_due(asker.unix_now()):
            failure = yield from self._renew()
            if failure is None or not asker.credentials.is_over(asker.unix_now()):
                return
            yield from self.failed(failure.reason, of_gateway=False)

    def send(self) -> Generator[Effect, Any, Answer | Failure]:
        """Send it once."""
        self._generation = self._asker.credentials.generation
        answer: Answer | Failure = yield from do(self._asker.request(self._query, self._url))
        if isinstance(answer, Answer):
            self._counters.received += len(answer.body)
        return answer

    def judge(self, answer: Answer) -> Generator[Effect, Any, Action]:
        """Do what an answer leads to; return TAKE where it is good, and RETRY where to send again. Raises what is final."""
        problem = read_problem(answer.status, answer.body if answer.status >= _ERRORS else b"")
        step = action(self._query.method, answer.status, problem.code)
        if step is Action.TAKE:
            return step
        if step is Action.RETRY:
            asked = retry_after(answer.headers, self._asker.unix_now())
            of_gateway = answer.status != _TOO_MANY_REQUESTS
            yield from self.failed(str(refusal(problem)), asked, of_gateway=of_gateway, cause=refusal(problem))
            return step
        self._asker.breaker.succeeded()
        if step is Action.REDIRECT:
            self._redirect(answer.headers.get("location", ""))
        elif step is not Action.RENEW or not (yield from self._renew_again()):
            raise refusal(problem)
        return Action.RETRY

    def failed(
        self, reason: str, asked: float = 0.0, *, of_gateway: bool = True, cause: ClientError | None = None
    ) -> Generator[Effect, Any, None]:
        """Count a failure and wait, `asked` seconds at least. GaveUp where there is no more of that."""
        asker, counters = self._asker, self._counters
        self._failures += 1
        counters.failures += 1
        if of_gateway:
            asker.breaker.failed(asker.clock())
        else:
            asker.breaker.left()
        wait = max(asked, asker.retry.wait(self._failures, asker.random))
        if self._attempts is not None and self._failures >= self._attempts:
            raise GaveUp(self._failures, reason) from cause
        if self._deadline is not None and asker.clock() + wait > self._deadline:
            raise GaveUp(self._failures, reason) from cause
        counters.retries += 1
        self._url = asker.url + self._query.path
        self._redirects = 0
        yield from do(Sleep(wait))

    def _renew(self) -> Generator[Effect, Any, Failure | None]:
        given = yield from do(Renew())
        if isinstance(given, Failure):
            return given
        try:
            self._asker.credentials.take(given)
        except ValueError as error:
            return Failure(f"the token provider: {error}")
        self._counters.renewals += 1
        return None

    def _renew_again(self) -> Generator[Effect, Any, bool]:
        """After a 401: return whether it may be sent again, with another token."""
        credentials = self._asker.credentials
        if credentials.generation != self._generation:
            return True  # somebody else got a new one meanwhile
        if self._renewed or not credentials.provided:
            return False
        self._renewed = True
        failure = yield from self._renew()
        if failure is not None:
            self._renewed = False
            yield from self.failed(failure.reason, of_gateway=False)
        return True

    def _redirect(self, location: str) -> None:
        self._redirects += 1
        self._counters.redirects += 1
        url = urljoin(self._url, location)
        if not location or self._redirects > MOST_REDIRECTS or origin(url) != origin(self._url):
            raise RedirectRefused(location)
        self._url = url.partition("#")[0]


def origin(url: str) -> tuple[str, str, int | None]:
    """Return the origin of a URL (RFC 6454): its scheme, host and port."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme)


def checked_url(url: str) -> str:
    """Return the URL of a gateway without a slash at its end; ValueError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("expected the gateway's URL, as https://gateway.example: without user, query and fragment")
    return url.rstrip("/")
