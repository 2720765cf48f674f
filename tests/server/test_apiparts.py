"""What a backend says of itself, put the way callers of a route see it, beside what others say."""

import json
from typing import Any

import msgspec
import pytest

from gateway.auth.policy import AUTHENTICATED, parse_rule
from gateway.server.apidocs import parse
from gateway.server.apiparts import Part, fitted, joined, public_path, required_scopes
from gateway.server.catalog import Offer

DONE = {"responses": {"200": {"description": "Done"}}}


def document(paths: dict[str, Any], *, version: str = "3.1.0", **more: Any) -> dict[str, Any]:
    return parse(json.dumps({"openapi": version, "info": {"title": "x", "version": "1"}, "paths": paths, **more}).encode())


def part(given: dict[str, Any], offer: Offer | None = None, *, origin: object = "a", reaches=lambda *_: True) -> Part:
    return fitted(given, offer or Offer("shop", prefix="/"), reaches, origin)


def served(given: dict[str, Any], offer: Offer | None = None, **more: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each.method, each.path): each.document for each in part(given, offer, **more).operations}


class TestPlaces:
    @pytest.mark.parametrize(
        ("prefix", "backend", "path", "public"),
        [
            ("/shop", None, "/shop", "/shop"),
            ("/shop", None, "/shop/{id}", "/shop/{id}"),
            ("/shop", None, "/shopping", None),
            ("/shop", None, "/other", None),
            ("/shop", "/api", "/api/orders", "/shop/orders"),
            ("/shop", "/api", "/shop/orders", None),
            ("/shop", "/", "/orders", "/shop/orders"),
            ("/shop", "/", "/", "/shop/"),
            ("/", None, "/orders", "/orders"),
            ("/", "/api", "/api", "/"),
            ("/", "/api", "/api/orders", "/orders"),
        ],
    )
    def test_the_prefix_is_swapped_for_the_matched_one(self, prefix, backend, path, public):
        assert public_path(Offer("a", prefix=prefix, backend=backend), path) == (None if public is None else (public, {}))

    @pytest.mark.parametrize(
        ("asked", "path", "renamed"),
        [
            (None, "/orders/{id}", {"id": "id"}),
            (None, "/orders/{order}", {"order": "id"}),
            (None, "/orders/export", None),
            (None, "/orders", None),
            ("/v2/x-{id}", "/v2/x-{no}", {"no": "id"}),
            ("/v2/x-{id}", "/v2/{no}", None),
            ("/v2/all", "/v2/all", {}),
        ],
    )
    def test_a_path_is_that_of_one_operation(self, asked, path, renamed):
        """Whatever its parameters are called."""
        found = public_path(Offer("a", path="/orders/{id}", backend=asked), path)
        assert found == (None if renamed is None else ("/orders/{id}", renamed))

    @pytest.mark.parametrize(
        ("servers", "path"),
        [
            ([{"url": "https://shop.internal/api/"}], "/orders"),
            ([{"url": "/api"}, {"url": "/"}], "/orders"),
            ([{"url": "https://{host}/api"}], "/api/orders"),
            ([], "/api/orders"),
            ([{}], "/api/orders"),
            (None, "/api/orders"),
        ],
    )
    def test_paths_begin_where_the_first_server_does(self, servers, path):
        given = document({path: {"get": DONE}}, servers=servers)
        assert list(served(given, Offer("a", prefix="/shop", backend="/api"))) == [("get", "/shop/orders")]

    def test_only_what_comes_to_the_route_is_its_own(self):
        """Another one may have some of it; what stands for parameters is no word that a path would have."""
        asked = []

        def reaches(method, path):
            asked.append((method, path))
            return path != "/admin"

        given = document({"/admin": {"get": DONE}, "/{a}/{b}": {"put": DONE, "head": DONE}, "x-a": {}})
        assert list(served(given, reaches=reaches)) == [("put", "/{a}/{b}"), ("head", "/{a}/{b}")]
        assert asked == [("GET", "/admin"), ("PUT", "/~/~"), ("HEAD", "/~/~")]

    def test_only_the_methods_of_the_route(self):
        """HEAD comes with GET."""
        given = document({"/": dict.fromkeys(("get", "head", "put", "trace"), DONE)})
        assert [method for method, _ in served(given, Offer("a", prefix="/", methods=("GET",)))] == ["get", "head"]
        assert [method for method, _ in served(given, Offer("a", prefix="/", methods=("PUT",)))] == ["put"]

    def test_of_two_paths_that_become_one_the_first_counts(self):
        given = document({"/{a}": {"get": {**DONE, "summary": "first"}}, "/{b}": {"get": DONE}})
        assert served(given, Offer("x", path="/{id}"))["get", "/{id}"]["summary"] == "first"

    def test_a_path_that_stands_elsewhere(self):
        given = document({"/a": {"$ref": "#/components/pathItems/A"}}, components={"pathItems": {"A": {"get": DONE}}})
        assert list(served(given)) == [("get", "/a")]


