"""What the SDK's own server has and a cluster does not, each with what to do instead: 501, never a silent half of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenure.server.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request, Response

OPERATIONS: Final[Mapping[str, str]] = {
    "ask_agent": "send a message, or ask the model yourself",
    "children": "create a conversation of its own, with POST /api/conversations",
    "condense": "give the agent a condenser: it condenses by itself",
    "credential-bindings": "send secrets with POST …/secrets",
    "fork": "fork it with Tenure's POST /conversations/{id}/fork",
    "goal": "send the goal as a message, and run",
    "load_plugin": "create the conversation with an agent that has what the plugin adds",
    "navigate": "fork it with Tenure's POST /conversations/{id}/fork and `at`",
    "prepare-for-sandbox-pause": "drain the node: tenure drain",
    "runtime": "nothing: runtimes come and go with the conversation's owner",
    "switch_acp_model": "create another conversation with that model",
    "switch_llm": "change the agent with Tenure's PATCH /conversations/{id}",
    "switch_profile": "change the agent with Tenure's PATCH /conversations/{id}",
    "vscode": "use …/file and …/bash, or the workspace's own folder",
    "workspace": "use …/file/download?path=",
}
"""What follows a conversation's id and is not served."""
ELSEWHERE: Final[Mapping[str, str]] = {
    "bash": "give RemoteWorkspace a runtime_conversation_id: commands then go to /api/conversations/{id}/bash",
    "file": "give RemoteWorkspace a runtime_conversation_id: files then go to /api/conversations/{id}/file",
    "git": "give RemoteWorkspace a runtime_conversation_id: git then goes to /api/conversations/{id}/git",
    "settings": "send the agent and its secrets when a conversation is created: no node keeps settings of its own",
    "profiles": "send the model with the agent: no node keeps profiles of its own",
    "skills": "send skills in the agent's agent_context: no node keeps skills of its own",
}
"""Other groups below ``/api``. They belong to one server there; here there is none that they could mean."""
FIELDS: Final[Mapping[str, str]] = {
    "agent_settings": "send the agent itself",
    "agent_profile_id": "send the agent itself",
    "agent_launch_additions": "send the agent as it is to be",
    "client_tools": "register the tool in a module that every node imports (tool_module_qualnames)",
    "container_options": "limits are the runtime's: tenure serve --runtime",
    "hook_config": "leave it out: hooks would run outside of the journal",
    "parent_conversation_id": "leave it out: conversations here stand alone",
    "plugins": "create the agent with what the plugin adds",
    "secrets_encrypted": "send secrets in clear over TLS: the vault encrypts them",
    "stuck_detection_thresholds": "leave it out for the SDK's own",
    "worktree": "make the worktree by a command of the agent's",
}
"""Fields of a ``StartConversationRequest`` that are refused when they ask for something."""


def refuse_fields(body: Mapping[str, Any]) -> None:
    """:raises Problem: 501: the request asks for something that is not offered."""
    for name, remedy in FIELDS.items():
        if body.get(name):
            raise not_offered(name, remedy)


def not_offered(what: str, remedy: str) -> Problem:
    """501, naming what, and what to do instead."""
    detail = f"{what}: is not offered by a cluster; {remedy}"
    return Problem(501, "not-offered", "Not offered", detail, field=what, limit="is not offered", remedy=remedy)


async def no_operation(request: Request) -> Response:
    """Of a conversation."""
    name = str(request.path_params["rest"]).partition("/")[0]
    raise not_offered(name[:64], OPERATIONS.get(name, "docs/openhands.md lists what is served"))


async def no_count(request: Request) -> Response:
    """Of all conversations: a store would have to look at each."""
    raise not_offered("count", "page through /api/conversations/search")


async def no_group(request: Request) -> Response:
    """Of a server."""
    name = str(request.path_params["rest"]).partition("/")[0]
    raise not_offered(f"/api/{name[:64]}", ELSEWHERE.get(name, "docs/openhands.md lists what is served"))


async def no_socket(request: Request) -> Response:
    """Another socket than that of a conversation's events."""
    raise not_offered("this socket", "use /sockets/events/{id}")
