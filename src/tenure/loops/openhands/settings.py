"""What a conversation's settings say of its agent, in the SDK's own models; see ``docs/openhands.md`` for the table.

A secret is never a setting: settings stand in the journal. A text ``$NAME`` anywhere in ``llm`` or ``agent`` is the value
of the conversation's credential NAME, put in by each owner when it takes the conversation over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast, final

from pydantic import BaseModel

from tenure.errors import InvalidInputError
from tenure.journal import canonical
from tenure.vault import credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tenure.journal import Json, JsonObject
    from tenure.loops.openhands.sdk import Sdk

SETTINGS_LIMIT: Final = 256 << 10
MAX_ITERATIONS: Final = 500
KEYLESS: Final = "no-key"
"""What stands for a key that is not given: without one the client library would take the node's own environment's."""
TERMINAL: Final = "terminal"
NO_POLICY: Final = {"kind": "NeverConfirm"}
"""The confirmation policy of settings that name none."""
RESERVED: Final = "OPENHANDS_AGENT_"
"""How the names begin under which the secrets of a client's agent are kept. Who could give one could replace a model's key."""

_NAMED = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]{0,127})")
_SECRET_WORDS = re.compile(
    "authorization|cookie|credential|key|password|secret|session|token|^(headers|env)$", re.IGNORECASE
)
"""Names that stand for secrets, as the SDK masks them; it holds their values as plain text all the same."""
_REFUSED = {
    "browser_tool_set": "its browser would outlive the owner",
    "task_tool_set": "its sub-conversations would not be in the journal",
    "task": "its sub-conversations would not be in the journal",
    "delegate": "its sub-conversations would not be in the journal",
    "glob": "without ripgrep it changes the folder of the whole server",
    "workflow_tool_set": "its sub-conversations would not be in the journal",
    "workflow": "its sub-conversations would not be in the journal",
    "start_child_conversation": "its sub-conversations would not be in the journal",
}


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """An agent and how it is run, ready for the SDK."""

    agent: Any
    policy: Any
    analyzer: Any
    max_iterations: int
    stuck_detection: bool
    secrets: Mapping[str, str]
    """What commands of the agent may use by name: every credential that its models do not need."""
    made_of: tuple[Any, ...]
    """What the agent is made of, values included: another one is another agent. The rest may change beneath it."""


@final
class NodeModel:
    """The model of conversations that name none: ``LLM_MODEL``, ``LLM_BASE_URL`` and ``LLM_API_KEY`` of the node."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.model = environ.get("LLM_MODEL", "")
        self.base_url = environ.get("LLM_BASE_URL") or None
        self._key = environ.get("LLM_API_KEY", "")

    @property
    def secrets(self) -> list[str]:
        """Its key, if it has one: to be masked."""
        return [self._key] if self._key else []

    def as_settings(self) -> dict[str, Json]:
        """:raises InvalidInputError: the node has none."""
        if not self.model:
            remedy = 'give {"llm": {"model": …}}, or start every node with LLM_MODEL'
            raise InvalidInputError("settings.llm", "is missing, and this node has no model of its own", remedy)
        return {"model": self.model, "base_url": self.base_url, "api_key": self._key or KEYLESS}


