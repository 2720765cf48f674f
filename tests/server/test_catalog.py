"""Who is told of which route, and what."""

import pytest

from gateway.auth.policy import AUTHENTICATED, parse_rule
from gateway.auth.principal import Principal
from gateway.auth.templates import parse_template
from gateway.lifecycle import Lifecycle
from gateway.server.catalog import Offer, offers_for

ANN = Principal("main", "ann", {"sub": "ann", "teams": ["ops"]}, frozenset({"read", "order:7"}), None, None)


def names(*offers: Offer) -> list[str]:
    return [offer.name for offer in offers_for(ANN, offers)]


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ({"scope": "read"}, True),
        ({"scope": "write"}, False),
        ({"scope": "order:{id}"}, True),
        ({"scope": "bill:{id}"}, False),
        ({"claim": "teams", "contains": "{team}"}, True),
        ({"issuers": ["corp"]}, False),
        (None, True),
    ],
)
def test_a_route_is_listed_if_some_parameters_pass_its_rule(rule, seen):
    """As far as that can be told without them."""
    offer = Offer("one", path="/{id}/{team}", allow=parse_rule(rule, absent=AUTHENTICATED))
    assert (names(offer) == ["one"]) is seen


def test_a_public_route_is_for_all():
    """Whatever its rule says."""
    assert names(Offer("one", prefix="/", public=True, allow=parse_rule({"scope": "x"}, absent=AUTHENTICATED))) == ["one"]


def test_who_lacks_what_the_backend_is_told_cannot_use_it():
    """The same request would be refused."""
    told = [parse_template(text, headers=True) for text in ("{claims.sub}", "{headers.X-A}", "{claims.mail}")]
    assert names(Offer("can", prefix="/a", told=tuple(told[:2])), Offer("cannot", prefix="/b", told=tuple(told))) == ["can"]


def test_a_line_of_the_list():
    """All that a caller has to know, and nothing about backends."""
    offer = Offer(
        "orders",
        path="/orders/{id}",
        backend="/v2/{id}",
        hosts=("api.test",),
        methods=("GET",),
        lifecycle=Lifecycle("v1", deprecated=0.0),
        description="Orders.",
    )
    line = offer.listed(1.0)
    assert line.pop("lifecycle")["state"] == "deprecated"
    assert line == {
        "name": "orders", "hosts": ("api.test",), "path": "/orders/{id}", "methods": ("GET",), "public": False,
        "version": "v1", "description": "Orders.",
    }  # fmt: skip
    assert Offer("all", prefix="/").listed(1.0)["prefix"] == "/"
