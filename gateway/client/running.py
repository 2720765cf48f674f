"""A session on its way (sans-I/O): the effect that is to be carried out, until its result is there.

An effect that is broken off, by the cancellation of a task, is simply carried out again: nothing moves without a result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, TypeVar

from gateway.client.effects import Effect

T = TypeVar("T")


class Run(Generic[T]):
    """Steps through a generator of effects. `effect` is None when it is over."""

    def __init__(self, steps: Generator[Effect, Any, T]) -> None:
        self.effect: Effect | None = None
        self._steps = steps
        self._result: list[T] = []
        self.advance(None)

    def advance(self, result: Any) -> None:
        """Hand back the result of `effect` and go on to the next one. Raises what the session raises."""
        try:
            self.effect = self._steps.send(result)
        except StopIteration as end:
            self.effect = None
            self._result.append(end.value)
        except BaseException:
            self.effect = None
            raise

    def result(self) -> T:
        """Return what a session that is over gave."""
        return self._result[0]
