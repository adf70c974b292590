"""The only room that acts: one server process, and what it holds.

Loaded by name: the witness is a module of this room, and must start without the rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.node.initiation import AgentLoopInfo
    from tenure.node.node import Node
    from tenure.node.rehydration import Copy

__all__ = ["AgentLoopInfo", "Copy", "Node"]


def __getattr__(name: str) -> object:
    if name == "Node":
        from tenure.node.node import Node

        return Node
    if name == "AgentLoopInfo":
        from tenure.node.initiation import AgentLoopInfo

        return AgentLoopInfo
    if name == "Copy":
        from tenure.node.rehydration import Copy

        return Copy
    raise AttributeError(f"module 'tenure.node' has no attribute {name!r}")
