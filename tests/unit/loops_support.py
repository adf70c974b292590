"""The stage of the loops' suite, for tests of single loops."""

from tenure.journal import read_body
from tenure.testing.loop_suite.stage import CONVERSATION as C
from tenure.testing.loop_suite.stage import CORE_OF_TURNS, Conversation, Fuse, MemoryRuntime
from tenure.testing.loop_suite.stage import StagePlace as FakePlace

__all__ = ["CORE_OF_TURNS", "C", "Conversation", "FakePlace", "Fuse", "MemoryRuntime", "bodies", "outcomes"]


def outcomes(conversation: Conversation) -> dict[str, str]:
    """The kind of each call's one outcome; a second one fails."""
    found: dict[str, str] = {}
    for event in conversation.events:
        for call in event.closes:
            assert call not in found, f"{call} has two outcomes"
            found[call] = event.kind
    return found


def bodies(conversation: Conversation, kind: str) -> list[object]:
    return [read_body(e) for e in conversation.events if e.kind == kind]
