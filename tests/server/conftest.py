"""A gateway with its broker for the tests of the HTTP server."""

from collections.abc import AsyncIterator

import pytest
from livegateway import Live, live


@pytest.fixture
async def gateway() -> AsyncIterator[Live]:
    """Run a gateway with the configuration of the tests."""
    async with live() as running:
        yield running
