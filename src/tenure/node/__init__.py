"""The only room that acts: one server process, and what it holds."""

from tenure.node.initiation import AgentLoopInfo
from tenure.node.node import Node

__all__ = ["AgentLoopInfo", "Node"]
