"""The nodes, and the health of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, final

from fastapi import Response

from tenure.server.problems import Problem
from tenure.server.wire import Empty, NodeInPath, json_reply

if TYPE_CHECKING:
    from tenure.abc import NodeRecord
    from tenure.journal import Json
    from tenure.node import Node


@final
class Cluster:
    """The routes about nodes. Liveness and readiness differ: a node that drains is alive, and not ready."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def nodes(self) -> Response:
        """Every incarnation that is not buried, oldest first."""
        return json_reply(200, [_shape(record) for record in await self.node.store.nodes() if not record.dead])

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

    async def readyz(self) -> Response:
        """Whether this node should be sent new work; if not, why."""
        reasons = self.node.readiness()
        if reasons:
            raise Problem(
                503, "not-ready", "Not ready", "; ".join(reasons), retry_after_s=1, reasons=cast("list[Json]", reasons)
            )
        return json_reply(200, {"status": "ready"})


def _shape(record: NodeRecord) -> dict[str, Json]:
    return {
        "node": record.about.node,
        "incarnation": record.incarnation,
        "address": record.about.address,
        "started_at": record.about.started_at.isoformat(),
        "expires_in_s": round(record.expires_in_s, 3),
        "owned": record.load.owned,
        "capacity": record.about.capacity,
        "draining": record.load.draining,
        "agents": list(record.about.agents),
    }
