"""Commands that run something on this machine: a node, and the demo."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Annotated, Literal

import typer

from tenure.cli import settings as s
from tenure.cli.logs import log_to_stderr
from tenure.config import Config

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
CONVERSATIONS, QUICK_CONVERSATIONS = 30, 12
PAGE_WIDTH = 100


def serve(
    store: s.Store = None,
    node: s.Node = None,
    host: s.Host = None,
    port: s.Port = None,
    agent: s.Agents = None,
    address: s.Address = None,
    insecure: s.Insecure = None,
    allow_host: s.AllowHost = None,
    ttl_s: s.TtlS = None,
    capacity: s.Capacity = None,
    idle_s: s.IdleS = None,
    drain_s: s.DrainS = None,
    sweep_s: s.SweepS = None,
    start_timeout_s: s.StartTimeoutS = None,
    turn_timeout_s: s.TurnTimeoutS = None,
    call_timeout_s: s.CallTimeoutS = None,
    lost_limit: s.LostLimit = None,
    backoff_s: s.BackoffS = None,
    reap_s: s.ReapS = None,
    runtime: s.Runtime = None,
    workspaces: s.Workspaces = None,
    allow_env: s.AllowEnv = None,
    allow_file: s.AllowFile = None,
    allow_command: s.AllowCommand = None,
    allow_url: s.AllowUrl = None,
    allow_folder: s.AllowFolder = None,
    witness: s.Witness = None,
    blocked_loop_s: s.BlockedLoopS = None,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="TENURE_LOG_LEVEL", help="From which level on to log.")
    ] = "info",
    log_format: Annotated[
        LogFormat, typer.Option(envvar="TENURE_LOG_FORMAT", help="For people, or one JSON object a line.")
    ] = "text",
) -> None:
    """Be a node of the cluster.

    Until SIGTERM or SIGINT: then it drains and leaves. Prints `ready URL node=NAME` on standard output once it is. A second signal changes nothing. It exits with 0 after
    a drain (also one that was asked for with `tenure drain`), at most ten seconds after --drain-s; with 75 if a loop
    did not end after the loss of its lease.
    """
    given = dict(locals())
    from tenure.cli.compose import mask_of  # here: programs that only ask need no server
    from tenure.cli.serving import run
    from tenure.vault import Veil

    settings = {part.name: s.joined(given.get(part.name)) for part in dataclasses.fields(Config)}
    config = Config.from_environment(os.environ, **settings)
    veil = Veil(mask_of(config, os.environ))
    log_to_stderr(veil, level=log_level, as_json=log_format == "json")
    run(config, s.agents_of(agent, os.environ), veil)


def demo(
    store: Annotated[
        str | None,
        typer.Option(
            help="On this store, by URL; or `sqlite` (the default) or `redis`: a new one, removed afterwards."
        ),
    ] = None,
    agent: Annotated[list[str] | None, typer.Option(metavar="[NAME=]LOOP[:TARGET]", help="With this agent.")] = None,
    nodes: Annotated[
        int | None, typer.Option(min=2, max=10, help="So many nodes; default 3, or 2 for openhands.")
    ] = None,
    conversations: Annotated[
        int | None, typer.Option(min=1, max=1000, help="So many in the storm; default 30.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, max=86400, help="Break nodes for at least so long.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conversations, in half the time.")] = False,
) -> None:
    """Break real nodes, and count what was lost or doubled.

    Three nodes, a storm of starts, a kill -9, a freeze, a drain, while conversations go on.
    Needs no network beyond this machine and no key. Exits with 1 if any promise was broken.

    With --agent openhands: an OpenHands agent writes files and runs commands, is killed in the middle of one, and goes on
    at another node. Its model is a scripted one, or the one that LLM_MODEL, LLM_BASE_URL and LLM_API_KEY name.
    """
    from rich.console import Console

    from tenure.cli.compose import DEFAULT_AGENTS
    from tenure.cli.demo import Options, openhands, run

    agents = tuple(agent or DEFAULT_AGENTS)
    number = conversations or (QUICK_CONVERSATIONS if quick else CONVERSATIONS)
    raise typer.Exit(
        run(
            Options(store, agents, nodes or (2 if openhands.plays(agents) else 3), number, seconds, quick),
            Console(width=None if sys.stdout.isatty() else PAGE_WIDTH),
        )
    )
