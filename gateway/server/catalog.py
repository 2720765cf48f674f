"""Routes to backends as callers are told of them: which one may be used by whom, and where in its life it is (sans-I/O)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.auth.policy import AUTHENTICATED, Rule
from gateway.auth.possible import possible, shape
from gateway.auth.principal import Principal
from gateway.auth.templates import Template
from gateway.lifecycle import ENDLESS, Lifecycle


@dataclass(frozen=True, slots=True)
class Offer:
    """One route: a `path` with parameters, or a `prefix`, as its callers see it.

    `backend` takes the place of either at the backend, None: it is the same there. `hosts` and `methods` None: all. `told` is
    what the backend has to be told of a caller. `allow` does not matter where it is `public`.
    """

    name: str
    path: str | None = None
    prefix: str | None = None
    backend: str | None = None
    hosts: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    public: bool = False
    allow: Rule = AUTHENTICATED
    told: tuple[Template, ...] = ()
    lifecycle: Lifecycle = ENDLESS
    description: str = ""

    def is_for(self, principal: Principal) -> bool:
        """Tell whether there are path parameters with which the principal may use it."""
        return self.public or (
            possible(self.allow, principal) and all(shape(each, principal) is not None for each in self.told)
        )

    def listed(self, now: float) -> dict[str, object]:
        """Return its line in the list; `now` is Unix time."""
        return {
            "name": self.name,
            "hosts": self.hosts,
            **({"prefix": self.prefix} if self.path is None else {"path": self.path}),
            "methods": self.methods,
            "public": self.public,
            "version": self.lifecycle.version,
            "lifecycle": self.lifecycle.listed(now),
            "description": self.description,
        }


def offers_for(principal: Principal, offers: Iterable[Offer]) -> list[Offer]:
    """Return what the principal may use, in the order given."""
    return [offer for offer in offers if offer.is_for(principal)]
