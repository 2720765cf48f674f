"""GET /v1/cursors/{cursor}: where a cursor stands, told to those alone who may read its channels."""

from __future__ import annotations

import pytest
from livegateway import Live, live, token
from proxy.backend import answering, backend, ok
from server.throughroute import behind
from waiting import eventually

from gateway.fanout.cursor import decode, encode


async def explained(gateway: Live, cursor: str, *channels: str, given: str | None = None) -> object:
    query = "&".join(f"channel={name}" for name in channels)
    return await gateway.ask("GET", f"/v1/cursors/{cursor}?{query}", headers=gateway.bearer(given))


async def test_where_it_stands() -> None:
    """Each partition has its offset, the log's bounds, and how many records come next."""
    async with live() as gateway:
        before = (await gateway.poll("news")).cursor
        for _ in range(3):
            await gateway.publish("news", b"1")
        told = (await explained(gateway, before, "news")).json
        assert [(each["channel"], each["state"], each["keyed"]) for each in told["channels"]] == [("news", "good", False)]
        places = told["channels"][0]["partitions"]
        assert sum(place["lag"] for place in places) == 3
        assert all(place["offset"] == place["log_start"] == place["lost"] == 0 for place in places)
        assert told["dropped"] == 0
        after = (await gateway.poll("news", cursor=before)).cursor
        places = (await explained(gateway, after, "news")).json["channels"][0]["partitions"]
        assert all(place["lag"] == 0 and place["offset"] == place["end"] for place in places)


async def test_other_topics() -> None:
    """What the cursor lacks is absent; what it has beyond the channels is a number."""
    async with live() as gateway:
        both = (await gateway.poll("news", "notes")).cursor
        assert (await explained(gateway, both, "news")).json["dropped"] == 1
        one = (await gateway.poll("news")).cursor
        told = (await explained(gateway, one, "news", "notes")).json["channels"]
        assert {each["channel"]: each["state"] for each in told} == {"news": "good", "notes": "absent"}
        assert (await explained(gateway, one, "notes")).code == "cursor_mismatch"


async def test_lost_and_reset() -> None:
    """Records that retention took are counted, and a topic that was created anew is told from the old one."""
    async with live() as gateway:
        before = (await gateway.poll("news")).cursor
        for _ in range(8):
            await gateway.publish("news", b"1")
        ends = {
            place["partition"]: place["end"]
            for place in (await explained(gateway, before, "news")).json["channels"][0]["partitions"]
        }
        partition, end = max(ends.items(), key=lambda item: item[1])
        gateway.broker.delete_records("news", partition, end)
        told = (await explained(gateway, before, "news")).json["channels"][0]["partitions"]
        assert sum(place["lost"] for place in told) == end
        (entry,) = decode(before)
        offsets = entry.position.offsets
        foreign = encode({"news": entry.position._replace(id_hash=entry.position.id_hash ^ 1)})
        assert (await explained(gateway, foreign, "news")).json["channels"][0]["state"] == "reset"
        ahead = encode({"news": entry.position._replace(offsets={**offsets, 0: 10**9})})
        assert (await explained(gateway, ahead, "news")).json["channels"][0]["state"] == "reset"
        gone = encode({"news": entry.position._replace(offsets={**offsets, 99: 0})})
        assert (await explained(gateway, gone, "news")).json["channels"][0]["state"] == "reset"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/v1/cursors/abc?channel=news", "cursor_invalid"),
        ("/v1/cursors/a%20b?channel=news", "cursor_invalid"),
        ("/v1/cursors/abc", "parameter_invalid"),
        ("/v1/cursors/abc?channel=news&wait=0", "parameter_invalid"),
        ("/v1/cursors/abc?channel=secret", "forbidden"),
        ("/v1/cursors/abc?channel=no-such", "forbidden"),
    ],
)
async def test_refused(target: str, code: str) -> None:
    """Authorized like a subscription: what may not be read is forbidden, whatever the cursor says."""
    async with live() as gateway:
        assert (await gateway.ask("GET", target, headers=gateway.bearer())).code == code


async def test_who_asks() -> None:
    """Nobody is told without a token, and the description lists it for those who may read something."""
    async with live() as gateway:
        assert (await gateway.ask("GET", "/v1/cursors/abc?channel=news")).code == "token_missing"
        document = (await gateway.ask("GET", "/openapi.json", headers=gateway.bearer())).json
        assert document["paths"]["/v1/cursors/{cursor}"]["get"]["operationId"] == "cursor"


async def test_a_route_does_not_take_it() -> None:
    """All below /v1/cursors/ is the gateway's own, also with a route for everything."""
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway:
        cursor = (await gateway.poll("news")).cursor
        assert (await explained(gateway, cursor, "news", given=token("ann"))).status == 200
        assert (await gateway.ask("GET", "/v1/cursors")).body == b"ok"
        await eventually(lambda: here.heads)
