"""The event stream by hand: a conversation out into a file, in from one, and a fork of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tenure.cli.asking import Cluster
from tenure.cli.commands import Conversation, Key
from tenure.client import Conversation as Copied
from tenure.errors import InvalidInputError

NewId = Annotated[str | None, typer.Option("--id", help="The copy's id; else one is made.", show_default=False)]
Rerun = Annotated[bool, typer.Option("--rerun", help="Send again what it left unanswered, or else its last message.")]


async def export(
    to: Cluster,
    conversation: Conversation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Into this file, whole or not at all.", show_default=False)
    ] = None,
) -> None:
    """Write a conversation's whole journal as JSON lines with checksums, up to its present head. From any node."""
    if output is None:
        async for line in to.client.export(conversation):
            print(line)
        return
    part = output.with_name(f"{output.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            async for line in to.client.export(conversation):
                file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise InvalidInputError("output", f"cannot be written: {error.strerror}", "name another file") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


async def import_(
    to: Cluster,
    file: Annotated[Path, typer.Argument(help="An export; - reads standard input.", show_default=False)],
    id: NewId = None,
    agent: Annotated[
        str | None, typer.Option(help="The copy's agent, if its name differs here.", show_default=False)
    ] = None,
    rerun: Rerun = False,
    key: Key = None,
) -> None:
    """Make a new conversation whose past is an export. Nothing of it runs again.

    What the past left open is closed in the copy, and what waited is settled there as refused.
    """
    try:
        lines = await asyncio.to_thread(sys.stdin.buffer.read if str(file) == "-" else file.read_bytes)
    except OSError as error:
        raise InvalidInputError("file", f"cannot be read: {error.strerror}", "name an export") from error
    _tell(to, await to.client.import_(lines, id, agent=agent, rerun=rerun, key=key))


async def fork(
    to: Cluster,
    conversation: Conversation,
    at: Annotated[int | None, typer.Option(min=1, help="Up to this seq; default: all.", show_default=False)] = None,
    id: NewId = None,
    rerun: Rerun = False,
    key: Key = None,
) -> None:
    """Make a new conversation whose past is this one's. The original goes on as before.

    Settings are copied; secrets of the vault are not, and are named, to be set again.
    """
    _tell(to, await to.client.fork(conversation, at, id=id, rerun=rerun, key=key))


def _tell(to: Cluster, copy: Copied) -> None:
    sealed = copy.raw.get("vault", [])
    words = f"{copy.id} has the past up to {copy.last_seq}, and does nothing by itself"
    more = f"\nnot copied from the vault, set what it needs: {', '.join(sealed)}" if sealed else ""
    to.tell(dict(copy.raw), lambda: Text(words + more))
