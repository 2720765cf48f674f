"""Where channels and routes are in their life: the keys that both have, and what these have to be to each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from pydantic import Field

from gateway.config.findings import Finding
from gateway.config.httpvalues import Link, Moment
from gateway.config.section import Section
from gateway.config.values import Text, Url
from gateway.lifecycle import Lifecycle


class LivingSection(Section):
    """Base of sections for what is offered, and some day is not any more."""

    version: Annotated[Text, Field(max_length=64)] | None = None
    """Version to show in the lists, such as v1."""
    deprecated: Moment | None = None
    """Date or time from which it is deprecated: the answers say so."""
    deprecation_info: Url | None = None
    """Page about the deprecation."""
    sunset: Moment | None = None
    """Date or time after which it answers 410; the answers say so before."""
    successor: Link | None = None
    """Path or URL of what comes after it."""

    @property
    def lifecycle(self) -> Lifecycle:
        """Where it is in its life."""
        return Lifecycle(
            version=self.version,
            deprecated=_unix(self.deprecated),
            deprecation_info=self.deprecation_info,
            sunset=_unix(self.sunset),
            successor=self.successor,
        )


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def check(section: LivingSection) -> Iterator[Finding]:
    """Give each mistake in the order of a life."""
    if section.deprecated is not None and section.sunset is not None and section.sunset < section.deprecated:
        yield ("sunset",), "expected a time that is not before deprecated, got an earlier one"
    if section.deprecation_info is not None and section.deprecated is None:
        yield ("deprecation_info",), "expected deprecated beside it, got nothing"
