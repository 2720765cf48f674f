"""GET /v1/cursors/{cursor}: what a cursor says, to those who may read its channels."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway import wire
from gateway.channels import Channels
from gateway.fanout.reader import Reader, Standing
from gateway.fanout.subscription import Selection, Subscription
from gateway.server.admission import Admission


class ExplainCursor:
    """Tells of each channel where the cursor stands in its partitions, and how far from their ends.

    A cursor names topics, a caller channels: so only what it may subscribe to is told, and the rest is a number.
    """

    def __init__(self, *, admission: Admission, channels: Channels, reader: Reader) -> None:
        self._admission = admission
        self._channels = channels
        self._reader = reader

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer with the document."""
        principal = await self._admission.identify(request)
        self._admission.charge(request, principal, "poll")
        cursor, names = wire.parse_explain(list(request.query.items()), request.match_info["cursor"])
        selections = self._channels.select(names, principal)
        subscription = Subscription(selections)
        stands, dropped = await self._reader.stand(subscription, cursor)
        document = {"channels": [_told(selection, stands[selection.topic]) for selection in selections], "dropped": dropped}
        headers = {"Content-Type": "application/json", "Cache-Control": "private, no-store"}
        return web.Response(body=msgspec.json.encode(document), headers=headers)


def _told(selection: Selection, standing: Standing) -> dict[str, Any]:
    return {
        "channel": selection.channel,
        "state": standing.state,
        "keyed": selection.key is not None,
        "partitions": [
            {
                "partition": partition,
                "offset": offset,
                "log_start": start,
                "end": end,
                "lag": max(0, end - max(offset, start)),
                "lost": max(0, start - offset),
            }
            for partition, (offset, start, end) in sorted(standing.places.items())
        ],
    }
