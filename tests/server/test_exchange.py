"""What is noted of a request when it begins."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.server.accesslog import REQUEST_ID
from gateway.server.address import UNKNOWN, TrustedProxies
from gateway.server.exchange import EXCHANGE, begin

TRUSTED = TrustedProxies(["192.0.2.0/24"])


def request(headers: dict[str, str]) -> web.Request:
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name, default=None: ("192.0.2.1", 4711) if name == "peername" else default
    return make_mocked_request("GET", "/", headers, transport=transport)


async def test_a_request_is_its_clients_though_a_proxy_sent_it() -> None:
    """Both are noted, where handlers and the log find them."""
    given = request({"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "from-outside.1"})
    exchange = begin(given, TRUSTED, 7.0, "proxy")
    assert (exchange.peer, exchange.address, exchange.request_id) == ("192.0.2.1", "203.0.113.9", "from-outside.1")
    assert (exchange.began, exchange.transport) == (7.0, "proxy")
    assert given[EXCHANGE] is exchange
    assert REQUEST_ID.get() == "from-outside.1"


@pytest.mark.parametrize("given", ["", "with space", "x" * 65, 'quo"te'])
async def test_an_id_that_is_none_gives_way_to_a_new_one(given: str) -> None:
    """It would go into headers and log lines as it is."""
    ids = {begin(request({"X-Request-Id": given}), TRUSTED, 0.0).request_id for _ in range(2)}
    assert len(ids) == 2
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in ids)


async def test_a_connection_that_is_lost_already_is_of_somebody_unknown() -> None:
    """The request is noted all the same."""
    lost = request({})
    lost.protocol.transport = None
    assert lost.transport is None
    assert begin(lost, TRUSTED, 0.0).peer == UNKNOWN
