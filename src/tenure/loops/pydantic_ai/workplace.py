"""What tools of an agent find in ``ctx.deps``, and what makes agents gets."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, final

from tenure.errors import LoopError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.abc import Place, Runtime
    from tenure.journal import JsonObject

CALL_KEY: Final[ContextVar[str]] = ContextVar("tenure_call_key", default="")
"""The idempotency key of the call that the running code belongs to."""


@final
class Workplace:
    """A conversation as its agent sees it, on its present owner."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def conversation_id(self) -> str:
        return self._place.conversation_id

    @property
    def settings(self) -> JsonObject:
        return self._place.settings

    @property
    def runtime(self) -> Runtime:
        """Where tools run: ``await ctx.deps.runtime.run("ls")``."""
        return self._place.runtime

    @property
    def credentials(self) -> Mapping[str, str]:
        """The values of the credentials that the settings ask for, by name, as they are now. Masked in the journal."""
        return self._place.credentials()

    @property
    def idempotency_key(self) -> str:
        """The same in each attempt of the tool's call that asks for it.

        :raises LoopError: not inside of a tool.
        """
        if not (key := CALL_KEY.get()):
            raise LoopError("only a call of a tool has an idempotency key")
        return key
