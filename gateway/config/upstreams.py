"""The section `upstreams`: where routes lead to, and how one target is chosen, watched, spared and tried again."""

from __future__ import annotations

import ssl
from typing import Annotated, Literal

from pydantic import Field

from gateway.auth.templates import Template, parse_template
from gateway.config.httpvalues import (
    DnsName,
    FieldValue,
    OrText,
    PlainPath,
    RetriedStatus,
    Status,
    TargetAddress,
    as_target,
    some,
)
from gateway.config.section import Section
from gateway.config.values import Count, File, Host, Number, Seconds, Text


class TargetSection(Section):
    """One target, or with a DNS name as many as it has addresses: exactly one of address and dns."""

    address: TargetAddress | None = None
    """Where to connect to; the text alone means the same."""
    dns: DnsName | None = None
    """In its place, a name: each of its A and AAAA addresses becomes a target."""
    weight: Annotated[Count, Field(ge=1, le=1000)] = 1
    """Share of the requests, beside the weights of the others."""
    priority: Annotated[Count, Field(ge=0, le=9)] = 0
    """Group: only the lowest one with a target that is available is used."""

    @property
    def place(self) -> str:
        """The address or name, with the port."""
        return self.address or self.dns or ""


class TargetTls(Section):
    """HTTPS to the targets."""

    cafile: File | None = None
    """PEM file with the authorities to believe for targets; null: those of the system."""
    server_name: Host | None = None
    """Name that the targets' certificates have to have; null: the host they are reached by."""
    verify: bool = True
    """Look at the targets' certificates at all."""
    certfile: File | None = None
    """PEM file with the gateway's own certificate, where targets ask for one."""
    keyfile: File | None = None
    """PEM file with the key of the certificate for targets."""


class Kept(Section):
    """Connections kept for the next request."""

    idle: Annotated[Count, Field(ge=0, le=10_000)] = 64
    """Idle connections kept for each target."""
    keepalive: Annotated[Seconds, Field(le=3600)] = 60.0
    """Seconds they are kept; less than the targets keep them."""


class UpstreamLimits(Section):
    """What all targets of an upstream together take at once."""

    concurrent: Annotated[Count, Field(ge=1, le=1_000_000)] = 1000
    """Requests that are being worked on."""
    held: Annotated[Count, Field(ge=1, le=10_000_000)] = 100_000
    """Long polls that are held on purpose."""
    queue: Annotated[Count, Field(ge=0, le=1_000_000)] = 100
    """Requests that wait for their turn; more are answered 503 at once."""
    queue_timeout: Annotated[Seconds, Field(gt=0, le=300)] = 1.0
    """Seconds that one waits, at most."""


class Health(Section):
    """Questions to each target whether it is well: exactly one of path and tcp."""

    path: PlainPath | None = None
    """Path to ask for with GET."""
    tcp: bool = False
    """In its place: a connection that is accepted is enough."""
    statuses: Annotated[tuple[Status, ...], some] = (200,)
    """Statuses that mean it is."""
    body: Text | None = None
    """Text that has to be in the answer; null: any answer will do."""
    interval: Annotated[Seconds, Field(ge=0.1, le=3600)] = 5.0
    """Seconds between two questions."""
    jitter: Annotated[Number, Field(ge=0, lt=1)] = 0.2
    """Share of the interval by which it varies, so that instances do not ask together."""
    timeout: Annotated[Seconds, Field(gt=0, le=300)] = 2.0
    """Seconds to wait for the answer to a question."""
    rise: Annotated[Count, Field(ge=1, le=100)] = 2
    """Good answers in a row after which a target comes back."""
    fall: Annotated[Count, Field(ge=1, le=100)] = 3
    """Bad ones in a row after which it gets no requests."""


