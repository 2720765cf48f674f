"""All crowds of the process, for as long as somebody is of them, and what they share (sans-I/O)."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Subscription
from gateway.server.crowd import Crowd, Kept, Shape
from gateway.server.outcome import Dates
from gateway.server.places import Places


class Crowds:
    """Crowds by shape. `labels` are the channel patterns of all that there ever were."""

    def __init__(self, hub: Hub, reader: Reader, unix_clock: Callable[[], float]) -> None:
        self._hub = hub
        self._reader = reader
        self._kept = Kept()
        self._dates = Dates(unix_clock)
        self._table: WeakValueDictionary[Shape, Crowd] = WeakValueDictionary()
        self.places = Places()
        self.labels: set[str] = set()

    def __repr__(self) -> str:
        return f"<Crowds, {len(self._table)}>"

    def __len__(self) -> int:
        return len(self._table)

    def crowd(self, shape: Shape) -> Crowd:
        """Return the crowd of a shape, a new one if there is none."""
        crowd = self._table.get(shape)
        if crowd is None:
            crowd = Crowd(shape, hub=self._hub, reader=self._reader, places=self.places, kept=self._kept, dates=self._dates)
            self._table[shape] = crowd
            self.labels.update(shape.subscription.labels)
        return crowd

    def can_tell(self, subscription: Subscription, cursor: bytes) -> bool:
        """Tell whether the tails alone can tell what a poll with this cursor comes to."""
        position = self.places.position(cursor, subscription.topics)
        if position is None:
            return False
        topics = [self._hub.topic(name) for name in subscription.topics]
        if not all(topic is not None and topic.tails for topic in topics):
            return False
        return self._reader.peek(subscription, position) is not None
