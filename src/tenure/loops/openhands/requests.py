"""What a client of the SDK asks for when it creates a conversation, as settings without a secret, and the secrets apart.

A client sends its agent whole, keys in clear. Each secret becomes a credential of the conversation: its value goes to the
vault, and ``$NAME`` stands in its place, in the settings and so in the journal. Blocking: validation by the SDK takes tens
of milliseconds, and modules that register tools may be imported. Call it in a thread.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast, final

from tenure.errors import InvalidInputError
from tenure.loops.openhands.settings import KEYLESS, RESERVED, plain_secrets_in, secrets_in, validated

if TYPE_CHECKING:
    from tenure.journal import Json, JsonObject
    from tenure.loops.openhands.sdk import Sdk

CARRIED: Final = (
    "confirmation_policy",
    "security_analyzer",
    "max_iterations",
    "stuck_detection",
    "tool_module_qualnames",
)
"""Fields of a request that are settings as they stand."""
SECRET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@final
@dataclass(slots=True)
class Asked:
    """A conversation to be created."""

    settings: dict[str, Json] = field(default_factory=dict[str, "Json"])
    secrets: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """Values for the vault, by the name that `settings` refers to."""


def asked(body: Mapping[str, Any], sdk: Sdk) -> Asked:
    """What a ``StartConversationRequest`` asks for.

    :raises InvalidInputError: names the field and the remedy; never says a value.
    """
    found = Asked()
    import_tools(cast("JsonObject", body))
    agent = body.get("agent")
    if not isinstance(agent, dict):
        raise InvalidInputError("agent", "is required", "send the SDK's Agent")
    found.settings["agent"] = _without_secrets(cast("dict[str, Any]", agent), sdk, found.secrets)
    for name, source in _mapping(body, "secrets").items():
        found.secrets[name] = secret_value(name, source)
    if found.secrets:
        found.settings["credentials"] = {name: f"vault:{name}" for name in found.secrets}
    for name in CARRIED:
        if body.get(name) not in (None, {}):
            found.settings[name] = body[name]
    place = _mapping(body, "workspace").get("working_dir")
    if isinstance(place, str) and place.startswith("/"):
        found.settings["working_dir"] = place
    return found


def secret_value(name: str, source: object) -> str:
    """The value of a secret as clients send it: text, or the SDK's ``StaticSecret``.

    :raises InvalidInputError: another kind, no value, or a name that no command could use, or that is the agent's.
    """
    where = f"secrets.{name[:80]}"
    if not SECRET_NAME.fullmatch(name):
        raise InvalidInputError(where, "is no name of a variable", "use letters, digits and _, at most 128")
    if name.startswith(RESERVED):
        raise InvalidInputError(where, f"begins with {RESERVED}, as keys of the agent do", "choose another name")
    if isinstance(source, Mapping):
        told = cast("Mapping[str, Any]", source)
        if told.get("kind") == "LookupSecret":
            remedy = "send its value, or name it in the settings' credentials with refresh (docs/how-to/credentials.md)"
            raise InvalidInputError(where, "is to be looked up elsewhere, which is not offered", remedy)
        source = told.get("value")
    if not isinstance(source, str) or not source:
        raise InvalidInputError(where, "has no value", "send text")
    return source


def import_tools(settings: JsonObject) -> None:
    """Import what ``tool_module_qualnames`` names: these modules register tools. At once where it was done before.

    :raises InvalidInputError: naming the module: it cannot be imported here.
    """
    for tool, module in _mapping(settings, "tool_module_qualnames").items():
        field = f"tool_module_qualnames.{tool[:80]}"
        if not isinstance(module, str):
            raise InvalidInputError(field, "is no name of a module", "name the module that registers the tool")
        try:
            importlib.import_module(module)
        except Exception as error:
            problem = f"module {module[:200]!r} cannot be imported here: {type(error).__name__}: {error}"
            raise InvalidInputError(field, problem, "install it on every node, or leave the tool out") from error


def _mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(name, "must be an object", "correct it")
    return cast("dict[str, Any]", value)


# --- secrets in an agent --------------------------------------------------------------------------------------------


def _without_secrets(agent: dict[str, Any], sdk: Sdk, secrets: dict[str, str]) -> Json:
    """The agent with ``$NAME`` for each secret; adds the values to `secrets`."""
    if agent.get("kind", "Agent") != "Agent":
        raise InvalidInputError("agent.kind", "must be Agent", "others run outside of the journal")
    model = validated(sdk.Agent, agent, "agent")
    found = [*secrets_in(model), *plain_secrets_in(cast("Json", agent))]
    return _replaced(agent, (), {place: _named(place, value, secrets) for place, value in found})


def _named(place: tuple[str, ...], value: str, secrets: dict[str, str]) -> str:
    """The name under which a value is kept; the same value has one name."""
    for name, kept in secrets.items():
        if kept == value:
            return name
    plain = name = RESERVED + re.sub(r"[^A-Za-z0-9]+", "_", "_".join(place)).strip("_").upper()[:100]
    while name in secrets:
        name = f"{plain}_{len(secrets)}"
    secrets[name] = value
    return name


def _replaced(value: Any, place: tuple[str, ...], names: Mapping[tuple[str, ...], str]) -> Any:
    if place in names and isinstance(value, str):
        return f"${names[place]}"
    match value:
        case dict():
            parts = cast("dict[str, Any]", value)
            made = {name: _replaced(part, (*place, name), names) for name, part in parts.items()}
            if "model" in parts and parts.get("api_key", "") is None and not any(at[:-1] == place for at in names):
                made["api_key"] = KEYLESS  # or the client library would take the node's own
            return made
        case list():
            listed = cast("list[Any]", value)
            return [_replaced(part, (*place, str(at)), names) for at, part in enumerate(listed)]
        case _:
            return value