class TestParameters:
    def test_those_of_the_path_come_first_and_are_replaced(self):
        """As OpenAPI has it, by name and place."""
        item = {
            "parameters": [{"name": "a", "in": "query", "description": "path"}, {"name": "b", "in": "query"}],
            "get": {**DONE, "parameters": [{"name": "a", "in": "query"}, {"name": "a", "in": "header"}]},
        }
        assert served(document({"/": item}))["get", "/"]["parameters"] == [
            {"name": "a", "in": "query"}, {"name": "b", "in": "query"}, {"name": "a", "in": "header"},
        ]  # fmt: skip

    def test_those_in_the_path_are_called_as_in_the_route(self):
        """Also one that stands elsewhere; one that is there under its name stays a reference."""
        components = {"parameters": {"No": {"name": "no", "in": "path", "required": True, "schema": {"type": "integer"}}}}
        given = document(
            {"/v2/{no}": {"get": {**DONE, "parameters": [{"$ref": "#/components/parameters/No"}]}}}, components=components
        )
        renamed = served(given, Offer("a", path="/orders/{id}", backend="/v2/{id}"))["get", "/orders/{id}"]
        assert renamed["parameters"] == [{**components["parameters"]["No"], "name": "id"}]
        same = served(given, Offer("a", path="/orders/{no}", backend="/v2/{no}"))["get", "/orders/{no}"]
        assert same["parameters"] == [{"$ref": "#/components/parameters/No"}]

    def test_those_that_only_one_side_has(self):
        """What the route's path has is told; what only the backend's has is not the caller's to give."""
        given = document({"/v2/{no}": {"get": {**DONE, "parameters": [{"name": "other", "in": "path"}]}}})
        assert served(given, Offer("a", path="/{id}", backend="/v2/{id}"))["get", "/{id}"]["parameters"] == [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
        assert "parameters" not in served(document({"/": {"get": DONE}}))["get", "/"]


class TestWhatTheRouteSays:
    @pytest.mark.parametrize(
        ("rule", "scopes"),
        [
            (None, [[]]),
            ({"scope": "a"}, [["a"]]),
            ({"scope": "a:{id}"}, [[]]),
            ({"scope": "a", "claim": "x", "equals": "y"}, [["a"]]),
            ({"all": [{"scope": "b"}, {"scope": "a"}]}, [["a", "b"]]),
            ({"any": [{"scope": "a"}, {"scope": "b"}, {"scope": "a"}]}, [["a"], ["b"]]),
            ({"all": [{"any": [{"scope": "a"}, {"scope": "b"}]}, {"scope": "c"}]}, [["a", "c"], ["b", "c"]]),
            ({"any": [{"scope": f"s{n}"} for n in range(17)]}, [[]]),
        ],
    )
    def test_scopes_of_the_rule_are_asked_for(self, rule, scopes):
        """What else it asks for cannot be said, and what would be too long is not."""
        assert required_scopes(parse_rule(rule, absent=AUTHENTICATED)) == scopes

    def test_who_may_and_where_are_the_routes_to_say(self):
        """The backend's own servers and security are inside."""
        given = document(
            {"/": {"servers": [], "get": {**DONE, "security": [{"own": []}], "servers": [{"url": "http://inside"}]}}}
        )
        operation = served(given, Offer("a", prefix="/", hosts=("a.test", "b.test")))["get", "/"]
        assert operation["security"] == [{"bearer": []}]
        assert operation["servers"] == [{"url": "//a.test"}, {"url": "//b.test"}]
        public = served(given, Offer("a", prefix="/", hosts=("*.test",), public=True))["get", "/"]
        assert public["security"] == []
        assert "servers" not in public

    def test_tags(self):
        """Those of the document with their description; else the route's name, with its."""
        paths = {"/": {"get": {**DONE, "tags": ["x", "y", 1]}, "put": DONE, "post": {**DONE, "tags": None}}}
        tags = [{"name": "x", "description": "X."}, {"name": "unused"}, 1]
        found = part(document(paths, tags=tags), Offer("shop", prefix="/", description="Shop."))
        assert [each.document["tags"] for each in found.operations] == [["x", "y"], ["shop"], ["shop"]]
        assert list(found.tags.values()) == [
            {"name": "x", "description": "X."}, {"name": "y"}, {"name": "shop", "description": "Shop."},
        ]  # fmt: skip
        assert part(document({"/": {"get": DONE}})).tags == {"shop": {"name": "shop"}}

    def test_links_by_place_and_the_security_of_callbacks_are_left_out(self):
        """Neither would lead anywhere here."""
        links = {"by": {"operationId": "x"}, "at": {"operationRef": "#/paths/~1"}, "odd": {"$ref": "#/components/links/L"}}
        callback = {"{$url}": {"post": {**DONE, "security": [{"own": []}]}}}
        operation = {"responses": {"200": {"description": "", "links": links}}, "callbacks": {"done": callback}}
        found = served(document({"/": {"get": operation}}, components={"links": {"L": {}}}))["get", "/"]
        assert list(found["responses"]["200"]["links"]) == ["by", "odd"]
        assert found["callbacks"] == {"done": {"{$url}": {"post": DONE}}}


class TestComponents:
    def test_only_those_that_are_referred_to_come_along(self):
        """By way of others too, and of discriminators; circles end."""
        schemas = {
            "A": {"properties": {"b": {"$ref": "#/components/schemas/B"}}},
            "B": {
                "items": {"$ref": "#/components/schemas/A"},
                "discriminator": {"propertyName": "x", "mapping": {"c": "C", "n": "None"}},
            },
            "C": {},
            "D": {},
        }
        responses = {"200": {"description": "", "content": {"a/b": {"schema": {"$ref": "#/components/schemas/A"}}}}}
        found = part(document({"/": {"get": {"responses": responses}}}, components={"schemas": schemas}))
        assert list(found.components) == [("schemas", "A"), ("schemas", "B"), ("schemas", "C")]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
            ({"type": "string", "nullable": False}, {"type": "string"}),
            ({"nullable": True}, {}),
            ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
            ({"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
            ({"exclusiveMaximum": True}, {}),
            ({"properties": {"nullable": {"type": "boolean"}}}, {"properties": {"nullable": {"type": "boolean"}}}),
            ({"items": {"$ref": "#/components/schemas/A", "nullable": True}}, {"items": {"$ref": "#/components/schemas/A"}}),
        ],
    )
    def test_the_schemas_of_3_0_are_put_as_in_3_1(self, old, new):
        body = {"requestBody": {"content": {"a/b": {"schema": {"$ref": "#/components/schemas/A"}}}}, **DONE}
        for version, expected in (("3.0.3", new), ("3.1.0", old)):
            given = document({"/": {"post": body}}, version=version, components={"schemas": {"A": old}})
            assert part(given).components == {("schemas", "A"): expected}


def using(schema: str, *, operation: str | None = None, **schemas: Any) -> dict[str, Any]:
    """Give a document with one operation that answers with a schema."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    get: dict[str, Any] = {"responses": {"200": {"description": "", "content": content}}}
    if operation is not None:
        get["operationId"] = operation
    return document({"/x/{id}": {"get": get}}, components={"schemas": schemas})


def joint(*, own: tuple[str, ...] = (), ids: tuple[str, ...] = (), **parts: Part) -> dict[str, Any]:
    """Join the parts; give all as plain values."""
    ready = joined(parts, own={"schemas": own}, ids=ids)
    return {
        name: {
            "operations": {each.path: msgspec.json.decode(each.plain) for each in each_ready.operations},
            "deprecated": [msgspec.json.decode(each.deprecated).get("deprecated") for each in each_ready.operations],
            "schemas": {key: msgspec.json.decode(raw) for _, key, raw in each_ready.components},
        }
        for name, each_ready in ready.items()
    }


class TestJoining:
    def test_names_that_nobody_else_has_stay(self):
        """And each operation is there once more, as one that is deprecated."""
        found = joint(a=part(using("A", operation="get", A={"type": "string"})))["a"]
        assert found["schemas"] == {"A": {"type": "string"}}
        assert found["operations"]["/x/{id}"]["operationId"] == "get"
        assert "deprecated" not in found["operations"]["/x/{id}"]
        assert found["deprecated"] == [True]

    def test_of_names_that_collide_each_gets_its_routes_name(self):
        """Wherever it is referred to, also into it; and so of operations."""
        a = using("A", operation="get", A={"$defs": {"x": {}}, "items": {"$ref": "#/components/schemas/A/$defs/x"}})
        b = using("A", operation="get", A={"type": "string"}, B={"$ref": "#/components/schemas/A"})
        found = joint(a=part(a), b=part(b, origin="b"))
        assert found["a"]["schemas"] == {"a_A": {"$defs": {"x": {}}, "items": {"$ref": "#/components/schemas/a_A/$defs/x"}}}
        assert found["b"]["schemas"] == {"b_A": {"type": "string"}}
        for route in "ab":
            operation = found[route]["operations"]["/x/{id}"]
            assert operation["operationId"] == f"{route}_get"
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{route}_A"}

    def test_the_gateways_own_names_come_first(self):
        found = joint(a=part(using("Problem", operation="publish", Problem={})), own=("Problem",), ids=("publish",))["a"]
        assert list(found["schemas"]) == ["a_Problem"]
        assert found["operations"]["/x/{id}"]["operationId"] == "a_publish"

    def test_a_name_made_is_nobody_elses(self):
        a, b = using("A", A={"items": {"$ref": "#/components/schemas/b_A"}}, b_A={}), using("A", A={})
        found = joint(a=part(a), b=part(b, origin="b"))
        assert (list(found["a"]["schemas"]), list(found["b"]["schemas"])) == (["a_A", "b_A"], ["b_A_"])

    def test_two_routes_to_one_document_share_its_components(self):
        """They mean the same."""
        one = using("A", operation="get", A={})
        found = joint(a=part(one), b=part(one, Offer("b", prefix="/b", backend="/")))
        assert list(found["a"]["schemas"]) == list(found["b"]["schemas"]) == ["A"]
        assert found["b"]["operations"]["/b/x/{id}"]["operationId"] == "b_get"

    def test_links_follow_the_names_of_operations(self):
        linked = {"responses": {"200": {"description": "", "links": {"x": {"operationId": "get"}}}}, "operationId": "get"}
        found = joint(a=part(document({"/": {"get": linked}})), ids=("get",))["a"]["operations"]["/"]
        assert found["responses"]["200"]["links"] == {"x": {"operationId": "a_get"}}

    def test_discriminators_go_on_to_tell_schemas_apart_by_the_names_they_had(self):
        """Those that are mapped by name or by reference, and those that are mapped by nothing but their name."""
        ref = "#/components/schemas/"
        pet = {
            "oneOf": [{"$ref": f"{ref}{name}"} for name in ("Cat", "Dog", "Emu", "Own")] + [True],
            "anyOf": None,
            "discriminator": {"propertyName": "kind", "mapping": {"c": "Cat", "d": f"{ref}Dog", "odd": 1}},
        }
        plain = {"oneOf": [{"$ref": f"{ref}Own"}], "discriminator": {"propertyName": "kind"}}
        document_ = using("Pet", Pet={**pet, "items": plain}, Cat={}, Dog={}, Emu={}, Own={})
        found = joint(a=part(document_), own=("Cat", "Dog", "Emu"))["a"]["schemas"]["Pet"]
        assert found["discriminator"]["mapping"] == {
            "c": "a_Cat",
            "d": f"{ref}a_Dog",
            "odd": 1,
            "Emu": f"{ref}a_Emu",
            "Cat": f"{ref}a_Cat",
        }
        assert found["items"] == plain

    def test_paths_that_differ_only_in_the_names_of_parameters_are_one(self):
        """OpenAPI has them once; the first one's names count."""
        components = {"parameters": {"No": {"name": "no", "in": "path", "required": True}, "Q": {"name": "no", "in": "query"}}}
        references = [{"$ref": f"#/components/parameters/{name}"} for name in ("No", "Q")]
        other = document({"/x/{no}": {"put": {**DONE, "parameters": references}}}, components=components)
        found = joint(a=part(using("A", A={})), b=part(other, origin="b"))["b"]["operations"]
        assert list(found) == ["/x/{id}"]
        assert found["/x/{id}"]["parameters"] == [{"name": "id", "in": "path", "required": True}, references[1]]
