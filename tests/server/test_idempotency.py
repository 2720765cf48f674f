"""The memory of Idempotency-Keys."""

import asyncio

import pytest

from gateway.errors import IdempotencyMismatch, Overloaded
from gateway.server.idempotency import Memory


async def test_the_first_use_and_its_repeats():
    """All with the same body share one outcome."""
    memory: Memory[str] = Memory(window=10, size=2)
    use, first = memory.begin("k", b"body", 0.0)
    again, second = memory.begin("k", b"body", 9.9)
    assert (first, second) == (True, False)
    assert use is again
    assert len(memory) == 1


async def test_another_body_is_refused_while_the_key_is_kept():
    """A key stands for one body."""
    memory: Memory[str] = Memory(window=10, size=2)
    use, _ = memory.begin("k", b"body", 0.0)
    with pytest.raises(IdempotencyMismatch):
        memory.begin("k", b"other", 1.0)
    use.outcome.set_result("done")
    with pytest.raises(IdempotencyMismatch):
        memory.begin("k", b"other", 9.9)
    assert memory.begin("k", b"other", 10.0)[1]


async def test_a_key_in_flight_is_kept_beyond_its_window():
    """Its outcome is not known yet, so it cannot be used again."""
    memory: Memory[str] = Memory(window=10, size=2)
    use, _ = memory.begin("k", b"body", 0.0)
    assert memory.begin("k", b"body", 1_000.0) == (use, False)
    use.outcome.set_result("done")
    assert memory.begin("k", b"body", 1_000.0)[1]


async def test_a_freed_key_is_new():
    """Freeing twice does no harm."""
    memory: Memory[str] = Memory(window=10, size=1)
    memory.begin("k", b"body", 0.0)
    memory.free("k")
    memory.free("k")
    assert memory.begin("k", b"other", 0.0)[1]


async def test_a_full_memory_says_when_there_will_be_room():
    """No key is forgotten early, for a repeat would publish twice."""
    memory: Memory[str] = Memory(window=10, size=2)
    for key in "ab":
        memory.begin(key, b"", 3.0)[0].outcome.set_result("done")
    with pytest.raises(Overloaded) as refused:
        memory.begin("c", b"", 4.0)
    assert refused.value.retry_after == 9.0
    with pytest.raises(Overloaded) as refused:
        memory.begin("c", b"", 12.9)
    assert refused.value.retry_after == 1.0
    assert memory.begin("c", b"", 13.0)[1]
    assert len(memory) == 1
    await asyncio.sleep(0)
