"""The part of a backend's OpenAPI document that a route makes reachable, put the way its callers see it (sans-I/O).

Theory of operation. A document speaks of the backend's paths, a route of the gateway's: `fitted` swaps one for the other. It
takes only the operations that a request over the route would reach, with only the components that these refer to, directly or
by way of others. What OpenAPI 3.0 says is put as 3.1 has it. `joined` makes all parts fit into one document: of names that two
documents give to different things each gets the route's name before it. It also encodes all of it, once, so that a request
for the document costs no more than copying bytes.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gateway.auth.policy import All, AnyOf, Rule, Scope
from gateway.auth.templates import Template, Text
from gateway.server.apidocs import Json, component, operations, rebuilt, references, resolved
from gateway.server.catalog import Offer

Component = tuple[str, str]
Reaches = Callable[[str, str], bool]

_PARAMETER: Final = re.compile(r"\{([^{}]*)\}")
_MOST_ALTERNATIVES: Final = 16


class Operation(NamedTuple):
    """One operation under its public path; `method` in small letters."""

    path: str
    method: str
    document: Json


@dataclass(frozen=True, slots=True)
class Part:
    """What a document says of one route. `origin` tells parts of one document from those of others."""

    origin: object
    operations: tuple[Operation, ...]
    components: Mapping[Component, Any]
    tags: Mapping[str, Json]


class Encoded(NamedTuple):
    """An operation ready to be sent, as it is and as one that is deprecated."""

    path: str
    method: str
    plain: msgspec.Raw
    deprecated: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Ready:
    """A part that can stand beside all the others."""

    operations: tuple[Encoded, ...] = ()
    components: tuple[tuple[str, str, msgspec.Raw], ...] = ()
    tags: tuple[Json, ...] = ()


# --- from a document to a part ---


def fitted(document: Json, offer: Offer, reaches: Reaches, origin: object) -> Part:
    """Return what a document that was checked says of a route. `reaches` tells whether a method and a path come to it."""
    modern = document["openapi"].startswith("3.1")
    taken: dict[tuple[str, str], Json] = {}
    for path, given in document["paths"].items():
        item = resolved(document, given) if path[:1] == "/" else None
        place = None if item is None else public_path(offer, _base(document) + path)
        if item is None or place is None:
            continue
        public, renamed = place
        sample = _PARAMETER.sub("~", public)
        for method, operation in operations(item).items():
            if (public, method) not in taken and _served(offer, method) and reaches(method.upper(), sample):
                parameters = _parameters(document, item, operation, public, renamed)
                taken[public, method] = _described(offer, operation, parameters, modern=modern)
    served = tuple(Operation(path, method, each) for (path, method), each in taken.items())
    return Part(origin, served, _needed(document, taken.values(), modern=modern), _tags(document, offer, taken.values()))


def _tags(document: Json, offer: Offer, served: Iterable[Json]) -> dict[str, Json]:
    """Return the tags of operations as the document describes them; for those without any, the route is their tag."""
    given = [tag for tag in _listed(document.get("tags")) if isinstance(tag, dict) and isinstance(tag.get("name"), str)]
    described = {offer.name: _tag(offer), **{tag["name"]: tag for tag in given}}
    names = dict.fromkeys(tag for each in served for tag in each["tags"])
    return {name: described.get(name, {"name": name}) for name in names}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tag(offer: Offer) -> Json:
    return {"name": offer.name, **({"description": offer.description} if offer.description else {})}


def _base(document: Json) -> str:
    """Return the path that comes before all others: that of the document's first server."""
    servers = [server for server in _listed(document.get("servers")) if isinstance(server, dict)]
    url = servers[0].get("url") if servers else None
    return urlsplit(url).path.rstrip("/") if isinstance(url, str) and "{" not in url else ""


def public_path(offer: Offer, path: str) -> tuple[str, Mapping[str, str]] | None:
    """Return under which path callers reach a backend's, and what its parameters are called there; None where they do not."""
    if offer.path is None:
        ours, theirs = (("" if each == "/" else each) for each in (offer.prefix or "/", offer.backend or offer.prefix or "/"))
        rest = path.removeprefix(theirs)
        fits = path.startswith(theirs) and rest[:1] in ("", "/")
        return (ours + rest or "/", {}) if fits else None
    asked = offer.backend or offer.path
    if _shape(asked) != _shape(path):
        return None
    return offer.path, dict(zip(_PARAMETER.findall(path), _PARAMETER.findall(asked), strict=True))