class OutliersSection(Section):
    """When a target that fails requests is left out for a while."""

    consecutive: Annotated[Count, Field(ge=1, le=10_000)] = 5
    """Failures in a row that are enough."""
    rate: Annotated[Number, Field(gt=0, le=1)] = 0.5
    """Share of failures in the window that is enough."""
    least_requests: Annotated[Count, Field(ge=1, le=1_000_000)] = 20
    """Requests in the window below which the share says nothing."""
    window: Annotated[Seconds, Field(ge=1, le=3600)] = 10.0
    """Seconds that are looked at."""
    ejection: Annotated[Seconds, Field(gt=0)] = 10.0
    """Seconds that a target is left out for, times the number of times in a row."""
    max_ejection: Annotated[Seconds, Field(gt=0)] = 300.0
    """Seconds that it is left out for, at most."""
    max_share: Annotated[Number, Field(gt=0, le=1)] = 0.5
    """Share of the targets that may be left out at once."""


class BreakerSection(Section):
    """When a target that fails every request gets none but a few trials; for each target by itself. 500 is no failure here."""

    consecutive: Annotated[Count, Field(ge=1, le=10_000)] = 5
    """Failures in a row that open the breaker."""
    open: Annotated[Seconds, Field(gt=0)] = 5.0
    """Seconds until the first trial; doubled after each that fails."""
    max_open: Annotated[Seconds, Field(gt=0)] = 60.0
    """Seconds between two trials, at most."""
    trials: Annotated[Count, Field(ge=1, le=1000)] = 1
    """Requests that are let through at once to try it."""


class Retries(Section):
    """What is tried again, with another target where there is one; only what can be repeated safely."""

    attempts: Annotated[Count, Field(ge=1, le=10)] = 3
    """Attempts in all."""
    statuses: tuple[RetriedStatus, ...] = (502, 503, 504)
    """Statuses that are worth another attempt."""
    backoff: Annotated[Seconds, Field(gt=0, le=60)] = 0.025
    """Seconds before the second attempt, at most; doubled with each."""
    max_backoff: Annotated[Seconds, Field(gt=0, le=60)] = 0.25
    """Seconds before any attempt, at most."""
    budget: Annotated[Number, Field(ge=0, le=1)] = 0.2
    """Share of the requests that further attempts may add."""
    budget_least: Annotated[Count, Field(ge=0, le=100_000)] = 10
    """Further attempts a second that are allowed however few requests there are."""


class UpstreamSection(Section):
    """One backend: the key in the mapping is its name, a label in metrics and logs."""

    targets: Annotated[tuple[Annotated[TargetSection, as_target, OrText()], ...], some]
    """Where requests go: addresses as text, or mappings."""
    dns_refresh: Annotated[Seconds, Field(ge=1, le=3600)] = 30.0
    """Seconds between two looks for the addresses of DNS names."""
    tls: TargetTls | None = None
    """Speak HTTPS with the targets; null: plain HTTP."""
    balance: Literal["round_robin", "least_outstanding", "hash", "random"] = "least_outstanding"
    """How the target of a request is chosen."""
    hash_on: FieldValue | None = None
    """What requests have to have in common to go to the same target, with balance hash: a template."""
    slow_start: Annotated[Seconds, Field(le=3600)] = 0.0
    """Seconds in which the weight of a target that came (back) grows from a tenth to the whole."""
    connections: Kept = Kept()
    """Connections kept for the next request."""
    limits: UpstreamLimits = UpstreamLimits()
    """What all targets of an upstream together take at once."""
    health: Health | None = None
    """Questions to each target whether it is well; null: none."""
    outliers: OutliersSection | None = OutliersSection()
    """When a target that fails requests is left out for a while; null: never."""
    breaker: BreakerSection | None = BreakerSection()
    """When a target that fails every request gets none but a few trials; null: never."""
    retries: Retries | None = Retries()
    """What is tried again, with another target where there is one; null: nothing."""

    @property
    def key(self) -> Template | None:
        """What a request is hashed by, with balance hash."""
        return None if self.hash_on is None else parse_template(self.hash_on, headers=True)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """HTTPS to the targets, None: plain HTTP; a configuration that was checked cannot fail here."""
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=self.tls.cafile)
        if not self.tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.tls.certfile is not None:
            context.load_cert_chain(self.tls.certfile, self.tls.keyfile, "")
        return context
