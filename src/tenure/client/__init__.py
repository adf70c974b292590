"""What programs and the CLI talk through: ``async with Client("http://…") as client``.

Any node serves any conversation, so a client has several addresses and goes on with the next one when one does not
answer. It repeats only what may be repeated: a message always has a key, so the same message sent again, to whichever
node, is the same message. A stream keeps its cursor, reconnects by itself, and has no gap and no duplicate.
"""

from tenure.client.client import Client
from tenure.client.replies import (
    Conversation,
    Delta,
    LoopInfo,
    NodeInfo,
    ProblemError,
    RewoundError,
    Sent,
    StartProgress,
    UnreachableError,
)
from tenure.client.stream import Stream

__all__ = [
    "Client",
    "Conversation",
    "Delta",
    "LoopInfo",
    "NodeInfo",
    "ProblemError",
    "RewoundError",
    "Sent",
    "StartProgress",
    "Stream",
    "UnreachableError",
]
