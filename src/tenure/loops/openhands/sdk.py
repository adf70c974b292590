"""The OpenHands SDK, imported late and in the background: it takes seconds of CPU, and most nodes never need it.

Nothing else here imports it, so everything of ours can be imported where the extra ``tenure[openhands]`` is not installed.
The SDK is typed in its own way; what is taken from it is ``Any`` here, and named once, in :class:`Sdk`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from tenure.errors import InvalidInputError, NodeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION: Final = "1.58.0"
"""The release that this is written for and pinned to: it uses seams that move between minor releases."""

NOBODY: Final = "http://127.0.0.1:9/v1"
"""The port that RFC 863 gives to what throws everything away; a refusal is as good."""

_BEFORE_IMPORT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices, and waits where there is none
    "LOG_AUTO_CONFIG": "false",  # the node's logs are the node's
    "OPENHANDS_SUPPRESS_BANNER": "1",
}
_TOOLS = (
    "openhands.tools.apply_patch",
    "openhands.tools.file_editor",
    "openhands.tools.planning_file_editor",
    "openhands.tools.task_tracker",
    "openhands.tools.terminal",
)


def insist_on_extra() -> None:
    """:raises InvalidInputError: naming `agent`: the SDK is not installed here."""
    if importlib.util.find_spec("openhands") is None or importlib.util.find_spec("openhands.sdk") is None:
        raise InvalidInputError(
            "agent", "the OpenHands SDK is not installed here", "pip install 'tenure[openhands]' on every node"
        )


@final
@dataclass(frozen=True, slots=True)
class Sdk:
    """What of the SDK is used."""

    Agent: Any
    AgentErrorEvent: Any
    ConfirmationPolicyBase: Any
    ConversationRunError: Any
    ConversationState: Any
    LLM: Any
    LocalConversation: Any
    Message: Any
    MessageEvent: Any
    SecurityAnalyzerBase: Any
    Status: Any
    TextContent: Any
    default_agent: Any
    registered_tools: Any


def load(modules: Sequence[str] = ()) -> Sdk:
    """Import the SDK, its tools, and `modules` that register more of them. Seconds of CPU the first time.

    :raises InvalidInputError: naming `agent`: a module cannot be imported.
    """
    for name, value in _BEFORE_IMPORT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("openhands").setLevel(os.environ.get("LOG_LEVEL", "WARNING").upper())
    sdk, event = _import("openhands.sdk"), _import("openhands.sdk.event")
    conversation = _import("openhands.sdk.conversation.impl.local_conversation")
    state = _import("openhands.sdk.conversation.state")
    conversation.load_available_plugins = _no_plugins
    _import("openhands.sdk.skills.execute")._execute_inline_command = _not_run
    for name in (*_TOOLS, *modules):
        _import(name)
    asyncio.run(_warm(sdk))
    return Sdk(
        Agent=sdk.Agent,
        AgentErrorEvent=event.AgentErrorEvent,
        ConfirmationPolicyBase=_import("openhands.sdk.security.confirmation_policy").ConfirmationPolicyBase,
        ConversationRunError=_import("openhands.sdk.conversation.exceptions").ConversationRunError,
        ConversationState=state.ConversationState,
        LLM=sdk.LLM,
        LocalConversation=conversation.LocalConversation,
        Message=sdk.Message,
        MessageEvent=event.MessageEvent,
        SecurityAnalyzerBase=_import("openhands.sdk.security.analyzer").SecurityAnalyzerBase,
        Status=state.ConversationExecutionStatus,
        TextContent=sdk.TextContent,
        default_agent=_import("openhands.tools.preset.default").get_default_agent,
        registered_tools=_import("openhands.sdk.tool.registry").list_registered_tools,
    )


def _no_plugins(*args: Any, **named: Any) -> dict[str, Any]:
    """In place of the SDK's search for plugins in every workspace and in the server's home: their hooks are commands, and their
    MCP servers processes, that would run as the server itself, with its environment and its keys, outside of the runtime and
    of the journal. A cloned repository would only have to bring one along."""
    return {}


def _not_run(command: str, *args: Any, **named: Any) -> str:
    """In place of the SDK's shell for ``!`command``` in the text of a skill, for the same reason."""
    return f"[not run here, as it would run outside of the workspace's runtime: {command}]"


async def _warm(sdk: Any) -> None:
    """Call a model that nobody serves: the first call of a process imports hundreds of modules more, and a node that does
    so in the midst of its work may lose its lease."""
    hello = sdk.Message(role="user", content=[sdk.TextContent(text="hello")])
    model = sdk.LLM(model="openai/warm", base_url=NOBODY, api_key="no-key", num_retries=0, timeout=30)
    with contextlib.suppress(Exception):
        await model.agenerate(messages=[hello], tools=[])


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        problem = f"module {name!r} cannot be imported: {type(error).__name__}: {error}"
        raise InvalidInputError("agent", problem, "install or mend it on every node") from error


@final
class Loading:
    """The import, under way in a thread of its own from the moment this is made."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = tuple(modules)
        self._loaded: Future[Sdk] = Future()
        threading.Thread(target=self._load, name="tenure-openhands-import", daemon=True).start()

    def _load(self) -> None:
        try:
            self._loaded.set_result(load(self._modules))
        except BaseException as error:  # whatever it is, whoever waits must hear it
            self._loaded.set_exception(error)

    async def wait(self) -> Sdk:
        """:raises InvalidInputError: as :func:`load`."""
        return await asyncio.shield(asyncio.wrap_future(self._loaded))

    def get(self) -> Sdk:
        """:raises NodeUnavailableError: not yet. :raises InvalidInputError: as :func:`load`."""
        if not self._loaded.done():
            raise NodeUnavailableError("this node still imports the OpenHands SDK; it is ready in some seconds")
        return self._loaded.result()
