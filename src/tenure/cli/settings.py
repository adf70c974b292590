"""The options of ``tenure serve``: one for each setting, named like it, null when it is not given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tenure.config import Config, env_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULTS = {part.name: part.default for part in dataclasses.fields(Config)}
AGENTS_ENV = "TENURE_AGENT"


def _setting(name: str, text: str) -> Any:
    default = _DEFAULTS[name]
    shown = f", default {default}" if isinstance(default, int | float | str) and default != "" else ""
    return typer.Option(help=f"{text} [{env_name(name)}{shown}]", show_default=False)


Store = Annotated[
    str | None, _setting("store", "Where conversations live. Put a URL with a password into the environment.")
]
Node = Annotated[str | None, _setting("node", "This node's name, for people.")]
Host = Annotated[
    str | None, _setting("host", "Where to listen; beyond loopback only with TENURE_API_KEY or --insecure.")
]
Port = Annotated[int | None, _setting("port", "The port; 0 takes a free one.")]
Address = Annotated[str | None, _setting("address", "What other nodes and people call this one by.")]
Insecure = Annotated[
    bool | None, _setting("insecure", "Listen beyond loopback without a key: something else guards it.")
]
AllowHost = Annotated[
    list[str] | None,
    _setting("allow_host", "A name by which browsers may call it, on loopback without a key. May be repeated."),
]
TtlS = Annotated[float | None, _setting("ttl_s", "How long a silent node keeps what it holds.")]
Capacity = Annotated[int | None, _setting("capacity", "Conversations held at most.")]
IdleS = Annotated[float | None, _setting("idle_s", "An idle conversation is passivated after this.")]
DrainS = Annotated[float | None, _setting("drain_s", "How long turns may go on after SIGTERM.")]
SweepS = Annotated[float | None, _setting("sweep_s", "Period of the look at what is wanted.")]
StartTimeoutS = Annotated[float | None, _setting("start_timeout_s", "The longest that a runtime may take to be ready.")]
TurnTimeoutS = Annotated[float | None, _setting("turn_timeout_s", "The longest turn.")]
CallTimeoutS = Annotated[float | None, _setting("call_timeout_s", "The longest call.")]
LostLimit = Annotated[int | None, _setting("lost_limit", "Owners that one turn may lose before it is abandoned.")]
BackoffS = Annotated[float | None, _setting("backoff_s", "The first back-off after a failed start.")]
ReapS = Annotated[float | None, _setting("reap_s", "Period of the look for runtimes that nobody needs.")]
Runtime = Annotated[str | None, _setting("runtime", "Where tools run.")]
Workspaces = Annotated[
    str | None, _setting("workspaces", "Where runtimes keep their files; default: beside the store.")
]
AllowEnv = Annotated[
    list[str] | None,
    _setting(
        "allow_env", "Variables that conversations may ask for as credentials: a pattern, 'LLM_*'. May be repeated."
    ),
]
AllowFile = Annotated[
    list[str] | None, _setting("allow_file", "A folder of files that they may ask for. May be repeated.")
]
AllowCommand = Annotated[
    list[str] | None,
    _setting("allow_command", "A program that makes a credential; its arguments come from them. May be repeated."),
]
AllowUrl = Annotated[
    list[str] | None, _setting("allow_url", "URLs below this prefix that make a credential. May be repeated.")
]
AllowFolder = Annotated[
    list[str] | None,
    _setting("allow_folder", "A folder below which conversations may name their working folder. May be repeated."),
]
Witness = Annotated[bool | None, _setting("witness", "Have a process that buries this node when it dies.")]
BlockedLoopS = Annotated[
    float | None, _setting("blocked_loop_s", "Report an event loop that does not answer for so long.")
]
Agents = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        metavar="[NAME=]LOOP[:TARGET]",
        help=f"What it can run: scripted, or module:function. May be repeated; the first is the default of a "
        f"conversation that names none. [{AGENTS_ENV}, comma separated, default scripted]",
        show_default=False,
    ),
]


def joined(given: Any) -> Any:
    """An option that was repeated is a list with commas, as in the environment; null if it was not given at all."""
    return (",".join(map(str, cast("list[Any]", given))) or None) if isinstance(given, list) else given


def agents_of(given: list[str] | None, environ: Mapping[str, str]) -> list[str]:
    """The agents that were asked for, by option or else by environment; empty for the default."""
    return given or [spec for part in environ.get(AGENTS_ENV, "").split(",") if (spec := part.strip())]
