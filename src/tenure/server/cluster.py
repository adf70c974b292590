"""The nodes, and the health of this one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast, final

from fastapi import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from tenure.clock import Instant
from tenure.node.activity import MINUTES, Activity, Minute
from tenure.server.problems import Problem
from tenure.server.wire import Empty, NodeInPath, json_reply

if TYPE_CHECKING:
    from tenure.abc import NodeRecord
    from tenure.journal import Json
    from tenure.node import Node

ACTIVITY_S = 1.0
"""Whoever asks for the last hour gets one of at most this age: many who watch cost the store one reading."""


@final
class Cluster:
    """The routes about nodes. Liveness and readiness differ: a node that drains is alive, and not ready."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._activity: tuple[float, dict[str, Json]] | None = None
        self._asking = asyncio.Lock()

    async def nodes(self) -> Response:
        """Every incarnation that is not buried, oldest first."""
        return json_reply(200, [self._shape(record) for record in await self.node.store.nodes() if not record.dead])

    async def activity(self) -> Response:
        """The cluster's last hour: the last takeovers, newest first, and minute by minute how many there were, how turns
        ended and how long they took (from the message that was accepted to the end). A killed node's last second may be
        missing. For people: nothing is decided by it.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._activity is None or now - self._activity[0] > ACTIVITY_S:
                self._activity = (now, _activity(await self.node.activity(), self.node.clock.now()))
            return json_reply(200, self._activity[1])

    async def drain(self, node: NodeInPath, body: Empty | None = None) -> Response:
        """Ask a node to drain, through any node: it finishes or hands over what it holds, and leaves."""
        asked = await self.node.request_drain(node)
        if asked == 0:
            limit, remedy = "must name a living node", "see GET /nodes"
            raise Problem(
                404,
                "unknown-node",
                "Unknown node",
                f"node: {limit}; {remedy}",
                field="node",
                limit=limit,
                remedy=remedy,
            )
        return json_reply(202, {"node": node, "asked": asked})

    async def healthz(self) -> Response:
        """The process answers; nothing else is asked."""
        return json_reply(200, {"status": "ok"})

    async def metrics(self) -> Response:
        """What this node counts, in Prometheus' text format."""
        return Response(self.node.metrics.text(), media_type=CONTENT_TYPE)

    async def readyz(self) -> Response:
        """Whether this node should be sent new work; if not, why."""
        reasons = self.node.readiness()
        if reasons:
            raise Problem(
                503, "not-ready", "Not ready", "; ".join(reasons), retry_after_s=1, reasons=cast("list[Json]", reasons)
            )
        return json_reply(200, {"status": "ready"})

    def _shape(self, record: NodeRecord) -> dict[str, Json]:
        return {
            "node": record.about.node,
            "incarnation": record.incarnation,
            "address": record.about.address,
            "here": self.node.present is not None and record.incarnation == self.node.present.id,
            "started_at": record.about.started_at.isoformat(),
            "expires_in_s": round(record.expires_in_s, 3),
            "lease_age_s": round(max(0.0, self.node.config.ttl_s - record.expires_in_s), 3),
            "owned": record.load.owned,
            "capacity": record.about.capacity,
            "draining": record.load.draining,
            "agents": list(record.about.agents),
        }


def _activity(activity: Activity, now: Instant) -> dict[str, Json]:
    last = int(now.unix_s // 60)
    hour = Minute()
    minutes: list[Json] = []
    for number in range(last - MINUTES + 1, last + 1):
        minute = activity.minutes.get(number, Minute())
        hour.add(minute)
        minutes.append({"at": Instant(number * 60.0).isoformat(), **_minute(minute)})
    takeovers = list(reversed(activity.takeovers))
    return {"at": now.isoformat(), "takeovers": takeovers, "hour": _minute(hour), "minutes": minutes}


def _minute(minute: Minute) -> dict[str, Json]:
    median, high = minute.quantile_s(0.5), minute.quantile_s(0.95)
    return {
        "takeovers": minute.takeovers,
        "completed": minute.ends.get("completed", 0),
        "failed": minute.ends.get("failed", 0),
        "interrupted": minute.ends.get("interrupted", 0),
        "p50_s": None if median is None else round(median, 3),
        "p95_s": None if high is None else round(high, 3),
        "max_s": None if median is None else round(minute.longest_s, 3),
    }
