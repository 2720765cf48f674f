"""Waiting in tests: for a condition, with a deadline, never for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

# Long enough for a machine with two busy cores: a test that passes never waits for it.
DEADLINE = 10.0
INTERVAL = 0.005


def _overdue(predicate: Callable[..., object], timeout: float, last: object) -> AssertionError:
    try:
        said = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        said = repr(predicate)
    return AssertionError(f"not so within {timeout} s (last: {last!r}): {said}")


async def eventually(predicate: Callable[[], Awaitable[T] | T], *, timeout: float = DEADLINE, interval: float = INTERVAL) -> T:
    """Wait until `predicate()` is true and return what it gave; it may be async.

    Raises AssertionError with the predicate's source and its last value after `timeout` seconds. What the
    predicate raises passes through.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        result: T = await value if inspect.isawaitable(value) else value
        if result:
            return result
        if time.monotonic() >= deadline:
            raise _overdue(predicate, timeout, result)
        await asyncio.sleep(interval)


def eventually_blocking(predicate: Callable[[], T], *, timeout: float = DEADLINE, interval: float = INTERVAL) -> T:
    """Wait like `eventually`, in a thread that has no event loop."""
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        if time.monotonic() >= deadline:
            raise _overdue(predicate, timeout, result)
        time.sleep(interval)
    return result
