"""The event stream by hand: a conversation out into a file, in from one, and a fork of it; OpenHands' own files, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tenure.cli.asking import Cluster
from tenure.cli.commands import Conversation, Key
from tenure.client import Conversation as Copied
from tenure.errors import InvalidInputError

NewId = Annotated[str | None, typer.Option("--id", help="The copy's id; else one is made.", show_default=False)]
Rerun = Annotated[bool, typer.Option("--rerun", help="Send again what it left unanswered, or else its last message.")]


class As(StrEnum):
    """What an export may be besides ours."""

    TRAJECTORY = "trajectory"
    DIRECTORY = "directory"


async def export(
    to: Cluster,
    conversation: Conversation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Into this file, whole or not at all.", show_default=False)
    ] = None,
    shape: Annotated[
        As | None,
        typer.Option(
            "--as", help="As OpenHands writes it: its events, or a directory that its SDK opens.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a conversation's whole journal as JSON lines with checksums, up to its present head. From any node."""
    if shape is not None:
        await _export_as(shape, [line async for line in to.client.export(conversation)], output)
        return
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
    file: Annotated[
        Path,
        typer.Argument(
            help="An export; a trajectory of OpenHands, or a directory of its server; - reads standard input.",
            show_default=False,
        ),
    ],
    id: NewId = None,
    agent: Annotated[
        str | None, typer.Option(help="The copy's agent, if its name differs here.", show_default=False)
    ] = None,
    rerun: Rerun = False,
    settings: Annotated[
        Path | None, typer.Option(help="A JSON file: settings for what OpenHands has written.", show_default=False)
    ] = None,
    key: Key = None,
) -> None:
    """Make a new conversation whose past is an export. Nothing of it runs again.

    What the past left open is closed in the copy, and what waited is settled there as refused.
    """
    lines = await asyncio.to_thread(_lines_of, file, agent or "openhands", settings)
    _tell(to, await to.client.import_(lines, id, agent=agent, rerun=rerun, key=key))


def _lines_of(file: Path, agent: str, settings: Path | None) -> bytes:
    """The lines of an export: those of the file, or made of what OpenHands has written."""
    from tenure.loops.openhands import trajectories  # half a second of imports that other commands do without

    given: dict[str, Any] = {}
    try:
        if settings is not None:
            given = json.loads(settings.read_bytes())
        if file.is_dir():
            events, found = trajectories.read_directory(file)
            return trajectories.as_export(events, agent=agent, settings={**found, **given})
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidInputError("file", f"cannot be read: {error.strerror}", "name an export") from error
    except ValueError:
        raise InvalidInputError("settings", "is not JSON", "name a file with a JSON object") from None
    if trajectories.is_trajectory(data):
        return trajectories.as_export(trajectories.read_trajectory(data), agent=agent, settings=given)
    if settings is not None:
        raise InvalidInputError("settings", "come with an export of Tenure's", "leave them out")
    return data


async def _export_as(shape: As, lines: list[str], output: Path | None) -> None:
    from tenure.loops.openhands import trajectories

    if shape is As.TRAJECTORY:
        text = json.dumps(trajectories.trajectory_of(lines), ensure_ascii=False, indent=1)
        if output is None:
            print(text)
            return
        files = {output.name: text}
    else:
        if output is None:
            raise InvalidInputError("output", "a directory needs a name", "give --output FOLDER")
        files = trajectories.directory_of(lines)
    await asyncio.to_thread(_write, output, files, folder=shape is As.DIRECTORY)


def _write(output: Path, files: dict[str, str], *, folder: bool) -> None:
    """Whole or not at all: beside the name first, then under it."""
    part = output.with_name(f"{output.name}.{secrets.token_hex(4)}.part")
    try:
        for name, text in files.items():
            file = part / name if folder else part
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if folder and output.exists():
            raise InvalidInputError("output", "is there already", "name a folder that is not")
        part.replace(output)
    except OSError as error:
        raise InvalidInputError("output", f"cannot be written: {error.strerror}", "name another file") from error
    finally:
        shutil.rmtree(part, ignore_errors=True) if folder else part.unlink(missing_ok=True)


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
