"""After a restore: the one command that works on a store directly, while no node runs."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from tenure.cli import settings as s
from tenure.clock import SystemClock
from tenure.config import Config


def restored(
    store: s.Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with JSON, for programs.")] = False,
) -> None:
    """Make a store safe that was restored from a backup. Run it after the restore, before any node starts.

    Its epochs are older than those of its former life: this raises all of them above that, so that whoever still holds a
    lease from then is refused, and buries the nodes of the backup. No node starts on the store until it is done; cut off, run it again.
    """
    from tenure.cli.asking import print_json
    from tenure.node.restoration import Raised, raise_epochs
    from tenure.stores import open_store

    config = Config.from_environment(os.environ, store=store)

    async def run() -> Raised:
        async with open_store(config.store) as opened:
            return await raise_epochs(opened, SystemClock())

    done = asyncio.run(run())
    if as_json:
        print_json({"floor": done.floor, "conversations": done.conversations, "buried": done.buried})
    else:
        typer.echo(
            f"{done.conversations} conversations are above epoch {done.floor}, {done.buried} nodes buried: nodes may start"
        )
