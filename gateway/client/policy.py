"""What an answer leads to (sans-I/O): one table for subscriptions, publishes and all other requests.

The JavaScript client has the same table. What is not in it is final where the client is to blame (4xx), and tried again where
it may not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Action(StrEnum):
    """What to do next."""

    TAKE = "take"
    """The answer is good."""

    RETRY = "retry"
    """The same again after a while: the gateway, or what is between, failed."""

    RENEW = "renew"
    """The same again with a new token, once."""

    RESET = "reset"
    """The program says where to go on."""

    REDIRECT = "redirect"
    """The same at another place, if that is in the same origin."""

    REFUSE = "refuse"
    """An error for the program."""


_BY_CODE: Mapping[tuple[int, str], Action] = {
    (409, "cursor_reset"): Action.RESET,
    (410, "cursor_expired"): Action.RESET,
}
_BY_STATUS: Mapping[int, Action] = {
    200: Action.TAKE,
    201: Action.TAKE,
    204: Action.TAKE,
    301: Action.REDIRECT,  # of GET only: others would lose their body (RFC 9110 §15.4.2)
    302: Action.REDIRECT,
    303: Action.REDIRECT,
    307: Action.REDIRECT,
    308: Action.REDIRECT,
    401: Action.RENEW,
    408: Action.RETRY,
    425: Action.RETRY,
    429: Action.RETRY,
    500: Action.RETRY,
    502: Action.RETRY,
    503: Action.RETRY,
    504: Action.RETRY,
}
_ONLY_GET = frozenset({301, 302, 303})


def action(method: str, status: int, code: str) -> Action:
    """Return what an answer with this status, and problem code, leads to."""
    if status in _ONLY_GET and method != "GET":
        return Action.REFUSE
    return _BY_CODE.get((status, code)) or _BY_STATUS.get(status, Action.REFUSE)
