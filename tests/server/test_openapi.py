"""The OpenAPI description."""

from gateway.auth.policy import AUTHENTICATED, parse_rule
from gateway.channels import Channel, Visible, parse_pattern
from gateway.server.openapi import describe


def seen(pattern: str, *, read: bool = True, publish: bool = False, fmt: str = "json") -> Visible:
    channel = Channel(
        pattern=pattern,
        segments=parse_pattern(pattern),
        topic="t",
        allow=parse_rule({"authenticated": True}, absent=AUTHENTICATED),
        format=fmt,
    )
    return Visible(channel, read=read, publish=publish)


def test_it_lists_what_the_caller_may_use_and_nothing_else():
    """A path that the caller could only be refused on is not there, and channels are told apart by right."""
    document = describe([seen("news"), seen("chat/{room}", publish=True, fmt="text")], prefix="/v1", version="1")
    assert sorted(document["paths"]) == ["/v1/channels", "/v1/publish", "/v1/subscribe"]
    subscribe = document["paths"]["/v1/subscribe"]["get"]
    assert "news, chat/{room}" in subscribe["parameters"][0]["description"]
    publish = document["paths"]["/v1/publish"]["post"]
    assert "news" not in publish["parameters"][0]["description"]
    assert sorted(publish["requestBody"]["content"]) == ["application/x-ndjson", "text/plain"]


def test_who_may_use_nothing_sees_the_list_of_channels_only():
    """An empty list is an answer too."""
    assert list(describe([], prefix="/api", version="1")["paths"]) == ["/api/channels"]


def test_every_reference_is_to_a_schema_that_is_there():
    """No dangling $ref."""
    document = describe([seen("news", publish=True)], prefix="/v1", version="1")
    text = str(document)
    for name in ("Answer", "Stored", "Problem", "Lost"):
        assert f"#/components/schemas/{name}" in text
        assert name in document["components"]["schemas"]
