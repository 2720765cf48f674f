"""What can go wrong for a program that uses the client (sans-I/O): one class for each thing that it may want to tell apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ClientError(Exception):
    """All errors of the client."""


class GaveUp(ClientError):
    """There was no good answer in as many attempts, or as much time, as the program allows; `reason` is the last one's."""

    def __init__(self, attempts: int, reason: str) -> None:
        super().__init__(f"gave up after {attempts} attempts: {reason}")
        self.attempts = attempts
        self.reason = reason


class CircuitOpen(ClientError):
    """The gateway failed too often in a row, so it is not asked now; `retry_after`: seconds until it is again."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the gateway failed too often; it is asked again in {retry_after:.1f} s")
        self.retry_after = retry_after


class RedirectRefused(ClientError):
    """The gateway points elsewhere: to another origin, which must not see the token, or round and round."""

    def __init__(self, location: str) -> None:
        super().__init__(f"a redirect that is not followed: {location or 'without a location'}")
        self.location = location


class StoreInvalid(ClientError):
    """What the cursor store holds cannot be used: damaged, or the position in another subscription."""


class AnswerInvalid(ClientError):
    """An answer is not what the contract says. Subscriptions try again; who publishes may see it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document (RFC 9457). `document` is all of it; `code` is empty where the answer was none of the gateway's."""

    status: int
    code: str = ""
    title: str = ""
    detail: str = ""
    request_id: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)


class Refused(ClientError):
    """The gateway said no; `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        said = problem.detail or problem.title or "no reason given"
        super().__init__(f"{problem.status} {problem.code}".rstrip() + f": {said}")
        self.problem = problem

    @property
    def code(self) -> str:
        """The stable code, empty where there is none."""
        return self.problem.code


class Unauthorized(Refused):
    """401: there is no token, or it is not good, also when it was renewed."""


class Forbidden(Refused):
    """403: the token does not allow it."""


class CursorReset(Refused):
    """409 `cursor_reset`: the topic was created anew, or cut; `cursor` is a fresh one, empty where there is none."""

    @property
    def cursor(self) -> str:
        """The cursor to go on from."""
        return str(self.problem.document.get("cursor", ""))


class CursorExpired(CursorReset):
    """410 `cursor_expired`: retention took records that were not read yet; `cursor` is the earliest one."""


class Gone(Refused):
    """410 `gone`: the channel is past its sunset."""


_BY_CODE: Mapping[str, type[Refused]] = {"cursor_reset": CursorReset, "cursor_expired": CursorExpired, "gone": Gone}
_BY_STATUS: Mapping[int, type[Refused]] = {401: Unauthorized, 403: Forbidden}


def read_problem(status: int, body: bytes) -> Problem:
    """Read a problem document; of what is none only the status is kept."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return Problem(status)
    said = {name: document[name] for name in ("code", "title", "detail", "request_id") if isinstance(document.get(name), str)}
    return Problem(status, **said, document=document)


def refusal(problem: Problem) -> Refused:
    """Return the error for a problem."""
    return _BY_CODE.get(problem.code, _BY_STATUS.get(problem.status, Refused))(problem)
