"""Tenure: one owner per agent conversation, on a cluster, on your own database.

It promises that a conversation has one owner, that only that owner's writes are accepted, that what was accepted is
kept and settled once, and that a dead owner's work goes on elsewhere. It does not promise that a frozen process's
side effects outside the store cannot overlap its successor's for a moment. ``docs/guarantees.md`` has both lists.

Names are loaded when they are first used: the witness and other small programs import a corner of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.abc import AgentLoop, RuntimeProvider, Store
    from tenure.client import Client
    from tenure.config import Config
    from tenure.embed import Node
    from tenure.errors import (
        CallFailed,
        CallInterrupted,
        ConversationOwnedElsewhereError,
        NodeUnavailableError,
        OwnershipLostError,
        ProvisioningError,
        TenureError,
        TurnDivergedError,
    )
    from tenure.loops import function_loop, load_loop
    from tenure.node import AgentLoopInfo
    from tenure.runtimes import open_provider
    from tenure.server import create_app
    from tenure.stores import open_store

__version__ = "0.1.0"

_HOMES = {
    "AgentLoop": "tenure.abc",
    "AgentLoopInfo": "tenure.node",
    "CallFailed": "tenure.errors",
    "CallInterrupted": "tenure.errors",
    "Client": "tenure.client",
    "Config": "tenure.config",
    "ConversationOwnedElsewhereError": "tenure.errors",
    "Node": "tenure.embed",
    "NodeUnavailableError": "tenure.errors",
    "OwnershipLostError": "tenure.errors",
    "ProvisioningError": "tenure.errors",
    "RuntimeProvider": "tenure.abc",
    "Store": "tenure.abc",
    "TenureError": "tenure.errors",
    "TurnDivergedError": "tenure.errors",
    "create_app": "tenure.server",
    "function_loop": "tenure.loops",
    "load_loop": "tenure.loops",
    "open_provider": "tenure.runtimes",
    "open_store": "tenure.stores",
}

__all__ = [
    "AgentLoop",
    "AgentLoopInfo",
    "CallFailed",
    "CallInterrupted",
    "Client",
    "Config",
    "ConversationOwnedElsewhereError",
    "Node",
    "NodeUnavailableError",
    "OwnershipLostError",
    "ProvisioningError",
    "RuntimeProvider",
    "Store",
    "TenureError",
    "TurnDivergedError",
    "create_app",
    "function_loop",
    "load_loop",
    "open_provider",
    "open_store",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tenure' has no attribute {name!r}")
    return getattr(import_module(home), name)
