"""Destroys runtimes that nobody needs: those that the journal calls discarded, lost or superseded, or whose
conversation is deleted. Periodically, and never by comparing epochs: a zombie may provision after its successor (rule 14)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, final

from tenure.abc import Deleted, Reading, RuntimeFailure
from tenure.conversation import Fold, fold

if TYPE_CHECKING:
    from tenure.node.incarnation import Incarnation

log = logging.getLogger("tenure.reaper")


@final
class Reaper:
    """The periodic look at what the provider has."""

    def __init__(self, incarnation: Incarnation) -> None:
        self._incarnation = incarnation

    async def run(self) -> None:
        """Reap at every period."""
        means = self._incarnation.means
        assert means is not None, "registered"
        while True:
            await asyncio.sleep(means.config.reap_s * means.rng.uniform(0.8, 1.2))
            await self.reap()

    async def reap(self) -> int:
        """One look; how many runtimes were destroyed."""
        means = self._incarnation.means
        assert means is not None, "registered"
        gone = 0
        for name, conversation in await means.provider.list():
            tenure = self._incarnation.holds(conversation)
            if not name.startswith(f"{means.identity}.") or (tenure is not None and tenure.fold.runtime == name):
                continue
            verdict = await self._verdict(name, conversation)
            if verdict is None:
                continue
            try:
                workspace = f"{means.identity}.{conversation}" if verdict == "deleted" else None
                await means.provider.discard(name, workspace)
                gone += 1
                log.info("reaped runtime %s: %s", name, verdict, extra={"conversation": conversation})
            except (RuntimeFailure, OSError) as error:
                log.warning("could not reap runtime %s yet: %s", name, error)
        return gone

    async def _verdict(self, name: str, conversation: str) -> str | None:
        """Why the runtime may go; null while the journal does not say so, and for a conversation that is not known."""
        means = self._incarnation.means
        assert means is not None, "registered"
        state = Fold()
        first = True
        while True:
            answer = await means.store.read(conversation, state.seq, snapshot=first)
            if isinstance(answer, Deleted):
                return "deleted"
            if not isinstance(answer, Reading):
                return None
            if first and answer.snapshot is not None and answer.snapshot.fold is not None:
                state = Fold.from_json(answer.snapshot.fold)
            first = False
            state = fold(state, answer.events)
            if not answer.events or state.seq >= answer.record.head:
                return "retired" if name in state.retired else None
