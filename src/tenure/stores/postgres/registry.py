"""Beside the conversations: the nodes' leases, and the papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from tenure.abc import Alive, Buried, Dead, Death, Granted, Paper, Refused, Topic
from tenure.stores.postgres import answers
from tenure.stores.postgres.link import Statement
from tenure.stores.postgres.text import json_text, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.abc import About, Load, NodeRecord
    from tenure.journal import JsonObject
    from tenure.lease import IncarnationId
    from tenure.stores.postgres.hints import Hints
    from tenure.stores.postgres.lanes import Lanes
    from tenure.stores.postgres.writing import Clock

_REGISTER: Final = "SELECT register(%s, %s::float8[], %s::json, %s)"
_RENEW: Final = "SELECT renew(%s, %s::float8[], %s, %s, %s, %s, %s)"
_BURY: Final = "SELECT known, why, fresh, left_s FROM bury(%s, %s::float8[], %s)"
_NODES: Final = "SELECT * FROM list_nodes(%s::float8[])"
_PUT_PAPER: Final = "SELECT put_paper(%s, %s, %s::json, %s)"
_REMOVE_PAPER: Final = "SELECT remove_paper(%s, %s, %s)"


@final
class Registry:
    """Register, renew, bury; papers. All of it is one row each, and may wait for it."""

    def __init__(self, patient: Lanes, hints: Hints, clock: Callable[[], Clock]) -> None:
        self._patient = patient
        self._hints = hints
        self._clock = clock

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        told = json_text(
            {
                "node": stored(about.node),
                "address": stored(about.address),
                "capacity": about.capacity,
                "agents": list(about.agents),
                "started_at": about.started_at.unix_s,
            }
        )
        ((new,),) = await self._patient.run(Statement(_REGISTER, (incarnation, self._clock(), told, ttl_s)))
        return Granted(0) if new else Refused("registered-before")

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        parameters = (incarnation, self._clock(), beat, stored(nonce), ttl_s, load.owned, load.draining)
        ((next_beat,),) = await self._patient.run(Statement(_RENEW, parameters))
        return Dead() if next_beat is None else Granted(next_beat)

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        parameters = (incarnation, self._clock(), why.value)
        ((known, was, fresh, left_s),) = await self._patient.run(Statement(_BURY, parameters))
        if not known:
            return Alive(float("inf"))
        if fresh:
            self._hints.tell([Topic(Topic.WANTED), Topic(Topic.NODE, incarnation)])
        return Alive(left_s) if was is None else Buried(Death(was))

    async def nodes(self) -> list[NodeRecord]:
        return [answers.node_of(row) for row in await self._patient.run(Statement(_NODES, (self._clock(),)))]

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        statement = Statement(_PUT_PAPER, (stored(kind), stored(id), json_text(document), version))
        ((written,),) = await self._patient.run(statement)
        if not written:
            return None
        if kind == "request":
            self._hints.tell([Topic(Topic.NODE, id.partition("/")[0])])
        return Paper(kind, id, document, version + 1)

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        return (await self._patient.run(Statement(_REMOVE_PAPER, (stored(kind), stored(id), version))))[0][0]
