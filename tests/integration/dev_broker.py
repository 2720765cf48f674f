"""The handle on the dev broker: administration through its verbs in process, everything else over its port."""

from collections.abc import Mapping
from typing import Self

from integration.brokers import BrokerHandle
from integration.ports import free_ports

from gateway.devbroker.server import Broker


class DevHandle(BrokerHandle):
    """A dev broker of the test's own; `in_process` is the broker itself, for its faults."""

    kind = "dev"

    def __init__(self) -> None:
        super().__init__()
        self.in_process = Broker(port=free_ports(1)[0])

    @property
    def address(self) -> str:
        """The only node's host:port."""
        return self.in_process.address

    async def __aenter__(self) -> Self:
        await self.in_process.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        await self.in_process.stop()

    async def kill(self) -> None:
        """Close the port and all connections."""
        await self.in_process.stop()

    async def restart(self) -> None:
        """Listen on the same port again, with the same data."""
        await self.in_process.start()

    async def _create(self, name: str, partitions: int, configs: dict[str, str]) -> None:
        self.in_process.create_topic(name, partitions, **configs)

    async def _delete(self, name: str) -> None:
        self.in_process.delete_topic(name)

    async def _grow(self, name: str, total: int) -> None:
        self.in_process.add_partitions(name, total)

    async def _trim(self, topic: str, before: Mapping[int, int]) -> None:
        for partition, offset in before.items():
            self.in_process.delete_records(topic, partition, offset)

    async def _compact(self, topic: str) -> None:
        for partition in range(await self._width(topic)):
            self.in_process.compact(topic, partition)
