"""Documents of backends: what is one, and what in it means something."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.server import apidocs
from gateway.server.apidocs import MAX_BYTES, MAX_DEPTH, DocumentInvalid, component, parse, rebuilt, references, resolved

MINIMAL = {"openapi": "3.1.0", "paths": {}}


def refused(document: object) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(DocumentInvalid) as caught:
        parse(data)
    return str(caught.value)


class TestReading:
    def test_json_and_yaml_are_the_same(self):
        document = {**MINIMAL, "info": {"title": "a", "x": [1, 2.5, None, True]}}
        assert parse(json.dumps(document).encode()) == document
        assert parse(b"openapi: 3.1.0\npaths: {}\ninfo: {title: a, x: [1, 2.5, null, true]}") == document

    def test_what_json_has_no_word_for_is_text(self):
        """OpenAPI's YAML is that of JSON: no dates, no words for yes; and statuses are keys like others."""
        given = b"openapi: 3.0.3\npaths: {/a: {get: {responses: {200: {x-a: [2024-01-01, no, on, 0x1F, 1_000, 1:30, ~, -4, 1e3]}}}}}"
        [answer] = parse(given)["paths"]["/a"]["get"]["responses"].items()
        assert answer == ("200", {"x-a": ["2024-01-01", "no", "on", "0x1F", "1_000", "1:30", None, -4, 1000.0]})

    def test_aliases_and_merges_are_filled_in(self):
        document = parse(b"openapi: 3.0.3\npaths: {}\nx-a: &a {b: 1}\nx-c: *a\nx-d: {<<: *a, e: 2}")
        assert document["x-c"] == {"b": 1}
        assert document["x-d"] == {"b": 1, "e": 2}
        assert document["x-c"] is not document["x-a"]

    @pytest.mark.parametrize(
        "given",
        [
            b"[" * 1_000_000,
            b"- " * 1_000_000 + b"a",
            b"a: &a [*a]",
            b"a: &a " + b"{b: " * (MAX_DEPTH + 1) + b"c" + b"}" * (MAX_DEPTH + 1),
        ],
        ids=["brackets", "dashes", "a circle", "braces"],
    )
    def test_what_is_too_deep_is_refused(self, given):
        assert refused(given).startswith("expected at most 200000 values, 64 levels deep")

    def test_aliases_count_each_time(self):
        lines = [b"a0: &a0 [x]"] + [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 7)]
        assert refused(b"\n".join(lines)).startswith("expected at most 200000 values")

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (b"#" * (MAX_BYTES + 1), f"expected a document of at most {MAX_BYTES} bytes"),
            (b"{", "expected a document in JSON or YAML"),
            (b"\xff", "expected a document in JSON or YAML"),
            (b"a: !!python/none x", "expected a document in JSON or YAML"),
            (b"a: !!timestamp 2024-02-31", "expected a document in JSON or YAML"),
            (b"a: !!timestamp 2024-02-01", "expected values as JSON has them"),
            (b"a: !!float .inf", "expected values as JSON has them"),
            (b"true: 1", "expected keys that are texts"),
            (b"1.5: 1", "expected keys that are texts"),
            (b"[]", "expected an OpenAPI document"),
            (b"swagger: '2.0'", "expected an OpenAPI document"),
            (b"openapi: 3.2.0\npaths: {}", "expected an OpenAPI document"),
            (b"openapi: 3.1.0", "expected an OpenAPI document with paths"),
            (b"openapi: 3.1.0\npaths: {}\ncomponents: []", "expected components by kind and name"),
            (b"openapi: 3.1.0\npaths: {}\ncomponents: {schemas: []}", "expected components by kind and name"),
            (b"openapi: 3.1.0\npaths: {a: {}}", "expected paths from / on, each with its operations, got a"),
            (b"openapi: 3.1.0\npaths: {/a: 1}", "expected paths from / on, each with its operations, got /a"),
            (b"openapi: 3.1.0\npaths: {/a: {get: null}}", "expected operations whose parameters have a name"),
            (b"openapi: 3.1.0\npaths: {/a: {parameters: {}}}", "expected operations whose parameters have a name"),
            (b"openapi: 3.1.0\npaths: {/a: {get: {parameters: [1]}}}", "expected operations whose parameters have a name"),
            (
                b"openapi: 3.1.0\npaths: {/a: {get: {parameters: [{name: 1}]}}}",
                "expected operations whose parameters have a name",
            ),
            (b"openapi: 3.1.0\npaths: {/a: {get: {operationId: 1}}}", "expected each operationId once"),
            (
                b"openapi: 3.1.0\npaths: {/a: {get: {operationId: x}, put: {operationId: x}}}",
                "expected each operationId once, as text, got x again",
            ),
        ],
    )
    def test_what_is_no_document(self, given, expected):
        assert refused(given).startswith(expected)

    def test_half_a_character_is_none(self, monkeypatch):
        """However the parser takes it."""
        monkeypatch.setattr(apidocs, "_loaded", lambda _: {**MINIMAL, "x-a": "\ud800"})
        assert refused(b"") == "expected characters, got halves of some"

    def test_extensions_beside_paths_are_none(self):
        assert parse(b"openapi: 3.1.0\npaths: {x-a: 1}")

    @given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!<> \nax1\"'", max_size=40).map(str.encode))
    def test_any_bytes_are_a_document_or_refused(self, data):
        with contextlib.suppress(DocumentInvalid):
            assert parse(data)["paths"] is not None


