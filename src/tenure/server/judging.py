"""Settings, judged from an event loop: a check that may block (imports, downloads) is made in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.journal import JsonObject
    from tenure.node import Node


async def checked(node: Node, agent: str, settings: JsonObject) -> JsonObject:
    """What ``node.check`` says.

    :raises InvalidInputError: names the field and the remedy.
    """
    here = node.agents.get(agent)
    if here is None or not here.check_blocks:
        return node.check(agent, settings)
    return await asyncio.to_thread(node.check, agent, settings)
