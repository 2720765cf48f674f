"""What a poll on a lane takes from limits: a token of its principal, one of its address, and a slot (sans-I/O).

An armed head keeps its buckets and its holder; a table that has dropped one of them is asked again.
"""

from __future__ import annotations

from gateway.auth.principal import Principal
from gateway.limits import UNLIMITED, Bucket, Holder, Slots, TokenBuckets
from gateway.server.address import bucket_key
from gateway.server.arming import Armed


class Charges:
    """The limits that polls on lanes pass; None stands for no limit."""

    def __init__(self, polls: TokenBuckets | None, addresses: TokenBuckets | None, slots: Slots) -> None:
        # A table that is still empty is false.
        self.polls = UNLIMITED if polls is None else polls
        self.addresses = UNLIMITED if addresses is None else addresses
        self.slots = slots

    def __repr__(self) -> str:
        return f"<Charges {self.polls!r} {self.addresses!r} {self.slots!r}>"

    def of(self, principal: Principal, address: str, now: float) -> tuple[Bucket, Bucket, Holder]:
        """Return what an armed head keeps: the principal's bucket, the address's, and the principal's holder."""
        bucket = self.polls.bucket(principal.id, now)
        return bucket, self.addresses.bucket(bucket_key(address), now), self.slots.holder(principal.id)

    def has_slot(self, armed: Armed) -> bool:
        """Tell whether one more poll may be parked."""
        holder, slots = armed.holder, self.slots
        if holder.held >= slots.quota and holder.dropped:
            holder = armed.holder = slots.holder(armed.principal.id)
        return holder.held < slots.quota and slots.held < slots.total

    def take(self, armed: Armed, now: float) -> bool:
        """Take one token from the address and one from the principal, or none from either."""
        addresses, polls = self.addresses, self.polls
        if armed.address_bucket.dropped:
            armed.address_bucket = addresses.bucket(bucket_key(armed.address), now)
        if armed.bucket.dropped:
            armed.bucket = polls.bucket(armed.principal.id, now)
        if not addresses.take_one(armed.address_bucket, now):
            return False
        if not polls.take_one(armed.bucket, now):
            addresses.give_back(armed.address_bucket)
            return False
        return True

    def give_back(self, armed: Armed) -> None:
        """Put back what a poll has taken that is charged once more."""
        self.addresses.give_back(armed.address_bucket)
        self.polls.give_back(armed.bucket)
