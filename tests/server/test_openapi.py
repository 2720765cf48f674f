"""The OpenAPI description."""

from typing import Any

import msgspec

from gateway.auth.policy import AUTHENTICATED, parse_rule
from gateway.channels import Channel, Visible, parse_pattern
from gateway.lifecycle import ENDLESS, Lifecycle
from gateway.server.apiparts import Encoded, Ready
from gateway.server.catalog import Offer
from gateway.server.openapi import describe


def seen(
    pattern: str, *, read: bool = True, publish: bool = False, fmt: str = "json", lifecycle: Lifecycle = ENDLESS
) -> Visible:
    channel = Channel(
        pattern=pattern,
        segments=parse_pattern(pattern),
        topic="t",
        allow=parse_rule({"authenticated": True}, absent=AUTHENTICATED),
        format=fmt,
        lifecycle=lifecycle,
    )
    return Visible(channel, read=read, publish=publish)


def test_it_lists_what_the_caller_may_use_and_nothing_else():
    """A path that the caller could only be refused on is not there, and channels are told apart by right."""
    document = describe([seen("news"), seen("chat/{room}", publish=True, fmt="text")], prefix="/v1", version="1", now=0.0)
    assert sorted(document["paths"]) == ["/v1/channels", "/v1/cursors/{cursor}", "/v1/publish", "/v1/subscribe"]
    subscribe = document["paths"]["/v1/subscribe"]["get"]
    assert "news, chat/{room}" in subscribe["parameters"][0]["description"]
    publish = document["paths"]["/v1/publish"]["post"]
    assert "news" not in publish["parameters"][0]["description"]
    assert sorted(publish["requestBody"]["content"]) == ["application/x-ndjson", "text/plain"]


def test_who_may_use_nothing_sees_the_list_of_channels_only():
    """An empty list is an answer too."""
    assert list(describe([], prefix="/api", version="1", now=0.0)["paths"]) == ["/api/channels"]


def test_every_reference_is_to_a_schema_that_is_there():
    """No dangling $ref."""
    document = describe([seen("news", publish=True)], prefix="/v1", version="1", now=0.0)
    text = str(document)
    for name in ("Answer", "Stored", "Problem", "Lost"):
        assert f"#/components/schemas/{name}" in text
        assert name in document["components"]["schemas"]


def test_a_channel_that_is_gone_is_left_out():
    """From its sunset on."""
    ending = seen("news", lifecycle=Lifecycle(sunset=10.0))
    assert "/v1/subscribe" in describe([ending], prefix="/v1", version="1", now=9.0)["paths"]
    assert "/v1/subscribe" not in describe([ending], prefix="/v1", version="1", now=10.0)["paths"]


def operation(path: str, method: str = "get", **more: Any) -> Encoded:
    return Encoded(path, method, *(msgspec.Raw(msgspec.json.encode(more | flag)) for flag in ({}, {"deprecated": True})))


def described(*offers: Offer, now: float = 0.0, **ready: Ready) -> Any:
    document = describe([], prefix="/v1", version="1", now=now, offers=offers, ready=ready)
    return msgspec.json.decode(msgspec.json.encode(document))


class TestRoutes:
    def test_they_stand_beside_what_the_gateway_does_itself(self):
        """Path by path, method by method; of the same operation of two the first counts, and of a tag."""
        raw = msgspec.Raw(b"{}")
        a = Ready((operation("/x", id=1),), (("schemas", "A", raw), ("responses", "R", raw)), ({"name": "t", "x": 1},))
        b = Ready((operation("/x", id=2), operation("/x", "put", id=3)), (), ({"name": "t", "x": 2}, {"name": "u"}))
        document = described(Offer("a"), Offer("b"), Offer("silent"), a=a, b=b)
        assert document["paths"]["/x"] == {"get": {"id": 1}, "put": {"id": 3}}
        assert "/v1/channels" in document["paths"]
        assert document["components"]["schemas"].keys() > {"A", "Problem"}
        assert document["components"]["responses"] == {"R": {}}
        assert document["tags"] == [{"name": "t", "x": 1}, {"name": "u"}]

    def test_only_those_of_the_caller(self):
        """What is said of others is not in it, nor what it refers to."""
        ready = {name: Ready((operation(f"/{name}"),), (("schemas", name, msgspec.Raw(b"{}")),)) for name in "ab"}
        document = described(Offer("b"), **ready)
        assert "/a" not in document["paths"]
        assert "a" not in document["components"]["schemas"]
        assert "tags" not in document

    def test_they_follow_the_life_of_the_route(self):
        """Deprecated from that day on, and after the sunset not there."""
        offer = Offer("a", lifecycle=Lifecycle(deprecated=10.0, sunset=20.0))
        ready = Ready((operation("/x"),))
        assert described(offer, a=ready, now=9.0)["paths"]["/x"] == {"get": {}}
        assert described(offer, a=ready, now=10.0)["paths"]["/x"] == {"get": {"deprecated": True}}
        assert "/x" not in described(offer, a=ready, now=20.0)["paths"]