def check_size(settings: JsonObject) -> None:
    """What can be judged without the SDK.

    :raises InvalidInputError: no JSON object, too large, or a credential that is no reference.
    """
    if not isinstance(cast("Any", settings), dict):
        raise InvalidInputError("settings", "must be a JSON object", "write {} for none")
    try:
        size = len(canonical(settings).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError("settings", f"is no JSON ({error})", "use plain JSON values") from None
    if size > SETTINGS_LIMIT:
        raise InvalidInputError("settings", f"has {size} bytes, at most {SETTINGS_LIMIT}", "keep data in messages")
    credentials(settings)


def check(settings: JsonObject, sdk: Sdk, node: NodeModel) -> None:
    """Judge settings as each owner will read them, with names in place of secrets.

    :raises InvalidInputError: names the field and the remedy.
    """
    named = {name: f"the value of {name}" for name in credentials(settings)}
    wanted = wish(settings, sdk, node, named, None)
    for root in ("agent", "llm"):
        for place, text in plain_secrets_in(settings.get(root), root):
            if not _NAMED.fullmatch(text):
                raise _in_clear(place)
    for place, value in secrets_in(wanted.agent, "agent"):
        own = "llm" not in settings and "agent" not in settings
        if value not in (*named.values(), KEYLESS) and not own:
            raise _in_clear(place)


def _in_clear(place: tuple[str, ...]) -> InvalidInputError:
    name = re.sub(r"[^A-Za-z0-9]+", "_", place[-1]).strip("_").upper()
    remedy = f'put it into the vault, name it in settings.credentials, and write "${name}" here'
    return InvalidInputError(f"settings.{'.'.join(place)}", "holds a secret itself", remedy)


def shown_agent(settings: JsonObject, sdk: Sdk, node: NodeModel) -> JsonObject:
    """The agent that the settings ask for as JSON, secrets hidden by the SDK.

    :raises InvalidInputError: names the field and the remedy.
    """
    named = {name: f"the value of {name}" for name in credentials(settings)}
    return wish(settings, sdk, node, named, None).agent.model_dump(mode="json")


def wish(settings: JsonObject, sdk: Sdk, node: NodeModel, values: Mapping[str, str], shell: Path | None) -> Wanted:
    """What the settings ask for. `values` are those of the credentials; `shell` is what terminals run.

    :raises InvalidInputError: names the field and the remedy.
    """
    used: set[str] = set()
    agent = _agent(settings, sdk, node, values, used)
    for tool in agent.tools:
        _insist_on_tool(tool.name, sdk)
    if shell is not None:
        agent = agent.model_copy(update={"tools": [_shelled(tool, shell) for tool in agent.tools]})
    iterations = settings.get("max_iterations", MAX_ITERATIONS)
    if not isinstance(iterations, int) or isinstance(iterations, bool) or not 1 <= iterations <= 100_000:
        raise InvalidInputError("settings.max_iterations", "must be 1 to 100000", f"leave it out for {MAX_ITERATIONS}")
    stuck_detection = settings.get("stuck_detection", True)
    if not isinstance(stuck_detection, bool):
        raise InvalidInputError("settings.stuck_detection", "must be true or false", "leave it out for true")
    return Wanted(
        agent,
        _optional(sdk.ConfirmationPolicyBase, settings, "confirmation_policy")
        or sdk.ConfirmationPolicyBase.model_validate(NO_POLICY),
        _optional(sdk.SecurityAnalyzerBase, settings, "security_analyzer"),
        iterations,
        stuck_detection,
        {name: value for name, value in values.items() if name not in used},
        (settings.get("agent"), settings.get("llm"), {name: values[name] for name in used}, shell, stuck_detection),
    )


def _optional(model: Any, settings: JsonObject, name: str) -> Any:
    value = settings.get(name)
    return None if value is None else validated(model, value, f"settings.{name}")


def _agent(settings: JsonObject, sdk: Sdk, node: NodeModel, values: Mapping[str, str], used: set[str]) -> Any:
    if "agent" in settings:
        asked = _filled(settings["agent"], values, used, "settings.agent")
        if isinstance(asked, Mapping) and asked.get("kind", "Agent") != "Agent":
            raise InvalidInputError("settings.agent.kind", "must be Agent", "others run outside of the journal")
        agent = validated(sdk.Agent, asked, "settings.agent")
        if agent.mcp_config:
            raise InvalidInputError(
                "settings.agent.mcp_config", "is not taken: servers of MCP outlive the owner", "leave it out"
            )
        if agent.agent_context is not None:
            _insist_on_context(agent.agent_context)
        return agent
    asked = settings.get("llm")
    if asked is not None:
        asked = _filled(asked, values, used, "settings.llm")
        if isinstance(asked, Mapping) and "api_key" not in asked:
            asked = {**asked, "api_key": KEYLESS}
    llm = validated(sdk.LLM, node.as_settings() if asked is None else asked, "settings.llm")
    return sdk.default_agent(llm=llm, cli_mode=True)


def _insist_on_context(context: Any) -> None:
    """Nothing in it that the SDK would fetch by itself, and then run in the server's process."""
    field = "settings.agent.agent_context"
    if context.registered_marketplaces:
        raise InvalidInputError(
            f"{field}.registered_marketplaces",
            "is not taken: hooks of plugins run in the server itself",
            "leave it out",
        )
    for name, source in cast("Mapping[str, Any]", context.secrets or {}).items():
        if not isinstance(source, str) and type(source).__name__ != "StaticSecret":
            remedy = "send its value, or name it in the settings' credentials with refresh (docs/how-to/credentials.md)"
            where = f"{field}.secrets.{name[:80]}"
            raise InvalidInputError(where, "is to be looked up elsewhere, which is not offered", remedy)


def _filled(value: Json, values: Mapping[str, str], used: set[str], field: str) -> Json:
    """The value with each ``$NAME`` replaced by the credential's value."""
    match value:
        case str():
            named = _NAMED.fullmatch(value)
            if named is None:
                return value
            if named[1] not in values:
                remedy = f'add {{"credentials": {{"{named[1]}": "vault:{named[1]}"}}}} to the settings'
                raise InvalidInputError(field, f"names {value}, which is no credential of the conversation", remedy)
            used.add(named[1])
            return values[named[1]]
        case Mapping():
            return {name: _filled(part, values, used, f"{field}.{name}") for name, part in value.items()}
        case Sequence():
            return [_filled(part, values, used, f"{field}[{at}]") for at, part in enumerate(value)]
        case _:
            return value


def validated(model: Any, value: Any, field: str) -> Any:
    """What the SDK's model makes of it. Its errors are told without the input: that may hold a value.

    :raises InvalidInputError: names the field.
    """
    try:
        return model.model_validate(value)
    except ValueError as error:
        told: Any = getattr(error, "errors", None)
        if told is None:
            raise InvalidInputError(field, "is refused by the SDK", "look at its documentation") from None
        first: dict[str, Any] = told(include_input=False, include_url=False)[0]
        where = ".".join([field, *(str(part) for part in first["loc"])])
        raise InvalidInputError(where, str(first["msg"])[:500], "correct it") from None


def _insist_on_tool(name: str, sdk: Sdk) -> None:
    known = sdk.registered_tools()
    if name in _REFUSED:
        raise InvalidInputError("settings.agent.tools", f"{name} is not taken: {_REFUSED[name]}", "leave it out")
    if name not in known:
        usable = ", ".join(sorted(set(known) - _REFUSED.keys()))
        remedy = f"use {usable}, or start every node with --agent openhands:MODULE, which registers it"
        raise InvalidInputError("settings.agent.tools", f"no tool is called {name[:80]!r} here", remedy)


def _shelled(tool: Any, shell: Path) -> Any:
    """A terminal whose shell is of the conversation's runtime, and ends with it."""
    if tool.name != TERMINAL:
        return tool
    params = {**tool.params, "terminal_type": "subprocess", "shell_path": str(shell)}
    return tool.model_copy(update={"params": {k: v for k, v in params.items() if k not in ("env", "username")}})


def secrets_in(value: Any, *place: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every secret in a model of the SDK, with where it stands."""
    if callable(getattr(value, "get_secret_value", None)):
        yield place, value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_in(getattr(value, name), *place, name)
    elif isinstance(value, Mapping):
        for name, part in cast("Mapping[str, Any]", value).items():
            yield from secrets_in(part, *place, str(name))
    elif isinstance(value, list | tuple):
        for at, part in enumerate(cast("Sequence[Any]", value)):
            yield from secrets_in(part, *place, str(at))


def plain_secrets_in(value: Json, *place: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every secret in the JSON of an agent or a model that the SDK holds as plain text, with where it stands: added headers,
    the context's secrets, and what a provider's own parameters call a key."""
    match value:
        case Mapping():
            for name, part in value.items():
                here = (*place, name)
                if name == "extra_headers" or (name == "secrets" and place[-1:] == ("agent_context",)):
                    yield from ((at, text) for at, text in _keys_in(part, True, *here) if at[:-1] == here)
                elif name == "litellm_extra_body":
                    yield from _keys_in(part, False, *here)
                else:
                    yield from plain_secrets_in(part, *here)
        case list() | tuple():
            for at, part in enumerate(value):
                yield from plain_secrets_in(part, *place, str(at))
        case _:
            return


def _keys_in(value: Json, secret: bool, *place: str) -> Iterator[tuple[tuple[str, ...], str]]:
    match value:
        case str() if secret and value:
            yield place, value
        case Mapping():
            for name, part in value.items():
                yield from _keys_in(part, secret or _SECRET_WORDS.search(name) is not None, *place, name)
        case list() | tuple():
            for at, part in enumerate(value):
                yield from _keys_in(part, secret, *place, str(at))
        case _:
            return


def names_in(value: Json) -> set[str]:
    """The credentials that settings of an agent or a model refer to."""
    match value:
        case str():
            named = _NAMED.fullmatch(value)
            return {named[1]} if named else set()
        case Mapping():
            return set[str]().union(*(names_in(part) for part in value.values()))
        case list() | tuple():
            return set[str]().union(*(names_in(part) for part in value))
        case _:
            return set()
