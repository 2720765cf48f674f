"""What the composition root makes of routes, as callers are told of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from livegateway import live, token

from gateway.server.apidocs import parse

ORDER = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Order"}}}
CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}}
DONE = {"responses": {"200": {"description": "Done", "content": CONTENT}}}


def backend(*paths: str, **more: Any) -> str:
    """Return the document of a backend that answers with orders."""
    items = {path: {"get": DONE, "put": DONE} for path in paths}
    return json.dumps({"openapi": "3.1.0", "paths": items, "components": {"schemas": {"Order": ORDER | more}}})


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """Give routes over each other, of which two have documents."""
    (tmp_path / "shop.json").write_text(backend("/api/orders", "/api/orders/{no}", "/api/admin", "/api/v1/channels", "/other"))
    (tmp_path / "docs.yaml").write_text(backend("/docs/{page}", title="page"))
    return {
        "upstreams": {"shop": {"targets": ["127.0.0.1:1"]}},
        "routes": {
            "shop": {
                "prefix": "/",
                "upstream": "shop",
                "hosts": ["*.api.test"],
                "headers": {"X-Beta": "*"},
                "query": {"v": "2"},
                "methods": ["GET"],
                "rewrite": {"prefix": "/api"},
                "allow": {"scope": "orders:read", "issuers": ["test"]},
                "openapi": str(tmp_path / "shop.json"),
                "deprecated": "2020-01-01",
                "version": "v1",
                "description": "Orders.",
            },
            "admin": {"path": "/admin", "upstream": "shop", "allow": {"scope": "admin"}, "hosts": ["*.api.test"]},
            "docs": {"prefix": "/docs", "upstream": "shop", "public": True, "openapi": str(tmp_path / "docs.yaml")},
        },
    }


async def test_each_caller_is_told_of_its_own_routes(sections):
    """With all that one has to know to use them; who may not use a route does not learn that it is there."""
    async with live(**sections) as gateway:
        listed = {}
        for who, scope in (("reader", "orders:read"), ("admin", "admin"), ("nobody", "")):
            reply = await gateway.ask("GET", "/v1/channels", headers=gateway.bearer(token(who, scope=scope)))
            listed[who] = {line["name"]: line for line in reply.json["routes"]}
    assert {who: list(lines) for who, lines in listed.items()} == {
        "reader": ["shop", "docs"], "admin": ["admin", "docs"], "nobody": ["docs"],
    }  # fmt: skip
    line = listed["reader"]["shop"]
    assert line.pop("lifecycle")["state"] == "deprecated"
    assert line == {
        "name": "shop", "hosts": ["*.api.test"], "prefix": "/", "methods": ["GET"], "public": False, "version": "v1",
        "description": "Orders.",
    }  # fmt: skip


async def test_documents_of_backends_are_part_of_the_description(sections):
    """Under public paths, and without what another route or the gateway itself answers; all references lead somewhere."""
    async with live(**sections) as gateway:
        reply = await gateway.ask("GET", "/openapi.json", headers=gateway.bearer(token(scope="orders:read")))
        document = parse(reply.body)
        of_others = parse((await gateway.ask("GET", "/openapi.json", headers=gateway.bearer())).body)
    own = {path for path in document["paths"] if path.startswith("/v1/")}
    assert set(document["paths"]) - own == {"/orders", "/orders/{no}", "/docs/{page}"}
    assert "put" not in document["paths"]["/orders"]
    assert document["paths"]["/orders"]["get"]["deprecated"] is True
    assert document["paths"]["/orders"]["get"]["security"] == [{"bearer": ["orders:read"]}]
    assert document["paths"]["/docs/{page}"]["put"]["security"] == []
    assert document["paths"]["/v1/channels"]["get"]["operationId"] == "channels"
    assert {"shop_Order", "docs_Order", "Problem"} <= set(document["components"]["schemas"])
    assert document["tags"] == [{"name": "shop", "description": "Orders."}, {"name": "docs"}]
    assert "/orders" not in of_others["paths"]
    assert "shop_Order" not in of_others["components"]["schemas"]
    assert "/docs/{page}" in of_others["paths"]


async def test_a_document_that_changes_is_read_again(sections, tmp_path):
    """A broken one changes nothing."""
    async with live(**sections) as gateway:
        for text, paths in ((backend("/docs/new"), ["/docs/new"]), ("{", ["/docs/new"])):
            (tmp_path / "docs.yaml").write_text(text)
            os.utime(tmp_path / "docs.yaml", (len(text), len(text)))
            await gateway.gateway.proxied.documents.look()
            found = (await gateway.ask("GET", "/openapi.json", headers=gateway.bearer())).json
            assert [path for path in found["paths"] if path.startswith("/docs")] == paths
