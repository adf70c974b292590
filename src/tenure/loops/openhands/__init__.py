"""The loop ``openhands``: agents of the OpenHands SDK, whose every event stands in the fenced journal.

======================  ==============================================================================================
``message``             recorded, then the agent runs until it has finished, waits for a person, or fails; with
                        ``{"run": false}`` only recorded. What waited for approval is rejected by it
``run``                 the agent runs; what waits for approval is approved
``confirm``             ``{"accept": true}`` approves and runs; ``{"accept": false, "reason"?}`` rejects
``pause``               the run ends after the step that it is at
``interrupt``, ``stop``  the run ends now; the SDK journals an error for each tool that was cut
======================  ==============================================================================================
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

from tenure.abc import AgentLoop, RuntimeFailure
from tenure.errors import InvalidInputError
from tenure.journal import Delivery
from tenure.loops.openhands.live import LiveOpenHands, insist_on_runtime
from tenure.loops.openhands.requests import Asked, asked, import_tools
from tenure.loops.openhands.sdk import Loading, insist_on_extra
from tenure.loops.openhands.settings import NodeModel, check, check_size, shown_agent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from tenure.abc import LiveLoop, Place
    from tenure.journal import JsonObject


@final
class OpenHandsLoop(AgentLoop):
    """Runs an agent of the SDK. The SDK is imported in the background from the moment this is made.

    :param modules: modules that register tools beyond the SDK's; every node needs the same ones.
    :raises InvalidInputError: naming `agent`: the extra ``tenure[openhands]`` is not installed.
    """

    commands: Mapping[str, Delivery] = {"run": Delivery.TURN, "confirm": Delivery.TURN, "pause": Delivery.NOW}
    check_blocks = True

    def __init__(self, modules: Sequence[str] = ()) -> None:
        insist_on_extra()
        self._loading = Loading(modules)
        self._node = NodeModel()

    def check(self, settings: JsonObject) -> JsonObject:
        """The settings, if the SDK's models take them and no secret stands in them.

        :raises InvalidInputError: names the field and the remedy. :raises NodeUnavailableError: the SDK is not there yet.
        """
        check_size(settings)
        import_tools(settings)
        check(settings, self._loading.get(), self._node)
        return settings

    async def ready(self) -> None:
        """:raises InvalidInputError: naming `agent`: a module cannot be imported."""
        await self._loading.wait()

    async def asked(self, body: Mapping[str, Any]) -> Asked:
        """What a client of the SDK asks for with its ``StartConversationRequest``.

        :raises InvalidInputError: names the field. :raises NodeUnavailableError: the SDK is not there yet.
        """
        return await asyncio.to_thread(asked, body, self._loading.get())

    async def shown_agent(self, settings: JsonObject) -> JsonObject:
        """The agent of settings that name none, as the SDK's own server shows one: without secrets.

        :raises InvalidInputError: this node has no model either. :raises NodeUnavailableError: the SDK is not there yet.
        """
        return await asyncio.to_thread(shown_agent, settings, self._loading.get(), self._node)

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        insist_on_runtime(place.runtime)
        place.hide(self._node.secrets)
        sdk = await self._loading.wait()
        try:
            await asyncio.to_thread(import_tools, place.settings)
        except InvalidInputError as error:
            raise RuntimeFailure(str(error), step="tools") from error
        live = LiveOpenHands(place, sdk, self._node)
        try:
            yield live
        finally:
            await live.close()