def _shape(path: str) -> str:
    return _PARAMETER.sub("{}", path)


def _served(offer: Offer, method: str) -> bool:
    methods = offer.methods
    return methods is None or method.upper() in methods or (method == "head" and "GET" in methods)


def _parameters(document: Json, item: Json, operation: Json, public: str, renamed: Mapping[str, str]) -> list[Json]:
    """Return an operation's parameters with those of its path, each that stands in the path under its name there."""
    found: dict[tuple[str, str], Json] = {}
    wanted = _PARAMETER.findall(public)
    for given in (*item.get("parameters", ()), *operation.get("parameters", ())):
        meant = resolved(document, given) or {}
        if meant["in"] != "path":
            found[meant["in"], meant["name"]] = given
        elif (name := renamed.get(meant["name"], meant["name"])) in wanted:
            found["path", name] = given if name == meant["name"] else {**meant, "name": name}
    for name in wanted:
        found.setdefault(("path", name), {"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    return list(found.values())


def _described(offer: Offer, operation: Json, parameters: list[Json], *, modern: bool) -> Json:
    """Return an operation as the gateway has it: who may use it and where it is are the route's to say."""
    whole: Json = _converted({**operation, "parameters": parameters} if parameters else operation, modern=modern)
    whole["tags"] = [tag for tag in _listed(whole.get("tags")) if isinstance(tag, str)] or [offer.name]
    whole["security"] = [] if offer.public else [{"bearer": scopes} for scopes in required_scopes(offer.allow)]
    hosts = offer.hosts or ()
    if hosts and not any(host.startswith("*") for host in hosts):
        whole["servers"] = [{"url": f"//{host}"} for host in hosts]
    return whole


def required_scopes(rule: Rule) -> list[list[str]]:
    """Return the sets of scopes of which a rule takes one; what else it asks for OpenAPI cannot say."""
    found = [sorted(scopes) for scopes in dict.fromkeys(_alternatives(rule))]
    return found if len(found) <= _MOST_ALTERNATIVES else [[]]


def _alternatives(rule: Rule) -> list[frozenset[str]]:
    none: list[frozenset[str]] = [frozenset()]
    found = none
    match rule:
        case All(rules):
            for each in rules:
                found = [one | other for one, other in itertools.product(found, _alternatives(each))][: _MOST_ALTERNATIVES + 1]
        case AnyOf(rules):
            found = [each for one in rules for each in _alternatives(one)]
        case Scope(Template(parts)) if all(isinstance(part, Text) for part in parts):
            found = [frozenset(("".join(part.text for part in parts if isinstance(part, Text)),))]
    return found


def _converted(node: Any, *, modern: bool) -> Any:
    """Return what is to go into the document of OpenAPI 3.1, without what only the backend has: servers and its security."""

    def change(each: Json) -> Json:
        each = {key: item for key, item in each.items() if key not in ("security", "servers")}
        links = each.get("links")
        if isinstance(links, dict):  # those that name an operation by its place would lead nowhere
            leading = {name: link for name, link in links.items() if not isinstance(link, dict) or "operationRef" not in link}
            each["links"] = leading
        return each if modern else _modernized(each)

    return rebuilt(node, change)


def _modernized(node: Json) -> Json:
    """Put an object of OpenAPI 3.0 as 3.1 has it (OpenAPI 3.1, appendix; JSON Schema 2020-12, section 6.2)."""
    if "$ref" in node:
        return {"$ref": node["$ref"]}  # what stands beside it was without effect
    if node.pop("nullable", False) is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool) and node.pop(exclusive) and bound in node:
            node[exclusive] = node.pop(bound)
    return node


def _needed(document: Json, wanted: Iterable[Json], *, modern: bool) -> dict[Component, Any]:
    """Return the components that operations refer to, and those that these refer to."""
    found: dict[Component, Any] = {}
    open_ = list(wanted)
    while open_:
        for kind, name in references(open_.pop()):
            meant = document.get("components", {}).get(kind, {}).get(name)
            if (kind, name) not in found and meant is not None:
                found[kind, name] = _converted(meant, modern=modern)
                open_.append(found[kind, name])
    return found


# --- from parts to what can be put together ---


def joined(parts: Mapping[str, Part], *, own: Mapping[str, Iterable[str]], ids: Iterable[str]) -> dict[str, Ready]:
    """Return what can stand beside each other, by the names of the routes.

    `own` are the names of the gateway's components by kind, `ids` those of its operations.
    """
    users: dict[Component, set[object]] = {(kind, name): {None} for kind, names in own.items() for name in names}
    for part in parts.values():
        for each in part.components:
            users.setdefault(each, set()).add(part.origin)
    clashes = frozenset(each for each, origins in users.items() if len(origins) > 1)
    counted = Counter([*ids, *(name for part in parts.values() for name in _ids(part))])
    spellings: dict[str, str] = {}
    taken = {name for _, name in users} | set(counted)
    ready = {}
    for route, part in parts.items():
        names = {each: _fresh(route, each[1], taken) for each in part.components if each in clashes}
        renamed = {name: _fresh(route, name, taken) for name in _ids(part) if counted[name] > 1}
        ready[route] = _ready(part, names, renamed, spellings)
    return ready


def _ids(part: Part) -> Iterator[str]:
    for operation in part.operations:
        name = operation.document.get("operationId")
        if isinstance(name, str):
            yield name


def _fresh(route: str, name: str, taken: set[str]) -> str:
    """Return the name with the route's before it, or the like of it that nobody has."""
    fresh = f"{route}_{name}"
    while fresh in taken:
        fresh += "_"
    taken.add(fresh)
    return fresh


def _ready(part: Part, names: Mapping[Component, str], ids: Mapping[str, str], spellings: dict[str, str]) -> Ready:
    change = _renaming(names, ids)
    encoded = []
    for path, method, document in part.operations:
        spelled = spellings.setdefault(_shape(path), path)
        whole = rebuilt(document if spelled == path else _respelled(document, part, path, spelled), change)
        deprecated = msgspec.json.encode({**whole, "deprecated": True})
        encoded.append(Encoded(spelled, method, msgspec.Raw(msgspec.json.encode(whole)), msgspec.Raw(deprecated)))
    components = tuple(
        (kind, names.get((kind, name), name), msgspec.Raw(msgspec.json.encode(rebuilt(each, change))))
        for (kind, name), each in part.components.items()
    )
    return Ready(tuple(encoded), components, tuple(part.tags.values()))


def _respelled(document: Json, part: Part, path: str, spelled: str) -> Json:
    """Call the parameters of a path what another route calls them: two paths that differ only in that are one."""
    renamed = dict(zip(_PARAMETER.findall(path), _PARAMETER.findall(spelled), strict=True))
    components = {"components": _nested(part.components)}
    found = []
    for given in document["parameters"]:
        meant = resolved(components, given) or given
        found.append({**meant, "name": renamed[meant["name"]]} if meant["in"] == "path" else given)
    return {**document, "parameters": found}


def _nested(components: Mapping[Component, Any]) -> Json:
    nested: Json = {}
    for (kind, name), each in components.items():
        nested.setdefault(kind, {})[name] = each
    return nested


def _renaming(names: Mapping[Component, str], ids: Mapping[str, str]) -> Callable[[Json], Json]:
    """Return the change that gives components and operations their new names wherever they are named."""

    def reference(text: Any) -> Any:
        meant = component(text)
        if meant is None or meant not in names:
            return text
        steps = text.split("/")
        steps[3] = names[meant]
        return "/".join(steps)

    def change(node: Json) -> Json:
        if "$ref" in node:
            node = {**node, "$ref": reference(node["$ref"])}
        if isinstance(name := node.get("operationId"), str) and name in ids:
            node = {**node, "operationId": ids[name]}
        if isinstance(node.get("discriminator"), dict):
            node = {**node, "discriminator": _discriminating(node, names, reference)}
        return node

    return change


def _discriminating(node: Json, names: Mapping[Component, str], reference: Callable[[Any], Any]) -> Json:
    """Have a discriminator tell schemas apart by the names that they had."""
    given = node["discriminator"]
    mapping = given["mapping"] if isinstance(given.get("mapping"), dict) else {}
    mapping = {value: _schema(name, names) or reference(name) for value, name in mapping.items()}
    for schema in (*_listed(node.get("oneOf")), *_listed(node.get("anyOf"))):
        text = schema.get("$ref") if isinstance(schema, dict) else None
        meant, new = component(text), reference(text)
        if meant is not None and new != text and new not in mapping.values():
            mapping.setdefault(meant[1], new)
    return {**given, "mapping": mapping} if mapping else given


def _schema(name: Any, names: Mapping[Component, str]) -> str | None:
    return names.get(("schemas", name)) if isinstance(name, str) else None