class TestReferences:
    @pytest.mark.parametrize(
        "reference",
        ["other.yaml#/components/schemas/A", "https://a.test/", "#/paths/~1a", "#A", "#", "#/components/schemas", 1, None],
    )
    def test_those_to_elsewhere_are_refused(self, reference):
        """What is published is one document."""
        found = refused({**MINIMAL, "components": {"schemas": {"A": {"items": {"$ref": reference}}}}})
        assert found.startswith("expected references to components of the document itself")

    @pytest.mark.parametrize("reference", ["schemas/B", "schemas/A/allOf/1", "schemas/A/type/x", "schemas/A/allOf/x"])
    def test_those_that_lead_nowhere_are_refused(self, reference):
        components = {"schemas": {"A": {"type": "object", "allOf": [{"$ref": f"#/components/{reference}"}]}}}
        assert refused({**MINIMAL, "components": components}) == (
            f"expected references to what is there, got #/components/{reference}"
        )

    @pytest.mark.parametrize("reference", ["schemas/A~1~0b", "schemas/A%7E1~0b", "schemas/C/allOf/0", "schemas/Any"])
    def test_those_that_lead_somewhere(self, reference):
        """Also into a component, to what a name with a slash means, and to a schema that is nothing but true."""
        schemas = {"A/~b": {}, "C": {"allOf": [{"type": "string"}]}, "Any": True}
        assert parse(
            json.dumps(
                {**MINIMAL, "components": {"schemas": schemas, "responses": {"x": {"$ref": f"#/components/{reference}"}}}}
            ).encode()
        )

    def test_what_only_looks_like_one_is_none(self):
        """A property of that name, an example, an extension."""
        schema = {
            "properties": {"$ref": {"type": "string"}, "example": {"type": "string"}},
            "example": {"$ref": "nowhere"},
            "examples": [{"$ref": "nowhere"}],
            "default": {"$ref": "nowhere"},
            "x-a": {"$ref": "nowhere"},
        }
        parse(
            json.dumps(
                {**MINIMAL, "components": {"schemas": {"A": schema}, "examples": {"B": {"value": {"$ref": "x"}}}}}
            ).encode()
        )

    def test_a_chain_is_followed_to_its_end(self):
        document = {
            "components": {"x": {"a": {"$ref": "#/components/x/b"}, "b": {"$ref": "#/components/x/c"}, "c": {"d": 1}, "e": 1}}
        }
        assert resolved(document, {"$ref": "#/components/x/a"}) == {"d": 1}
        assert resolved(document, {"$ref": "#/components/x/e"}) is None
        assert resolved(document, {"$ref": "#/components/x/f"}) is None

    def test_a_circle_leads_nowhere(self):
        assert resolved({"a": {"$ref": "#/a"}}, {"$ref": "#/a"}) is None
        document = {**MINIMAL, "paths": {"/a": {"$ref": "#/components/pathItems/a"}}}
        assert refused({**document, "components": {"pathItems": {"a": {"$ref": "#/components/pathItems/a"}}}}).startswith(
            "expected paths"
        )

    def test_components_that_are_named(self):
        node = {
            "schema": {"$ref": "#/components/schemas/A"},
            "items": [{"$ref": "#/components/schemas/A/properties/x"}],
            "discriminator": {"mapping": {"b": "#/components/schemas/B", "c": "C", "d": 1}},
            "example": {"$ref": "#/components/schemas/D"},
        }
        assert references(node) == [("schemas", "A"), ("schemas", "B"), ("schemas", "C")]
        assert component("#/components/schemas") is component(1) is component("x") is None


def test_a_change_reaches_each_object_and_no_map():
    """From the outside in."""
    seen = []

    def note(node):
        seen.append(sorted(node))
        return {key: item for key, item in node.items() if key != "out"}

    node = {"properties": {"out": {"out": 1}}, "items": [{"enum": [{"out": 1}]}], "out": {"in": 1}}
    assert rebuilt(node, note) == {"properties": {"out": {}}, "items": [{"enum": [{"out": 1}]}]}
    assert seen == [["items", "out", "properties"], ["out"], ["enum"]]
