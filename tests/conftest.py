"""What every test gets: a check for leaked tasks and sockets, Hypothesis profiles, a TCP proxy."""

import asyncio
import contextlib
import gc
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tcpproxy import TcpProxy
from waiting import eventually

# No deadlines: a busy machine is no bug. In CI the same examples each time, so that a red run can be had again.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# The brokers, and the rule that CI must have Apache Kafka: one node of it serves all folders of tests.
pytest_plugins = ("integration.tier",)

FILES = Path("/proc/self/fd")


def pytest_collection_finish() -> None:
    """Take all that importing made out of the collector's sight: the collection after each test is then cheap."""
    gc.collect()
    gc.freeze()


def _sockets() -> set[str]:
    found = set()
    for file in FILES.iterdir() if FILES.is_dir() else ():
        with contextlib.suppress(OSError):
            target = str(file.readlink())
            if target.startswith("socket:"):
                found.add(target)
    return found


@pytest.fixture
async def _nothing_left() -> AsyncIterator[None]:
    tasks, sockets = asyncio.all_tasks(), _sockets()
    yield

    def left() -> list[object]:
        here = asyncio.current_task()
        running: list[object] = [
            task for task in asyncio.all_tasks() if task not in tasks and task is not here and not task.done()
        ]
        found = _sockets()
        # By their number: uvloop makes its own two anew each time it begins to run.
        return [*running, *(found - sockets)] if len(found) > len(sockets) else running

    # What nobody holds any more says so as it goes (ResourceWarning, "exception was never retrieved").
    gc.collect()
    # A transport's last callbacks, and a thread that closes a connection, may be a moment late.
    try:
        await eventually(lambda: not left(), timeout=2.0)
    except AssertionError:
        pytest.fail(f"left behind by the test: {left()}", pytrace=False)


@pytest.fixture(autouse=True)
def _leak_check(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves tasks or sockets behind; autouse: set up first, hence torn down last."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_nothing_left")


@pytest.fixture
async def tcp_proxy() -> AsyncIterator[Callable[..., Awaitable[TcpProxy]]]:
    """Give a function that starts TCP proxies for a host and port; its keyword `listen_port` is TcpProxy's."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(host: str, port: int, *, listen_port: int = 0) -> TcpProxy:
            return await stack.enter_async_context(TcpProxy(host, port, listen_port=listen_port))

        yield start
